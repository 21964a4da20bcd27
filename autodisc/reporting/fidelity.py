"""How well an objective that trains no student finds the teacher assistant whose student is best.

The truth is the test metric of the student distilled through each assistant, as the exhaustive search found it.

    Spearman, Kendall τ-b   between the objective's values and the truth; infeasible candidates rank last, tied
    regret                  best student − the chosen assistant's student
    excess                  the student through the assistant that the other seeds found best − the chosen one's
    top-1, top-2            whether the chosen one is among the best one or two; ties at the edge count as in

Intervals: of correlations and hits BCa; of regret percentile, since at its bound of 0 BCa's upper end collapses to it
(studies/glue-minilm, docstrings, .9, seeds 0 and 1, normalised λ = .5: 0.05 points where the percentile has 0.28); of
excess, a mean of differences, t over seeds and examples. What is drawn from 3 to 5 seeds holds less than it says
(``statistics``).

Undefined is None, never 0: a correlation where all values or all students are equal. Where nothing is feasible the user
distils without an assistant, so that is what regret charges, if that student (``direct``) is among the results; without
it regret is undefined and the cell is counted in ``undecided``. It is never a hit. Leaving such cells out would reward
an objective for giving up. Uniform choice has its exact expectation: mean regret, k / K hits, correlation 0.

Regret holds luck: the best of K noisy students is better by luck as well. Simulated with six assistants that are all
equally good, accuracy .8, it is 1.1 points (3 seeds, 1,000 examples) and .8 (5 seeds, 1,700), where the truth is 0; its
intervals lie too high too (95 % percentile held 0 in 53 and 6 %, BCa in 84 and 35 %), since draws add luck once more.
Excess has no such luck, as the reference is chosen without the seed that it is judged on; it needs two seeds, and is
somewhat low, since the other seeds may miss the best. What the seeds share by their one test set stays in both.
``ceiling`` is that reference as an objective. To compare two objectives use ``students_of`` and ``gains.compare``,
where the best student cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from autodisc.reporting.objectives import Cell, Objective, choose, evaluate
from autodisc.reporting.statistics import (
    RESAMPLES,
    Bootstrap,
    Interval,
    Results,
    bootstrap,
    comparisons,
    examples_of,
    ranks,
    t_interval,
)

DIRECT = "direct"
_FIGURES = ("spearman", "kendall", "regret", "excess", "top1", "top2")


@dataclass(frozen=True)
class Truth:
    """The students of one seed: one for each sparsity, in that order, and perhaps ``direct`` after them."""

    task: str
    student_sparsity: float
    sparsities: tuple[float, ...]
    results: Results

    def __post_init__(self) -> None:
        extra = self.results.names[len(self.sparsities) :]
        if not self.sparsities or len(self.results.names) < len(self.sparsities) or extra not in ((), (DIRECT,)):
            raise ValueError(
                f"students {self.results.names}: expected one for each of {self.sparsities}, then {DIRECT} or nothing"
            )

    @property
    def students(self) -> tuple[float, ...]:
        return self.results.metrics[: len(self.sparsities)]


@dataclass(frozen=True)
class Fidelity:
    """One objective in one cell; hits are probabilities, so that uniform choice has them too."""

    objective: str
    chosen: float | None  # sparsity; None: nothing feasible, or chosen by chance
    spearman: float | None
    kendall: float | None
    regret: float | None
    top1: float
    top2: float


@dataclass(frozen=True)
class Assessment:
    """One objective over the seeds of a task and student sparsity: means with intervals, None where undefined."""

    task: str
    student_sparsity: float
    scorer: str
    objective: str
    cells: tuple[Fidelity, ...]
    spearman: float | None
    kendall: float | None
    regret: float | None
    excess: float | None  # one seed has none
    top1: float
    top2: float
    intervals: dict[str, Interval | None]  # by figure; None: undefined, or nothing to draw from
    seeds: tuple[int, ...]
    undecided: int  # cells without a choice and without ``direct``, left out of regret and excess
    over: str  # what the intervals are over: "seeds and examples", "seeds", "examples" or "nothing"


@dataclass(frozen=True)
class _Ranking:
    """Values (K,) and the probability of each choice (K,); no values: uniform; no probability: nothing feasible."""

    name: str
    values: np.ndarray | None
    probability: np.ndarray | None


def judge(cell: Cell, truth: Truth, objective: Objective, *, margin: float = 1.0) -> Fidelity:
    """One objective against the truth of one cell."""
    return _fidelity(_ranking(objective, cell, truth, margin), truth)


def assess(
    cells: Sequence[Cell],
    truths: Sequence[Truth],
    objectives: Sequence[Objective],
    *,
    rng: np.random.Generator,
    margin: float = 1.0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    method: Literal["percentile", "bca"] = "bca",
) -> tuple[Assessment, ...]:
    """Each objective over the seeds of one task, student sparsity and scorer; a cell and a truth a seed, in one order.

    The draws are of seeds and test examples, the same for all objectives, with each seed's choice kept; what
    validation's noise does to a choice shows between seeds only. A seed whose correlation is undefined is left out of
    that mean; ``cells`` shows which.
    """
    scorers = {cell.scorer for cell in cells}
    if len(scorers) != 1:
        raise ValueError(f"scorers {sorted(scorers)}: expected one, and at least one cell")
    rankings = [
        [_ranking(objective, cell, truth, margin) for cell, truth in zip(cells, truths, strict=True)]
        for objective in objectives
    ]
    return _assess(scorers.pop(), rankings, truths, rng, resamples, confidence, method)


def ceiling(
    truths: Sequence[Truth],
    *,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    method: Literal["percentile", "bca"] = "bca",
) -> Assessment:
    """What knowing the other seeds' students would reach; with few seeds it is itself noisy."""
    means = _others(truths)
    if means is None:
        raise ValueError(f"truths: got {len(truths)}; expected two seeds or more, of the same candidates")
    rankings = [
        _Ranking("other seeds' truth", values, _one_of(values, truth))
        for values, truth in zip(means, truths, strict=True)
    ]
    return _assess("none", [rankings], truths, rng, resamples, confidence, method)[0]


def students_of(cell: Cell, truth: Truth, objectives: Sequence[Objective], *, margin: float = 1.0) -> Results | None:
    """Each objective's student as a strategy of its own, for ``gains.compare``: paired, and the best student cancels.

    Without a feasible candidate it is the student without an assistant; None where that one is missing.
    """
    _match(cell, truth)
    results, rows = truth.results, []
    for objective in objectives:
        chosen = choose(objective, cell, margin=margin)
        if chosen is None and DIRECT not in results.names:
            return None
        rows.append(results.names.index(DIRECT) if chosen is None else chosen)
    return Results(
        results.seed,
        tuple(objective.name for objective in objectives),
        tuple(results.metrics[row] for row in rows),
        None if results.answers is None else results.answers[rows],
        results.labels,
        results.metric,
    )


def _ranking(objective: Objective, cell: Cell, truth: Truth, margin: float) -> _Ranking:
    _match(cell, truth)
    K = len(cell.candidates)
    if objective.values is None:
        return _Ranking(objective.name, None, np.full(K, 1 / K))
    chosen = choose(objective, cell, margin=margin)
    values = np.array(evaluate(objective, cell, margin=margin))
    return _Ranking(objective.name, values, None if chosen is None else np.eye(K)[chosen])


def _match(cell: Cell, truth: Truth) -> None:
    ours = (cell.task, cell.student_sparsity, cell.seed, tuple(c.sparsity for c in cell.candidates))
    theirs = (truth.task, truth.student_sparsity, truth.results.seed, truth.sparsities)
    if ours != theirs:
        raise ValueError(f"cell {ours} and truth {theirs}: expected the same task, student, seed and candidates")


def _others(truths: Sequence[Truth]) -> list[np.ndarray] | None:
    """For each seed the mean of the other seeds' students (K,); None: one seed, or their candidates differ."""
    if len(truths) < 2 or len({truth.sparsities for truth in truths}) > 1:
        return None
    students = np.array([truth.students for truth in truths])  # (S, K)
    return list((students.sum(axis=0) - students) / (len(truths) - 1))


def _one_of(values: np.ndarray, truth: Truth) -> np.ndarray:
    """All probability on the highest value, the sparser of equal ones."""
    return np.eye(len(values))[max(range(len(values)), key=lambda i: (values[i], truth.sparsities[i]))]


def _figures(
    ranking: _Ranking, students: np.ndarray, direct: np.ndarray | None, reference: np.ndarray | None
) -> np.ndarray:
    """All figures under each draw of the students' metrics (R, K); returns (R, 6), nan where undefined."""
    R, K = students.shape
    figures = np.full((R, len(_FIGURES)), np.nan)
    figures[:, :2] = 0.0 if ranking.values is None else correlations(ranking.values, students)
    reached = direct if ranking.probability is None else students @ ranking.probability
    if reached is not None:
        figures[:, 2] = students.max(axis=1) - reached
        if reference is not None:
            figures[:, 3] = students @ reference - reached
    order = np.sort(students, axis=1)
    for k in (1, 2):
        top = students >= order[:, [max(K - k, 0)]]
        figures[:, 3 + k] = 0.0 if ranking.probability is None else top @ ranking.probability
    return figures


def correlations(values: np.ndarray, students: np.ndarray) -> np.ndarray:
    """Spearman's ρ and Kendall's τ-b of values (K,) with each row of (R, K); returns (R, 2), nan for a constant."""
    x, y = ranks(values) - (len(values) + 1) / 2, ranks(students) - (len(values) + 1) / 2
    a, b = comparisons(values).astype(np.float64), comparisons(students).astype(np.float64)
    top = np.stack([y @ x, (a * b).sum(axis=(1, 2))], axis=1)
    squares = np.stack([(x**2).sum() * (y**2).sum(axis=1), (a**2).sum() * (b**2).sum(axis=(1, 2))], axis=1)
    return np.divide(top, np.sqrt(squares), out=np.full(top.shape, np.nan), where=squares > 0)


def _fidelity(ranking: _Ranking, truth: Truth) -> Fidelity:
    figures = _figures(ranking, *_split(truth, None), None)[0].tolist()
    spearman, kendall, regret = (_defined(value) for value in figures[:3])
    chosen = None
    if ranking.probability is not None and ranking.values is not None:
        chosen = truth.sparsities[int(ranking.probability.argmax())]
    return Fidelity(ranking.name, chosen, spearman, kendall, regret, figures[4], figures[5])


def _split(truth: Truth, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The students through each assistant (R, K), and the one without (R,), on drawn examples."""
    metrics = truth.results.resampled(rows)
    return metrics[:, : len(truth.sparsities)], metrics[:, -1] if DIRECT in truth.results.names else None


def _assess(
    scorer: str,
    rankings: Sequence[Sequence[_Ranking]],  # by objective, then by seed
    truths: Sequence[Truth],
    rng: np.random.Generator,
    resamples: int,
    confidence: float,
    method: Literal["percentile", "bca"],
) -> tuple[Assessment, ...]:
    tasks = {(truth.task, truth.student_sparsity) for truth in truths}
    seeds = [truth.results.seed for truth in truths]
    if len(tasks) != 1 or len(set(seeds)) != len(seeds):
        raise ValueError(f"truths of {sorted(tasks)}, seeds {seeds}: expected one task and student, each seed once")
    means = _others(truths)
    references = [None] * len(truths) if means is None else list(map(_one_of, means, truths))

    def statistic(rows: np.ndarray | None) -> np.ndarray:
        students = [_split(truth, rows) for truth in truths]
        return np.stack(
            [
                np.concatenate(
                    [_figures(ranked[seed], *students[seed], references[seed]) for ranked in rankings], axis=1
                )
                for seed in range(len(truths))
            ],
            axis=1,
        )  # (R, S, objectives · figures)

    examples = examples_of([truth.results for truth in truths])
    found = bootstrap(statistic, examples=examples, rng=rng, resamples=resamples)
    drawn = [what for what, there in (("seeds", len(truths) > 1), ("examples", examples > 0)) if there]
    assessments = []
    for number, ranked in enumerate(rankings):
        first = number * len(_FIGURES)
        values = found.estimate[first : first + len(_FIGURES)].tolist()
        cells = tuple(map(_fidelity, ranked, truths))
        assessments.append(
            Assessment(
                task=truths[0].task,
                student_sparsity=truths[0].student_sparsity,
                scorer=scorer,
                objective=ranked[0].name,
                cells=cells,
                spearman=_defined(values[0]),
                kendall=_defined(values[1]),
                regret=_defined(values[2]),
                excess=_defined(values[3]),
                top1=values[4],
                top2=values[5],
                intervals={
                    figure: _interval(found, first + i, figure, confidence, method) for i, figure in enumerate(_FIGURES)
                },
                seeds=tuple(seeds),
                undecided=sum(cell.regret is None for cell in cells),
                over=" and ".join(drawn) or "nothing",
            )
        )
    return tuple(assessments)


def _interval(
    found: Bootstrap, number: int, figure: str, confidence: float, method: Literal["percentile", "bca"]
) -> Interval | None:
    if figure == "excess":
        values = found.by_seed[np.isfinite(found.by_seed[:, number]), number].tolist()
        error = float(found.example_error[number])
        return t_interval(values, example_error=error, confidence=confidence) if len(values) > 1 else None
    return found.interval(number, confidence=confidence, method="percentile" if figure == "regret" else method)


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
