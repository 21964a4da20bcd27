"""The limits of speed.py: hand-written loops that do a stage's arithmetic and nothing else.

No sandwich, no supernet, no cache, no ledger, no schedule, no checks; batches and what the teacher says of them are
made before. Kernels are the fastest that were found, so that a limit hides no cost that ours shares with it. Models run
through transformers' modules, as in anyone's own loop; a supernet's layers are written out (``pruning/layers.py``), so
training can come out below its limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from common import seconds
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autodisc.config import DistillationConfig
from autodisc.models.attention import trainable_attention
from autodisc.models.layouts import blocks, embeddings
from autodisc.models.losses import label_loss
from autodisc.pruning.masks import masked
from autodisc.runtime import Runtime
from autodisc.tasks.batches import Batch

Inputs = dict[str, torch.Tensor]  # (B, T) by name, as a model takes them


@dataclass(frozen=True)
class Told:
    """A batch and what the teacher says of it, ready for the loss."""

    inputs: Inputs
    real: torch.Tensor  # (tokens,) where the real ones lie among all B × T
    target: torch.Tensor  # (B, V) the teacher's probabilities, or its one value
    hidden: dict[int, torch.Tensor]  # by depth, (tokens, C), fp32


def tell(teacher: PreTrainedModel, passed: Sequence[Batch], depths: Sequence[int], runtime: Runtime) -> list[Told]:
    told = []
    for batch in passed:
        with torch.no_grad(), runtime.autocast():
            out = teacher(**batch.inputs, output_hidden_states=True)
        real = batch.inputs["attention_mask"].flatten().nonzero()[:, 0]
        logits = out.logits.float()
        target = logits if batch.labels.is_floating_point() else F.softmax(logits, -1)
        hidden = {depth: out.hidden_states[depth].flatten(0, 1)[real].float() for depth in depths}
        told.append(Told(batch.inputs, real, target, hidden))
    return told


def distil(model: PreTrainedModel, told: Sequence[Told], config: DistillationConfig, runtime: Runtime) -> None:
    """Train ``model`` alone for one pass."""
    for module in embeddings(model):
        module.requires_grad_(False)
    model.eval()  # no dropout
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=config.weight_decay, fused=True)
    with trainable_attention(model, runtime):
        for batch in told:
            with runtime.autocast():
                out = model(**batch.inputs, output_hidden_states=True)
            logits = out.logits.float()
            loss_of = F.mse_loss if logits.shape[-1] == 1 else F.cross_entropy
            loss = loss_of(logits, batch.target)
            for depth, theirs in batch.hidden.items():
                mine = out.hidden_states[depth].flatten(0, 1).index_select(0, batch.real).float()  # (tokens, C)
                loss = loss + F.mse_loss(mine, theirs) / len(batch.hidden)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, config.clip)
            optimizer.step()
            optimizer.zero_grad()


def evaluate(model: PreTrainedModel, passed: Sequence[Inputs], runtime: Runtime) -> list[np.ndarray]:
    model.eval()
    with torch.inference_mode(), runtime.autocast():
        return [model(**inputs).logits.float().cpu().numpy() for inputs in passed]


def teach(teacher: PreTrainedModel, passed: Sequence[Batch], runtime: Runtime) -> None:
    """The teacher's forward with all hidden states, kept nowhere."""
    with torch.inference_mode(), runtime.autocast():
        for batch in passed:
            teacher(**batch.inputs, output_hidden_states=True)


def weigh(model: PreTrainedModel, passed: Sequence[Batch], runtime: Runtime) -> list[torch.Tensor]:
    """Σ |∂loss/∂mask| of every unit."""
    model.eval().requires_grad_(False)
    layers, device = blocks(model), runtime.device
    heads = [torch.ones(block.heads, device=device, requires_grad=True) for block in layers]
    neurons = [torch.ones(block.neurons, device=device, requires_grad=True) for block in layers]
    masks = heads + neurons
    sums = [torch.zeros_like(mask) for mask in masks]
    with masked(model, heads, neurons), trainable_attention(model, runtime):
        for batch in passed:
            with runtime.autocast():
                logits = model(**batch.inputs).logits.float()
            found = torch.autograd.grad(label_loss(logits, batch.labels, len(batch)), masks)
            for total, gradient in zip(sums, found, strict=True):
                total += gradient.abs()
    model.requires_grad_(True)
    return sums


def tokenise(tokenizer: PreTrainedTokenizerBase, splits: Sequence[list[list[str]]], max_length: int) -> None:
    """``splits``: of each, its one or two text columns."""
    for texts in splits:
        tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)


def matrix_peak(runtime: Runtime) -> float:
    """FLOP/s of the best of ten square matrix products at the runtime's precision."""
    n = 2048 if runtime.device.type == "cpu" else 8192
    dtype = torch.bfloat16 if runtime.precision == "bf16" else torch.float32
    left, right = (torch.randn(n, n, device=runtime.device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / min(seconds(lambda: left @ right, runtime) for _ in range(10))
