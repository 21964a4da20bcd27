"""Refit what is left of a pruned model to its teacher, layer by layer, in closed form; nothing is trained.

min over W, b of  Σ over tokens ‖(r + W x + b) − (r' + y')‖² + ρ‖W − W₀‖²

x is what reaches an output projection in the pruned model, y' what the teacher's projection gives for the same token;
r and r' are what the residual connection adds in each, so a layer also sets right what those below it left over.
There is no b where the projection has none.
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
from autodisc.models.layouts import Block, Port, blocks, uncached
from autodisc.models.spreading import brought, is_spread
from autodisc.pruning.surgery import own_memory
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
                readers = [sublayer.reader for sublayer in full.sublayers]
                sinks = [sublayer.sink.module for sublayer in full.sublayers]
                taught, there = _run(full, taught, calls, layer, runtime, entering=readers, leaving=sinks)
                for own_part, their_part in zip(mine.sublayers, full.sublayers, strict=True):
                    reader, sink = own_part.reader, own_part.sink.module
                    # The FFN sees the refitted attention.
                    _, here = _run(mine, hidden, calls, layer, runtime, entering=[reader, sink])
                    residual = there[their_part.reader, "in"] - here[reader, "in"]
                    _solve(own_part.sink, here[sink, "in"], there[their_part.sink.module, "out"] + residual)
            hidden, _ = _run(mine, hidden, calls, layer, runtime)
            if not any(lost[: layer + 1]):
                taught = hidden


@dataclass(frozen=True)
class _Call:
    """How a model calls its layers on one batch: the first one's input (B, T, C), all else that each is given, and
    what is real (B, T)."""

    hidden: torch.Tensor
    others: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]
    real: torch.Tensor


class _Stop(Exception):
    """The last layer has been reached; the rest of the model need not run."""


def _calls(model: PreTrainedModel, split: Split, task: Task, runtime: Runtime) -> list[_Call]:
    """From one pass of the whole model: layers may differ in their masks, and get what those below them made."""
    calls: list[_Call] = []
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    layers = [block.layer for block in blocks(model)]

    def hook(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        seen.append(brought((arguments, keywords), runtime.device) if is_spread(model) else (arguments, keywords))
        if layer is layers[-1]:
            raise _Stop

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        for batch in batches(split, batch_size=BATCH, pad_token_id=task.pad_token_id, generator=None):
            batch = batch.to(runtime.device)
            seen.clear()
            with contextlib.suppress(_Stop), uncached(model), runtime.autocast():
                model(**batch.inputs)
            others = [(arguments[1:], keywords) for arguments, keywords in seen]
            calls.append(_Call(seen[0][0][0], others, batch.inputs["attention_mask"].bool()))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _run(
    block: Block,
    hidden: list[torch.Tensor],
    calls: list[_Call],
    layer: int,
    runtime: Runtime,
    entering: Sequence[nn.Module] = (),
    leaving: Sequence[nn.Module] = (),
) -> tuple[list[torch.Tensor], Seen]:
    """A layer's output for every batch, and what entered and left some of its modules at real tokens."""
    taken: dict[tuple[nn.Module, str], list[torch.Tensor]] = {}
    following = []
    for states, call in zip(hidden, calls, strict=True):

        def enter(module: nn.Module, inputs: tuple[torch.Tensor], real: torch.Tensor = call.real) -> None:
            taken.setdefault((module, "in"), []).append(inputs[0].to(real.device)[real].float())

        def leave(module: nn.Module, _: Any, output: torch.Tensor, real: torch.Tensor = call.real) -> None:
            taken.setdefault((module, "out"), []).append(output.to(real.device)[real].float())

        handles = [linear.register_forward_pre_hook(enter) for linear in entering]
        handles += [linear.register_forward_hook(leave) for linear in leaving]
        try:
            with runtime.autocast():  # one a call: a context keeps its casts of weights, and these are being refitted
                arguments, keywords = call.others[layer]
                out = block.layer(states, *arguments, **keywords)
        finally:
            for handle in handles:
                handle.remove()
        following.append((out[0] if isinstance(out, tuple) else out).to(call.real.device))
    return following, {key: torch.cat(parts) for key, parts in taken.items()}


def _solve(sink: Port, x: torch.Tensor, y: torch.Tensor) -> None:
    """Ridge regression of ``y`` (tokens, C) on ``x`` (tokens, columns), towards the present weights of ``sink``."""
    own_memory(sink.module.parameters())
    weight, bias = sink.matrix, sink.module.bias
    mean_x, mean_y = x.mean(0), y.mean(0)
    if bias is None:
        mean_x, mean_y = torch.zeros_like(mean_x), torch.zeros_like(mean_y)
    if x.shape[1]:
        x = x - mean_x
        gram = x.T @ x
        missing = x.T @ (y - mean_y) - gram @ weight.T
        gram.diagonal().add_(RIDGE * gram.diagonal().mean().clamp_min(torch.finfo(gram.dtype).tiny))
        weight += torch.linalg.solve(gram, missing).T
    if bias is not None:
        bias.copy_(mean_y - weight @ mean_x)
