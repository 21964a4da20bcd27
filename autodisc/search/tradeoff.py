"""Choose the teacher assistant by the scale-performance tradeoff.

t = metric + lam * sparsity        (λ-tradeoff, arXiv:2205.14570)

A candidate that has not left the floor (the best constant prediction) by ``margin`` standard errors is
infeasible: once a pruned model answers one class for everything its metric stops falling while
``lam * sparsity`` goes on rising, and the argmax would be the most broken candidate.

Floats in, floats out: every choice can be replayed from a record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """One candidate on validation; every number a fraction, metric and floor in the metric's own range."""

    sparsity: float
    metric: float
    floor: float
    standard_error: float

    def feasible(self, margin: float = 1.0) -> bool:
        return infeasibility(self, margin) < 0.0


def infeasibility(score: Score, margin: float) -> float:
    """How much the metric lacks to stand clear of the floor; negative means feasible."""
    return score.floor + margin * score.standard_error - score.metric


def tradeoff(metric: float, sparsity: float, lam: float) -> float:
    return metric + lam * sparsity


def best(scores: Sequence[Score], lam: float, margin: float = 1.0) -> int | None:
    """Index of the feasible score with the highest tradeoff; a tie goes to the sparser, then to the
    first. None: none is feasible."""
    feasible = [i for i, score in enumerate(scores) if score.feasible(margin)]
    if not feasible:
        return None
    return max(feasible, key=lambda i: (tradeoff(scores[i].metric, scores[i].sparsity, lam), scores[i].sparsity))


def winners(scores: Sequence[Score], margin: float = 1.0, *, highest: float = 1.0) -> list[tuple[float, float, int]]:
    """Whom ``best`` chooses for λ from 0 to ``highest``: (from, to, index), in that order.

    Tradeoffs are lines in λ, and the choice their upper envelope: it only ever moves to a sparser candidate.
    """
    found: list[tuple[float, float, int]] = []
    lam, at = 0.0, best(scores, 0.0, margin)
    sparser = [i for i, score in enumerate(scores) if score.feasible(margin)]
    while at is not None:
        now = scores[at]
        sparser = [i for i in sparser if scores[i].sparsity > now.sparsity]
        meets = [((now.metric - scores[i].metric) / (scores[i].sparsity - now.sparsity), i) for i in sparser]
        until, following = min(meets, key=lambda meet: (meet[0], -scores[meet[1]].sparsity), default=(highest, at))
        if until >= highest:
            return [*found, (lam, highest, at)]
        found.append((lam, until, at))
        lam, at = until, following
    return found
