"""A layer through its modules as a slice, against the same layer masked, by autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from autodisc.models.layouts import blocks
from autodisc.pruning.candidates import Candidate, Ranking
from autodisc.pruning.masks import masked
from autodisc.pruning.supernet import Supernet

CANDIDATES = {
    "whole": Candidate(0.0, heads=(4, 4, 4), neurons=(32, 32, 32)),
    "part": Candidate(0.6, heads=(3, 0, 1), neurons=(16, 9, 0)),
    "first without heads": Candidate(0.6, heads=(0, 1, 3), neurons=(0, 9, 16)),
}

RIGHT = pytest.mark.parametrize("batch", ["right"], indirect=True)


def prefixes(candidate: Candidate) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    heads = [(torch.arange(4) < n).float() for n in candidate.heads]
    return heads, [(torch.arange(32) < n).float() for n in candidate.neurons]


def loss_of(model, inputs) -> torch.Tensor:
    """Of the logits, and of hidden states of real tokens on the way."""
    out = model(**inputs, output_hidden_states=True)
    real = inputs.get("attention_mask", torch.ones(out.hidden_states[0].shape[:2])).bool()
    weights = torch.linspace(-1, 1, out.hidden_states[0].shape[-1])
    return out.logits.square().sum() + sum((states[real] * weights).square().sum() for states in out.hidden_states[1:])


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """A module that did not run has no gradient; a masked one has zeros."""
    assert found.keys() <= expected.keys()
    rounding = 1e-6 * max(gradient.norm() for gradient in expected.values())  # a key's bias has no other gradient
    for name, gradient in expected.items():
        mine = found.get(name, torch.zeros_like(gradient))
        assert (mine - gradient).norm() <= 1e-4 * gradient.norm() + rounding, name


@RIGHT
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("candidate", CANDIDATES.values(), ids=CANDIDATES)
def test_loss_and_every_gradient_are_those_of_the_masked_model(
    tiny, random_ranking, inputs_of, any_family, candidate, checkpointing
):
    model = tiny(any_family)
    net, inputs = Supernet(model, random_ranking(model), checkpointing=checkpointing), inputs_of(model)
    with masked(net.model, *prefixes(candidate)) as active:
        expected = loss_of(active, inputs)
        expected.backward()
    wanted = gradients(net.model)
    with net.active(candidate) as active:
        found = loss_of(active, inputs)
    found.backward()  # outside: the training loop's backward runs after the slice is undone
    assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert_same(gradients(net.model), wanted)


@RIGHT
def test_gradients_of_a_slice_are_those_of_the_extracted_model(tiny, inputs_of, any_family):
    model, candidate = tiny(any_family), CANDIDATES["part"]
    inputs, units = inputs_of(model), [(candidate.heads, 4), (candidate.neurons, 32)]
    in_order = Ranking(
        *(tuple((layer, i) for i in reversed(range(n)) for layer in range(3)) for _, n in units), layers=3
    )
    net = Supernet(model, in_order)
    small = net.extract(candidate)
    loss_of(small, inputs).backward()
    with net.active(candidate) as active:
        loss_of(active, inputs).backward()
    cut = set()
    for layer, (big, little) in enumerate(zip(blocks(net.model), blocks(small), strict=True)):
        for whole, part, (kept, _) in zip(big.sublayers, little.sublayers, units, strict=True):
            for port, own in zip(whole.ports, part.ports, strict=True):
                for name, (parameter, axis) in port.tensors().items():
                    cut.add(id(parameter))
                    expected = getattr(own.module, name).grad
                    if kept[layer]:
                        where = port.indices(range(kept[layer]))
                        assert_close(parameter.grad.index_select(axis, where), expected, rtol=1e-3, atol=1e-3)
                    if parameter.grad is not None:
                        assert not parameter.grad.index_fill(axis, port.indices(range(kept[layer])), 0).any()
    others = dict(small.named_parameters())
    compared = [name for name, p in net.model.named_parameters() if id(p) not in cut and p.grad is not None]
    assert compared
    for name in compared:
        assert_close(net.model.get_parameter(name).grad, others[name].grad, rtol=1e-3, atol=1e-3)


@RIGHT
def test_gradients_add_up_over_candidates_with_and_without_checkpoints(tiny, random_ranking, inputs_of, any_family):
    sums = []
    for checkpointing in (False, True):
        model = tiny(any_family)
        net = Supernet(model, random_ranking(model), checkpointing=checkpointing)
        losses = []
        for candidate in CANDIDATES.values():
            with net.active(candidate) as active:
                losses.append(loss_of(active, inputs_of(model)))
        torch.stack(losses).sum().backward()  # all slices at once, none of them active
        sums.append(gradients(net.model))
    assert_same(sums[1], {**dict.fromkeys(sums[1], torch.zeros(())), **sums[0]})
    assert sums[0].keys() == sums[1].keys()


def attributes(model) -> dict[str, object]:
    """Class and plain attributes of every module."""
    return {
        name: (type(module), {key: value for key, value in vars(module).items() if not key.startswith("_")})
        for name, module in model.named_modules()
    }


@RIGHT
@pytest.mark.parametrize("family", ["llama", "gpt2", "modernbert", "t5", "deberta-v2", "mpnet"])
def test_modules_are_as_they_were_after_an_error_in_a_layer(tiny, random_ranking, batch, family):
    model = tiny(family)
    net = Supernet(model, random_ranking(model))
    state = attributes(net.model)
    parameters = {name: id(p) for name, p in net.model.named_parameters()}

    def fail(*_):
        raise KeyboardInterrupt

    handle = blocks(net.model)[1].ffn_out.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt), net.active(CANDIDATES["part"]) as active:
        active(**batch)
    handle.remove()
    assert {name: id(p) for name, p in net.model.named_parameters()} == parameters
    assert attributes(net.model) == state


@RIGHT
def test_frozen_parameters_get_no_gradient(tiny, random_ranking, batch):
    model = tiny("llama")
    net = Supernet(model, random_ranking(model))
    frozen = blocks(net.model)[1].layer.requires_grad_(False)
    with net.active(CANDIDATES["part"]) as active:
        loss_of(active, batch).backward()
    assert all(p.grad is None for p in frozen.parameters())
    assert blocks(net.model)[0].ffn_out.weight.grad is not None


def test_checkpoints_keep_less_for_the_backward_pass(tiny, random_ranking):
    kept = {}
    inputs = {"input_ids": torch.randint(4, 60, (2, 64)), "attention_mask": torch.ones(2, 64, dtype=torch.long)}
    for checkpointing in (False, True):
        net = Supernet(model := tiny("llama"), random_ranking(model), checkpointing=checkpointing)
        sizes: list[int] = []
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x),
            net.active(CANDIDATES["whole"]) as active,
        ):
            active(**inputs)
        kept[checkpointing] = sum(sizes)
    assert kept[True] < 0.3 * kept[False]
    copy.deepcopy(net.model)(**inputs)
