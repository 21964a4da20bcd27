"""What a comparison found, as values, and its tables: strategies, differences, fidelity, frontier.

Every figure is a mean over seeds; an interval is of 95 % and over seeds and test examples, where there are several
seeds and answers were kept. Costs are shares of the exhaustive search's, ``maxidisc``. Nothing here needs torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from autodisc.reporting import units
from autodisc.reporting.fidelity import DIRECT, Assessment
from autodisc.reporting.gains import Comparison
from autodisc.reporting.statistics import Interval, t_interval
from autodisc.reporting.tables import Table
from autodisc.reporting.texts import csv_text

QUESTIONS = (DIRECT, "rule-2.5x", "smallest", "random")  # what a choice has to beat: tested, and corrected for
COMPARED = ("maxidisc", *QUESTIONS)  # of every task, in one table
STRATEGIES = (
    "Paired differences on test, in percentage points; resolvable: found with power .8 by these seeds and examples"
)
OBJECTIVES = (
    "What another choice from the same search would have gained: its assistant's student − that of the study's own"
    " tradeoff's, paired, in percentage points"
)


@dataclass(frozen=True)
class StrategyLine:
    """One strategy over the seeds that have its cells; costs are means a seed."""

    strategy: str
    seeds: tuple[int, ...]
    metric: Interval  # the student's, on test
    validation: float
    assistants: tuple[str, ...]  # by seed, as points; a dash: no assistant, or one by chance
    seconds: float
    flops: float
    seconds_share: float | None
    flops_share: float | None
    search_seconds_share: float | None
    search_flops_share: float | None


@dataclass(frozen=True)
class DifferenceLine:
    """``p`` belongs to the comparison's interval; ``p_holm`` corrects it for all of its table's kind in the report.

    None where it is undefined, and where the difference answers no question that was asked beforehand.
    """

    comparison: Comparison
    p: float | None
    p_holm: float | None = None


@dataclass(frozen=True)
class FrontierLine:
    """A way to choose the assistant: what the choice alone costs, and what it loses against the best student through
    one; below zero, what it gains over that, which distilling without one may do."""

    setting: str
    seconds_share: float
    flops_share: float
    regret: float
    interval: Interval | None
    seeds: tuple[int, ...]
    shared_flops_share: float | None  # over the seeds that every line has, by which lines are compared
    shared_regret: float | None  # None: no such seed
    best: bool  # over those, no other choice of an assistant costs less FLOPs without losing more


@dataclass(frozen=True)
class TruthLine:
    """The student through one assistant, on test; ``sparsity`` none: without an assistant."""

    sparsity: float | None
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Section:
    """One task and student sparsity."""

    name: str
    task: str
    student_sparsity: float
    strategies: tuple[StrategyLine, ...] = ()
    differences: tuple[DifferenceLine, ...] = ()
    fidelity: tuple[Assessment, ...] = ()
    frontier: tuple[FrontierLine, ...] = ()
    objectives: tuple[DifferenceLine, ...] = ()  # another objective's student - that of the study's own tradeoff
    truth: tuple[TruthLine, ...] = ()
    teacher: float | None = None  # on test
    tradeoff: str = ""  # the objective of the study's own search
    verdict: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()

    def strategy(self, name: str) -> StrategyLine | None:
        return next((line for line in self.strategies if line.strategy == name), None)

    def gain_over(self, name: str) -> Interval | None:
        return next((line.comparison.interval for line in self.differences if line.comparison.theirs == name), None)

    @property
    def choice(self) -> FrontierLine | None:
        """Of the study's own search."""
        return next((line for line in self.frontier if line.setting == "recovered"), None)


def section_tables(section: Section) -> tuple[Table, ...]:
    """Every table that has a row."""
    first = section.fidelity[0].scorer if section.fidelity else ""
    found = (
        _strategy_table(section),
        _difference_table(section.differences, STRATEGIES),
        _fidelity_table([line for line in section.fidelity if line.scorer in (first, "none")]),
        _fidelity_table([line for line in section.fidelity if line.scorer not in (first, "none")], others=True),
        _difference_table(section.objectives, OBJECTIVES),
        _frontier_table(section.frontier),
        Table("Provenance", ("what", "value"), section.provenance, words=(0, 1), folded=True),
    )
    return tuple(table for table in found if table.rows)


def overview_table(sections: Sequence[Section]) -> Table:
    """A row for each task and student sparsity that has been computed, and the means over tasks of what has the same
    unit."""
    head = ("task", "student's sparsity", "seeds", "autodisc", "maxidisc", "regret, points")
    costs = ("search: % time", "% FLOPs", "schedule: % time", "% FLOPs")
    rows, numbers, tasks = [], [], []
    for section in sections:
        ours, best, choice = section.strategy("autodisc"), section.strategy("maxidisc"), section.choice
        if ours is None:
            continue
        shares = (ours.search_seconds_share, ours.search_flops_share, ours.seconds_share, ours.flops_share)
        tasks.append(section.task)
        numbers.append((None if choice is None else choice.regret, *shares))
        rows.append(
            (
                section.task,
                units.plain(section.student_sparsity),
                str(len(ours.seeds)),
                units.fixed(ours.metric.estimate),
                units.fixed(None if best is None else best.metric.estimate),
                _with_bounds(numbers[-1][0], None, points=True),
                *(
                    units.NONE if (gain := section.gain_over(n)) is None else bounds(gain, points=True)
                    for n in COMPARED
                ),
                *map(units.share, shares),
            )
        )
    if len(rows) > 1:
        regret, *means = (_mean_of(tasks, column) for column in zip(*numbers, strict=True))
        empty = (units.NONE,) * len(COMPARED)
        last = ("mean", *(units.NONE,) * 4, _with_bounds(regret, None, points=True), *empty, *map(units.share, means))
        rows += [last] if set(last[1:]) != {units.NONE} else []
    title = "All tasks: the student on test, what it gains in percentage points, and costs as shares of maxidisc's"
    return Table(title, (*head, *(f"over {name}" for name in COMPARED), *costs), tuple(rows))


def choices_table(sections: Sequence[Section]) -> Table:
    """What each objective's choice loses in the mean of all tasks; no rows for a single section.

    A task counts once, whatever its seeds and students; the interval is a t-interval over tasks, and takes them as
    drawn from all. Excess is of the tasks with two seeds.
    """
    scorers = [section.fidelity[0].scorer for section in sections if section.fidelity]
    of_one = [
        (section.task, {line.objective: line for line in section.fidelity if line.scorer in scorers[:1]})
        for section in sections
    ]
    found = [(task, lines) for task, lines in of_one if lines]
    regrets: dict[str, list[float]] = {}
    for name in found[0][1] if len(found) > 1 else ():
        known = [(task, lines[name].regret) for task, lines in found if name in lines]
        told = [(task, regret) for task, regret in known if regret is not None]
        if len(told) == len(found):
            regrets[name] = _by_task(told)
    own = regrets.get(sections[0].tradeoff)
    rows = []
    for name, values in sorted(regrets.items(), key=lambda item: fmean(item[1])):
        rest = [fmean(values[:i] + values[i + 1 :]) for i in range(len(values)) if len(values) > 1]
        excess = _by_task([(task, value) for task, lines in found if (value := lines[name].excess) is not None])
        more = None if own is None else t_interval([a - b for a, b in zip(values, own, strict=True)])
        rows.append(
            (
                name,
                f"{100 * fmean(values):.2f}",
                f"{100 * min(rest):.2f} to {100 * max(rest):.2f}".replace("-", "−") if rest else units.NONE,
                f"{100 * max(values):.2f}",
                f"{100 * fmean(excess):+.2f}".replace("-", "−") if excess else units.NONE,
                units.NONE if more is None or name == sections[0].tradeoff else bounds(more, points=True),
            )
        )
    columns = (
        "choice by",
        "regret, points",
        "one task left out",
        "worst task",
        "excess, points",
        "more than the study's tradeoff",
    )
    tasks = len(dict.fromkeys(task for task, _ in found))
    title = (
        f"All tasks: what a choice loses against the best assistant, in the mean of {units.plural(tasks, 'task')}, of"
        f" {len(found)} students"
    )
    marked = next((i for i, row in enumerate(rows) if row[0] == sections[0].tradeoff), None)
    return Table(title, columns, tuple(rows), marked=marked)


def _by_task(values: Sequence[tuple[str, float]]) -> list[float]:
    """The mean of each task's students, in the order of the first."""
    found: dict[str, list[float]] = {}
    for task, value in values:
        found.setdefault(task, []).append(value)
    return [fmean(of_one) for of_one in found.values()]


def _mean_of(tasks: Sequence[str], values: Sequence[float | None]) -> float | None:
    known = [(task, value) for task, value in zip(tasks, values, strict=True) if value is not None]
    return fmean(_by_task(known)) if known else None


def _strategy_table(section: Section) -> Table:
    columns = (
        "strategy",
        "student, test",
        "validation",
        "seeds",
        "TA by seed",
        "time",
        "% time",
        "% FLOPs",
        "search: % time",
        "% FLOPs",
    )
    rows = tuple(
        (
            line.strategy,
            bounds(line.metric),
            units.fixed(line.validation),
            str(len(line.seeds)),
            "; ".join(line.assistants),
            units.duration(line.seconds),
            units.share(line.seconds_share),
            units.share(line.flops_share),
            units.share(line.search_seconds_share),
            units.share(line.search_flops_share),
        )
        for line in section.strategies
    )
    marked = next((i for i, line in enumerate(section.strategies) if line.strategy == "autodisc"), None)
    title = "Strategies: the student's metric, the sparsity of its TA, costs a seed and their shares of maxidisc's"
    return Table(title, columns, rows, words=(0, 4), marked=marked)


def _difference_table(lines: Sequence[DifferenceLine], title: str) -> Table:
    columns = ("difference", "points", "p", "p (Holm)", "resolvable", "seeds", "test examples")
    rows = tuple(
        (
            f"{line.comparison.ours} − {line.comparison.theirs}",
            bounds(line.comparison.interval, points=True),
            _p(line.p),
            _p(line.p_holm),
            units.NONE if line.comparison.resolvable is None else f"{100 * line.comparison.resolvable:.1f}",
            str(len(line.comparison.by_seed)),
            f"{line.comparison.examples:,}" if line.comparison.examples else units.NONE,
        )
        for line in lines
    )
    return Table(title, columns, rows)


def _fidelity_table(lines: Sequence[Assessment], *, others: bool = False) -> Table:
    figures = ("spearman", "kendall", "regret", "excess", "top1", "top2")
    columns = ("scorer", "objective", "Spearman", "Kendall", "regret", "excess", "top-1", "top-2", "undecided")
    rows = []
    for line in lines:
        values = [getattr(line, figure) for figure in figures]
        cells = [
            _with_bounds(value, line.intervals[figure], points=figure in ("regret", "excess"))
            for figure, value in zip(figures, values, strict=True)
        ]
        rows.append((line.scorer, line.objective, *cells, str(line.undecided)))
    title = "Fidelity: what objectives say of the assistants against their students on test; regret, excess in points"
    if others:
        return Table("Fidelity of the other searches", columns, tuple(rows), words=(0, 1), folded=True)
    return Table(title, columns, tuple(rows), words=(0, 1))


def _frontier_table(lines: Sequence[FrontierLine]) -> Table:
    columns = ("choice by", "% time", "% FLOPs", "regret, points", "seeds", "regret, seeds of all", "")
    rows = tuple(
        (
            line.setting,
            units.share(line.seconds_share),
            units.share(line.flops_share),
            _with_bounds(line.regret, line.interval, points=True),
            str(len(line.seeds)),
            _with_bounds(line.shared_regret, None, points=True),
            "on the frontier" if line.best else "",
        )
        for line in lines
    )
    title = (
        "Frontier: what the choice alone costs, and its student's regret on test against the best through an assistant"
    )
    return Table(title, columns, rows, words=(0, 6))


def bounds(interval: Interval, *, points: bool = False) -> str:
    """An estimate with its interval; in percentage points, signed, where asked."""
    if points:
        low, high, estimate = (f"{100 * v:+.1f}" for v in (interval.low, interval.high, interval.estimate))
    else:
        low, high, estimate = (f"{v:.3f}" for v in (interval.low, interval.high, interval.estimate))
    if math.isinf(interval.low):
        return f"{estimate} (no interval)".replace("-", "−")
    return f"{estimate} ({low} to {high})".replace("-", "−")


def _with_bounds(value: float | None, interval: Interval | None, *, points: bool = False) -> str:
    if value is None:
        return units.NONE
    scale, digits = (100, 1) if points else (1, 2)
    text = f"{scale * value:.{digits}f}"
    if interval is not None and math.isfinite(interval.low):
        text += f" ({scale * interval.low:.{digits}f} to {scale * interval.high:.{digits}f})"
    return text.replace("-", "−")


def _p(value: float | None) -> str:
    if value is None:
        return units.NONE
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def csv_texts(sections: Sequence[Section]) -> dict[str, str]:
    """One CSV a table by its name, unrounded, all sections in it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for section in sections:
        head = {"task": section.task, "student_sparsity": section.student_sparsity}
        for name in ("strategies", "differences", "fidelity", "objectives", "frontier", "truth"):
            found.setdefault(name, []).extend(head | _flat(dataclasses.asdict(line)) for line in getattr(section, name))
    return {name: csv_text(rows) for name, rows in found.items() if rows}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key == "cells":  # of an assessment, by seed: they are in the records
            continue
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}_")
        elif isinstance(value, tuple):
            flat[prefix + key] = " ".join(
                "none" if item is None else f"{item:g}" if isinstance(item, float) else f"{item}" for item in value
            )
        else:
            flat[prefix + key] = value
    return flat
