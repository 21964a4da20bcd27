"""Pictures of the choice: metric against scale, and which assistant wins for which λ; data first, then a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from autodisc.reporting import units
from autodisc.reporting.figures import (
    BLUE,
    DASHES,
    GREEN,
    GREY,
    ORANGE,
    RED,
    STAGES,
    empty_figure,
    escape,
    set_height,
    shortened,
)
from autodisc.reporting.rows import BaselineTrialRow, StudySummary, scored
from autodisc.search.tradeoff import winners

TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "pentagon")
HIGHEST_LAM = 1.0  # a λ of 1 gives a whole metric for the last unit; the authors' is 0.2


@dataclass(frozen=True)
class ScalePoint:
    scale: float
    metric: float
    standard_error: float


@dataclass(frozen=True)
class ScaleData:
    """Validation metric by scale, the largest first; ``distilled`` are models by name, after their training."""

    metric_name: str
    candidates: tuple[ScalePoint, ...]
    chosen: ScalePoint | None
    distilled: tuple[tuple[str, float, float], ...]  # name, scale, metric
    teacher: float | None
    floor: float | None
    balanced: bool = False  # several candidates of a scale, which no line joins


@dataclass(frozen=True)
class Win:
    """The assistant of ``sparsity`` has the highest tradeoff for λ from ``low`` to ``high``."""

    low: float
    high: float
    sparsity: float
    balance: float = 0.0


def scale_data(study: StudySummary, *, most: int | None = None) -> ScaleData | None:
    """None where no candidate was measured; at most some ``most`` of them, evenly."""
    points = [
        ScalePoint(1 - row.sparsity, row.metric, row.standard_error or 0.0)
        for row in study.trials
        if row.sparsity is not None and row.metric is not None
    ]
    if not points:
        return None
    points.sort(key=lambda point: -point.scale)
    if most is not None:
        points = points[:: -(-len(points) // most)]
    shown = study.shown
    chosen = None if shown is None else ScalePoint(1 - shown.sparsity, shown.metric, shown.standard_error)
    teacher, ours = study.strategy("teacher"), study.strategy("autodisc")
    distilled = []
    for profile in study.answers.profiles:
        metric = study.assistant_metric if profile.role == "assistant" else ours.validation_metric if ours else None
        if metric is not None:
            distilled.append((f"{profile.role}, distilled", 1 - profile.sparsity, metric))
    return ScaleData(
        study.metric_name,
        tuple(points),
        chosen,
        tuple(distilled),
        teacher.validation_metric if teacher else None,
        study.floor,
        any(row.balance for row in study.trials),
    )


def scale_figure(data: ScaleData) -> go.Figure:
    """The candidates as the study measured them, and what distillation made of two of them."""
    figure = empty_figure("scale: fraction of units kept (log)", f"{escape(shortened(data.metric_name))}, validation")
    figure.add_scatter(
        x=[point.scale for point in data.candidates],
        y=[point.metric for point in data.candidates],
        error_y={"type": "data", "array": [point.standard_error for point in data.candidates], "thickness": 1.2},
        mode="markers" if len(data.candidates) > 60 or data.balanced else "lines+markers",
        name="candidates in the study",
        line={"color": BLUE, "width": 1.8},
        marker={"size": 8},
        hovertemplate="scale %{x:.3f}: %{y:.3f}<extra></extra>",
    )
    if data.chosen is not None:
        figure.add_scatter(
            x=[data.chosen.scale],
            y=[data.chosen.metric],
            mode="markers",
            name="chosen assistant",
            marker={"symbol": "star", "size": 17, "color": RED},
            hovertemplate="chosen, scale %{x:.3f}: %{y:.3f}<extra></extra>",
        )
    for (name, scale, metric), (symbol, color) in zip(
        data.distilled, (("diamond", ORANGE), ("square", GREEN)), strict=False
    ):
        figure.add_scatter(
            x=[scale],
            y=[metric],
            mode="markers",
            name=escape(name),
            marker={"symbol": symbol, "size": 12, "color": color, "line": {"width": 1, "color": GREY}},
            hovertemplate=f"{escape(name)}, scale %{{x:.3f}}: %{{y:.3f}}<extra></extra>",
        )
    for name, value, dash in (("teacher", data.teacher, "dash"), ("floor", data.floor, "dot")):
        if value is not None:
            figure.add_hline(
                y=value,
                line={"color": GREY, "dash": dash, "width": 1.5},
                annotation={"text": f"{name} {value:.3f}"},
                annotation_position="top left" if name == "teacher" else "bottom left",
            )
    scales = sorted({round(point.scale, 2) for point in data.candidates} | {round(d[1], 2) for d in data.distilled})
    if len(scales) > 12:
        scales = list(TICKS)
    figure.update_xaxes(type="log", tickvals=scales, ticktext=[f"{scale:g}" for scale in scales])
    return figure


def overlay_figure(studies: Sequence[tuple[str, ScaleData]]) -> go.Figure:
    """Several studies' candidates and choices."""
    figure = empty_figure("scale: fraction of units kept (log)", "metric, validation")
    for number, (name, data) in enumerate(studies):
        color = STAGES[number % len(STAGES)]
        figure.add_scatter(
            x=[point.scale for point in data.candidates],
            y=[point.metric for point in data.candidates],
            mode="markers" if data.balanced else "lines+markers",
            name=escape(shortened(name)),
            line={"color": color, "dash": tuple(DASHES.values())[number % len(DASHES)], "width": 1.8},
            marker={"size": 7, "symbol": SYMBOLS[number % len(SYMBOLS)]},
        )
        if data.chosen is not None:
            figure.add_scatter(
                x=[data.chosen.scale],
                y=[data.chosen.metric],
                mode="markers",
                name="chosen",
                showlegend=False,
                marker={"symbol": "star", "size": 16, "color": color},
                hovertemplate=f"{escape(shortened(name))} chose scale %{{x:.3f}}: %{{y:.3f}}<extra></extra>",
            )
    figure.update_xaxes(type="log", tickvals=TICKS, ticktext=[f"{tick:g}" for tick in TICKS])
    return figure


def students_figure(rows: Sequence[BaselineTrialRow], metric_name: str) -> go.Figure:
    """A baseline's students, and the assistants that they come from, by the assistant's sparsity."""
    done = sorted((row for row in rows if not row.failed), key=lambda row: row.sparsity or 0.0)
    figure = empty_figure("assistant's sparsity", f"{escape(shortened(metric_name))}, validation")
    for name, values, color, symbol, dash in (
        ("student", [row.student_metric for row in done], BLUE, "circle", "solid"),
        ("its assistant", [row.assistant_metric for row in done], ORANGE, "diamond", "dash"),
    ):
        figure.add_scatter(
            x=[row.sparsity for row in done],
            y=values,
            mode="lines+markers",
            name=name,
            line={"color": color, "dash": dash, "width": 1.8},
            marker={"size": 9, "symbol": symbol},
            hovertemplate=f"{name}, assistant's sparsity %{{x}}: %{{y:.3f}}<extra></extra>",
        )
    return figure


def lambda_data(study: StudySummary) -> tuple[Win, ...]:
    """Which of the study's feasible candidates wins, from λ = 0 up."""
    ranked = scored(study.trials)
    won = winners([score for _, score in ranked], study.margin, highest=max(HIGHEST_LAM, study.lam or 0.0))
    return tuple(Win(low, high, ranked[index][1].sparsity, ranked[index][0].balance) for low, high, index in won)


def lambda_figure(wins: tuple[Win, ...], lam: float | None) -> go.Figure:
    """A step for each winner; the study's own λ is a line across."""
    figure = empty_figure("λ: weight of sparsity in the tradeoff", "sparsity of the winner")
    for number, win in enumerate(wins):
        figure.add_scatter(
            x=[win.low, win.high],
            y=[win.sparsity, win.sparsity],
            mode="lines+markers",
            name="winner",
            showlegend=False,
            line={"color": BLUE, "width": 4},
            marker={"size": 7, "symbol": "circle" if number == 0 else "circle-open"},
            hovertemplate=f"sparsity {units.point(win.sparsity, win.balance)} for λ from {win.low:.3f} to"
            f" {win.high:.3f}<extra></extra>",
        )
    if lam is not None:
        figure.add_vline(
            x=lam,
            line={"color": RED, "dash": "dash", "width": 1.5},
            annotation={"text": f" λ = {units.plain(lam)}"},
            annotation_position="top right",
        )
    levels = sorted({win.sparsity for win in wins})
    if len(levels) <= 12:
        figure.update_yaxes(tickvals=levels, ticktext=[units.plain(level) for level in levels])
    figure.update_xaxes(range=[-0.02, max(HIGHEST_LAM, lam or 0.0) + 0.02])
    set_height(figure, 330, below=80)
    return figure


def said(wins: tuple[Win, ...]) -> str:
    """The same in words."""
    return "; ".join(
        f"λ from {win.low:.3g} to {win.high:.3g}: sparsity {units.point(win.sparsity, win.balance)}"
        for win in wins[:40]
    )
