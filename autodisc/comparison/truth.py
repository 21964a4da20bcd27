"""The choice against the truth: fidelity of what searches saw, what other objectives would have gained, and the
frontier of cost against regret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from autodisc.comparison.cells import Spent, assistant
from autodisc.comparison.config import ComparisonConfig
from autodisc.comparison.parts import on_a_part, shares_of
from autodisc.comparison.strategies import NOTHING, RULE, Group, View, results
from autodisc.reporting import objectives
from autodisc.reporting.comparison import DifferenceLine, FrontierLine, TruthLine
from autodisc.reporting.fidelity import DIRECT, Assessment, Truth, assess, ceiling, students_of
from autodisc.reporting.gains import FrontierPoint, compare, frontier
from autodisc.reporting.statistics import Interval, Results

LAMS = (0.1, 0.2, 0.5)
# Lines of the frontier by the student that is delivered, with its own start or assistant: beside it, not on it.
APART = {name: f"{name}: its own student" for name in ("autodisc", "balanced-tpe", "balanced-gp", "released")}
_Way = tuple[
    str, Mapping[int, Spent], Mapping[int, float], Interval | None
]  # setting, paid, regret by seed, its bounds


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
    found: list[Assessment] = []
    for name in config.searches:
        pairs = [
            (cell, truth_of(group)) for group in groups if group.complete and (cell := _seen(group, name)) is not None
        ]
        if not pairs:
            continue
        first = not found  # rules that need no search are the same beside each: once
        rules = [rule for rule in objectives.objectives(lams_of(config)) if first or rule.guarded]
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
    found: list[_Way] = []
    by_seed = {group.seed: group for group in groups}
    truths = {seed: truth_of(by_seed[seed]) for seed in whole}

    def add(
        setting: str, paid: Mapping[int, Spent], regrets: Mapping[int, float], interval: Interval | None = None
    ) -> None:
        if seeds := [seed for seed in whole if seed in paid and seed in regrets]:
            found.append(
                (setting, {seed: paid[seed] for seed in seeds}, {seed: regrets[seed] for seed in seeds}, interval)
            )

    for line in fidelity:
        regrets = {s: cell.regret for s, cell in zip(line.seeds, line.cells, strict=True) if cell.regret is not None}
        if line.objective == own:
            kind = f"search-{line.scorer}"
            searched = {group.seed: group[kind].spent for group in groups if kind in group.cells}
            add(line.scorer, searched, regrets, line.intervals["regret"])
        elif line.objective in rules:
            add(line.objective, dict.fromkeys(whole, NOTHING), regrets, line.intervals["regret"])
    named = {share: name for seed in whole for share, name in shares_of(config, by_seed[seed]).items()}
    for share, part_of in named.items():
        rng = np.random.default_rng(0)
        parts = {
            seed: part
            for seed in whole
            if (part := on_a_part(config, by_seed[seed], truths[seed], share, rng)) is not None
        }
        spent = {seed: part.spent for seed, part in parts.items()}
        add(f"recovered, {part_of}", spent, {seed: part.regret for seed, part in parts.items()})
    for name in ("maxidisc", "maxidisc-tpe", DIRECT, *APART):
        students = {
            seed: float(by_seed[seed][view.students[0][0]].result["metric"])
            for seed, view in views.get(name, {}).items()
            if seed in whole
        }
        searched = {seed: views[name][seed].search for seed in students}
        add(
            APART.get(name, name),
            searched,
            {seed: max(truths[seed].students) - metric for seed, metric in students.items()},
        )
    return _lines(found, {seed: view.spent for seed, view in whole.items()})


def _lines(found: Sequence[_Way], whole: Mapping[int, Spent]) -> tuple[FrontierLine, ...]:
    """Each over its own seeds, and what is on the frontier by the seeds that all have, the cheapest first.

    ``direct``, which chooses no assistant, and students of their own are no points of it.
    """
    apart = tuple(APART.values())
    shared = [seed for seed in whole if all(seed in regrets for name, _, regrets, _ in found if name not in apart)]
    lines, points = [], []
    for setting, paid, regrets, interval in found:
        total, spent = (sum((by_seed[seed] for seed in regrets), NOTHING) for by_seed in (whole, paid))
        shares = spent.seconds / total.seconds, spent.flops / total.flops
        regret, cost, common = fmean(list(regrets.values())), None, None
        if shared and set(shared) <= regrets.keys():
            cost = sum(paid[seed].flops for seed in shared) / sum(whole[seed].flops for seed in shared)
            common = fmean([regrets[seed] for seed in shared])
            if setting not in (DIRECT, *apart):
                points.append(FrontierPoint(setting, cost, common))
        lines.append(FrontierLine(setting, *shares, regret, interval, tuple(regrets), cost, common, False))
    best = {point.setting for point in frontier(points)}
    lines.sort(key=lambda line: (line.flops_share, line.regret))
    return tuple(replace(line, best=line.setting in best) for line in lines)


def objectives_of(
    config: ComparisonConfig, groups: Sequence[Group], rng: np.random.Generator
) -> tuple[DifferenceLine, ...]:
    """What each objective's choice from the recovered search gains over the study's own tradeoff's.

    Each as the student through that assistant. Objectives that choose alike are one line, those that choose as the
    tradeoff does are none.
    """
    own = objectives.tradeoff_at(config.search.lam)
    rules = [own, *(rule for rule in objectives.objectives(lams_of(config)) if rule.values is not None)]
    rules = list({rule.name: rule for rule in rules}.values())
    pairs = [
        made
        for group in groups
        if group.complete and (cell := _seen(group, "recovered")) is not None
        if (made := students_of(cell, truth_of(group), rules, margin=config.search.margin)) is not None
    ]
    alike: dict[tuple[bytes, ...], list[str]] = {}
    for number, rule in enumerate(rules):
        alike.setdefault(tuple(_as_made(pair, number) for pair in pairs), []).append(rule.name)
    lines = []
    for names in alike.values() if pairs else ():
        if own.name not in names:
            resamples = config.compare.resamples
            gain = compare(pairs, ours=names[0], theirs=own.name, rng=rng, resamples=resamples)
            lines.append(
                DifferenceLine(replace(gain, ours=", ".join(names)), gain.p if len(gain.by_seed) > 1 else None)
            )
    return tuple(lines)


def _as_made(students: Results, number: int) -> bytes:
    """What tells one student from another: its metric, and its answers."""
    answers = b"" if students.answers is None else students.answers[number].tobytes()
    return np.float64(students.metrics[number]).tobytes() + answers


def lams_of(config: ComparisonConfig) -> tuple[float, ...]:
    return tuple(sorted({*LAMS, config.search.lam} - {0.0}))
