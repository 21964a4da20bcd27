from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from autodisc.config import ImportanceConfig
from autodisc.costs import Ledger
from autodisc.errors import TrainingError
from autodisc.models.layouts import blocks, layout_of
from autodisc.pruning.candidates import candidate
from autodisc.pruning.importance import estimate_importance, rank_units
from autodisc.pruning.magnitude import unit_norms
from autodisc.pruning.masks import masked
from autodisc.pruning.supernet import extract
from autodisc.tasks.batches import batches


def finite_differences(model, task, batch_size, step):
    """Σ over batches of |central difference of the mean loss by a unit's mask|, in fp64."""
    model = copy.deepcopy(model).double()
    passed = list(batches(task.train, batch_size=batch_size, pad_token_id=0, generator=None))

    def losses(masks):
        found = []
        for batch in passed:
            with torch.no_grad(), masked(model, *masks):
                logits = model(**batch.inputs).logits
            if task.kind == "regression":
                found.append((logits[:, 0] - batch.labels.double()).square().mean())
            else:
                found.append(F.cross_entropy(logits, batch.labels))
        return torch.stack(found)

    masks = [[torch.ones(n, dtype=torch.float64) for _ in range(2)] for n in (4, 32)]
    sums = [[torch.zeros_like(mask) for mask in units] for units in masks]
    for units, totals in zip(masks, sums, strict=True):
        for mask, total in zip(units, totals, strict=True):
            for i in range(len(mask)):
                mask[i] = 1 + step
                up = losses(masks)
                mask[i] = 1 - step
                down = losses(masks)
                mask[i] = 1
                total[i] = (up - down).abs().sum() / (2 * step)
    return sums


def first_order(**settings):
    return ImportanceConfig(**{"criterion": "first-order", "batch_size": 8, **settings})


def estimate(model, task, runtime, **settings):
    return estimate_importance(model, task.train, first_order(**settings), task=task, runtime=runtime, ledger=Ledger())


@pytest.mark.parametrize(("regression", "normalise"), [(False, True), (True, False), (True, True)])
def test_importance_equals_finite_differences_of_the_loss_by_the_mask(
    tiny, make_task, make_runtime, regression, normalise
):
    assert_finite_differences(tiny("bert", layers=2, num_labels=2 - regression), make_task, make_runtime, normalise)


def test_importance_equals_finite_differences_in_every_family(tiny, make_task, make_runtime, text_family):
    assert_finite_differences(tiny(text_family, layers=2), make_task, make_runtime, False)


def assert_finite_differences(model, make_task, make_runtime, normalise):
    task = make_task(train=7, regression=model.config.num_labels == 1)
    found = estimate(model, task, make_runtime(), batch_size=4, normalise=normalise)
    # Norms of RMS alone are computed in fp32: a small step would measure their rounding.
    reference = finite_differences(model, task, 4, 1e-3 if layout_of(model.config).norms else 1e-4)
    for mine, expected in zip((found.heads, found.neurons), reference, strict=True):
        for layer, sums in zip(mine, expected, strict=True):
            length = sums.norm() if normalise else 1.0
            assert_close(layer, (sums / length).float(), rtol=5e-3, atol=2e-3 * float(layer.max()))


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "gpt2"])
def test_importance_is_the_same_where_layers_are_computed_again(tiny, make_task, make_runtime, family):
    task, model = make_task(train=7), tiny(family)
    kept, again = (estimate(model, task, make_runtime(checkpointing=on)) for on in (False, True))
    for mine, expected in zip(again.heads + again.neurons, kept.heads + kept.neurons, strict=True):
        assert_close(mine, expected)
    assert not any("forward" in vars(module) for module in model.modules())


def test_importance_of_a_batch_that_memory_is_too_short_for_is_that_of_its_halves_together(
    tiny, make_task, make_runtime
):
    task, model = make_task(train=7), tiny()
    expected = estimate(model, task, make_runtime())

    def refuse(module, arguments, named):
        if len(named["input_ids"]) > 2:
            raise MemoryError

    with model.register_forward_pre_hook(refuse, with_kwargs=True):
        found = estimate(model, task, make_runtime())
    for mine, whole in zip(found.heads + found.neurons, expected.heads + expected.neurons, strict=True):
        assert_close(mine, whole)


def test_what_is_kept_for_the_backward_pass_is_for_the_masks_alone(tiny, make_task, make_runtime):
    task, model = make_task(train=7), tiny("llama")
    (batch,) = batches(task.train, batch_size=8, pad_token_id=0, generator=None)
    kept = {}
    for name, run in {
        "training": lambda: model(**batch.inputs, use_cache=False).logits.sum(),
        "importance": lambda: estimate(model, task, make_runtime()),
        "importance, layers again": lambda: estimate(model, task, make_runtime(checkpointing=True)),
    }.items():
        sizes: list[int] = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run()
        kept[name] = sum(sizes)
    assert kept["importance"] < 0.7 * kept["training"]
    # Hooks are not told of what checkpoints keep within; outside there are norm and head.
    assert kept["importance, layers again"] < 0.2 * kept["importance"]


def test_estimating_leaves_the_model_as_it_was(tiny, make_task, make_runtime, same_weights):
    task, model = make_task(), tiny()
    model.classifier.requires_grad_(False)
    estimate(model, task, make_runtime())
    assert same_weights(model, tiny())
    assert all(p.grad is None for p in model.parameters())
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        name for name, _ in model.named_parameters() if name.startswith("classifier")
    }


def test_a_layer_that_has_lost_its_units_has_an_importance_of_length_zero(
    tiny, make_task, make_runtime, random_ranking
):
    model = tiny()
    cut = extract(model, random_ranking(model), candidate(random_ranking(model), 0.9))
    found = estimate(cut, make_task(), make_runtime())
    for layers in (found.heads, found.neurons):
        assert all(torch.isfinite(layer).all() for layer in layers)
    assert 0 in {len(layer) for layer in found.heads}


def test_a_teacher_with_nan_is_reported(tiny, make_task, make_runtime):
    model = tiny()
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    with pytest.raises(TrainingError, match=r"importance: .*not finite"):
        estimate(model, make_task(), make_runtime())
    assert all(p.requires_grad for p in model.parameters())


def test_one_round_is_the_plain_sort(tiny, make_task, make_runtime):
    task, model = make_task(), tiny()
    config = first_order(examples=1000, rounds=1, least_heads=0)
    ranking = rank_units(model, task, config, runtime=make_runtime())
    found = estimate(model, task, make_runtime())
    for order, layers in ((ranking.heads, found.heads), (ranking.neurons, found.neurons)):
        scores = [float(layers[layer][i]) for layer, i in order]
        assert scores == sorted(scores)


@pytest.mark.parametrize("rounds", [1, 2, 5, 40])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_ranking_holds_every_unit_once(tiny, make_task, make_runtime, same_weights, family, rounds):
    model = tiny(family)
    config = first_order(examples=16, rounds=rounds, batch_size=16)
    ranking = rank_units(model, make_task(), config, runtime=make_runtime())
    assert ranking.layers == 3
    assert sorted(ranking.heads) == [(layer, i) for layer in range(3) for i in range(4)]
    assert sorted(ranking.neurons) == [(layer, i) for layer in range(3) for i in range(32)]
    assert same_weights(model, tiny(family))


@pytest.mark.parametrize(
    "settings", [{"rounds": 1}, {"rounds": 3}, {"criterion": "fisher"}, {"criterion": "magnitude"}]
)
@pytest.mark.parametrize("least", [0, 1, 2])
def test_every_layer_keeps_its_least_heads_while_another_has_more(tiny, make_task, make_runtime, settings, least):
    model, task = tiny("bert", layers=4), make_task()
    with torch.no_grad():  # what the first two layers' attention says hardly counts
        for layer in model.bert.encoder.layer[:2]:
            layer.attention.output.dense.weight.mul_(1e-4)
    config = ImportanceConfig(**{"criterion": "first-order", "batch_size": 8, "least_heads": least, **settings})
    ranking = rank_units(model, task, config, runtime=make_runtime())
    heads = len(ranking.heads)
    kept = [candidate(ranking, gone / heads).heads for gone in range(heads)]
    for counts in kept:
        assert min(counts) >= least or max(counts) <= least
    assert least or any(min(counts) == 0 and max(counts) > 1 for counts in kept)


def test_ranking_a_pruned_teacher_ranks_what_it_has(tiny, make_task, make_runtime, random_ranking):
    model = tiny()
    cut = extract(model, random_ranking(model), candidate(random_ranking(model), 0.5))
    ranking = rank_units(cut, make_task(), first_order(examples=16, rounds=2), runtime=make_runtime())
    whole = candidate(ranking, 0.0)
    kept = cut.config.autodisc
    assert whole.heads == tuple(map(len, kept["kept_heads"]))
    assert whole.neurons == tuple(map(len, kept["kept_neurons"]))
    smaller = extract(cut, ranking, candidate(ranking, 0.5))
    assert all(
        set(a) <= set(b) for a, b in zip(smaller.config.autodisc["kept_neurons"], kept["kept_neurons"], strict=True)
    )


def test_the_same_seed_ranks_alike_and_another_draws_other_examples(tiny, make_task, make_runtime):
    config = first_order(examples=8, rounds=2)
    task, model = make_task(), tiny()
    first, again, other = (rank_units(model, task, config, runtime=make_runtime(seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_every_round_is_paid_for(tiny, make_task, make_runtime):
    task, model = make_task(), tiny()
    flops = []
    for rounds in (1, 3):
        ledger = Ledger()
        config = first_order(examples=16, rounds=rounds)
        rank_units(model, task, config, runtime=make_runtime(), ledger=ledger)
        flops.append(ledger.stages["importance"].flops)
    assert 1.2 * flops[0] < flops[1] < 3 * flops[0]


def test_magnitude_is_the_norm_of_a_units_weights(tiny):
    model = tiny()
    heads, neurons = unit_norms(model)
    for layer, of_heads, of_neurons in zip(model.bert.encoder.layer, heads, neurons, strict=True):
        attention, into, out = layer.attention, layer.intermediate.dense.weight, layer.output.dense.weight
        rows = [w.weight.unflatten(0, (4, 8)) for w in (attention.self.query, attention.self.key, attention.self.value)]
        parts = [*rows, attention.output.dense.weight.T.unflatten(0, (4, 8))]  # 4 heads of 8
        assert_close(of_heads, torch.stack(parts).square().sum((0, 2, 3)).sqrt())
        assert_close(of_neurons, (into.square().sum(1) + out.square().sum(0)).sqrt())


def test_magnitude_keeps_what_is_large_and_costs_no_pass_in_every_family(tiny, make_task, make_runtime, text_family):
    model, ledger = tiny(text_family), Ledger()
    last = blocks(model)[-1]
    with torch.no_grad():
        for sublayer in last.sublayers:
            for port in sublayer.ports:
                where = port.indices([1])
                port.module.weight.index_copy_(port.axis, where, 50 * port.module.weight.index_select(port.axis, where))
    config = ImportanceConfig(criterion="magnitude")
    ranking = rank_units(model, make_task(), config, runtime=make_runtime(), ledger=ledger)
    assert ranking.heads[-1] == ranking.neurons[-1] == (ranking.layers - 1, 1)
    assert sorted(ranking.neurons) == [(layer, i) for layer in range(ranking.layers) for i in range(last.neurons)]
    assert ledger.stages["importance"].flops == 0


def test_magnitude_may_be_normalised_by_layer(tiny, make_task, make_runtime):
    model = tiny()
    with torch.no_grad():
        for part in (model.bert.encoder.layer[0].intermediate.dense, model.bert.encoder.layer[0].output.dense):
            part.weight.mul_(100)
    plain, normalised = (
        rank_units(model, make_task(), ImportanceConfig(criterion="magnitude", normalise=on), runtime=make_runtime())
        for on in (False, True)
    )
    assert {layer for layer, _ in plain.neurons[-32:]} == {0}
    assert len({layer for layer, _ in normalised.neurons[-32:]}) > 1


def test_weights_that_are_not_finite_are_reported(tiny, make_task, make_runtime):
    model = tiny()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[0, 3] = float("inf")
    with pytest.raises(TrainingError, match=r"importance: a weight .*not finite"):
        rank_units(model, make_task(), ImportanceConfig(criterion="magnitude"), runtime=make_runtime())
