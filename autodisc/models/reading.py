"""What a model says of a batch, reduced to what a metric needs of each example: this is all that is kept of logits.

classification   the likeliest class                      (B,)
regression       the value                                (B,)
tokens           entities and words, counted               (B, 3), columns of ``tasks/sums.py``
causal-lm        −Σ log p(next token), nats, fp32          (B, 1)

A vocabulary's logits (B, T, V) are too large to be kept, or to be copied whole.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F

from autodisc.tasks import words
from autodisc.tasks.batches import Batch
from autodisc.tasks.data import Task
from autodisc.tasks.metrics import check_finite, decode
from autodisc.tasks.splits import IGNORED, Split


def read(logits: torch.Tensor, batch: Batch, *, split: Split, task: Task) -> np.ndarray:
    """One row for each of the batch's, as ``task.metric`` takes predictions; TrainingError where one is not finite."""
    if task.kind == "causal-lm":
        return _nll(logits, batch.labels)
    said = logits.float().cpu().numpy()
    if task.kind != "tokens":
        return decode(said, task.kind)
    check_finite(said, "logits")
    assert split.tags is not None, "a split of words has their tags"
    assert task.label_names is not None, "and its tags have names"
    tags = split.tags[batch.rows]
    return words.answers(_tags(said.argmax(axis=2), batch.labels.cpu().numpy(), tags), tags, task.label_names)


def raw(logits: torch.Tensor, batch: Batch, *, split: Split, task: Task) -> np.ndarray:
    """Logits (B, V) of sentences as they are, fp32."""
    assert split.counts is None, "those of tokens are too many to be kept"
    return logits.float().cpu().numpy()


class Reader(Protocol):
    """Reduces what a model says of a batch to a row for each of its rows."""

    def __call__(self, logits: torch.Tensor, batch: Batch, *, split: Split, task: Task) -> np.ndarray: ...


def _nll(logits: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    rows = zip(logits, labels, strict=True)
    sums = [F.cross_entropy(row.float(), own, ignore_index=IGNORED, reduction="sum") for row, own in rows]
    nll = torch.stack(sums)[:, None].cpu().double().numpy()
    check_finite(nll, "losses")
    return nll


def _tags(likeliest: np.ndarray, labels: np.ndarray, tags: np.ndarray) -> np.ndarray:
    """The tag of each word (B, W), read at its first token of (B, T); words beyond the last token have none."""
    said = np.full(tags.shape, words.MISSED, np.int64)
    rows, places = np.nonzero(labels != IGNORED)
    number = (labels != IGNORED).cumsum(axis=1)[rows, places] - 1  # of the word in its sentence
    said[rows, number] = likeliest[rows, places]
    return said
