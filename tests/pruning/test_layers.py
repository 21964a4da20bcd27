"""A layer written out against the same layer through its modules and autograd."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from autodisc.pruning.candidates import Candidate
from autodisc.pruning.masks import masked
from autodisc.pruning.supernet import Supernet

FAMILIES = ("bert", "distilbert", "electra", "roberta")  # whose layers are computed by hand
UNEVEN = Candidate(0.6, heads=(3, 0, 1), neurons=(16, 9, 0))
EVERYTHING = Candidate(0.0, heads=(4, 4, 4), neurons=(32, 32, 32))


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 60, (6, 15), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(15)[None] < torch.tensor([15, 4, 7, 1, 12, 12])[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


@pytest.fixture
def supernet(tiny, random_ranking):
    def make(family="bert", attention="sdpa", dtype=torch.float32) -> Supernet:
        model = tiny(family, attention=attention).eval().to(dtype)
        return Supernet(model, random_ranking(model))

    return make


def loss_of(model, batch) -> torch.Tensor:
    """Of the logits, and of hidden states of real tokens on the way."""
    out = model(**batch, output_hidden_states=True)
    real = batch["attention_mask"].bool()
    weights = torch.linspace(-1, 1, out.hidden_states[0].shape[-1], dtype=out.hidden_states[0].dtype)
    return out.logits.square().sum() + sum((states[real] * weights).square().sum() for states in out.hidden_states[1:])


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def prefixes(candidate: Candidate) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    heads = [(torch.arange(4) < n).float() for n in candidate.heads]
    return heads, [(torch.arange(32) < n).float() for n in candidate.neurons]


@pytest.mark.parametrize("candidate", [EVERYTHING, UNEVEN], ids=["whole", "part"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_every_gradient_are_autograds_through_the_masked_modules(
    supernet, batch, family, attention, candidate
):
    net = supernet(family, attention, torch.float64)
    with masked(net.model, *prefixes(candidate)) as model:
        expected = loss_of(model, batch)
        expected.backward()
    wanted = gradients(net.model)
    with net.active(candidate) as model:
        found = loss_of(model, batch)
    found.backward()
    assert_close(found, expected)
    mine = gradients(net.model)
    assert mine.keys() == wanted.keys()
    for name in wanted:
        assert_close(mine[name], wanted[name], msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_add_up_over_candidates_and_micro_batches(supernet, batch):
    net = supernet(dtype=torch.float64)
    parts = [{name: x[rows] for name, x in batch.items()} for rows in (slice(2), slice(2, None))]
    sums: dict[str, torch.Tensor] = {}
    for candidate in (UNEVEN, EVERYTHING):
        with net.active(candidate) as model:
            loss_of(model, batch).backward()
        for name, grad in gradients(net.model).items():
            sums[name] = sums.get(name, 0) + grad
    for candidate in (EVERYTHING, UNEVEN):
        for part in parts:
            with net.active(candidate) as model:
                loss = loss_of(model, part)
            loss.backward()
    for name, grad in gradients(net.model).items():
        assert_close(grad, sums[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bf16_the_gradients_are_those_of_fp32_up_to_rounding(supernet, batch, family):
    net, found = supernet(family), []  # 6 x 15 tokens: not a multiple of the rows of a product
    for enabled in (False, True):
        with net.active(EVERYTHING) as model, torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = loss_of(model, batch)
        loss.backward()
        found.append(gradients(net.model))
    for name, exact in found[0].items():
        if not name.endswith(("key.bias", "k_lin.bias")):  # zero but for rounding
            assert (found[1][name] - exact).norm() < 0.05 * exact.norm(), name


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_weights_that_an_optimizer_has_changed_are_read_anew(supernet, batch, precision):
    net = supernet()
    optimizer = torch.optim.AdamW(net.model.parameters(), lr=0.1, fused=True)

    def logits() -> torch.Tensor:
        with torch.inference_mode():
            return model(**batch).logits.float()

    with net.active(EVERYTHING) as model, torch.autocast("cpu", precision, enabled=precision != torch.float32):
        before = logits()
        assert torch.equal(logits(), before)
        loss_of(model, batch).backward()
        optimizer.step()
        loss_of(model, batch)  # a step between: what evaluation had kept is forgotten
        inside = logits()
    with net.active(EVERYTHING) as model, torch.autocast("cpu", precision, enabled=precision != torch.float32):
        again = logits()
    assert not torch.allclose(inside, before, atol=1e-2)
    assert torch.equal(inside, again)


def test_layers_are_their_modules_again_after_an_error(supernet, batch):
    net = supernet()
    with torch.no_grad():
        expected = net.model(**batch).logits
        with pytest.raises(KeyboardInterrupt), net.active(UNEVEN):
            raise KeyboardInterrupt
        assert torch.equal(net.model(**batch).logits, expected)
    assert not any("forward" in vars(module) for module in net.model.modules())


def test_frozen_parameters_get_no_gradient(supernet, batch):
    net = supernet()
    frozen = net.model.base_model.encoder.layer[1]
    frozen.requires_grad_(False)
    net.model.base_model.embeddings.requires_grad_(False)
    with net.active(EVERYTHING) as model:
        loss_of(model, batch).backward()
    assert all(p.grad is None for p in frozen.parameters())
    assert all(p.grad is not None for p in net.model.base_model.encoder.layer[0].parameters())
