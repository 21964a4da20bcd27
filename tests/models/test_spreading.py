"""A teacher of which some layers lie on disk does what it does as a whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from autodisc.config import DistillationConfig, ImportanceConfig
from autodisc.costs import Ledger
from autodisc.errors import ModelError
from autodisc.models.checkpoints import Kept, fingerprint, load, load_model, save_model
from autodisc.models.inference import forward_macs, predict
from autodisc.models.layouts import blocks, embeddings
from autodisc.models.spreading import is_spread, state_of, waits
from autodisc.pruning.candidates import Candidate
from autodisc.pruning.importance import estimate_importance, rank_units
from autodisc.pruning.supernet import Supernet, extract
from autodisc.pruning.surgery import keep, own_memory
from autodisc.tasks.batches import batches

HALF = Candidate(0.5, (2, 3, 1), (16, 8, 24))


def layers_on_disk(model) -> dict[str, str]:
    """The second layer and the third; all else stays."""
    names = {id(module): name for name, module in model.named_modules()}
    found = dict.fromkeys((names[id(block.layer)] for block in blocks(model)[1:3]), "disk")

    def rest(module, prefix: str) -> None:
        own = [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
        found.update({f"{prefix}{name}": "cpu" for name in own})
        for name, child in module.named_children():
            below = [place for place in found if place.startswith(f"{prefix}{name}")]
            if not below:
                found[f"{prefix}{name}"] = "cpu"
            elif f"{prefix}{name}" not in found:
                rest(child, f"{prefix}{name}.")

    rest(model, "")
    return found


@pytest.fixture
def both(tiny, tmp_path):
    """``both(family)``: a model, and the same with two of its layers on disk, frozen."""

    def make(family: str, *, head=None, everything: bool = False):
        folder = tmp_path / family.replace(",", "").replace(" ", "-")
        save_model(tiny(family, head=head), None, folder)
        whole = load_model(folder)
        places = {"": "disk"} if everything else layers_on_disk(whole)
        spread = load_model(folder, device_map=places, home=torch.device("cpu"))
        assert is_spread(spread)
        assert waits(spread)
        return whole, spread

    return make


def equal(left, right) -> None:
    mine, theirs = dict(state_of(left)), dict(state_of(right))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert not theirs[name].is_meta
        assert torch.equal(tensor, theirs[name]), name


def test_logits_and_weights_are_those_of_the_whole(any_family, both, inputs_of):
    whole, spread = both(any_family)
    with torch.no_grad():
        assert torch.equal(whole(**inputs_of(whole)).logits, spread(**inputs_of(whole)).logits)
    equal(whole, spread)
    assert fingerprint(whole) == fingerprint(spread)
    assert forward_macs(whole) == forward_macs(spread)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_teacher_that_lies_on_disk_as_a_whole_is_the_same_one(family, both, batch):
    whole, spread = both(family, everything=True)
    with torch.no_grad():
        assert torch.equal(whole(**batch).logits, spread(**batch).logits)
    assert fingerprint(whole) == fingerprint(spread)


def test_predictions_are_those_of_the_whole_and_weights_wait_again_after_them(both, make_task, make_runtime):
    task, runtime = make_task(), make_runtime()
    whole, spread = both("bert")
    first, second = (
        predict(model, task.validation, task=task, runtime=runtime, ledger=Ledger()) for model in (whole, spread)
    )
    assert (first == second).all()
    assert waits(spread)


@pytest.mark.parametrize("used", [False, True])
def test_a_cut_of_it_is_the_cut_of_the_whole_and_holds_no_hook(any_family, both, inputs_of, random_ranking, used):
    whole, spread = both(any_family)
    if used:  # parameters that were brought and taken away again are others
        with torch.no_grad():
            spread(**inputs_of(whole))
    ranking = random_ranking(whole)
    mine, theirs = (extract(model, ranking, HALF) for model in (whole, spread))
    equal(mine, theirs)
    assert not is_spread(theirs)
    assert not any({"_hf_hook", "forward", "_old_forward", "to", "cuda"} & vars(m).keys() for m in theirs.modules())
    assert not hasattr(theirs, "hf_device_map")
    assert all(parameter.requires_grad for parameter in theirs.parameters())
    assert len(list(theirs.parameters())) == len(list(mine.parameters()))  # tied ones are tied
    with torch.no_grad():
        assert torch.equal(mine(**inputs_of(mine)).logits, theirs(**inputs_of(mine)).logits)
    theirs.to(torch.float64)  # its own, not the teacher's
    assert not any(tensor.dtype == torch.float64 for _, tensor in state_of(spread))


def test_a_cut_trains_and_the_teacher_stays(both, batch, random_ranking, make_runtime):
    whole, spread = both("llama")
    before = fingerprint(spread)
    supernet = Supernet(
        extract(spread, random_ranking(whole), Candidate(0.0, (4,) * 3, (32,) * 3)), random_ranking(whole)
    )
    for module in embeddings(supernet.model):
        module.requires_grad_(False)
    own_memory(supernet.model.parameters())
    with supernet.active(HALF) as model:
        model(**batch).logits.square().sum().backward()
    with torch.no_grad():
        for parameter in supernet.model.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    assert fingerprint(spread) == before


@pytest.mark.parametrize("family", ["bert", "roberta", "llama", "gpt2", "t5", "modernbert", "deberta-v2", "mpnet"])
@pytest.mark.parametrize("rounds", [1, 3])
def test_importance_and_its_order_are_those_of_the_whole(family, both, make_task, make_runtime, rounds):
    whole, spread = both(family, head="sequence")
    task, runtime = make_task(), make_runtime()
    settings = ImportanceConfig(examples=24, rounds=rounds, batch_size=8)
    mine, theirs = (
        estimate_importance(model, task.train, settings, task=task, runtime=runtime, ledger=Ledger())
        for model in (whole, spread)
    )
    for left, right in zip((*mine.heads, *mine.neurons), (*theirs.heads, *theirs.neurons), strict=True):
        assert_close(left, right, rtol=1e-5, atol=1e-6)
        assert left.sum() > 0
    orders = [rank_units(model, task, settings, runtime=runtime) for model in (whole, spread)]
    assert orders[0] == orders[1]
    assert waits(spread)
    assert not any(parameter.requires_grad for parameter in spread.parameters())


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_the_fisher_order_is_that_of_the_whole(family, both, make_task, make_runtime):
    whole, spread = both(family, head="sequence")
    task, runtime = make_task(), make_runtime()
    settings = ImportanceConfig(criterion="fisher", examples=24, batch_size=8)
    orders = [rank_units(model, task, settings, runtime=runtime) for model in (whole, spread)]
    assert orders[0] == orders[1]
    assert waits(spread)
    with torch.no_grad():
        ids = torch.full((1, 4), 7)
        assert torch.equal(whole(input_ids=ids).logits, spread(input_ids=ids).logits)


def test_importance_of_what_is_left_is_that_of_its_cut(tiny, make_task, make_runtime, random_ranking):
    model, task, runtime = tiny(), make_task(), make_runtime()
    settings = ImportanceConfig(examples=24)
    cut = extract(model, random_ranking(model), HALF)
    left = Kept.of(cut.config)
    masked = estimate_importance(model, task.train, settings, task=task, runtime=runtime, ledger=Ledger(), left=left)
    own = estimate_importance(cut, task.train, settings, task=task, runtime=runtime, ledger=Ledger())
    for mine, theirs in zip((*masked.heads, *masked.neurons), (*own.heads, *own.neurons), strict=True):
        assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_teacher_outputs_are_those_of_the_whole(family, both, make_workshop, tmp_path):
    said = []
    for number, model in enumerate(both(family, head="sequence")):
        workshop = make_workshop()
        (batch,) = list(batches(workshop.task.train, batch_size=64, pad_token_id=0, generator=None))[:1]
        with workshop.teacher(model, DistillationConfig(), tmp_path / str(number)) as outputs:
            said.append(outputs(batch))
    assert_close(said[0].logits, said[1].logits, rtol=1e-5, atol=1e-5)
    assert_close(said[0].hidden, said[1].hidden, rtol=1e-3, atol=1e-3)  # kept in half precision


@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_a_cut_is_refitted_to_it_as_to_the_whole(family, both, make_workshop, random_ranking):
    whole, spread = both(family, head="sequence")
    ranking, workshop = random_ranking(whole), make_workshop()
    workshop = replace(workshop, refit=workshop.task.train)
    mine, theirs = (workshop.cut(model, ranking, HALF) for model in (whole, spread))
    for (name, left), (_, right) in zip(state_of(mine), state_of(theirs), strict=True):
        assert_close(left, right, rtol=1e-4, atol=1e-5, msg=name)


def test_a_map_to_the_one_device_that_there_is_leaves_an_ordinary_model(tiny, tmp_path):
    save_model(tiny(), None, tmp_path / "model")
    model = load_model(tmp_path / "model", device_map={"": "cpu"}, home=torch.device("cpu"))
    assert not is_spread(model)
    assert not hasattr(model, "hf_device_map")
    assert fingerprint(model) == fingerprint(load(tmp_path / "model"))


def test_a_pruned_teacher_can_be_spread(tiny, tmp_path, random_ranking, batch):
    model = tiny()
    cut = extract(model, random_ranking(model), HALF)
    save_model(cut, None, tmp_path / "cut")
    spread = load_model(tmp_path / "cut", device_map=layers_on_disk(cut), home=torch.device("cpu"))
    assert is_spread(spread)
    with torch.no_grad():
        assert torch.equal(cut(**batch).logits, spread(**batch).logits)
    assert Kept.of(spread.config) == Kept.of(cut.config)
    quarter = Candidate(0.75, (1, 1, 1), (8, 8, 8))
    kept = Kept.of(cut.config)
    fewer = Kept(
        tuple(own[:n] for own, n in zip(kept.heads, quarter.heads, strict=True)),
        tuple(own[:n] for own, n in zip(kept.neurons, quarter.neurons, strict=True)),
    )
    equal(keep(cut, fewer), keep(spread, fewer))


def test_a_map_that_misses_a_module_is_refused_in_one_line(tiny, tmp_path):
    save_model(tiny(), None, tmp_path / "model")
    with pytest.raises(ModelError) as refused:
        load_model(tmp_path / "model", device_map={"bert.embeddings": "cpu", "classifier": "disk"})
    assert "\n" not in str(refused.value)


def test_a_teacher_on_another_device_as_a_whole_is_brought_its_inputs(
    tiny, tmp_path, batch, monkeypatch, random_ranking, make_task, make_runtime
):
    """No weight waits, but hooks stand on every module: as of a teacher in CPU memory beside a GPU."""
    save_model(tiny(), None, tmp_path / "model")
    whole = load(tmp_path / "model")
    monkeypatch.setattr("autodisc.models.spreading._indexed", lambda device: torch.device("meta"))
    spread = load_model(tmp_path / "model", device_map={"": "cpu"}, home=torch.device("cpu"))
    assert is_spread(spread)
    assert not waits(spread)
    with torch.no_grad():
        assert torch.equal(whole(**batch).logits, spread(**batch).logits)
    ranking, task = random_ranking(whole), make_task()
    cut = extract(spread, ranking, HALF)
    equal(extract(whole, ranking, HALF), cut)
    assert not is_spread(cut)
    settings = ImportanceConfig(examples=24, rounds=2, batch_size=8)
    orders = [rank_units(model, task, settings, runtime=make_runtime()) for model in (whole, spread)]
    assert orders[0] == orders[1]


def test_nothing_is_said_of_what_a_map_asks_for(tiny, tmp_path, capfd, caplog):
    model = tiny()
    save_model(model, None, tmp_path / "model")
    load_model(tmp_path / "model", device_map=layers_on_disk(model), home=torch.device("cpu"))
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_two_teachers_on_disk_keep_their_own_weights(tiny, tmp_path):
    for seed in (0, 1):
        save_model(tiny(seed=seed), None, tmp_path / str(seed))
    places = layers_on_disk(tiny())
    spread = [load_model(tmp_path / str(seed), device_map=places, home=torch.device("cpu")) for seed in (0, 1)]
    for seed, model in enumerate(spread):
        equal(load(tmp_path / str(seed)), model)
