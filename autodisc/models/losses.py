"""The loss of a model against gold labels: fine-tuning, importance, and the hard-label part of distillation.

Labels tell the kind: values are a regression's, (B,) classes a sentence's, (B, T) classes tokens', of which those with
the label IGNORED do not count.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from autodisc.tasks.splits import IGNORED


def label_loss(logits: torch.Tensor, labels: torch.Tensor, count: float) -> torch.Tensor:
    """Cross-entropy with gold classes (int64), or squared error with gold values (float); a sum over ``count``."""
    if labels.is_floating_point():
        return F.mse_loss(logits[:, 0], labels, reduction="sum") / count
    each = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return each / count


def labelled(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(n, V) of what has a label: sentences, or tokens."""
    return logits if labels.dim() == 1 else logits[labels != IGNORED]


def label_count(labels: torch.Tensor) -> int:
    """Labels that count."""
    return len(labels) if labels.dim() == 1 else int((labels != IGNORED).sum())
