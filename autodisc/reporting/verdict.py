"""Say what was found in a sentence or two, and what speaks against it.

Pure: rows in, sentences out. A difference below NOISE combined standard errors is called noise; the
combined error takes the two students as independent, which on shared examples errs on the careful side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from autodisc.reporting import units
from autodisc.reporting.rows import Choice, Shares, StrategyRow, StudySummary, TrialRow

NOISE = 2.0  # standard errors, some 95 %
SEARCH_TARGET = 0.05  # of maxidisc's cost: autodisc's claim, as are the two below
SCHEDULE_TARGET = 0.20
STUDENT_TARGET = 0.005  # metric below maxidisc's student
STUDENT_KEEPS = 0.5  # of what the teacher has above the floor


def headline(study: StudySummary) -> str:
    """The answer in one sentence, where there is a student; the sentences of ``verdict`` are its grounds."""
    ours = study.strategy("autodisc")
    if ours is None or ours.metric is None:
        return ""
    text = (
        f"A student of {units.plain(round(1 - study.student_sparsity, 6))} of the teacher's scale reaches"
        f" {study.metric_name} {units.plus_minus(ours.metric, ours.standard_error)} on {ours.split}"
    )
    if study.teacher_metric is not None:
        text += f" (teacher {study.teacher_metric:.3f})"
    if ours.assistant_sparsity is not None:
        text += f", through an assistant of scale {units.plain(round(1 - ours.assistant_sparsity, 6))}"
        if study.shares.search_seconds is not None:
            text += (
                f" that the search found in {units.share(study.shares.search_seconds)} of the exhaustive search's time"
            )
    return text + "."


def verdict(study: StudySummary) -> tuple[str, ...]:
    """At most one sentence each: the choice, the choice under another λ, the student, the cost."""
    sentences = [_choice(study)]
    if study.studied and study.asked_lam is not None:
        sentences.append(_reranked(study))
    sentences.append(_students(study))
    sentences.append(_cost(study))
    return tuple(sentence for sentence in sentences if sentence)


def against(study: StudySummary) -> tuple[str, ...]:
    """Every finding that speaks against autodisc or against this run, in plain words."""
    return (*_missed_targets(study), *_student_findings(study), *_trial_findings(study))


def compare(ours: StrategyRow, theirs: StrategyRow) -> str | None:
    """``+0.004 ± 0.028, within noise``; None where the two were not measured on one split."""
    if ours.metric is None or theirs.metric is None or ours.split != theirs.split:
        return None
    difference = ours.metric - theirs.metric
    if ours.standard_error is None or theirs.standard_error is None:
        return f"{units.signed(difference)}, standard error unknown"
    error = math.hypot(ours.standard_error, theirs.standard_error)
    if abs(difference) <= NOISE * error:
        return f"{units.signed(difference)} ± {error:.3f}, within noise"
    return f"{units.signed(difference)} ± {error:.3f}, {'better' if difference > 0 else 'worse'}"


def describe(choice: Choice) -> str:
    return (
        f"sparsity {units.point(choice.sparsity, choice.balance)}"
        f" (metric {units.plus_minus(choice.metric, choice.standard_error)},"
        f" floor {choice.floor:.3f}, tradeoff {choice.tradeoff:.3f})"
    )


def _choice(study: StudySummary) -> str:
    if not study.studied:
        return "No study of teacher assistants is among these records; only what was run is shown."
    if study.recorded is not None:
        return (
            f"At λ = {units.plain(study.recorded.lam)} the study chose the teacher assistant of"
            f" {describe(study.recorded)}."
        )
    complete = [row for row in study.trials if row.metric is not None and row.sparsity is not None]
    if not study.trials:
        return "The study has no trials yet, so no teacher assistant was chosen; run the search to its end."
    if not complete:
        errors = [row.error for row in study.trials if row.error]
        first = f"; the first error: {errors[0]}" if errors else ""
        return f"No trial completed ({units.plural(len(study.trials), 'trial')}){first}."
    closest = max(complete, key=lambda row: (row.metric or 0.0) - (row.floor or 0.0))
    return (
        f"No candidate left the floor by {units.plain(study.margin)} × its standard error; no teacher assistant was"
        f" chosen (closest: sparsity {units.point(closest.sparsity, closest.balance)}, metric"
        f" {units.plus_minus(closest.metric, closest.standard_error)}, floor {units.fixed(closest.floor)})."
        f" {_way_out(study)}"
    )


def _way_out(study: StudySummary) -> str:
    teacher = study.strategy("teacher")
    if teacher is not None and study.teacher_feasible is False:
        return (
            f"The teacher, with {units.fixed(teacher.validation_metric)}, does not leave it either: nothing can be"
            " learned from it. Is it of this task, and are the labels in its order? If trials were scored on a part of"
            " validation, more rows may tell (search.examples)."
        )
    if study.scorer == "pruned":
        return "Search with --scorer recovered, or add lower sparsities to the grid."
    return (
        "Recover for longer (--recovery-steps), add lower sparsities to the grid, or score on more validation rows"
        " (search.examples)."
    )


def _reranked(study: StudySummary) -> str:
    lam = units.plain(study.asked_lam)
    if study.reranked is None:
        return f"Ranked again at λ = {lam}, none is feasible either."
    before, now = study.recorded, study.reranked
    if before is not None and (now.sparsity, now.balance) == (before.sparsity, before.balance):
        return f"Ranked again at λ = {lam}, the choice stays at sparsity {units.point(now.sparsity, now.balance)}."
    student = " The student here was distilled from the recorded choice." if study.strategy("autodisc") else ""
    return f"Ranked again at λ = {lam}, the choice would be {describe(study.reranked)}.{student}"


def _students(study: StudySummary) -> str:
    ours = study.strategy("autodisc")
    others = [row for row in study.strategies if row.name in ("maxidisc", "direct") and row.metric is not None]
    if ours is None or ours.metric is None:
        reached = "; ".join(
            f"{row.name} {units.plus_minus(row.metric, row.standard_error)} on {row.split}" for row in others
        )
        distil = "Nothing was distilled from the chosen assistant yet. " if study.recorded else ""
        return f"{distil}Students: {reached}." if reached else distil.strip()
    teacher = "" if study.teacher_metric is None else f" (teacher {study.teacher_metric:.3f})"
    sentence = (
        f"The student of sparsity {units.plain(study.student_sparsity)} reaches"
        f" {units.plus_minus(ours.metric, ours.standard_error)} on {ours.split}{teacher}"
    )
    compared = [
        f"against {row.name}'s {row.metric:.3f}: {text}" for row in others if (text := compare(ours, row)) is not None
    ]
    return "; ".join([sentence, *compared]) + "."


def _cost(study: StudySummary) -> str:
    if not study.studied:
        return ""
    shares = study.shares
    if shares.search_seconds is None and shares.search_flops is None:
        return "Cost: no maxidisc baseline is among these records, so the search's share of it is unknown."
    search = _share_pair(shares.search_seconds, shares.search_flops)
    text = f"Cost: the search took {search} of maxidisc's"
    if shares.schedule_seconds is not None or shares.schedule_flops is not None:
        whole = _share_pair(shares.schedule_seconds, shares.schedule_flops)
        text += f"; the whole schedule, search and distillation, {whole}"
    return text + "."


def _share_pair(seconds: float | None, flops: float | None) -> str:
    return f"{units.share(seconds)} (wall time) and {units.share(flops)} (FLOPs)"


def _missed_targets(study: StudySummary) -> list[str]:
    return [
        f"{name}: {units.share(value)} of maxidisc's {unit}, above the target of {units.share(target)}."
        for name, target, pairs in _targets(study.shares)
        for unit, value in pairs
        if value is not None and value > target
    ]


def _targets(shares: Shares) -> list[tuple[str, float, tuple[tuple[str, float | None], ...]]]:
    return [
        (
            "The search",
            SEARCH_TARGET,
            (("wall time", shares.search_seconds), ("FLOPs", shares.search_flops)),
        ),
        (
            "The whole schedule",
            SCHEDULE_TARGET,
            (("wall time", shares.schedule_seconds), ("FLOPs", shares.schedule_flops)),
        ),
    ]


def _student_findings(study: StudySummary) -> list[str]:
    found = []
    ours, direct, maxi = (study.strategy(name) for name in ("autodisc", "direct", "maxidisc"))
    kept = _kept(study)
    if kept is not None and kept < STUDENT_KEEPS:
        found.append(
            f"Of what the teacher has above the floor on validation the student keeps {units.share(kept)}: it is too"
            " small for this task, or was distilled for too short; try a lower --student-sparsity or more epochs."
        )
    gap = _gap(ours, direct)
    if gap is not None and gap[0] < 0:
        found.append(f"No assistant at all (direct) gave the better student; autodisc against it: {gap[1]}.")
    elif gap is not None and gap[0] == 0:
        found.append("No assistant at all (direct) gave a student just as good.")
    gap = _gap(ours, maxi)
    if gap is not None and gap[0] < -STUDENT_TARGET:
        found.append(f"The student is more than {STUDENT_TARGET:g} below the exhaustive search's: {gap[1]}.")
    theirs = maxi.assistant_sparsity if maxi is not None else None
    own = study.recorded
    if theirs is not None and own is not None and (theirs, 0.0) != (own.sparsity, own.balance):
        found.append(
            f"The exhaustive search preferred another assistant: sparsity {units.plain(theirs)}"
            f" instead of {units.point(own.sparsity, own.balance)}."
        )
    return found


def _kept(study: StudySummary) -> float | None:
    """(student − floor) / (teacher − floor) on validation; None where that is not known."""
    teacher, ours, floor = study.strategy("teacher"), study.strategy("autodisc"), study.floor
    if teacher is None or ours is None or floor is None:
        return None
    if teacher.validation_metric is None or ours.validation_metric is None or teacher.validation_metric <= floor:
        return None
    return (ours.validation_metric - floor) / (teacher.validation_metric - floor)


def _gap(ours: StrategyRow | None, theirs: StrategyRow | None) -> tuple[float, str] | None:
    """Our metric minus theirs, and the words of ``compare``."""
    if ours is None or theirs is None or ours.metric is None or theirs.metric is None:
        return None
    text = compare(ours, theirs)
    return None if text is None else (ours.metric - theirs.metric, text)


def _trial_findings(study: StudySummary) -> list[str]:
    found = []
    stopped = [row for row in study.trials if row.stopped_at is not None]
    if stopped:
        found.append(
            f"{units.plural(len(stopped), 'candidate')} stopped early (search.prune) and without a metric on all"
            " rows: no λ ranks them."
        )
    failed = [row for row in study.trials if row.failed and row.stopped_at is None]
    if failed:
        found.append(f"{len(failed)} of {units.plural(len(study.trials), 'trial')} failed.")
    lost = [row for row in study.baseline_trials if row.failed]
    if lost:
        found.append(f"{len(lost)} of {units.plural(len(study.baseline_trials), 'baseline trial')} failed.")
    infeasible = [row for row in study.trials if not row.failed and not row.feasible]
    if infeasible:
        found.append(f"Infeasible, since they did not leave the floor: sparsity {_listed(infeasible)}.")
    choice = study.shown
    if choice is None:
        return found
    near = [
        row
        for row in study.trials
        if row.feasible
        and row.tradeoff is not None
        and not row.is_of(choice)
        and choice.tradeoff - row.tradeoff <= choice.standard_error
    ]
    if near:
        found.append(
            f"The tradeoff of sparsity {_listed(near)} lies within one standard error of the chosen one's:"
            " these validation rows cannot tell them apart."
        )
    visited = [row.sparsity for row in study.trials if row.sparsity is not None and not row.failed]
    if len(visited) > 1 and choice.sparsity == max(visited):
        found.append("The choice is the sparsest candidate of the grid; the best may lie beyond it.")
    return found


def _listed(rows: Sequence[TrialRow]) -> str:
    """Their sparsities, the first dozen by name."""
    more = f" and {len(rows) - 12} more" if len(rows) > 12 else ""
    points = (units.point(row.sparsity, row.balance) for row in rows[:12])
    return ("; " if any(row.balance for row in rows) else ", ").join(points) + more
