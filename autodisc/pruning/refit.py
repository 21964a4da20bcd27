"""Refit what is left of a pruned model to its teacher, layer by layer, in closed form; nothing is trained.

min over W, b of  Σ over tokens ‖(r + W x + b) − (r' + y')‖² + ρ‖W − W₀‖²

x is what reaches an output projection in the pruned model, y' what the teacher's projection gives for the same token;
r and r' are what the residual connection adds in each, so a layer also sets right what those below it left over.
Least-squares reconstruction of pruned layers: He et al. 2017 (arXiv:1707.06168), Luo et al. 2017 (arXiv:1707.06342).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from autodisc.costs import Ledger
from autodisc.models.layouts import Block, blocks
from autodisc.runtime import Runtime
from autodisc.tasks.batches import batches, shapes
from autodisc.tasks.data import Split, Task

STAGE = "refit"
RIDGE = 0.3  # ρ over tokens × the mean of x's variances; 0.03 to 1 measured alike, 3 worse (benchmarks/README.md)
BATCH = 32

Seen = dict[tuple[nn.Module, str], torch.Tensor]  # (module, "in" or "out"): (real tokens, width), fp32


def refit(
    model: PreTrainedModel, teacher: PreTrainedModel, split: Split, *, task: Task, runtime: Runtime, ledger: Ledger
) -> None:
    """Refit in place the output projections of ``model``, cut out of ``teacher``, over the tokens of ``split``.

    Layers below the first that lost anything stay as they are, bit for bit.
    """
    own, theirs = blocks(model), blocks(teacher)
    lost = [mine.heads < full.heads or mine.neurons < full.neurons for mine, full in zip(own, theirs, strict=True)]
    if not any(lost):
        return
    kind = (STAGE, tuple((block.heads, block.neurons) for block in own))
    padded = sum(len(rows) * T for rows, T in shapes(split, BATCH))
    model.eval()
    teacher.eval()
    with ledger.stage(STAGE), ledger.count(kind, padded), torch.no_grad():
        calls = _calls(teacher, split, task, runtime)
        hidden = taught = [call.hidden for call in calls]
        for layer, (mine, full) in enumerate(zip(own, theirs, strict=True)):
            if any(lost[: layer + 1]):
                sublayers = list(zip(_sublayers(mine), _sublayers(full), strict=True))
                sources, sinks = zip(*_sublayers(full), strict=True)
                taught, there = _run(full, taught, calls, runtime, entering=sources, leaving=sinks)
                for (source, sink), (their_source, their_sink) in sublayers:  # the FFN sees the refitted attention
                    _, here = _run(mine, hidden, calls, runtime, entering=[source, sink])
                    residual = there[their_source, "in"] - here[source, "in"]
                    _solve(sink, here[sink, "in"], there[their_sink, "out"] + residual)
            hidden, _ = _run(mine, hidden, calls, runtime)
            if not any(lost[: layer + 1]):
                taught = hidden


@dataclass(frozen=True)
class _Call:
    """How a model calls its layers on one batch: the first one's input (B, T, C), all else, and what is real (B, T)."""

    hidden: torch.Tensor
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    real: torch.Tensor


class _Stop(Exception):
    """The first layer has been reached; the rest of the model need not run."""


def _calls(model: PreTrainedModel, split: Split, task: Task, runtime: Runtime) -> list[_Call]:
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    real: list[torch.Tensor] = []

    def hook(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        seen.append((arguments, keywords))
        raise _Stop

    handle = blocks(model)[0].layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        for batch in batches(split, batch_size=BATCH, pad_token_id=task.pad_token_id, generator=None):
            batch = batch.to(runtime.device)
            real.append(batch.inputs["attention_mask"].bool())
            with contextlib.suppress(_Stop), runtime.autocast():
                model(**batch.inputs)
    finally:
        handle.remove()
    return [_Call(args[0], args[1:], keywords, mask) for (args, keywords), mask in zip(seen, real, strict=True)]


def _sublayers(block: Block) -> list[tuple[nn.Linear, nn.Linear]]:
    """Attention and FFN: a linear that reads what enters the sublayer, its residual, and the output projection."""
    return [(block.attention_in[0], block.attention_out), (block.ffn_in[0], block.ffn_out)]


def _run(
    block: Block,
    hidden: list[torch.Tensor],
    calls: list[_Call],
    runtime: Runtime,
    entering: Sequence[nn.Linear] = (),
    leaving: Sequence[nn.Linear] = (),
) -> tuple[list[torch.Tensor], Seen]:
    """A layer's output for every batch, and what entered and left some of its linears at real tokens."""
    taken: dict[tuple[nn.Module, str], list[torch.Tensor]] = {}
    following = []
    for states, call in zip(hidden, calls, strict=True):

        def enter(module: nn.Module, inputs: tuple[torch.Tensor], real: torch.Tensor = call.real) -> None:
            taken.setdefault((module, "in"), []).append(inputs[0][real].float())

        def leave(module: nn.Module, _: Any, output: torch.Tensor, real: torch.Tensor = call.real) -> None:
            taken.setdefault((module, "out"), []).append(output[real].float())

        handles = [linear.register_forward_pre_hook(enter) for linear in entering]
        handles += [linear.register_forward_hook(leave) for linear in leaving]
        try:
            with runtime.autocast():  # one a call: a context keeps its casts of weights, and these are being refitted
                out = block.layer(states, *call.arguments, **call.keywords)
        finally:
            for handle in handles:
                handle.remove()
        following.append(out[0] if isinstance(out, tuple) else out)
    return following, {key: torch.cat(parts) for key, parts in taken.items()}


def _solve(linear: nn.Linear, x: torch.Tensor, y: torch.Tensor) -> None:
    """Ridge regression of ``y`` (tokens, C) on ``x`` (tokens, columns), towards the present weights of ``linear``."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    if x.shape[1]:
        x = x - mean_x
        gram = x.T @ x
        missing = x.T @ (y - mean_y) - gram @ linear.weight.T
        gram.diagonal().add_(RIDGE * gram.diagonal().mean().clamp_min(torch.finfo(gram.dtype).tiny))
        linear.weight += torch.linalg.solve(gram, missing).T
    linear.bias.copy_(mean_y - linear.weight @ mean_x)
