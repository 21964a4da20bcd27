from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from autodisc.config import ImportanceConfig
from autodisc.costs import Ledger
from autodisc.errors import TrainingError
from autodisc.models.layouts import Port, blocks
from autodisc.progress import Silent
from autodisc.pruning import fisher
from autodisc.pruning.candidates import candidate, nested_candidates
from autodisc.pruning.fisher import MANY, Removal, draw_signs, fisher_root, in_one_order, second_moments
from autodisc.pruning.importance import rank_units
from autodisc.pruning.supernet import extract
from autodisc.tasks.batches import batches


def measure(model, task, runtime, batch_size=8):
    with Silent().stage("importance", 1) as bar:
        return second_moments(
            model, task.train, batch_size=batch_size, task=task, runtime=runtime, ledger=Ledger(), bar=bar
        )


def rank(model, task, runtime, **settings):
    return rank_units(
        model,
        task,
        ImportanceConfig(**{"criterion": "fisher", "examples": 64, "batch_size": 8, **settings}),
        runtime=runtime,
    )


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_root_times_itself_is_the_fisher_information_over_all_signs(classes):
    logits = torch.randn(4, classes, generator=torch.Generator().manual_seed(0)) * 2
    p = logits.softmax(-1)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    signs = list(itertools.product((-1.0, 1.0), repeat=classes))
    roots = [fisher_root(logits, torch.tensor(s).expand(4, -1)) for s in signs]
    assert_close(torch.stack([r[:, :, None] * r[:, None] for r in roots]).mean(0), expected)


def test_with_two_classes_the_root_does_not_depend_on_the_draw_but_for_its_sign():
    logits = torch.tensor([[0.3, -1.2], [4.0, 0.0]])
    p = logits.softmax(-1)
    for signs in ([1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]):
        root = fisher_root(logits, torch.tensor([signs, signs]))
        assert_close(root.abs(), p.prod(-1).sqrt()[:, None].expand(-1, 2))


def test_a_regression_asks_for_the_gradient_of_its_output():
    assert_close(fisher_root(torch.tensor([[3.0], [-2.0]]), torch.tensor([[-1.0], [1.0]])), torch.ones(2, 1))


def test_the_moments_are_those_of_a_plain_loop_over_examples(tiny, make_task, make_runtime, text_family):
    """One example at a time: what enters, and the gradient of √(p₀p₁)(z₁ − z₀) by a bias added at each token."""
    task, model = make_task(train=7), tiny(text_family, layers=2)
    found = measure(model, task, make_runtime(), batch_size=4)
    block = blocks(model)[1]
    model.eval()
    for sink in (block.attention_out, block.ffn_out):
        entered, gradients = [], []
        for batch in batches(task.train, batch_size=1, pad_token_id=0, generator=None):
            seen = {}

            def hook(module, inputs, output, seen=seen):
                seen["x"], seen["shift"] = inputs[0].detach()[0], torch.zeros_like(output, requires_grad=True)
                return output + seen["shift"]

            handle = sink.register_forward_hook(hook)
            logits = model(**batch.inputs).logits
            handle.remove()
            p = logits.detach().softmax(-1)
            (gradient,) = torch.autograd.grad((p.prod().sqrt() * (logits[:, 1] - logits[:, 0])).sum(), seen["shift"])
            real = batch.inputs["attention_mask"][0].bool()
            entered.append(seen["x"][real])
            gradients.append(gradient[0][real])
        x, g = torch.cat(entered), torch.cat(gradients)
        assert found[sink].tokens == len(x) == task.train.tokens
        if sink.bias is not None:  # what a constant gives is given back by the bias, where there is one
            x = x - x.mean(0)
        assert_close(found[sink].covariance(), x.double().T @ x.double(), rtol=1e-3, atol=1e-3)
        assert_close(found[sink].gradients, g.T @ g, rtol=1e-3, atol=1e-5)


def test_signs_are_drawn_row_by_row_as_all_at_once():
    ours, plain = np.random.default_rng(3), np.random.default_rng(3)
    drawn = [draw_signs(ours, rows, 101) for rows in (3, 4)]
    assert torch.cat(drawn).dtype == torch.int8
    assert (torch.cat(drawn).numpy() == plain.choice([-1.0, 1.0], (7, 101))).all()
    assert ours.random() == plain.random()


def test_a_batch_that_memory_is_too_short_for_has_the_moments_of_its_halves(tiny, make_task, make_runtime, monkeypatch):
    task, model = make_task(train=13), tiny(layers=2, num_labels=MANY + 1)
    expected = measure(model, task, make_runtime(), batch_size=8)
    root = fisher.fisher_root

    def refuse(logits, signs):  # after they are drawn
        if len(logits) > 2:
            raise MemoryError
        return root(logits, signs)

    monkeypatch.setattr(fisher, "fisher_root", refuse)
    found = measure(model, task, make_runtime(), batch_size=8)
    for sink, moments in expected.items():
        assert found[sink].tokens == moments.tokens
        assert_close(found[sink].squares, moments.squares)
        assert_close(found[sink].gradients, moments.gradients)


def layer(columns=12, outputs=5, width=3, seed=0, double=(0, 0), constant=None, bias=True):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    x[:, double[1]] = x[:, double[0]]
    if constant is not None:
        x[:, constant] = 5.0
    g = torch.randn(50, outputs, generator=generator)
    linear = torch.nn.Linear(columns, outputs, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(outputs, columns, generator=generator))
    moments = fisher._Moments(bias, 200, x.sum(0), x.T @ x, g.T @ g)
    return fisher._Layer(Port(linear, width, sink=True), moments), linear.weight.detach().double(), moments


def least_loss(weight, moments, columns):
    """min of tr(G ΔW A ΔWᵀ) over all other columns of the layer when ``columns`` become zero."""
    A, G = fisher._damped(moments.covariance()), fisher._damped(moments.gradients.double())
    gone = torch.zeros(len(A), dtype=torch.bool)
    gone[columns] = True
    change = -weight.clone()
    change[:, ~gone] = torch.linalg.solve(A[~gone][:, ~gone], A[~gone][:, gone] @ weight[:, gone].T).T
    return torch.trace(G @ change @ A @ change.T)


@pytest.mark.parametrize("width", [1, 3])
def test_the_cost_of_a_unit_is_the_least_loss_after_refitting_the_others(width):
    pruned, weight, moments = layer(width=width)
    for unit, cost in enumerate(pruned.costs):
        assert_close(cost, least_loss(weight, moments, list(range(unit * width, (unit + 1) * width))))


def test_the_costs_of_units_removed_one_by_one_add_up_to_the_cost_of_all_at_once():
    pruned, weight, moments = layer(width=3)
    total, gone = 0.0, []
    for _ in range(3):
        total += float(pruned.costs.min())
        gone += pruned.remove(1)
        columns = [unit * 3 + i for unit in gone for i in range(3)]
        assert total == pytest.approx(float(least_loss(weight, moments, columns)))


def test_a_neuron_that_doubles_another_is_cheap_until_its_double_is_gone():
    pruned, _, _ = layer(width=1, double=(3, 7))
    assert set(pruned.costs.topk(2, largest=False).indices.tolist()) == {3, 7}
    before = float(pruned.costs[3])
    (gone,) = pruned.remove(1)
    assert float(pruned.costs[10 - gone]) > 10 * before


def test_a_neuron_that_never_changes_is_the_cheapest_only_where_a_bias_can_stand_in_for_it():
    with_bias, _, _ = layer(width=1, constant=4)
    without, weight, moments = layer(width=1, constant=4, bias=False)
    assert int(with_bias.costs.argmin()) == 4
    assert float(with_bias.costs[4]) < 0.1 * float(with_bias.costs.median())
    assert int(without.costs.argmin()) != 4
    assert_close(without.costs[4], least_loss(weight, moments, [4]))


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_ranking_holds_every_unit_once_and_leaves_the_model_alone(
    tiny, make_task, make_runtime, same_weights, family
):
    model = tiny(family)
    model.classifier.requires_grad_(False)
    ranking = rank(model, make_task(), make_runtime())
    assert sorted(ranking.heads) == [(layer, i) for layer in range(3) for i in range(4)]
    assert sorted(ranking.neurons) == [(layer, i) for layer in range(3) for i in range(32)]
    assert same_weights(model, tiny(family))
    assert all(p.grad is None for p in model.parameters())
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"classifier.weight", "classifier.bias"}
    assert not any(m._forward_hooks for m in model.modules())


def test_heads_go_where_they_cost_less_a_parameter_than_the_neurons_that_are_left():
    neurons = [Removal(0, (0, 1), cost) for cost in (1.0, 3.0, 2.0, 8.0)]  # a quarter of all neurons each
    found = in_one_order([1.0, 9.0], neurons, ratio=2.0)  # of three parts two are heads, one each
    # By parameter: neurons 4, 12, 12 (it waits), 32; heads 1, 9. So a head, two neurons, the other head, the others.
    assert found == pytest.approx([0.5 / 3, (1 + 0.25 + 0.5) / 3])
    assert in_one_order([1.0], [], ratio=2.0) == in_one_order([], neurons, ratio=2.0) == ()


def test_what_goes_after_something_dearer_waits_for_it():
    neurons = [Removal(0, (0,), 5.0)]
    first, second = in_one_order([6.0, 1.0], neurons, ratio=2.0)
    assert (first, second) == pytest.approx(((1 + 0.5) / 3, (1 + 1.5) / 3))


def test_a_ranking_says_where_each_head_goes_and_its_candidates_nest(tiny, make_task, make_runtime, text_family):
    model = tiny(text_family)
    ranking = rank(model, make_task(), make_runtime())
    assert len(ranking.head_sparsities) == len(ranking.heads)
    assert list(ranking.head_sparsities) == sorted(ranking.head_sparsities)
    assert 0 < ranking.head_sparsities[0] < ranking.head_sparsities[-1] < 1
    found = list(nested_candidates(ranking, [i / 20 for i in range(20)]).values())
    assert all(smaller.fits_in(larger) for larger, smaller in itertools.pairwise(found))


def test_a_pruned_teacher_without_the_heads_of_a_layer_is_ranked_by_what_it_has(
    tiny, make_task, make_runtime, random_ranking
):
    model = tiny()
    cut = extract(model, random_ranking(model), candidate(random_ranking(model), 0.9))
    assert 0 in [block.heads for block in blocks(cut)]
    whole = candidate(rank(cut, make_task(), make_runtime()), 0.0)
    assert whole.heads == tuple(map(len, cut.config.autodisc["kept_heads"]))
    assert whole.neurons == tuple(map(len, cut.config.autodisc["kept_neurons"]))


def test_the_same_seed_ranks_alike_and_labels_do_not_matter(tiny, make_task, make_runtime):
    model, task = tiny(), make_task()
    other = copy.copy(task)
    object.__setattr__(other, "train", copy.copy(task.train))
    object.__setattr__(other.train, "labels", np.zeros_like(task.train.labels))
    assert rank(model, task, make_runtime()) == rank(model, task, make_runtime()) == rank(model, other, make_runtime())
    assert rank(model, task, make_runtime(3), examples=8) != rank(model, task, make_runtime(4), examples=8)


def test_a_teacher_with_nan_is_reported(tiny, make_task, make_runtime):
    model = tiny()
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    with pytest.raises(TrainingError, match=r"importance: .*not finite"):
        rank(model, make_task(), make_runtime())
    assert all(p.requires_grad for p in model.parameters())


def test_what_it_costs_is_booked(tiny, make_task, make_runtime):
    ledger = Ledger()
    rank_units(
        tiny(), make_task(), ImportanceConfig(criterion="fisher", examples=16), runtime=make_runtime(), ledger=ledger
    )
    cost = ledger.stages["importance"]
    assert cost.flops > 0
    assert cost.tokens > 0
