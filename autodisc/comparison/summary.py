"""A comparison's cells as the report's values: views, paired differences, fidelity, frontier and the verdict.

From records alone: nothing is computed again, and torch is not needed. What is missing is left out and said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from autodisc.comparison.cells import SHARED, Cell, Recorded, failure
from autodisc.comparison.config import ComparisonConfig
from autodisc.comparison.plan import all_cells, recorded, teachers
from autodisc.comparison.speaking import against, caveats, provenance
from autodisc.comparison.strategies import RULE, STRATEGIES, Group, MissingCell, View, results
from autodisc.comparison.truth import fidelity_of, frontier_of, objectives_of, truth_lines, truth_of
from autodisc.errors import StudyError
from autodisc.reporting import units
from autodisc.reporting.comparison import QUESTIONS, DifferenceLine, Section, StrategyLine
from autodisc.reporting.comparison_report import write_comparison
from autodisc.reporting.fidelity import DIRECT, Truth
from autodisc.reporting.gains import Comparison, Standing, compare, share_best, verdict
from autodisc.reporting.objectives import tradeoff_at
from autodisc.reporting.statistics import Results, bootstrap, examples_of, holm, t_interval

OURS = "autodisc"
OTHERS = ("largest", "maxidisc", "maxidisc-tpe", "released", "plain", "chain", "balanced-tpe", "balanced-gp", "pruned")


def report(config: ComparisonConfig, out: Path) -> dict[str, Any]:
    """Write the report from the records in ``out``; returns where it is, its verdicts, and what is missing."""
    cells = all_cells(config, out)
    done = recorded(config, cells, out)
    if not any(cell.kind != SHARED for cell in done):
        raise StudyError(f"{out}: holds no cell of this comparison; run the same command without --report-only")
    sections = summarize(config, cells, done, out)
    page = write_comparison(config.name, sections, out)
    failed = {str(cell): reason for cell in cells if (reason := failure(out, cell)) is not None}
    return {
        "report": str(page),
        "verdicts": [sentence for section in sections for sentence in section.verdict],
        "cells": len(done),
        "missing": len(cells) - len(done),
        "failed": failed,
    }


def summarize(
    config: ComparisonConfig, cells: Sequence[Cell], done: Mapping[Cell, Recorded], out: Path
) -> tuple[Section, ...]:
    """A section for each task and student sparsity, in the configuration's order."""
    keys = dict.fromkeys((cell.task, cell.student) for cell in cells if cell.student is not None)
    sections, standings = [], []
    for task, student in keys:
        seeds = {cell.seed for cell in cells if (cell.task, cell.student) == (task, student)}
        own = [cell for cell in cells if cell.task == task and cell.student in (student, None) and cell.seed in seeds]
        groups = _groups(config, task, student, own, done, out)
        section, standing = _section(config, task, student, groups)
        missing = [cell for cell in own if cell not in done]
        failed = {cell: reason for cell in missing if (reason := failure(out, cell)) is not None}
        made = {group.seed for group in groups}
        records = [done[cell] for cell in own if cell in done and cell.seed in made]
        sections.append(
            replace(section, caveats=caveats(section, records, missing, failed), provenance=provenance(records))
        )
        standings.append(standing)
    corrected = _holm(_holm(sections, "differences"), "objectives")
    return tuple(
        replace(section, verdict=_verdict(section, standing), against=against(section))
        for section, standing in zip(corrected, standings, strict=True)
    )


def _groups(
    config: ComparisonConfig,
    task: str,
    student: float,
    cells: Sequence[Cell],
    done: Mapping[Cell, Recorded],
    out: Path,
) -> list[Group]:
    """One a seed that has a cell of this student."""
    found = []
    for seed in dict.fromkeys(cell.seed for cell in cells if cell.student == student):
        own = {cell.kind: done[cell] for cell in cells if cell.seed == seed and cell in done}
        if set(own) - {SHARED}:
            grid = config.study(Cell(task, seed, student, ""), teachers(out)).assistant_sparsities
            found.append(Group(task, seed, student, grid, own))
    return found


def _section(
    config: ComparisonConfig, task: str, student: float, groups: Sequence[Group]
) -> tuple[Section, Standing | None]:
    """With what its verdict is to be made of, once its p-values are corrected; None: autodisc was not run."""
    resamples = config.compare.resamples
    rng = np.random.default_rng(0)  # of bootstraps alone; a report is the same each time it is written
    views = _views(config, groups)
    lines = _strategy_lines(views, groups, rng, resamples)
    differences = tuple(
        DifferenceLine(found, found.p if other in QUESTIONS and len(found.by_seed) > 1 else None)
        for other in (*QUESTIONS, *OTHERS)
        if (found := _difference(views, groups, other, resamples)) is not None
    )
    truths = [truth_of(group) for group in groups if group.complete]
    fidelity = fidelity_of(config, groups, rng)
    section = Section(
        config.name,
        task,
        student,
        lines,
        differences,
        fidelity,
        frontier_of(config, groups, fidelity, views),
        objectives_of(config, groups, rng),
        truth_lines(truths),
        _teacher(groups),
        tradeoff_at(config.search.lam).name,
    )
    if OURS not in views and groups and all(_undecided(group) for group in groups):
        return section, Standing(task, student, (None,) * len(groups), None)
    return section, _standing(section, views, truths, rng, resamples)


def _undecided(group: Group) -> bool:
    """Whether autodisc's search found nothing feasible."""
    search = group.cells.get("search-recovered")
    return search is not None and search.result["best"] is None


def _views(config: ComparisonConfig, groups: Sequence[Group]) -> dict[str, dict[int, View]]:
    """By strategy and seed, where its cells are there."""
    found: dict[str, dict[int, View]] = {}
    for name in config.compare.strategies:
        for group in groups:
            try:
                found.setdefault(name, {})[group.seed] = STRATEGIES[name](group, config.compare.tpe_trials)
            except MissingCell:
                continue
    return {name: by_seed for name, by_seed in found.items() if by_seed}


def _results(views: Mapping[str, Mapping[int, View]], groups: Sequence[Group], names: Sequence[str]) -> list[Results]:
    """One a seed that has all of ``names``."""
    return [
        results(group, {name: views[name][group.seed] for name in names})
        for group in groups
        if all(group.seed in views.get(name, ()) for name in names)
    ]


def _strategy_lines(
    views: Mapping[str, Mapping[int, View]], groups: Sequence[Group], rng: np.random.Generator, resamples: int
) -> tuple[StrategyLine, ...]:
    found = []
    for name, by_seed in views.items():
        own = _results(views, groups, [name])
        drawn = bootstrap(
            lambda rows, own=own: np.stack([one.resampled(rows) for one in own], axis=1),  # type: ignore[misc]
            examples=examples_of(own),
            rng=rng,
            resamples=resamples,
        )
        metric = t_interval(drawn.by_seed[:, 0].tolist(), example_error=float(drawn.example_error[0]))
        by_group = {group.seed: group for group in groups}
        validation = [
            sum(p * float(by_group[seed][kind].result["validation_metric"]) for kind, p in view.students)
            for seed, view in by_seed.items()
        ]
        found.append(
            StrategyLine(
                name,
                tuple(by_seed),
                metric,
                fmean(validation),
                tuple(units.point(view.assistant, view.balance) for view in by_seed.values()),
                fmean([view.spent.seconds for view in by_seed.values()]),
                fmean([view.spent.flops for view in by_seed.values()]),
                *(_share(views, name, part, unit) for part in ("spent", "search") for unit in ("seconds", "flops")),
            )
        )
    return tuple(found)


def _share(views: Mapping[str, Mapping[int, View]], name: str, part: str, unit: str) -> float | None:
    """A cost as a share of maxidisc's, over the seeds that have both."""
    whole = views.get("maxidisc", {})
    seeds = [seed for seed in views[name] if seed in whole]
    paid = sum(getattr(getattr(views[name][seed], part), unit) for seed in seeds)
    total = sum(getattr(whole[seed].spent, unit) for seed in seeds)
    return paid / total if total else None


def _difference(
    views: Mapping[str, Mapping[int, View]],
    groups: Sequence[Group],
    other: str,
    resamples: int,
) -> Comparison | None:
    """On the same draws as every other, so that two strategies of one student have one interval."""
    pairs = _results(views, groups, [OURS, other])
    rng = np.random.default_rng(0)
    return compare(pairs, ours=OURS, theirs=other, rng=rng, resamples=resamples) if pairs else None


def _standing(
    section: Section,
    views: Mapping[str, Mapping[int, View]],
    truths: Sequence[Truth],
    rng: np.random.Generator,
    resamples: int,
) -> Standing | None:
    ours = section.strategy(OURS)
    if ours is None:
        return None
    by_name = {line.comparison.theirs: line.comparison for line in section.differences}
    chosen = tuple(view.assistant for view in views[OURS].values())
    best = None
    made = [sparsity for sparsity in chosen if sparsity is not None]
    if truths and made:
        grid = truths[0].sparsities
        shares = share_best(
            [truth.results for truth in truths], among=[f"{s:g}" for s in grid], rng=rng, resamples=resamples
        )
        best = shares.get(f"{max(made, key=lambda s: (made.count(s), s)):g}")
    return Standing(
        section.task,
        section.student_sparsity,
        chosen,
        by_name.get(DIRECT),
        by_name.get(RULE.name),
        best,
        search_share=_larger(ours.search_seconds_share, ours.search_flops_share),
        schedule_share=_larger(ours.seconds_share, ours.flops_share),
    )


def _verdict(section: Section, standing: Standing | None) -> tuple[str, ...]:
    if standing is None:
        head = f"{section.task}, student sparsity {section.student_sparsity:g}"
        why = f"{OURS} was not run, so nothing is advised" if section.strategies else "nothing has been computed yet"
        return (f"{head}: {why}.",)
    p = {line.comparison.theirs: line.p_holm for line in section.differences}
    return (verdict(replace(standing, p_direct=p.get(DIRECT), p_rule=p.get(RULE.name))),)


def _holm(sections: Sequence[Section], kind: str) -> tuple[Section, ...]:
    """Correct every p of a kind, ``differences`` or ``objectives``, for all of that kind in the report.

    Strategies that end with the same students are one comparison.
    """
    found = {(i, line.comparison.by_seed, line.p): line.p for i, s in enumerate(sections) for line in getattr(s, kind)}
    adjusted = dict(zip(found, holm(list(found.values())), strict=True))
    corrected = []
    for i, section in enumerate(sections):
        lines: Any = tuple(
            replace(line, p_holm=adjusted[i, line.comparison.by_seed, line.p]) for line in getattr(section, kind)
        )
        corrected.append(replace(section, **{kind: lines}))
    return tuple(corrected)


def _teacher(groups: Sequence[Group]) -> float | None:
    found = [group[SHARED].result["teacher"]["final"]["metric"] for group in groups if SHARED in group.cells]
    return found[0] if found else None


def _larger(seconds: float | None, flops: float | None) -> float | None:
    """Of two shares the one that flatters less."""
    known = [share for share in (seconds, flops) if share is not None]
    return max(known, default=None)
