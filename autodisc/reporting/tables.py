"""A study's rows as tables of text, shared by the page, the Markdown and the terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from autodisc.reporting import units
from autodisc.reporting.answers import Answers
from autodisc.reporting.rows import BaselineTrialRow, StrategyRow, StudySummary, TrialRow

MOST_CLASSES = 12  # of a table that is not folded away, and of a confusion table
LONG = 60  # rows beyond which a table is folded


@dataclass(frozen=True)
class Table:
    """``words`` are the columns of text, which are set left; numbers are set right. ``folded``: details."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[int, ...] = (0,)
    folded: bool = False
    marked: int | None = None  # the row that the study chose


def tables(study: StudySummary) -> tuple[Table, ...]:
    """Every table that has a row."""
    found = [
        strategy_table(study.strategies),
        trial_table(study),
        baseline_table(study.baseline_trials),
        *answer_tables(study.answers),
        _cost_table(study),
        Table("Provenance", ("what", "value"), study.provenance, words=(0, 1), folded=True),
        Table("Configuration", ("setting", "value"), study.configuration, words=(0, 1), folded=True),
    ]
    return tuple(table for table in found if table.rows)


def overview_table(studies: Sequence[StudySummary]) -> Table:
    """A row a study: what it chose, what came of it, what it cost."""
    columns = ("study", "task", "seed", "student's sparsity", "TA", "student", "teacher", "split", "time", "FLOPs")
    rows = []
    for study in studies:
        ours = study.strategy("autodisc") or StrategyRow("autodisc")
        rows.append(
            (
                study.name,
                study.task,
                units.NONE if study.seed is None else str(study.seed),
                units.plain(study.student_sparsity),
                units.point(ours.assistant_sparsity, ours.assistant_balance),
                units.plus_minus(ours.metric, ours.standard_error),
                units.fixed(study.teacher_metric),
                ours.split or units.NONE,
                units.duration(ours.seconds),
                units.scaled(ours.flops),
            )
        )
    return Table("Studies side by side: autodisc's students", columns, tuple(rows), words=(0, 1, 6))


def strategy_table(strategies: tuple[StrategyRow, ...]) -> Table:
    columns = (
        "strategy",
        "student",
        "split",
        "validation",
        "TA",
        "time",
        "FLOPs",
        "% time",
        "% FLOPs",
    )
    rows = tuple(
        (
            row.name,
            units.plus_minus(row.metric, row.standard_error),
            row.split or units.NONE,
            units.fixed(row.validation_metric),
            units.point(row.assistant_sparsity, row.assistant_balance),
            units.duration(row.seconds),
            units.scaled(row.flops),
            units.share(row.seconds_share),
            units.share(row.flops_share),
        )
        for row in strategies
    )
    title = "Strategies: student's metric, sparsity of its TA, cost and its share of maxidisc's"
    return Table(title, columns, rows, words=(0, 2))


def trial_table(study: StudySummary) -> Table:
    rows = study.trials
    marked = next((i for i, row in enumerate(rows) if row.is_of(study.shown) and not row.failed), None)
    table = trials_as_table(rows, lam=study.lam, marked=marked)
    stays = (
        study.shown
        and study.recorded
        and (study.shown.sparsity, study.shown.balance)
        == (
            study.recorded.sparsity,
            study.recorded.balance,
        )
    )
    if study.asked_lam is None or stays or study.shown == study.recorded:
        return table
    texts = [list(row) for row in table.rows]  # the study chose, this ranking only would have
    for i, row in enumerate(rows):
        if i == marked:
            texts[i][-1] = "★ would be chosen"
        elif row.is_of(study.recorded) and not row.failed:
            texts[i][-1] = "☆ the study's choice"
    return dataclasses.replace(table, rows=tuple(tuple(text) for text in texts))


def trials_as_table(rows: tuple[TrialRow, ...], *, lam: float | None, marked: int | None) -> Table:
    columns = (
        "sparsity",
        "scale",
        "metric",
        "floor",
        "tradeoff",
        "params",
        "MACs",
        "time",
        "verdict",
    )
    texts = tuple(
        (
            units.point(row.sparsity, row.balance),
            units.fixed(row.scale, 2),
            units.plus_minus(row.metric, row.standard_error),
            units.fixed(row.floor),
            units.fixed(row.tradeoff),
            units.scaled(row.params),
            units.scaled(row.macs),
            units.duration(row.seconds),
            _trial_verdict(row, chosen=i == marked),
        )
        for i, row in enumerate(rows)
    )
    title = "Candidates" if lam is None else f"Candidates at λ = {units.plain(lam)}"
    return Table(title, columns, texts, words=(8,), marked=marked, folded=len(texts) > LONG)


def baseline_table(rows: tuple[BaselineTrialRow, ...]) -> Table:
    columns = ("strategy", "TA", "TA metric", "student metric", "time", "FLOPs", "state")
    texts = tuple(
        (
            row.strategy,
            units.plain(row.sparsity),
            units.fixed(row.assistant_metric),
            units.fixed(row.student_metric),
            units.duration(row.seconds),
            units.scaled(row.flops),
            row.error or row.state.lower(),
        )
        for row in rows
    )
    return Table("Baseline trials: sparsity of the TA, metrics on validation", columns, texts, words=(0, 6))


def answer_tables(known: Answers) -> tuple[Table, ...]:
    """Classes, confusions, examples of difference and latencies of what was distilled."""
    classes = tuple(
        (
            row.label,
            row.role,
            str(row.examples),
            units.fixed(row.precision),
            units.fixed(row.recall),
            units.fixed(row.f1),
        )
        for row in sorted(known.classes, key=lambda row: known.labels.index(row.label))
    )
    many = len(known.labels) > MOST_CLASSES
    confusions = tuple(
        Table(
            f"Confusions of the {role}: rows are labels, columns what it says",
            ("label", *known.labels),
            tuple((label, *map(str, counts)) for label, counts in zip(known.labels, table, strict=True)),
            folded=True,
        )
        for role, table in known.confusions
        if not many
    )
    examples = tuple(
        (one.text, one.label, one.teacher, one.student, units.fixed(one.confidence, 2)) for one in known.examples
    )
    latency = tuple(
        (row.setting, *(units.fixed(ms, 2) for ms in (row.teacher, row.assistant, row.student)))
        for row in known.latency
    )
    columns = ("text, as the models read it", "label", "teacher says", "student says", "its confidence")
    return (
        Table("Latency: median ms a forward", ("setting", "teacher", "assistant", "student"), latency),
        Table(
            "Class by class, on the final split",
            ("class", "model", "examples", "precision", "recall", "F1"),
            classes,
            words=(0, 1),
            folded=len(classes) > 3 * MOST_CLASSES,
        ),
        *confusions,
        Table(_differing(known), columns, examples, words=(0, 1, 2, 3)),
    )


def _differing(known: Answers) -> str:
    title = "Where the student differs from its teacher"
    if not known.counts:
        return title
    apart = sum(count for _, count in known.counts)
    parts = ", ".join(f"{name} in {count}" for name, count in known.counts)
    return f"{title}: {apart} of {known.of} examples ({parts}); {len(known.examples)} of them"


def _cost_table(study: StudySummary) -> Table:
    columns = ("strategy", "run", "stage", "time", "FLOPs", "tokens", "peak MiB")
    rows = tuple(
        (
            row.strategy,
            row.phase,
            row.stage,
            units.duration(row.seconds),
            units.scaled(row.flops),
            units.scaled(row.tokens),
            f"{row.peak_mib:.0f}",
        )
        for row in study.costs
    )
    return Table("Cost by stage", columns, rows, words=(0, 1, 2))


def _trial_verdict(row: TrialRow, *, chosen: bool) -> str:
    if row.stopped_at is not None:
        return f"stopped early: {units.fixed(row.stopped_metric)} on {row.stopped_at} examples"
    if row.failed:
        return f"failed: {row.error}" if row.error else row.state.lower()
    if chosen:
        return "★ chosen"
    return "feasible" if row.feasible else "infeasible"
