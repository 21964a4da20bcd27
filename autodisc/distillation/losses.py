"""The distillation losses, as pure functions of tensors.

L = (L_hidden + L_prediction) / 2        (arXiv:2205.14570; the authors' code)

L_hidden is the mean squared error of hidden states over real tokens and depths; L_prediction the soft
cross-entropy at temperature T (times T², Hinton et al. 2015) of each label, for regression the squared error of the
output. Of a vocabulary the teacher's k likeliest classes are kept, and all others are one:

L_prediction = T² [ Σ over i ≤ k of pᵢ log(pᵢ / qᵢ) + p₊ log(p₊ / q₊) ],   p₊ = 1 − Σ pᵢ,  q₊ = 1 − Σ qᵢ

(k probabilities alone would teach that all others are impossible: "ghost token" of arXiv:2503.16870.) At k = V it is
the divergence whose gradient the cross-entropy has; at k < V it is never more, since classes are only merged.
Each is a sum divided by what a step has on average, so micro-batches add up to the whole exactly, and batches of
different sizes to a pass in which every label weighs the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from autodisc.config import DistillationConfig
from autodisc.models.losses import label_loss, labelled
from autodisc.tasks.splits import IGNORED

SMALLEST = 1e-7  # probability of all others together


@dataclass(frozen=True)
class Totals:
    """Labels and real tokens that a step has on average: what its sums are divided by.

    A sentence has one label, a token of a word or of a text its own, if any.
    """

    labels: float
    tokens: float


@dataclass(frozen=True)
class Likeliest:
    """Of each token the k likeliest classes (B, T, k), int64, and log-probabilities (B, T, k + 1) at a temperature.

    The last is that of all other classes together.
    """

    classes: torch.Tensor
    log_probabilities: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, k: int, temperature: float) -> Likeliest:
        """Of logits (B, T, V); one row after the other, since they are large."""
        found = [_likeliest(row.float() / temperature, k) for row in logits]
        classes, log_probabilities = zip(*found, strict=True)
        return cls(torch.stack(classes), torch.stack(log_probabilities))


def _likeliest(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    top, classes = logits.topk(k, dim=-1)
    others = logits.scatter(-1, classes, -torch.inf).logsumexp(-1, keepdim=True)
    return classes, torch.cat([top, others], -1) - logits.logsumexp(-1, keepdim=True)


@dataclass(frozen=True)
class TeacherOutput:
    """logits (B, V) or (B, T, V), of a vocabulary the likeliest; hidden states (B, T, depths, C); fp32.

    What padding has there is of no account.
    """

    logits: torch.Tensor | Likeliest
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


def soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor, temperature: float, count: float) -> torch.Tensor:
    """Cross-entropy of (B, V) logits against the teacher's distribution, both at ``temperature``."""
    target = F.softmax(teacher / temperature, dim=-1)
    return -(target * F.log_softmax(student / temperature, dim=-1)).sum() * temperature**2 / count


def likeliest_divergence(
    student: torch.Tensor, teacher: Likeliest, labelled: torch.Tensor, temperature: float, count: float
) -> torch.Tensor:
    """Divergence of (B, T, V) logits from the teacher's k + 1 classes, over the tokens that are ``labelled`` (B, T)."""
    student = student / temperature
    q = student.gather(-1, teacher.classes) - student.logsumexp(-1, keepdim=True)  # (B, T, k)
    # In fp32 a rest below SMALLEST is rounding.
    others = (1 - q.exp().sum(-1, keepdim=True)).clamp_min(SMALLEST).log()
    log_p = teacher.log_probabilities.clamp_min(math.log(SMALLEST))
    each = (log_p.exp() * (log_p - torch.cat([q, others], -1))).sum(-1)  # (B, T)
    return each[labelled].sum() * temperature**2 / count


def prediction_loss(
    student: torch.Tensor,
    teacher: torch.Tensor | Likeliest,
    labels: torch.Tensor,
    *,
    temperature: float,
    count: float,
) -> torch.Tensor:
    """How far outputs are from the teacher's where there are labels, whose values are not looked at; over ``count``."""
    if labels.is_floating_point():
        assert isinstance(teacher, torch.Tensor), "a regression has one output"
        return F.mse_loss(student, teacher, reduction="sum") / count
    if isinstance(teacher, Likeliest):
        return likeliest_divergence(student, teacher, labels != IGNORED, temperature, count)
    return soft_cross_entropy(labelled(student, labels), labelled(teacher, labels), temperature, count)


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
    """The whole loss of one candidate on one micro-batch; ``hidden`` as in ``hidden_loss``."""
    logits = logits.float()
    loss = prediction_loss(logits, teacher.logits, labels, temperature=config.temperature, count=totals.labels)
    if hidden and teacher.hidden is not None:
        loss = (loss + hidden_loss(hidden, teacher.hidden, mask, totals.tokens)) / 2
    if config.hard_label_weight > 0:
        weight = config.hard_label_weight
        loss = (1 - weight) * loss + weight * label_loss(logits, labels, totals.labels)
    return loss


def mean_loss(
    logits: torch.Tensor,
    hidden: Sequence[torch.Tensor],
    guides: Sequence[TeacherOutput],
    *,
    labels: torch.Tensor,
    mask: torch.Tensor,
    totals: Totals,
    config: DistillationConfig,
) -> torch.Tensor:
    """The mean of ``distillation_loss`` to each of ``guides`` (densely guided distillation, arXiv:2009.08825)."""
    losses = [
        distillation_loss(logits, hidden, teacher=each, labels=labels, mask=mask, totals=totals, config=config)
        for each in guides
    ]
    return torch.stack(losses).mean() if len(losses) > 1 else losses[0]


def hidden_depths(layers: int, count: int, *, embeddings_differ: bool) -> tuple[int, ...]:
    """``count`` evenly spaced depths in [0, layers], 0 being the embeddings.

    Depth 0 is left out where embeddings are frozen: teacher and student agree there exactly.
    """
    if count == 0:
        return ()
    spaced = {round(i * layers / (count - 1)) for i in range(count)} if count > 1 else {layers}
    return tuple(sorted(spaced if embeddings_differ else spaced - {0}))
