"""A part of a split that has its labels in proportion, and how small it may be."""

from __future__ import annotations

import numpy as np

from autodisc.config import Kind, MetricName
from autodisc.tasks.sums import ENTITIES

RAREST = 30  # rows of the rarest class that a part keeps for a metric that hangs on it
_HANG_ON_THE_RAREST: tuple[MetricName, ...] = ("f1", "f1_macro", "accuracy_f1", "matthews", "entity_f1")


def draw_part(labels: np.ndarray, kind: Kind, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` of N rows, in their order: every N / count-th of the rows ordered by label, alike ones at random.

    Each class is there as often as among the ``labels``, (N,) or (N, columns), to within one row. Sentences of words
    are ordered by their entities, blocks of text not at all.
    """
    N, key = len(labels), _key(kind, labels)
    order = rng.permutation(N) if key is None else np.lexsort((rng.random(N), key))
    places = (np.arange(count) + rng.random()) * N / count
    return np.sort(order[places.astype(np.int64)])


def least_rows(metric: MetricName, kind: Kind, labels: np.ndarray) -> int:
    """How many rows in proportion have ``RAREST`` of the rarest class; all where there are no more, 1 for metrics that
    no class decides. Of ``tokens`` the classes are rows with an entity, and without."""
    key = _key(kind, labels)
    if key is None or metric not in _HANG_ON_THE_RAREST:
        return 1
    counts = np.unique(key > 0 if kind == "tokens" else key, return_counts=True)[1]
    return min(len(labels), -(-RAREST * len(labels) // int(counts.min())))


def _key(kind: Kind, labels: np.ndarray) -> np.ndarray | None:
    if kind == "tokens":
        return labels[:, ENTITIES]
    return None if labels.ndim > 1 else labels
