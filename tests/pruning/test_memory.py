"""What importance, supernets and cuts hold in memory beside the teacher: counted in bytes, not felt by a clock."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from autodisc.config import DistillationConfig, ImportanceConfig, RecoveryConfig
from autodisc.costs import Ledger
from autodisc.distillation.schedule import recover
from autodisc.footprint import Live
from autodisc.models.layouts import blocks, embeddings
from autodisc.pruning.candidates import nested_candidates
from autodisc.pruning.importance import estimate_importance
from autodisc.pruning.supernet import Supernet, extract
from autodisc.pruning.surgery import in_same_memory, own_memory
from autodisc.search.scorers import Cuts

SPARSITIES = (0.3, 0.6)


def pointers(model) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in model.named_parameters()}


def cut_names(model) -> set[str]:
    """The parameters that have units."""
    cut = {id(p) for b in blocks(model) for s in b.sublayers for port in s.ports for p, _ in port.tensors().values()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in cut}


def own_bytes(model, *others) -> int:
    """Of the tensors of ``model`` that lie in the memory of none of the others."""
    theirs = {tensor.untyped_storage().data_ptr() for other in others for tensor in tensors(other)}
    mine = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors(model)}
    return sum(size for where, size in mine.items() if where not in theirs)


def tensors(model) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def bytes_of(parameters) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


@pytest.fixture
def peak_of_importance(tiny, make_task, make_runtime) -> Callable[..., int]:
    """Bytes at the peak of importance over two batches, the FLOPs of both counted."""

    def measure(family: str, layers: int, *, checkpointing: bool) -> int:
        model, task = tiny(family, layers=layers), make_task(train=16)
        config = ImportanceConfig(criterion="first-order", batch_size=8)
        runtime = make_runtime(checkpointing=checkpointing)
        with Live() as live:
            estimate_importance(model, task.train, config, task=task, runtime=runtime, ledger=Ledger())
        return live.peak

    return measure


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
def test_with_checkpoints_importance_needs_for_a_further_layer_what_enters_it_and_its_masks(
    family, tiny, make_task, peak_of_importance
):
    rows = make_task(train=16).train
    entering = 8 * int(rows.lengths.max()) * tiny(family).config.hidden_size * 4  # (B, T, C), fp32
    masks = 2 * 4 * (4 + 32)  # and their gradients
    kept, whole = (
        (peak_of_importance(family, 8, checkpointing=again) - peak_of_importance(family, 4, checkpointing=again)) / 4
        for again in (True, False)
    )
    # Of each of the two batches a sum by units is kept, too; T of the two differs.
    assert kept <= entering + 4 * masks < whole / 4


def test_importance_asks_for_no_gradient_of_a_weight(tiny, make_task, make_runtime, text_family):
    model, task = tiny(text_family), make_task(train=8)
    frozen = next(model.parameters()).requires_grad_(False)
    asked = []
    for module in model.modules():
        module.register_forward_pre_hook(lambda m, _: asked.extend(p.requires_grad for p in m.parameters()))
    config = ImportanceConfig(criterion="first-order", batch_size=8)
    found = estimate_importance(model, task.train, config, task=task, runtime=make_runtime(), ledger=Ledger())
    assert set(asked) == {False}
    assert any(layer.any() for layer in found.neurons)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p is frozen for p in model.parameters()] == [not p.requires_grad for p in model.parameters()]


def test_a_supernet_holds_a_second_time_only_what_it_reorders(tiny, random_ranking, any_family):
    teacher = tiny(any_family)
    net = Supernet(teacher, random_ranking(teacher))
    mine, theirs, cut = pointers(net.model), pointers(teacher), cut_names(teacher)
    assert {name for name in mine if mine[name] == theirs[name]} >= set(mine) - cut
    assert own_bytes(net.model, teacher) <= bytes_of(p for name, p in teacher.named_parameters() if name in cut)


def test_a_cut_holds_a_second_time_only_what_has_units_and_one_of_nothing_is_the_teachers_own(
    tiny, random_ranking, any_family
):
    teacher = tiny(any_family)
    ranking = random_ranking(teacher)
    none, small = nested_candidates(ranking, (0.0, 0.6)).values()
    for found in (extract(teacher, ranking, none), extract(teacher, ranking, small)):
        mine, theirs, cut = pointers(found), pointers(teacher), cut_names(found)
        assert all(mine[name] == theirs[name] for name in set(mine) - cut)
        ported = bytes_of(p for name, p in found.named_parameters() if name in cut)
        assert own_bytes(found, teacher) <= ported
    assert own_bytes(extract(teacher, ranking, none), teacher) == 0


def test_training_a_supernet_changes_no_weight_of_its_teacher_and_leaves_embeddings_in_their_place(
    tiny, random_ranking, make_workshop, same_weights
):
    teacher = tiny()
    before, ranking, workshop = copy.deepcopy(teacher), random_ranking(teacher), make_workshop()
    chain = list(nested_candidates(ranking, SPARSITIES).values())
    config = DistillationConfig(batch_size=8)
    with workshop.teacher(teacher, config) as outputs:
        net = recover(
            outputs,
            ranking,
            chain,
            steps=2,
            recovery=RecoveryConfig(lr=1e-2),
            distillation=config,
            workshop=workshop,
        )
    assert same_weights(teacher, before)
    mine, theirs = pointers(net.model), pointers(teacher)
    frozen = {name for name, parameter in net.model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in mine if mine[name] == theirs[name]}
    assert bytes_of(p for module in embeddings(teacher) for p in module.parameters()) == bytes_of(
        p for name, p in teacher.named_parameters() if name in frozen
    )
    norm = "bert.encoder.layer.0.output.LayerNorm.weight"
    assert not torch.equal(net.model.get_parameter(norm), teacher.get_parameter(norm))


def test_refitting_a_cut_changes_no_weight_of_its_teacher(tiny, random_ranking, make_workshop, make_task, same_weights):
    teacher, task = tiny(), make_task(train=16)
    before, ranking = copy.deepcopy(teacher), random_ranking(teacher)
    (half,) = nested_candidates(ranking, (0.5,)).values()
    cuts = Cuts(teacher, ranking, make_workshop(task, refit=task.train))
    with cuts(half) as found:
        assert own_bytes(found, teacher) <= bytes_of(
            p for b in blocks(found) for s in b.sublayers for port in s.ports for p in port.module.parameters()
        )
    assert same_weights(teacher, before)


def test_own_memory_keeps_values_and_ties(tiny, same_weights):
    model = tiny("gpt2")
    shared = in_same_memory(model)
    assert pointers(shared) == pointers(model)
    own_memory(shared.parameters())
    assert not set(pointers(shared).values()) & set(pointers(model).values())
    assert same_weights(shared, model)
    assert len(list(shared.parameters())) == len(list(model.parameters()))
