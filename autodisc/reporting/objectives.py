"""What a teacher assistant could be chosen by: pure functions of what a search saw, the larger the better.

m metric, s sparsity, L loss to the teacher, T the teacher's metric and f the floor, all on validation:

    tradeoff            m + λ s                               arXiv:2205.14570; λ = 0 is the metric alone
    normalised          (m − f) / (T − f) + λ s               one λ for tasks of different ranges and floors
    loss_tradeoff       (L_max − L) / (L_max − L_min) + λ s   smooth, no labels; depends on the grid's ends
    chord               m + λ s, λ = (m_0 − m_K) / (s_K − s_0)
    one_standard_error  the sparsest within a standard error of the best (Breiman et al., 1984)
    nearest_scale       − |(1 − s) − r (1 − s_student)|       the 2.5 × rule (arXiv:2311.07052), no search;
                        of two as near, as on a grid of tenths for a student of .9, the sparser
    smallest            s                                     no search
    uniform             any candidate with equal probability  no search

λ without a hand: ``chord`` takes λ as the slope of the metric against scale, from the first to the last feasible
candidate. m + λ s is then the height above the straight line between those two (plus a constant), and its maximum is
the knee (Satopää et al., 2011, "Kneedle"). A curve that bends the other way has no knee; its ends tie, and the
sparser one is taken. ``normalised`` with λ = 1 is the same rule with ends that no grid moves: the teacher at sparsity
0, and the floor at sparsity 1, where nothing is left.

nan says that a candidate has no value; it is not chosen. Floats in, floats out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autodisc.search.tradeoff import Score, tradeoff


@dataclass(frozen=True)
class Candidate(Score):
    """A teacher assistant as a scorer saw it on validation; ``loss`` is to the teacher. Its scale is 1 − sparsity."""

    loss: float | None = None


@dataclass(frozen=True)
class Cell:
    """All candidates of one task, seed and student sparsity under one scorer (recovered, pruned, ...)."""

    task: str
    seed: int
    student_sparsity: float
    scorer: str
    teacher_metric: float  # on validation
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Objective:
    """A rule by name. ``guarded``: candidates that have not left the floor are out. No ``values``: uniform choice."""

    name: str
    values: Callable[[Sequence[Candidate], Cell], Sequence[float]] | None
    guarded: bool = True


def tradeoff_at(lam: float) -> Objective:
    return Objective(
        f"tradeoff λ={lam:g}" if lam else "metric",
        lambda candidates, _: [tradeoff(c.metric, c.sparsity, lam) for c in candidates],
    )


def normalised_at(lam: float) -> Objective:
    def values(candidates: Sequence[Candidate], cell: Cell) -> list[float]:
        """nan where the teacher itself is not above the floor."""
        return [
            tradeoff((c.metric - c.floor) / (cell.teacher_metric - c.floor), c.sparsity, lam)
            if cell.teacher_metric > c.floor
            else math.nan
            for c in candidates
        ]

    return Objective(f"normalised λ={lam:g}", values)


def loss_tradeoff_at(lam: float) -> Objective:
    def values(candidates: Sequence[Candidate], _: Cell) -> list[float]:
        """nan for all where a loss is missing, or where all are the same and so none says anything."""
        losses = [math.nan if c.loss is None else c.loss for c in candidates]
        span = max(losses, default=0.0) - min(losses, default=0.0)
        if not all(map(math.isfinite, losses)) or span <= 0:
            return [math.nan] * len(losses)
        return [
            tradeoff((max(losses) - loss) / span, c.sparsity, lam) for c, loss in zip(candidates, losses, strict=True)
        ]

    return Objective(f"loss λ={lam:g}", values)


def chord_slope(candidates: Sequence[Candidate]) -> float:
    """λ of ``chord``: how fast the metric rises with scale between the sparsest and the least sparse; 0 for one."""
    if not candidates:
        return 0.0
    first, last = (pick(candidates, key=lambda c: (c.sparsity, c.metric)) for pick in (min, max))
    width = last.sparsity - first.sparsity
    return (first.metric - last.metric) / width if width > 0 else 0.0


def _chord(candidates: Sequence[Candidate], _: Cell) -> list[float]:
    lam = chord_slope(candidates)
    return [tradeoff(c.metric, c.sparsity, lam) for c in candidates]


def _one_standard_error(candidates: Sequence[Candidate], _: Cell) -> list[float]:
    """Those within rank by sparsity and above the rest, which rank by metric."""
    if not candidates:
        return []
    top = max(candidates, key=lambda c: (c.metric, c.sparsity))
    least = top.metric - top.standard_error
    return [1 + c.sparsity if c.metric >= least else c.metric - least for c in candidates]


def nearest_scale(times: float) -> Objective:
    return Objective(
        f"rule-{times:g}x",
        lambda candidates, cell: [
            -round(abs((1 - c.sparsity) - times * (1 - cell.student_sparsity)), 9) for c in candidates
        ],
        guarded=False,
    )


chord = Objective("chord", _chord)
one_standard_error = Objective("one standard error", _one_standard_error)
smallest = Objective("smallest", lambda candidates, _: [c.sparsity for c in candidates], guarded=False)
uniform = Objective("random", None, guarded=False)


def objectives(lams: Sequence[float] = (0.1, 0.2, 0.5)) -> tuple[Objective, ...]:
    """All of them: those with a λ at each of ``lams``, normalised also at 1."""
    return (
        *(tradeoff_at(lam) for lam in lams),
        tradeoff_at(0.0),
        *(normalised_at(lam) for lam in dict.fromkeys((*lams, 1.0))),
        *(loss_tradeoff_at(lam) for lam in lams),
        chord,
        one_standard_error,
        nearest_scale(2.5),
        smallest,
        uniform,
    )


def evaluate(objective: Objective, cell: Cell, *, margin: float = 1.0) -> tuple[float, ...]:
    """A value for each candidate; -inf for one that is infeasible or has none. Uniform choice values all the same."""
    if objective.values is None:
        return (0.0,) * len(cell.candidates)
    inside = [i for i, c in enumerate(cell.candidates) if not objective.guarded or c.feasible(margin)]
    values = objective.values([cell.candidates[i] for i in inside], cell)
    found = [-math.inf] * len(cell.candidates)
    for i, value in zip(inside, values, strict=True):
        found[i] = -math.inf if math.isnan(value) else value
    return tuple(found)


def choose(objective: Objective, cell: Cell, *, margin: float = 1.0) -> int | None:
    """Index of the highest value; a tie goes to the sparser, as in ``tradeoff.best``. None: nothing has a value."""
    if objective.values is None:
        raise ValueError(f"{objective.name} chooses by chance; expected an objective with values")
    values = evaluate(objective, cell, margin=margin)
    order = [(value, cell.candidates[i].sparsity, -i) for i, value in enumerate(values) if value > -math.inf]
    return -max(order)[2] if order else None
