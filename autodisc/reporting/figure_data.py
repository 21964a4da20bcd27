"""What the pictures show, as plain values: a plot is data, then a figure. No plotly here; tests stop here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autodisc.reporting import units
from autodisc.reporting.rows import Choice, Curve, StudySummary, TrialRow

CostUnit = Literal["seconds", "flops"]
KeptUnit = Literal["heads", "neurons"]
KEPT_COLUMNS = 40  # candidates of one heat map
PROJECTED = "maxidisc, projected"
CURVE_POINTS = 300  # of one curve; keeps the page small and the eye sees no difference


@dataclass(frozen=True)
class TradeoffPoint:
    sparsity: float
    scale: float
    metric: float
    standard_error: float
    tradeoff: float
    feasible: bool
    chosen: bool
    recorded: bool  # chosen by the study itself, where another λ is shown
    balance: float = 0.0


@dataclass(frozen=True)
class TradeoffData:
    points: tuple[TradeoffPoint, ...]  # by sparsity, then balance
    floor: float | None
    lam: float
    metric_name: str
    student: float | None = None  # its sparsity: assistants lie to the left of it

    @property
    def line(self) -> tuple[TradeoffPoint, ...]:
        """The best at each sparsity, whatever its balance: what a line may join."""
        best: dict[float, TradeoffPoint] = {}
        for point in self.points:
            if point.sparsity not in best or point.tradeoff > best[point.sparsity].tradeoff:
                best[point.sparsity] = point
        return tuple(best.values())


@dataclass(frozen=True)
class CostPoint:
    strategy: str
    cost: float
    metric: float
    standard_error: float | None
    label: str


@dataclass(frozen=True)
class CostData:
    unit: CostUnit
    students: tuple[CostPoint, ...]  # final split
    trials: tuple[CostPoint, ...]  # maxidisc's single trials, on validation
    teacher: float | None
    split: str | None


@dataclass(frozen=True)
class StageBar:
    strategy: str
    stage: str
    cost: float
    number: int  # the stage's among all that ran, whatever they cost: it looks the same in every unit's picture


@dataclass(frozen=True)
class KeptData:
    """Units kept: one row a layer from the first up, one column a candidate by sparsity."""

    unit: KeptUnit
    points: tuple[str, ...]  # the candidates' sparsities, and balances where there are any
    chosen: int | None  # column
    kept: tuple[tuple[int, ...], ...]


def tradeoff_data(
    trials: Sequence[TrialRow],
    *,
    lam: float,
    metric_name: str,
    shown: Choice | None,
    recorded: Choice | None,
    student: float | None = None,
) -> TradeoffData:
    points = tuple(
        TradeoffPoint(
            row.sparsity,
            1.0 - row.sparsity,
            row.metric,
            row.standard_error or 0.0,
            row.metric + lam * row.sparsity if row.tradeoff is None else row.tradeoff,
            bool(row.feasible),
            row.is_of(shown),
            row.is_of(recorded),
            row.balance,
        )
        for row in trials
        if row.sparsity is not None and row.metric is not None
    )
    floor = next((row.floor for row in trials if row.floor is not None), None)
    points = tuple(sorted(points, key=lambda point: (point.sparsity, point.balance)))
    return TradeoffData(points, floor, lam, metric_name, student)


def study_tradeoff(study: StudySummary) -> TradeoffData | None:
    """None where there is nothing to draw."""
    data = tradeoff_data(
        study.trials,
        lam=study.lam or 0.0,
        metric_name=study.metric_name,
        shown=study.shown,
        recorded=study.recorded,
        student=study.student_sparsity,
    )
    return data if data.points else None


def cost_data(study: StudySummary, unit: CostUnit) -> CostData | None:
    """Student metric on the final split against cost; None where no student was made."""
    write = units.duration if unit == "seconds" else _flops
    students = []
    for row in study.strategies:
        cost = getattr(row, unit)
        if row.metric is not None and cost:
            text = f"{row.name}: {units.plus_minus(row.metric, row.standard_error)} for {write(cost)}"
            students.append(CostPoint(row.name, cost, row.metric, row.standard_error, text))
    trials = []
    for trial in study.baseline_trials:
        cost = getattr(trial, unit)
        if trial.strategy == "maxidisc" and trial.student_metric is not None and cost:
            text = f"maxidisc trial {trial.number}, assistant {units.plain(trial.sparsity)}: "
            text += f"{trial.student_metric:.3f} on validation for {write(cost)}"
            trials.append(CostPoint("maxidisc", cost, trial.student_metric, None, text))
    if not students:
        return None
    return CostData(unit, tuple(students), tuple(trials), study.teacher_metric, study.split)


def stage_data(study: StudySummary, unit: CostUnit) -> tuple[StageBar, ...]:
    """The compared strategies' stages in the order they ran; those of search and distillation by one name are one."""
    costs: dict[tuple[str, str], float] = {}
    for row in study.costs:
        if row.strategy != "teacher":
            key = row.strategy, row.stage
            costs[key] = costs.get(key, 0.0) + float(getattr(row, unit))
    numbers = {stage: number for number, stage in enumerate(dict.fromkeys(stage for _, stage in costs))}
    bars = [StageBar(*key, cost, numbers[key[1]]) for key, cost in costs.items() if cost > 0]
    run = {row.strategy for row in study.costs}
    if bars and unit == "flops" and study.projected_flops and "maxidisc" not in run:
        bars.append(StageBar(PROJECTED, "all trials", study.projected_flops, len(numbers)))
    return tuple(bars)


def kept_data(study: StudySummary, unit: KeptUnit) -> KeptData | None:
    return kept_of(study.trials, unit, study.shown)


def kept_of(trials: Sequence[TrialRow], unit: KeptUnit, shown: Choice | None) -> KeptData | None:
    """None where no candidate says what it keeps. Of very many only some, evenly, and the chosen one."""
    known = {(row.sparsity, row.balance): row for row in trials if row.sparsity is not None and getattr(row, unit)}
    stride = max(1, -(-len(known) // KEPT_COLUMNS))
    rows = [row for i, row in enumerate(known.values()) if i % stride == 0 or row.is_of(shown)]
    if not rows:
        return None
    columns = [getattr(row, unit) for row in rows]
    layers = max(len(column) for column in columns)
    kept = tuple(tuple(column[layer] if layer < len(column) else 0 for column in columns) for layer in range(layers))
    chosen = next((i for i, row in enumerate(rows) if row.is_of(shown)), None)
    return KeptData(unit, tuple(units.point(row.sparsity, row.balance) for row in rows), chosen, kept)


def thinned(data: TradeoffData, most: int) -> TradeoffData:
    """At most some ``most`` points, evenly, and those that were chosen."""
    stride = max(1, -(-len(data.points) // most))
    kept = tuple(p for i, p in enumerate(data.points) if i % stride == 0 or p.chosen or p.recorded)
    return replace(data, points=kept)


def curve_data(study: StudySummary) -> tuple[Curve, ...]:
    """Learning curves, thinned to CURVE_POINTS; stages without a step are left out."""
    return tuple(_thin(curve) for curve in study.curves if curve.steps)


def _thin(curve: Curve) -> Curve:
    stride = -(-len(curve.steps) // CURVE_POINTS)
    last = len(curve.steps) - 1
    kept = [i for i in range(len(curve.steps)) if i % stride == 0 or i == last]
    return Curve(
        curve.strategy,
        curve.stage,
        tuple(curve.steps[i] for i in kept),
        tuple(curve.losses[i] for i in kept),
        curve.metric_steps,
        curve.metrics,
    )


def _flops(value: float) -> str:
    return units.scaled(value, "FLOPs")
