from __future__ import annotations

import copy
import shutil
import time

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from autodisc.config import DistillationConfig
from autodisc.costs import Ledger
from autodisc.distillation import teacher_cache
from autodisc.distillation.losses import Likeliest
from autodisc.distillation.teacher_cache import STAGE, TeacherCache
from autodisc.models.modeling_autodisc import plain_class
from autodisc.pruning.candidates import Candidate
from autodisc.pruning.supernet import extract
from autodisc.tasks.batches import batches
from autodisc.tasks.splits import IGNORED
from autodisc.tasks.splits import make_split as make_own

STANDARD = ("bert", "distilbert", "electra", "roberta")  # their layers are computed by hand


@pytest.fixture
def open_cache(tmp_path, make_runtime):
    def call(teacher, split, *, depths=(1, 3), ledger=None, max_gib=1.0, folder=None, **others) -> TeacherCache:
        return TeacherCache(
            teacher,
            split,
            depths,
            folder=folder or tmp_path / "teacher",
            max_gib=max_gib,
            runtime=make_runtime(),
            ledger=ledger or Ledger(),
            **others,
        )

    return call


@pytest.fixture
def count_calls():
    def call(model) -> list[int]:
        calls: list[int] = []
        model.register_forward_hook(lambda *_: calls.append(1))
        return calls

    return call


def passed(split, size=8, seed=None):
    generator = None if seed is None else np.random.default_rng(seed)
    return list(batches(split, batch_size=size, pad_token_id=0, generator=generator))


@pytest.mark.parametrize("family", STANDARD)
def test_outputs_are_the_teachers_on_real_tokens_row_by_row(tiny, make_split, open_cache, family):
    teacher, split = tiny(family), make_split(20)
    with open_cache(teacher, split, depths=(0, 1, 3)) as outputs, torch.no_grad():
        for batch in passed(split, seed=3):
            found = outputs(batch)
            expected = teacher(**batch.inputs, output_hidden_states=True)
            states = [expected.hidden_states[depth] for depth in (0, 1, 3)]
            real = batch.inputs["attention_mask"].bool()
            assert_close(found.logits, expected.logits)
            assert not found.hidden[~real].any()
            assert_close(found.hidden[real], torch.stack(states, 2)[real], rtol=1e-3, atol=1e-3)  # half precision


def test_a_second_use_reads_the_same_values_and_never_calls_the_teacher(tiny, make_split, open_cache, count_calls):
    split = make_split(20)
    first, again = tiny(), tiny()
    made, read = count_calls(first), count_calls(again)
    ordered, shuffled = passed(split), passed(split, size=5, seed=1)
    with open_cache(first, split) as outputs:
        for batch in ordered:
            outputs(batch)
        before = [outputs(batch) for batch in shuffled]
    with open_cache(again, split) as outputs:
        after = [outputs(batch) for batch in shuffled]
    assert len(made) == len(ordered)
    assert not read
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a.logits, b.logits)
        assert torch.equal(a.hidden, b.hidden)


def test_a_row_that_is_there_keeps_its_value_when_its_batch_is_computed_again(tiny, make_split, open_cache):
    split = make_split(12)
    with open_cache(tiny(), split) as outputs:
        small, whole = passed(split.select(range(12)), size=4)[0], passed(split, size=12)[0]
        before = outputs(small)
        outputs(whole)  # other padding, other rounding
        after = outputs(small)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.hidden, after.hidden)


def test_rows_that_are_found_are_charged_what_they_cost_to_make(tiny, make_split, open_cache, monkeypatch):
    teacher, split = tiny(), make_split(64)
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    teacher.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 2.0))
    spent = []
    for _ in range(2):
        ledger = Ledger()
        with open_cache(teacher, split, ledger=ledger) as outputs:
            for _ in range(3):  # passes: a row is paid for once
                for batch in passed(split):
                    outputs(batch)
        spent.append(ledger.stages[STAGE])
    made, found = spent
    assert found.flops == pytest.approx(made.flops, rel=0.02)
    assert made.seconds == 2.0 * len(passed(split))
    assert found.seconds == pytest.approx(made.seconds)
    assert found.tokens == split.tokens


def test_a_run_pays_for_a_row_once_however_often_it_opens_the_cache(tiny, make_split, open_cache):
    teacher, split = tiny(), make_split(64)
    for _ in range(2):  # making the rows, then finding them
        ledger = Ledger()
        flops = []
        for _ in range(3):
            with open_cache(teacher, split, ledger=ledger) as outputs:
                for batch in passed(split):
                    outputs(batch)
            flops.append(ledger.stages[STAGE].flops)
        assert flops[0] > 0
        assert flops[1] == flops[2] == flops[0]


def test_a_killed_run_leaves_rows_whose_cost_is_known(tiny, make_split, open_cache):
    teacher, split = tiny(), make_split(64)
    outputs = open_cache(teacher, split)
    for batch in passed(split)[:3]:
        outputs(batch)
    del outputs  # no exit: killed
    ledger = Ledger()
    with open_cache(teacher, split, ledger=ledger) as outputs:
        for batch in passed(split)[:3]:
            outputs(batch)
    assert ledger.stages[STAGE].flops > 0


def test_above_the_limit_the_teacher_runs_again_and_that_is_said_once(
    tiny, make_split, open_cache, count_calls, make_listener
):
    teacher, split, listener = tiny(), make_split(20), make_listener()
    calls = count_calls(teacher)
    ledger = Ledger()
    with open_cache(teacher, split, max_gib=1e-6, progress=listener, ledger=ledger) as outputs:
        for _ in range(2):
            for batch in passed(split):
                found = outputs(batch)
                expected = teacher(**batch.inputs, output_hidden_states=True)
                assert_close(found.logits, expected.logits)
    assert len(calls) == 2 * 2 * len(passed(split))
    assert len(listener.said) == 1
    assert "the teacher runs again" in listener.said[0]
    assert ledger.stages[STAGE].tokens == 2 * sum(batch.padded_tokens for batch in passed(split))


def test_reading_goes_on_where_it_is_faster_and_the_record_says_why(tiny, make_split, open_cache, count_calls):
    teacher, split, ledger = tiny(layers=6), make_split(64), Ledger()
    calls = count_calls(teacher)
    with open_cache(teacher, split, ledger=ledger) as outputs:
        for _ in range(6):
            for batch in passed(split):
                outputs(batch)
    assert len(calls) == len(passed(split))
    (reason,) = ledger.as_dict()["decisions"].values()
    assert reason.startswith("read (logits and hidden states, float16)")


def test_computing_takes_over_where_it_is_faster_with_the_same_values(
    tiny, make_split, open_cache, count_calls, make_listener, monkeypatch
):
    teacher, split, ledger, listener = tiny(), make_split(64), Ledger(), make_listener()
    calls = count_calls(teacher)
    monkeypatch.setattr(teacher_cache._Store, "rate", lambda self: (1e-12, 1.0))
    with open_cache(teacher, split, ledger=ledger, progress=listener) as outputs:
        before = [outputs(batch) for batch in passed(split)]
        for _ in range(teacher_cache.MEASURED_READS):
            outputs(passed(split)[0])
        made = len(calls)
        after = [outputs(batch) for batch in passed(split)]
    assert len(calls) - made == len(passed(split))
    for first, second in zip(before, after, strict=True):
        assert torch.equal(first.hidden, second.hidden)
        assert torch.equal(first.logits, second.logits)
    (reason,) = ledger.as_dict()["decisions"].values()
    assert reason.startswith("recompute: ")
    assert len(listener.said) == 1


def test_logits_alone_are_cached_where_no_depth_is_asked_for(tiny, make_split, open_cache, count_calls):
    teacher, split = tiny(), make_split(20)
    calls = count_calls(teacher)
    for _ in range(2):
        with open_cache(teacher, split, depths=()) as outputs:
            assert all(outputs(batch).hidden is None for batch in passed(split))
    assert len(calls) == len(passed(split))


def test_a_cache_that_is_there_is_used_however_little_is_free(tiny, make_split, open_cache, count_calls, monkeypatch):
    teacher, split = tiny(), make_split(300)
    with open_cache(teacher, split) as outputs:
        for batch in passed(split):
            outputs(batch)
        size = outputs.token_bytes * split.tokens
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda _: usage._replace(free=size))  # half is too little
    calls = count_calls(teacher)
    with open_cache(teacher, split) as outputs:
        outputs(passed(split)[0])
    assert calls == []
    with open_cache(teacher, make_split(300, seed=5)) as outputs:
        outputs(passed(make_split(300, seed=5))[0])
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_beyond_half_precision_are_its_largest_and_not_infinite(tiny, make_split, open_cache, dtype):
    teacher = tiny().to(dtype)
    last = [module for module in teacher.base_model.encoder.modules() if isinstance(module, torch.nn.LayerNorm)][-1]
    with torch.no_grad():
        last.weight.mul_(1e6)
    with open_cache(teacher, make_split(8)) as outputs:
        (batch,) = passed(make_split(8))
        found = outputs(batch).hidden
    assert torch.isfinite(found).all()
    assert found.abs().max() == 65504


def test_other_weights_data_or_depths_have_another_key(tiny, make_split, open_cache, random_ranking, tmp_path):
    teacher, split = tiny(), make_split(20)
    cut = Candidate(0.6, (3, 0, 1), (16, 9, 0))
    others = [
        (teacher, split, (1, 3)),
        (tiny(seed=1), split, (1, 3)),
        (teacher, make_split(20, seed=9), (1, 3)),
        (teacher, split.select(range(10)), (1, 3)),
        (teacher, split, (2, 3)),
        (extract(teacher, random_ranking(teacher), cut), split, (1, 3)),
        (extract(teacher, random_ranking(teacher, 1), cut), split, (1, 3)),
    ]
    for number, (model, rows, depths) in enumerate(others, 1):
        for _ in range(2):
            with open_cache(model, rows, depths=depths):
                pass
        assert len(list((tmp_path / "teacher").iterdir())) == number


@pytest.fixture
def tagger(tiny):
    """A token classifier of 9 classes."""
    config = copy.deepcopy(tiny().config)
    config.num_labels = 9
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return plain_class("bert", "token")._from_config(config).eval()


@pytest.fixture
def make_labelled(make_split):
    """The rows of ``make_split``, every token but the first with a label."""

    def make(rows: int):
        plain = make_split(rows)
        labels = [[IGNORED, *(i % 9 for i in range(n - 1))] for n in plain.lengths.tolist()]
        return make_own("train", plain.rows.add_column("labels", labels), np.zeros((rows, 1)))

    return make


@pytest.mark.parametrize("k", [4, 64])
def test_of_tokens_all_logits_are_kept_or_the_likeliest_as_they_are_recomputed(
    tagger, make_labelled, open_cache, count_calls, k
):
    split, calls = make_labelled(20), count_calls(tagger)
    config = DistillationConfig(top_k=k, temperature=2.0)
    ledger = Ledger()
    for number in (1, 2):  # made, then found
        with open_cache(tagger, split, config=config, ledger=ledger) as outputs, torch.no_grad():
            for batch in passed(split, seed=number):
                found = outputs(batch)
                expected = tagger(**batch.inputs).logits
                real = batch.inputs["attention_mask"].bool()
                if k == 64:
                    assert_close(found.logits[real], expected[real])
                    continue
                said = Likeliest.of(expected, k, 2.0)
                assert torch.equal(found.logits.classes[real], said.classes[real])
                assert_close(found.logits.log_probabilities[real], said.log_probabilities[real])
        if number == 1:
            made = len(calls)
            calls.clear()
    assert made == len(passed(split)) + len(passed(split))  # the cache's own calls, and this test's
    assert len(calls) == len(passed(split))


def test_what_is_kept_of_a_token_is_counted_before_it_is_kept(tagger, make_labelled, open_cache, tmp_path):
    split = make_labelled(20)
    with open_cache(tagger, split, config=DistillationConfig(top_k=4)) as outputs:
        assert outputs.token_bytes == 2 * 2 * 32 + 4 * 4 + 4 * 5
        for batch in passed(split):
            outputs(batch)
    files = {path.name: path.stat().st_size for path in next((tmp_path / "teacher").iterdir()).iterdir()}
    assert sum(size for name, size in files.items() if name not in ("cost.json", "filled.u8")) == (
        outputs.token_bytes * split.tokens
    )


def test_another_temperature_is_another_cache_where_the_likeliest_are_kept(tagger, make_labelled, open_cache, tmp_path):
    split = make_labelled(8)
    for number, (k, temperature) in enumerate([(4, 1.0), (4, 2.0), (5, 1.0), (64, 1.0)], 1):
        with open_cache(tagger, split, config=DistillationConfig(top_k=k, temperature=temperature)):
            assert len(list((tmp_path / "teacher").iterdir())) == number
    with open_cache(tagger, split, config=DistillationConfig(temperature=2.0)):  # all logits: at any temperature
        assert len(list((tmp_path / "teacher").iterdir())) == 4
