"""Strategies as views over cells: which student a strategy ends with, and what it would have paid.

A student through an assistant that is cut from the teacher is a function of seed and assistant alone. So the strategies
that differ only in which of these they try share those cells, and each is charged for the ones that it visits:

    maxidisc      all, and the best on validation      maxidisc-tpe   the same over fewer, as TPE would visit them
    rule-2.5x     the one nearest to 2.5 × the student's scale (arXiv:2311.07052); smallest, largest: the ends
    random        one by chance: the exact expectation over the grid

``autodisc``, ``pruned``, ``plain``, ``chain``, ``released`` and the ``balanced`` ones distil through what a search of
theirs chose, from the weights that it left; where no candidate was feasible they are ``direct``, and have paid for the
search. Each pays for importance and the teacher's outputs once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autodisc.comparison.cells import SHARED, Recorded, Spent, assistant
from autodisc.reporting.fidelity import DIRECT
from autodisc.reporting.objectives import Candidate, Cell, choose, nearest_scale
from autodisc.reporting.statistics import Results
from autodisc.search.replay import replay_tpe
from autodisc.tasks.metrics import METRICS

RULE = nearest_scale(2.5)
NOTHING = Spent()
IMPORTANCE, OUTPUTS = "importance", "teacher outputs"  # the stages that are the shared cell's


class MissingCell(LookupError):
    """A view needs a cell that is not recorded."""


@dataclass(frozen=True)
class Group:
    """The cells of one task, seed and student sparsity, by kind, and those that they share."""

    task: str
    seed: int
    student_sparsity: float
    grid: tuple[float, ...]
    cells: Mapping[str, Recorded]

    def __getitem__(self, kind: str) -> Recorded:
        if kind not in self.cells:
            raise MissingCell(kind)
        return self.cells[kind]

    def validation(self, sparsity: float) -> float:
        """The metric on validation of the student through an assistant."""
        return float(self[assistant(sparsity)].result["validation_metric"])

    @property
    def complete(self) -> bool:
        """Whether the student through every assistant is there."""
        return all(assistant(sparsity) in self.cells for sparsity in self.grid)


@dataclass(frozen=True)
class View:
    """A strategy in one group: its student's cell (several with probabilities, for chance), and its costs."""

    students: tuple[tuple[str, float], ...]
    spent: Spent
    search: Spent = NOTHING
    assistant: float | None = None
    balance: float = 0.0  # the assistant's


Strategy = Callable[[Group, int | None], View]


def _maxidisc(group: Group, _: int | None) -> View:
    return _tried(group, group.grid)


def _maxidisc_tpe(group: Group, trials: int | None) -> View:
    values = {sparsity: group.validation(sparsity) for sparsity in group.grid}
    return _tried(group, replay_tpe(values, trials=trials or -(-len(values) // 2), seed=group.seed))


def _smallest(group: Group, _: int | None) -> View:
    return _through(group, max(group.grid))


def _largest(group: Group, _: int | None) -> View:
    return _through(group, min(group.grid))


def _rule(group: Group, _: int | None) -> View:
    return _through(group, nearest(group.grid, group.student_sparsity))


def _random(group: Group, _: int | None) -> View:
    share = 1 / len(group.grid)
    spent = [group[assistant(sparsity)].spent for sparsity in group.grid]
    return View(
        tuple((assistant(sparsity), share) for sparsity in group.grid),
        group[SHARED].spent + sum(spent, NOTHING) * share,
    )


def _direct(group: Group, _: int | None) -> View:
    return View(((DIRECT, 1.0),), group[SHARED].spent + group[DIRECT].spent)


def _released(group: Group, _: int | None) -> View:
    own = group["released"]
    search = group[SHARED].spent + Spent(**own.result["search"])
    return View((("released", 1.0),), group[SHARED].spent + own.spent, search, own.result["assistant"])


def _searched(kind: str, search: str) -> Strategy:
    def view(group: Group, trials: int | None) -> View:
        paid = group[search].spent
        chosen = group[search].result["best"]
        if chosen is None:
            fallback, shared = _direct(group, trials), [group[search].stage(name) for name in (IMPORTANCE, OUTPUTS)]
            return View(fallback.students, paid + fallback.spent + sum(shared, NOTHING) * -1.0, paid)
        return View(((kind, 1.0),), paid + group[kind].spent, paid, chosen["sparsity"], chosen.get("balance", 0.0))

    return view


STRATEGIES: dict[str, Strategy] = {
    "autodisc": _searched("autodisc", "search-recovered"),
    "pruned": _searched("pruned", "search-pruned"),
    "plain": _searched("plain", "search-recovered"),
    "chain": _searched("chain", "search-recovered"),
    "balanced-tpe": _searched("balanced-tpe", "search-balanced-tpe"),
    "balanced-gp": _searched("balanced-gp", "search-balanced-gp"),
    "released": _released,
    "maxidisc": _maxidisc,
    "maxidisc-tpe": _maxidisc_tpe,
    DIRECT: _direct,
    RULE.name: _rule,
    "smallest": _smallest,
    "largest": _largest,
    "random": _random,
}


def nearest(grid: Sequence[float], student_sparsity: float) -> float:
    """The assistant of the 2.5 × rule, chosen as the objective of that name chooses."""
    candidates = tuple(Candidate(sparsity, 0.0, 0.0, 0.0) for sparsity in grid)
    chosen = choose(RULE, Cell("", 0, student_sparsity, "", 0.0, candidates))
    assert chosen is not None, "the rule asks for no metric"
    return grid[chosen]


def results(group: Group, views: Mapping[str, View]) -> Results:
    """Each strategy's test metric with what an example drawn again would change.

    A metric that is a mean over examples is drawn as that mean. For others an answer is a place in the strategies'
    predictions, since a strategy that chooses by chance has a metric of each of its students, and no one prediction.
    """
    names = tuple(views)
    parts = [[(group[kind], p) for kind, p in view.students] for view in views.values()]
    metrics = tuple(sum(p * float(own.result["metric"]) for own, p in part) for part in parts)
    metric = METRICS[parts[0][0][0].values["data"]["metric"]]
    labels = parts[0][0][0].labels
    if metric.name == "accuracy":
        answers = [sum(p * (own.predictions == labels) for own, p in part) for part in parts]
        return Results(group.seed, names, metrics, np.array(answers, dtype=np.float64))
    N = len(labels)

    def drawn(places: np.ndarray, _: np.ndarray) -> np.ndarray:
        strategy, rows = int(places.flat[0]) // N, places.astype(np.int64) % N
        return np.asarray(sum(p * metric.each(own.predictions[rows], labels[rows]) for own, p in parts[strategy]))

    places = np.arange(len(names) * N).reshape(len(names), N)
    return Results(group.seed, names, metrics, places, labels.astype(np.float64), drawn)


def _through(group: Group, sparsity: float) -> View:
    kind = assistant(sparsity)
    return View(((kind, 1.0),), group[SHARED].spent + group[kind].spent, NOTHING, sparsity)


def _tried(group: Group, visited: Sequence[float]) -> View:
    """Every visited assistant is distilled, and a student from it; the search is all of it."""
    best = max(visited, key=lambda sparsity: (group.validation(sparsity), sparsity))
    spent = sum((group[assistant(sparsity)].spent for sparsity in visited), group[SHARED].spent)
    return View(((assistant(best), 1.0),), spent, spent, best)
