from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from autodisc.costs import Ledger
from autodisc.models.layouts import blocks, uncached
from autodisc.pruning.candidates import Candidate, candidate
from autodisc.pruning.refit import RIDGE, refit
from autodisc.pruning.supernet import extract
from autodisc.tasks.batches import batches


@pytest.fixture
def cut(tiny, random_ranking, make_task, make_runtime):
    """``cut(candidate or sparsity, family)`` -> teacher, its cut, and that cut refitted on the task's train."""

    def make(what: Candidate | float, family: str = "bert"):
        teacher, task = tiny(family), make_task(train=64)
        ranking = random_ranking(teacher)
        small = extract(teacher, ranking, what if isinstance(what, Candidate) else candidate(ranking, what))
        refitted = copy.deepcopy(small)
        ledger = Ledger()
        refit(refitted, teacher, task.train, task=task, runtime=make_runtime(), ledger=ledger)
        return teacher, small, refitted, task, ledger

    return make


def distance(model, teacher, task) -> float:
    """Mean squared distance of what leaves the last layer, on validation, which refitting does not see."""
    left: list[list[torch.Tensor]] = [[], []]
    for each, found in zip((model, teacher), left, strict=True):
        for batch in batches(task.validation, batch_size=8, pad_token_id=0, generator=None):
            with torch.no_grad(), uncached(each):
                states = each(**batch.inputs, output_hidden_states=True).hidden_states[-1]
            found.append(states[batch.inputs["attention_mask"].bool()])
    ours, theirs = (torch.cat(found) for found in left)
    return float((ours - theirs).square().mean())


def test_a_refitted_cut_is_nearer_to_its_teacher_on_other_text(cut, text_family):
    teacher, small, refitted, task, _ = cut(0.5, text_family)
    before, after = (distance(m, teacher, task) for m in (small, refitted))
    assert after < 0.9 * before


def test_nothing_removed_is_the_teacher_bit_for_bit(cut):
    teacher, _, refitted, _, ledger = cut(0.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), refitted.parameters(), strict=True))
    assert "refit" not in ledger.stages


def test_layers_below_the_first_loss_stay_and_only_output_projections_change(cut):
    _, small, refitted, _, _ = cut(Candidate(0.2, (4, 4, 2), (32, 32, 16)))
    changed = {
        name
        for (name, a), (_, b) in zip(small.named_parameters(), refitted.named_parameters(), strict=True)
        if not torch.equal(a, b)
    }
    last = "bert.encoder.layer.2"
    assert changed == {
        f"{last}.{module}.{part}"
        for module in ("attention.output.dense", "output.dense")
        for part in ("weight", "bias")
    }


def test_the_first_projection_solves_the_ridge_regression(cut):
    """Against numpy's least squares on the stacked system [X; sqrt(ρ) I], over real tokens."""
    teacher, small, refitted, task, _ = cut(Candidate(0.2, (2, 4, 4), (32, 32, 32)))
    rows = {}
    for name, model in (("teacher", teacher), ("small", small)):
        block, found = blocks(model)[0], []
        handle = block.attention_out.register_forward_hook(
            lambda _, args, out, found=found: found.append((args[0], out))
        )
        masks = []
        for batch in batches(task.train, batch_size=32, pad_token_id=0, generator=None):
            masks.append(batch.inputs["attention_mask"].bool())
            with torch.no_grad():
                model(**batch.inputs)
        handle.remove()
        rows[name] = [torch.cat([pair[i][m] for pair, m in zip(found, masks, strict=True)]) for i in (0, 1)]
    x, y = rows["small"][0].double(), rows["teacher"][1].double()
    start = blocks(small)[0].attention_out.weight.detach().double()
    centred, wanted = x - x.mean(0), y - y.mean(0)
    ridge = (RIDGE * centred.square().sum(0).mean()).sqrt()
    stacked = torch.cat([centred, ridge * torch.eye(x.shape[1], dtype=torch.float64)])
    right = torch.cat([wanted - centred @ start.T, torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64)])
    weight = start + torch.linalg.lstsq(stacked, right).solution.T
    linear = blocks(refitted)[0].attention_out
    assert_close(linear.weight.detach().double(), weight, rtol=1e-3, atol=1e-4)
    assert_close(linear.bias.detach().double(), y.mean(0) - weight @ x.mean(0), rtol=1e-3, atol=1e-4)


def test_a_layer_without_units_gets_the_mean_output(cut):
    _, _, refitted, _, _ = cut(Candidate(0.9, (0, 4, 4), (0, 32, 32)))
    block = blocks(refitted)[0]
    assert block.attention_out.weight.shape[1] == block.ffn_out.weight.shape[1] == 0
    assert torch.isfinite(block.attention_out.bias).all()


def test_what_refitting_costs_is_booked(cut):
    *_, ledger = cut(0.5)
    assert ledger.stages["refit"].flops > 0
    assert ledger.stages["refit"].seconds > 0
