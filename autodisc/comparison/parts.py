"""What the study would have chosen on another part of validation, from its candidates' recorded predictions.

A part is drawn as a search draws its own (``drawing``), the same rows for every candidate, ``DRAWS`` times; metric,
floor and standard error are the part's own, so that fewer candidates leave the floor there. Recovery costs what it did,
trials their part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autodisc.comparison.cells import Recorded, Spent
from autodisc.comparison.config import ComparisonConfig
from autodisc.comparison.strategies import Group
from autodisc.config import scored_examples
from autodisc.reporting.fidelity import DIRECT, Truth
from autodisc.search.tradeoff import Score, best
from autodisc.tasks.drawing import draw_part, least_rows
from autodisc.tasks.metrics import METRICS

SHARES = (0.1, 0.3)
DRAWS = 40
SEARCH, TRIALS = "search-recovered", "trials"


@dataclass(frozen=True)
class Part:
    """One seed's search with a share of validation: the mean regret over draws, and what it would have paid."""

    regret: float
    spent: Spent


def shares_of(config: ComparisonConfig, group: Group) -> dict[float, str]:
    """Shares of validation, and what each is called, beside that which the search was of: a tenth, three tenths, what
    the distillation's budget would give it, all."""
    cell = group.cells.get(SEARCH)
    if cell is None or not cell.predicted:
        return {}
    total, train = len(cell.labels), cell.values["data"]["examples"]["train"]
    default, metric = config.search.model_copy(update={"examples": None}), METRICS[cell.values["data"]["metric"]]
    least = least_rows(metric.name, metric.kind, cell.labels)
    budget = scored_examples(default, config.distillation, train=train, validation=total, least=least)
    counts = {*(round(share * total) for share in SHARES), budget, total} - {_seen(cell), 0}
    named = {count / total: f"{count / total:.0%} of validation" for count in sorted(counts)}
    return {share: f"{name} (default)" if share == budget / total else name for share, name in named.items()}


def on_a_part(
    config: ComparisonConfig, group: Group, truth: Truth, share: float, rng: np.random.Generator
) -> Part | None:
    """None where the search or its predictions are not there, or nothing says what no assistant would lead to."""
    cell = group.cells.get(SEARCH)
    if cell is None or not cell.predicted or len(cell.predictions) != len(group.grid):
        return None
    students = dict(zip(truth.results.names, truth.results.metrics, strict=True))
    kind, regrets = METRICS[cell.values["data"]["metric"]].kind, []
    for _ in range(DRAWS if share < 1 else 1):
        rows = draw_part(cell.labels, kind, max(1, round(share * len(cell.labels))), rng)
        chosen = best(_scores(cell, group, rows), config.search.lam, config.search.margin)
        name = DIRECT if chosen is None else f"{group.grid[chosen]:g}"
        if name not in students:
            return None
        regrets.append(max(truth.students) - students[name])
    more = share * len(cell.labels) / _seen(cell) - 1
    return Part(float(np.mean(regrets)), cell.spent + cell.stage(TRIALS) * more)


def _seen(cell: Recorded) -> int:
    """On how many rows the search's trials were scored; predicted are all."""
    return int(cell.result.get("examples", len(cell.labels)))


def _scores(cell: Recorded, group: Group, rows: np.ndarray) -> list[Score]:
    metric, labels = METRICS[cell.values["data"]["metric"]], cell.labels[rows]
    said = cell.predictions[:, rows]
    floor, values = metric.floor(labels), metric.each(said, np.broadcast_to(labels, (len(said), *labels.shape)))
    return [
        Score(sparsity, float(value), floor, metric.standard_error(own, labels, group.seed))
        for sparsity, value, own in zip(group.grid, values, said, strict=True)
    ]
