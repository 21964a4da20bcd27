"""The distillation losses, as pure functions of tensors.

L = (L_hidden + L_prediction) / 2        (arXiv:2205.14570; the authors' code)

L_hidden is the mean squared error of hidden states over real tokens and depths; L_prediction the soft
cross-entropy at temperature T (times T², Hinton et al. 2015), for regression the squared error of the output.
Each is a sum divided by the totals of the *effective* batch, so micro-batches add up to the whole exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from autodisc.config import DistillationConfig
from autodisc.models.losses import label_loss


@dataclass(frozen=True)
class Totals:
    """Real examples and tokens of the effective batch that a micro-batch belongs to."""

    examples: int
    tokens: int


@dataclass(frozen=True)
class TeacherOutput:
    """logits (B, V), and hidden states (tokens, depths, C) of the real tokens, row by row."""

    logits: torch.Tensor
    hidden: torch.Tensor | None


def hidden_loss(
    student: Sequence[torch.Tensor], teacher: torch.Tensor, mask: torch.Tensor, tokens: int
) -> torch.Tensor:
    """Squared error per depth, real token and channel.

    ``student``: one (B, T, C) per depth; ``teacher``: (real tokens, depths, C); ``mask``: (B, T), true for real.
    """
    total = teacher.new_zeros(())
    for depth, states in enumerate(student):
        total = total + (states[mask].float() - teacher[:, depth]).square().mean(-1).sum()  # (tokens, C) -> ()
    return total / (tokens * len(student))


def soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor, temperature: float, examples: int) -> torch.Tensor:
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
