"""The distillation losses, as pure functions of tensors.

L = (L_hidden + L_prediction) / 2        (arXiv:2205.14570; the authors' code)

L_hidden is the mean squared error of hidden states over real tokens and depths; L_prediction the soft
cross-entropy at temperature T (times T², Hinton et al. 2015), for regression the squared error of the output.
Each is a sum divided by what a step has on average, so micro-batches add up to the whole exactly, and batches of
different sizes to a pass in which every example weighs the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from autodisc.config import DistillationConfig
from autodisc.models.losses import label_loss


@dataclass(frozen=True)
class Totals:
    """Real examples and tokens that a step has on average: what its sums are divided by."""

    examples: float
    tokens: float


@dataclass(frozen=True)
class TeacherOutput:
    """logits (B, V), and hidden states (B, T, depths, C), fp32; what padding has there is of no account."""

    logits: torch.Tensor
    hidden: torch.Tensor | None


def hidden_loss(
    student: Sequence[torch.Tensor], teacher: torch.Tensor, mask: torch.Tensor, tokens: float
) -> torch.Tensor:
    """Squared error per depth, real token and channel.

    ``student``: one (B, T, C) per depth; ``teacher``: (B, T, depths, C); ``mask``: (B, T), true for real.
    """
    padding = (~mask).flatten().nonzero().squeeze(1)
    total = _SquaredDistance.apply(padding, teacher.flatten(0, 1), *student)
    return total / (tokens * len(student) * teacher.shape[-1])


class _SquaredDistance(torch.autograd.Function):
    """Σ over depths, real tokens and channels of (student − teacher)²; fp32.

    The difference, kept from the forward, is the gradient but for a factor: a third of the passes over memory that
    autograd makes for indexing, subtracting, squaring and averaging. Padding, some 4 % of the rows, is computed and
    set to zero, which takes less than gathering the other rows and scattering their gradients.
    """

    @staticmethod
    def forward(ctx: Any, padding: torch.Tensor, teacher: torch.Tensor, *student: torch.Tensor) -> torch.Tensor:
        total = teacher.new_zeros(())
        differences = []
        for depth, states in enumerate(student):
            rows = states.flatten(0, 1) - teacher[:, depth]  # (B T, C)
            differences.append(rows.index_fill_(0, padding, 0.0))
            total += torch.dot(rows.flatten(), rows.flatten())
        ctx.save_for_backward(*differences)
        ctx.student = [(states.shape, states.dtype) for states in student]
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale = 2 * grad
        pairs = zip(ctx.saved_tensors, ctx.student, strict=True)
        return None, None, *((difference * scale).to(dtype).view(shape) for difference, (shape, dtype) in pairs)


def soft_cross_entropy(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, examples: float
) -> torch.Tensor:
    """Cross-entropy of (B, V) logits against the teacher's distribution, both at ``temperature``."""
    target = F.softmax(teacher / temperature, dim=-1)
    return -(target * F.log_softmax(student / temperature, dim=-1)).sum() * temperature**2 / examples


def distillation_loss(
    logits: torch.Tensor,
    hidden: Sequence[torch.Tensor],
    *,
    teacher: TeacherOutput,
    labels: torch.Tensor,
    mask: torch.Tensor,
    totals: Totals,
    config: DistillationConfig,
) -> torch.Tensor:
    """The whole loss of one candidate on one micro-batch; ``logits`` (B, V), ``hidden`` as in ``hidden_loss``."""
    logits = logits.float()
    if labels.is_floating_point():
        loss = F.mse_loss(logits, teacher.logits, reduction="sum") / totals.examples
    else:
        loss = soft_cross_entropy(logits, teacher.logits, config.temperature, totals.examples)
    if hidden and teacher.hidden is not None:
        loss = (loss + hidden_loss(hidden, teacher.hidden, mask, totals.tokens)) / 2
    if config.hard_label_weight > 0:
        weight = config.hard_label_weight
        loss = (1 - weight) * loss + weight * label_loss(logits, labels, totals.examples)
    return loss


def hidden_depths(layers: int, count: int, *, embeddings_differ: bool) -> tuple[int, ...]:
    """``count`` evenly spaced depths in [0, layers], 0 being the embeddings.

    Depth 0 is left out where embeddings are frozen: teacher and student agree there exactly.
    """
    if count == 0:
        return ()
    spaced = {round(i * layers / (count - 1)) for i in range(count)} if count > 1 else {layers}
    return tuple(sorted(spaced if embeddings_differ else spaced - {0}))
