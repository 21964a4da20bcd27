"""One part of a task's examples: tokens that stay memory-mapped, and what they are to be labelled as.

A row of a sentence has one label. A row of many labels (words, blocks of text) has them in the column ``labels``, one
beside each token; ``labels`` of the split is then what metrics count of the truth, a row an example.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100  # a token's label where it has none, as in torch's cross-entropy
LABELS = "labels"


@dataclass(frozen=True)
class Split:
    """One part of a task's examples, tokenised, not padded."""

    name: str
    rows: Dataset  # input_ids and, where there are any, token_type_ids and labels
    lengths: np.ndarray  # (N,) tokens
    labels: np.ndarray  # (N,) int64 class ids, or float32; (N, columns) float64 of many labels a row (``sums``)
    fingerprint: str  # of tokens and labels
    tags: np.ndarray | None = None  # (N, W) int16 of a sentence's words, those cut off too; IGNORED beyond
    counts: np.ndarray | None = None  # (N,) labels that a row has for a loss; none: one

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def labelled(self) -> int:
        """Labels that a loss over all rows has."""
        return len(self) if self.counts is None else int(self.counts.sum())

    def select(self, indices: Sequence[int] | np.ndarray) -> Split:
        """The rows at ``indices``, in that order."""
        index = np.asarray(indices, dtype=np.int64)
        fingerprint = digest([self.fingerprint.encode(), index.tobytes()])
        return replace(
            self,
            rows=self.rows.select(index, new_fingerprint=fingerprint),
            lengths=self.lengths[index],
            labels=self.labels[index],
            fingerprint=fingerprint,
            tags=None if self.tags is None else self.tags[index],
            counts=None if self.counts is None else self.counts[index],
        )


def make_split(
    name: str,
    tokens: Dataset,
    labels: np.ndarray,
    *,
    tags: np.ndarray | None = None,
) -> Split:
    """A split of tokenised rows and their labels; its fingerprint is of both."""
    lists = {column: tokens.data.column(column).chunks for column in tokens.column_names}
    lengths = np.concatenate([chunk.value_lengths().to_numpy() for chunk in lists["input_ids"]]).astype(np.int64)
    content = (chunk.flatten().to_numpy().data for chunks in lists.values() for chunk in chunks)  # views into the file
    fingerprint = digest([lengths.data, labels.data, *content])
    counts = None
    if LABELS in lists:
        labelled = np.concatenate([chunk.flatten().to_numpy() != IGNORED for chunk in lists[LABELS]])
        counts = np.add.reduceat(labelled, np.cumsum(lengths) - lengths, dtype=np.int64)
    return Split(name, tokens, lengths, labels, fingerprint, tags, counts)


def digest(parts: Iterable[bytes | memoryview]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part)
    return found.hexdigest()
