"""Timings by turns, and predictions from a table. No test asserts how long anything takes."""

from __future__ import annotations

import itertools

import pytest
import torch

from autodisc.errors import ConfigError, ModelError
from autodisc.models.checkpoints import Kept
from autodisc.models.latency import (
    LatencyTable,
    Timing,
    counts,
    latency_table,
    longest_input,
    random_inputs,
    shaped,
    shares,
    take_turns,
)
from autodisc.models.layouts import blocks
from autodisc.pruning.surgery import keep

TABLE = LatencyTable(1, 16, base_ms=2.0, heads=((0, 0.0), (1, 1.0), (4, 2.5)), neurons=((0, 0.0), (8, 0.5), (32, 3.5)))

ABSOLUTE = ("bert", "distilbert", "electra", "roberta", "xlm-roberta", "camembert", "mpnet", "gpt2")  # positions end


def test_a_prediction_is_the_sum_of_base_and_layers():
    assert TABLE.ms((0, 0), (0, 0)) == 2.0
    assert TABLE.ms((4, 1), (32, 8)) == pytest.approx(2.0 + (2.5 + 1.0) + (3.5 + 0.5))


def test_between_timed_widths_it_is_a_straight_line():
    assert TABLE.ms((2,), (20,)) == pytest.approx(2.0 + 1.5 + 2.0)


def test_a_timing_has_its_percentiles_over_all_counted_calls():
    timing = Timing(((0.001, 0.003), (0.002, 0.010)))
    assert timing.median_ms == pytest.approx(2.5)
    assert timing.median_ms < timing.p95_ms <= 10.0


def test_a_ratio_is_taken_turn_by_turn_so_that_a_slow_machine_slows_both():
    student = Timing(((1.0, 1.0), (5.0, 5.0), (1.0, 1.0)))  # the second turn had company
    teacher = Timing(((4.0, 4.0), (20.0, 20.0), (4.0, 4.0)))
    assert student.times_as_fast(teacher) == 4.0


class Clock:
    """Time passes by what the works say they take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[tuple[str, int]] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float):
        def call(number: int) -> None:
            self.log.append((name, number))
            self.now += seconds

        return call


def test_works_take_turns_and_get_the_same_calls():
    clock = Clock()
    works = {"slow": clock.work("slow", 0.2), "quick": clock.work("quick", 0.01)}
    found = take_turns(works, turns=3, calls=8, turn_s=0.5, clock=clock)
    assert {len(turn) for timing in found.values() for turn in timing.turns} == {2}  # what fits the slower one
    assert found["quick"].times_as_fast(found["slow"]) == pytest.approx(20)
    order = [name for name, _ in itertools.groupby(clock.log, key=lambda entry: entry[0])]
    assert order == ["slow", "quick"] * 4
    calls = {name: [number for other, number in clock.log if other == name] for name in works}
    assert calls["slow"] == calls["quick"]
    assert set(range(6)) <= set(calls["slow"])


def test_the_first_call_of_a_turn_is_not_counted():
    clock = Clock()

    def cold(number: int) -> None:  # the call after another's is slower
        clock.now += 5.0 if clock.log and clock.log[-1][0] == "other" else 1.0
        clock.log.append(("cold", number))

    found = take_turns({"cold": cold, "other": clock.work("other", 1.0)}, turns=4, calls=3, turn_s=60, clock=clock)
    assert set(found["cold"].calls) == {1.0}


def test_timed_widths_begin_with_none_end_with_all_and_suit_the_kernels():
    assert counts((0, 0.02, 0.04, 0.5, 1), 1536) == (0, 32, 64, 768, 1536)
    assert counts((0, 1 / 12, 1 / 6, 1 / 4, 1), 4) == (0, 1, 4)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_shaped_model_has_the_units_asked_for_and_shares_the_embeddings(tiny, family):
    model = tiny(family)
    small = shaped(model, (0, 2, 4), (32, 0, 8))
    assert [block.heads for block in blocks(small)] == [0, 2, 4]
    assert [block.neurons for block in blocks(small)] == [32, 0, 8]
    assert small.base_model.embeddings is model.base_model.embeddings
    assert [block.heads for block in blocks(model)] == [4, 4, 4]
    kept = Kept(((), (0, 1), (0, 1, 2, 3)), (tuple(range(32)), (), tuple(range(8))))
    given = random_inputs(model, 2, 6, model.device)
    with torch.no_grad():
        torch.testing.assert_close(small(**given).logits, keep(model, kept)(**given).logits)


def test_a_table_is_of_this_model_and_predicts_every_candidate(tiny, make_runtime):
    model = tiny("bert")
    table = latency_table(model, batch=2, length=6, runtime=make_runtime())
    assert (table.batch, table.length) == (2, 6)
    assert table.base_ms > 0
    assert table.heads[0] == table.neurons[0] == (0, 0.0)
    assert table.heads[-1][0] == 4
    assert table.neurons[-1][0] == 32
    assert table.ms((0, 0, 0), (0, 0, 0)) == table.base_ms
    assert isinstance(table.ms((1, 2, 3), (3, 8, 31)), float)


def test_a_table_of_a_pruned_model_is_refused(tiny, make_runtime):
    model = keep(tiny("bert"), Kept(((0,), (), (1, 2)), ((), (0, 1), (2,))))
    with pytest.raises(ModelError, match="give its teacher"):
        latency_table(model, batch=1, length=4, runtime=make_runtime())


@pytest.mark.parametrize("family", ABSOLUTE)
def test_the_longest_input_is_the_longest_that_runs(tiny, family):
    model = tiny(family)
    longest = longest_input(model)
    model(torch.full((1, longest), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, longest + 1), 7))


@pytest.mark.parametrize("family", ["deberta-v2", "deberta-v2, own keys", "t5"])
def test_where_positions_are_distances_no_input_is_too_long(tiny, family):
    model = tiny(family, layers=1)
    assert longest_input(model) is None
    assert model(torch.full((1, 150), 7)).logits.isfinite().all()


def test_a_table_of_texts_that_are_too_long_is_refused(tiny, make_runtime):
    with pytest.raises(ConfigError, match="length: got 141; the teacher has positions for 140 tokens, give no more"):
        latency_table(tiny("bert"), batch=1, length=141, runtime=make_runtime())


def test_shares_of_a_forward_add_up_and_leave_no_hook(tiny, make_runtime):
    model = tiny("bert")
    found = shares(model, [random_inputs(model, 2, 6, model.device)], make_runtime())
    assert 0 < found.encoder < 1
    assert found.embedding + found.encoder + found.classifier == pytest.approx(1, abs=0.2)  # medians of each
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
