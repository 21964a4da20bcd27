"""From run records to what a report says: studies with their baselines, rows, shares of cost, verdict.

Pure: records in, frozen values out. Another λ ranks the recorded trials again and runs nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autodisc.reporting.answers import answers
from autodisc.reporting.provenance import caveats, configuration, provenance
from autodisc.reporting.records import Record, latest
from autodisc.reporting.rows import (
    BaselineTrialRow,
    Choice,
    CostRow,
    Curve,
    Shares,
    StrategyRow,
    StudySummary,
    Summary,
    TrialRow,
    scored,
)
from autodisc.reporting.verdict import against, headline, verdict
from autodisc.search.tradeoff import best, tradeoff

BASELINES = ("maxidisc", "direct")


@dataclasses.dataclass(frozen=True)
class _Group:
    """The newest records of one study and of the baselines that belong to it."""

    search: Record | None
    distill: Record | None
    baselines: tuple[Record, ...]
    finetune: Record | None

    @property
    def all(self) -> tuple[Record, ...]:
        found = (self.search, self.distill, *self.baselines, self.finetune)
        return tuple(record for record in found if record is not None)

    def baseline(self, strategy: str) -> Record | None:
        return next((record for record in self.baselines if record.strategy == strategy), None)


def summarize(records: Sequence[Record], *, lam: float | None = None) -> Summary:
    """One study per folder that holds a search; baselines join the studies of the same task, data, teacher and
    student sparsity, wherever they lie."""
    return Summary(tuple(_summarize(group, lam) for group in _groups(records)))


def trial_rows(result: dict[str, Any], *, lam: float | None = None) -> tuple[TrialRow, ...]:
    """The trials of a search's result by sparsity, with the tradeoff under ``lam`` where one is given."""
    rows = [_trial_row(trial, lam) for trial in result["trials"]]

    def place(row: TrialRow) -> tuple[Any, ...]:  # of equal ones the first is chosen: the one of balance 0
        return row.sparsity is None, row.sparsity or 0.0, abs(row.balance), row.balance, row.number

    return tuple(sorted(rows, key=place))


def baseline_rows(result: dict[str, Any]) -> tuple[BaselineTrialRow, ...]:
    same = ("sparsity", "assistant_metric", "student_metric", "seconds", "flops", "params", "error")
    return tuple(
        BaselineTrialRow(
            strategy=result["strategy"],
            number=trial["number"],
            state=trial["state"],
            **{name: trial.get(name) for name in same},
        )
        for trial in result["trials"]
    )


def choose(rows: Sequence[TrialRow], lam: float, *, margin: float) -> Choice | None:
    """What the tradeoff chooses among ``rows`` under ``lam``: the study's own rule, on recorded numbers."""
    ranked = scored(rows)
    index = best([score for _, score in ranked], lam, margin)
    if index is None:
        return None
    row, score = ranked[index]
    value = tradeoff(score.metric, score.sparsity, lam)
    return Choice(lam, score.sparsity, score.metric, score.floor, score.standard_error, value, row.balance)


def recorded_choice(result: dict[str, Any], lam: float) -> Choice | None:
    chosen = result["best"]
    if chosen is None:
        return None
    names = ("sparsity", "metric", "floor", "standard_error", "tradeoff")
    return Choice(lam, **{name: chosen[name] for name in names}, balance=chosen.get("balance", 0.0))


def _groups(records: Sequence[Record]) -> list[_Group]:
    groups: list[_Group] = []
    work = [record for record in records if record.kind != "finetune"]
    for key in dict.fromkeys(_key(record) for record in work):
        same = [record for record in work if _key(record) == key]
        baselines = [record for record in same if record.kind == "baseline"]
        folders = dict.fromkeys(record.folder for record in same if record.kind != "baseline")
        seeds = dict.fromkeys(record.values["seed"] for record in baselines)
        apart: list[tuple[Path | None, int | None]] = [(folder, None) for folder in folders]
        for folder, alone_with in apart or [(None, seed) for seed in seeds]:
            own = [record for record in same if record.folder == folder]
            search, distill = latest(own, "search"), latest(own, "distill")
            theirs = [r for r in baselines if r.values["seed"] == alone_with] if folder is None else baselines
            seed = None if search is None else search.values["seed"]
            chosen = tuple(record for name in BASELINES if (record := _baseline(theirs, name, seed)) is not None)
            paths = {record.values["teacher"]["model"] for record in (*own, *chosen)}
            finetune = latest([r for r in records if r.kind == "finetune" and _made(r, paths)], "finetune")
            groups.append(_Group(search, distill, chosen, finetune))
    if not work:
        newest = {record.result["path"]: record for record in records}
        groups = [_Group(None, None, (), record) for record in newest.values()]
    return groups


def _key(record: Record) -> tuple[Any, ...]:
    values = record.values
    return (
        values["task"]["name"],
        values["task"]["metric"],
        values["task"]["fingerprints"].get("validation"),
        values["config"]["student_sparsity"],
        values["teacher"]["fingerprint"],
    )


def _baseline(records: Sequence[Record], strategy: str, seed: int | None) -> Record | None:
    """The newest of the study's own seed, else the newest."""
    same_seed = [record for record in records if record.values["seed"] == seed]
    return latest(same_seed, "baseline", strategy=strategy) or latest(records, "baseline", strategy=strategy)


def _made(finetune: Record, teachers: set[str]) -> bool:
    return any(Path(path).resolve() == Path(finetune.result["path"]).resolve() for path in teachers)


def _summarize(group: _Group, asked_lam: float | None) -> StudySummary:
    lead = group.all[0].values
    search, distill = group.search, group.distill
    config = (search or distill or group.all[0]).values["config"]["search"]
    recorded_lam = config["lam"] if search else None
    lam = asked_lam if asked_lam is not None else recorded_lam
    trials = trial_rows(search.result, lam=lam) if search else ()
    reranked = choose(trials, asked_lam, margin=config["margin"]) if search and asked_lam is not None else None
    final = [row for row in _final_splits(group) if row]
    summary = StudySummary(
        name=lead["config"]["name"],
        seed=lead["seed"],
        task=lead["task"]["name"],
        metric_name=lead["task"]["metric"],
        student_sparsity=lead["config"]["student_sparsity"],
        scorer=config["scorer"] if search else None,
        margin=config["margin"],
        studied=search is not None,
        recorded=recorded_choice(search.result, config["lam"]) if search else None,
        reranked=reranked,
        lam=lam,
        asked_lam=asked_lam if search else None,
        floor=next((row.floor for row in trials if row.floor is not None), None),
        split=final[0] if final else None,
        teacher_metric=distill.result["teacher"]["metric"] if distill else None,
        strategies=_strategies(group),
        trials=trials,
        baseline_trials=tuple(row for record in group.baselines for row in baseline_rows(record.result)),
        shares=_shares(group),
        costs=tuple(row for record in group.all for row in _cost_rows(record)),
        curves=tuple(row for record in group.all for row in _curves(record)),
        answers=answers(distill),
        teacher_feasible=search.result["teacher"].get("feasible") if search else None,
        assistant_metric=distill.result["assistant"]["metric"] if distill else None,
        projected_flops=search.result.get("projected_flops") if search else None,
        provenance=provenance(group.all),
        configuration=configuration(lead["config"]),
    )
    return dataclasses.replace(
        summary,
        headline=headline(summary),
        verdict=verdict(summary),
        against=against(summary),
        caveats=caveats(group.all),
    )


def _trial_row(trial: dict[str, Any], lam: float | None) -> TrialRow:
    metric, sparsity = trial.get("metric"), trial.get("sparsity")
    value = trial.get("tradeoff")
    if lam is not None and metric is not None and sparsity is not None:
        value = tradeoff(metric, sparsity, lam)
    candidate, stopped = trial.get("candidate") or {}, trial.get("stopped") or {}
    same = ("floor", "standard_error", "feasible", "scale", "params", "macs", "seconds", "error")
    return TrialRow(
        number=trial["number"],
        state=trial["state"],
        sparsity=sparsity,
        metric=metric,
        tradeoff=value,
        heads=tuple(candidate.get("heads") or ()),
        neurons=tuple(candidate.get("neurons") or ()),
        stopped_at=stopped.get("examples"),
        stopped_metric=stopped.get("metric"),
        balance=trial.get("balance", 0.0),
        **{name: trial.get(name) for name in same},
    )


def _final_splits(group: _Group) -> list[str | None]:
    own = group.distill.result["student"]["split"] if group.distill else None
    return [own, *((record.result["best"] or {}).get("split") for record in group.baselines)]


def _strategies(group: _Group) -> tuple[StrategyRow, ...]:
    rows: list[StrategyRow] = []
    search, distill = group.search, group.distill
    if distill is not None:
        teacher, split = distill.result["teacher"], distill.result["student"]["split"]
        rows.append(
            StrategyRow("teacher", teacher["metric"], split=split, validation_metric=teacher["validation_metric"])
        )
    elif search is not None:
        rows.append(StrategyRow("teacher", validation_metric=search.result["teacher"]["metric"]))
    elif group.finetune is not None:
        made = group.finetune.result
        rows.append(StrategyRow("teacher", made["metric"], split=made["split"]))
    if search is not None or distill is not None:
        rows.append(_autodisc(group))
    return (*rows, *(_baseline_strategy(group, record) for record in group.baselines))


def _autodisc(group: _Group) -> StrategyRow:
    student = group.distill.result["student"] if group.distill else {}
    chosen = group.search.result["best"] if group.search else None
    if group.distill is not None:
        chosen = group.distill.result["assistant"]
    return StrategyRow(
        "autodisc",
        student.get("metric"),
        student.get("standard_error"),
        student.get("split"),
        student.get("validation_metric"),
        (chosen or {}).get("sparsity"),
        assistant_balance=float((chosen or {}).get("balance", 0.0)),
        **_costs(group, _total(group, "seconds"), _total(group, "flops")),
    )


def _baseline_strategy(group: _Group, record: Record) -> StrategyRow:
    found = record.result["best"] or {}
    cost = record.values["cost"]
    return StrategyRow(
        str(record.strategy),
        found.get("final_metric"),
        found.get("standard_error"),
        found.get("split"),
        found.get("student_metric"),
        found.get("sparsity"),
        **_costs(group, cost["seconds"], cost["flops"]),
    )


def _costs(group: _Group, seconds: float, flops: float) -> dict[str, float | None]:
    maxi = group.baseline("maxidisc")
    return {
        "seconds": seconds,
        "flops": flops,
        "seconds_share": _share(seconds, maxi, "seconds"),
        "flops_share": _share(flops, maxi, "flops"),
    }


def _total(group: _Group, unit: str) -> float:
    """Search plus distillation: what autodisc's student cost, teacher aside."""
    return sum(record.values["cost"][unit] for record in (group.search, group.distill) if record is not None)


def _share(cost: float | None, maxi: Record | None, unit: str) -> float | None:
    whole = maxi.values["cost"][unit] if maxi is not None else 0.0
    return cost / whole if cost is not None and whole > 0 else None


def _shares(group: _Group) -> Shares:
    maxi, search = group.baseline("maxidisc"), group.search
    if search is None:
        return Shares()
    cost = search.values["cost"]
    whole = group.distill is not None
    return Shares(
        search_seconds=_share(cost["seconds"], maxi, "seconds"),
        search_flops=_share(cost["flops"], maxi, "flops"),
        schedule_seconds=_share(_total(group, "seconds"), maxi, "seconds") if whole else None,
        schedule_flops=_share(_total(group, "flops"), maxi, "flops") if whole else None,
    )


def _strategy_of(record: Record) -> str:
    if record.kind == "baseline":
        return str(record.strategy)
    return "teacher" if record.kind == "finetune" else "autodisc"


def _cost_rows(record: Record) -> list[CostRow]:
    return [
        CostRow(
            _strategy_of(record),
            record.kind,
            stage,
            cost["seconds"],
            cost["flops"],
            cost.get("tokens", 0),
            cost.get("peak_mib", 0.0),
        )
        for stage, cost in record.values["cost"]["stages"].items()
    ]


def _curves(record: Record) -> list[Curve]:
    curves = []
    for stage, points in record.values.get("curves", {}).items():
        trained = [point for point in points if point.get("loss") is not None]
        measured = [point for point in points if point.get("metric") is not None]
        curves.append(
            Curve(
                _strategy_of(record),
                stage,
                tuple(point["step"] for point in trained),
                tuple(point["loss"] for point in trained),
                tuple(point["step"] for point in measured),
                tuple(point["metric"] for point in measured),
            )
        )
    return curves
