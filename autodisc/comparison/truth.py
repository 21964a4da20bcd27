"""The choice against the truth: fidelity of what searches saw, and the frontier of cost against regret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from autodisc.comparison.cells import Spent, assistant
from autodisc.comparison.config import ComparisonConfig
from autodisc.comparison.parts import SHARES, on_a_part
from autodisc.comparison.strategies import NOTHING, RULE, Group, View, results
from autodisc.reporting import objectives
from autodisc.reporting.comparison import FrontierLine, TruthLine
from autodisc.reporting.fidelity import DIRECT, Assessment, Truth, assess, ceiling
from autodisc.reporting.gains import FrontierPoint, frontier
from autodisc.reporting.statistics import Interval

LAMS = (0.1, 0.2, 0.5)


def truth_of(group: Group) -> Truth:
    """The student through each assistant, and without one where that was run."""
    students = {f"{sparsity:g}": View(((assistant(sparsity), 1.0),), NOTHING) for sparsity in group.grid}
    if DIRECT in group.cells:
        students[DIRECT] = View(((DIRECT, 1.0),), NOTHING)
    return Truth(group.task, group.student_sparsity, group.grid, results(group, students))


def truth_lines(truths: Sequence[Truth]) -> tuple[TruthLine, ...]:
    lines: dict[float | None, list[float]] = {}
    for truth in truths:
        names: list[float | None] = [*truth.sparsities, None]
        for sparsity, metric in zip(names, truth.results.metrics, strict=False):
            lines.setdefault(sparsity, []).append(metric)
    return tuple(TruthLine(sparsity, tuple(values)) for sparsity, values in lines.items())


def fidelity_of(config: ComparisonConfig, groups: Sequence[Group], rng: np.random.Generator) -> tuple[Assessment, ...]:
    """Every objective under every search, over the seeds whose search measured every candidate."""
    lams = tuple(sorted({*LAMS, config.search.lam} - {0.0}))
    found: list[Assessment] = []
    for name in config.searches:
        pairs = [
            (cell, truth_of(group)) for group in groups if group.complete and (cell := _seen(group, name)) is not None
        ]
        if not pairs:
            continue
        first = not found  # rules that need no search are the same beside each: once
        rules = [rule for rule in objectives.objectives(lams) if first or rule.guarded]
        cells, truths = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        found += assess(cells, truths, rules, rng=rng, margin=config.search.margin, resamples=config.compare.resamples)
        if first and len(truths) > 1:
            found.append(ceiling(truths, rng=rng, resamples=config.compare.resamples))
    return tuple(found)


def _seen(group: Group, search: str) -> objectives.Cell | None:
    """A search's candidates as ``objectives`` takes them; None where one was not measured."""
    if f"search-{search}" not in group.cells:
        return None
    result = group[f"search-{search}"].result
    if "losses" not in result:  # a search of balances: it is judged by its student alone
        return None
    rows = {row["sparsity"]: row for row in result["trials"] if row["state"] == "COMPLETE"}
    if set(rows) != set(group.grid):
        return None
    candidates = tuple(
        objectives.Candidate(
            s, rows[s]["metric"], rows[s]["floor"], rows[s]["standard_error"], result["losses"][f"{s:g}"]
        )
        for s in group.grid
    )
    teacher = result["teacher"]["metric"]
    return objectives.Cell(group.task, group.seed, group.student_sparsity, search, teacher, candidates)


def frontier_of(
    config: ComparisonConfig,
    groups: Sequence[Group],
    fidelity: Sequence[Assessment],
    views: Mapping[str, Mapping[int, View]],
) -> tuple[FrontierLine, ...]:
    """Each search by the study's own tradeoff, on a part of validation too, the rules that need none, and the
    exhaustive searches."""
    whole = views.get("maxidisc")
    if not whole:
        return ()
    own, rules = objectives.tradeoff_at(config.search.lam).name, (RULE.name, "smallest", "random")
    lines: list[FrontierLine] = []

    def add(setting: str, paid: Mapping[int, Spent], regret: float, interval: Interval | None) -> None:
        seeds = [seed for seed in paid if seed in whole]
        total = sum((whole[seed].spent for seed in seeds), NOTHING)
        spent = sum((paid[seed] for seed in seeds), NOTHING)
        shares = spent.seconds / total.seconds, spent.flops / total.flops
        lines.append(FrontierLine(setting, shares[0], shares[1], regret, interval, False))

    for line in fidelity:
        if line.regret is not None and line.objective == own:
            kind = f"search-{line.scorer}"
            searched = {group.seed: group[kind].spent for group in groups if kind in group.cells}
            add(line.scorer, searched, line.regret, line.intervals["regret"])
        elif line.regret is not None and line.objective in rules:
            add(line.objective, dict.fromkeys(whole, NOTHING), line.regret, line.intervals["regret"])
    by_seed = {group.seed: group for group in groups}
    for share in SHARES:
        rng = np.random.default_rng(0)
        parts = {
            seed: part
            for seed in whole
            if (part := on_a_part(config, by_seed[seed], truth_of(by_seed[seed]), share, rng)) is not None
        }
        if parts:
            regret = sum(part.regret for part in parts.values()) / len(parts)
            spent = {seed: part.spent for seed, part in parts.items()}
            add(f"recovered, {share:.0%} of validation", spent, regret, None)
    for name in ("maxidisc", "maxidisc-tpe"):
        if found := views.get(name):
            kinds = {seed: view.students[0][0] for seed, view in found.items()}
            regrets = [
                max(truth_of(by_seed[seed]).students) - float(by_seed[seed][kind].result["metric"])
                for seed, kind in kinds.items()
            ]
            searched = {seed: view.search for seed, view in found.items()}
            add(name, searched, sum(regrets) / len(regrets), None)
    points = [FrontierPoint(line.setting, line.flops_share, line.regret) for line in lines]
    best = {point.setting for point in frontier(points)}
    lines.sort(key=lambda line: (line.flops_share, line.regret))
    return tuple(replace(line, best=line.setting in best) for line in lines)
