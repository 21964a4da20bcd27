"""The pictures, from the values of figure_data: plotly figures that stand on light and on dark.

Colours are Okabe and Ito's, which colour-blind readers tell apart; nothing is told by colour alone: a
marker's shape, a dash or a label says the same. Text that came from outside is escaped, since plotly
reads a subset of HTML.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from autodisc.reporting import units
from autodisc.reporting.figure_data import CostData, KeptData, StageBar, TradeoffData
from autodisc.reporting.rows import Curve

BLUE, ORANGE, GREEN, RED, PINK, SKY, YELLOW = (
    "#2B85C4",  # lighter than theirs, for the dark page
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
)
GREY = "#7d7d7d"  # 4 : 1 both on white and on the dark page
MOST_TICKS = 14  # labels on one axis; beyond it they run into each other
LONGEST = 40  # characters of a name from outside
GRID = "rgba(128,128,128,0.25)"
CLEAR = "rgba(0,0,0,0)"
STRATEGIES = {"autodisc": (BLUE, "star"), "maxidisc": (RED, "square"), "direct": (GREEN, "diamond")}
STAGES = (BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, GREY)
PATTERNS = ("", "/", "\\", "x", "-", "|", "+", ".")
DASHES = {"autodisc": "solid", "maxidisc": "dash", "direct": "dot", "teacher": "dashdot"}


def tradeoff_figure(data: TradeoffData) -> go.Figure:
    """Metric with its standard error and metric + λ·sparsity, against sparsity; chosen and infeasible marked."""
    figure = empty_figure("sparsity (first line) and scale (second)", "metric · tradeoff")
    points, line = data.points, data.line
    few = len(points) <= 60  # more bars than that are one grey cloud
    x = [point.sparsity for point in line]
    name = escape(shortened(data.metric_name))
    figure.add_scatter(
        x=x,
        y=[point.metric for point in line],
        error_y={"type": "data", "array": [p.standard_error for p in line], "thickness": 1.2, "visible": few},
        mode="lines+markers",
        name=f"{name} ± standard error",
        line={"color": BLUE, "dash": "dot", "width": 1.8},
        marker={"size": 8 if few else 4, "symbol": "circle"},
        hovertext=[units.point(point.sparsity, point.balance) for point in line],
        hovertemplate="sparsity %{hovertext}: %{y:.3f}<extra></extra>",
    )
    figure.add_scatter(
        x=x,
        y=[point.tradeoff for point in line],
        mode="lines",
        name=f"tradeoff, λ = {units.plain(data.lam)}",
        line={"color": RED},
        hoverinfo="skip",
    )
    kinds = (
        ("feasible", [p for p in points if p.feasible and not (p.chosen or p.recorded)], "square", 8),
        ("infeasible", [p for p in points if not p.feasible], "x-thin-open", 11),
        ("chosen", [p for p in points if p.chosen], "star", 17),
        ("the study's own choice", [p for p in points if p.recorded and not p.chosen], "star-open", 15),
    )
    for label, marked, symbol, size in kinds:
        if marked:
            _mark(figure, label, marked, symbol, size)
    if data.floor is not None:
        figure.add_hline(
            y=data.floor,
            line={"color": GREY, "dash": "dash", "width": 1.5},
            annotation={"text": f"floor {data.floor:.3f}", "yshift": -2},
            annotation_position="bottom left",
        )
    if data.student is not None:
        figure.add_vline(
            x=data.student,
            line={"color": GREEN, "dash": "dashdot", "width": 1.5},
            annotation={"text": f"student {units.plain(data.student)} "},
            annotation_position="bottom left",
        )
    shown = line if len(line) <= MOST_TICKS else line[:: -(-len(line) // MOST_TICKS)]
    ticks = [f"{units.plain(p.sparsity)}<br>{p.scale:.2g}" for p in shown]
    figure.update_xaxes(tickvals=[p.sparsity for p in shown], ticktext=ticks, tickangle=0)
    return figure


def _mark(figure: go.Figure, label: str, points: Sequence[Any], symbol: str, size: int) -> None:
    texts = {"chosen": "chosen", "infeasible": "infeasible"}
    figure.add_scatter(
        x=[point.sparsity for point in points],
        y=[point.tradeoff for point in points],
        mode="markers+text",
        name=label,
        text=[texts.get(label, "") if len(points) <= MOST_TICKS else ""] * len(points),
        textposition="top center",
        cliponaxis=False,
        marker={"symbol": symbol, "size": size, "color": RED, "line": {"width": 2, "color": RED}},
        customdata=[[p.metric, p.standard_error, units.point(p.sparsity, p.balance)] for p in points],
        hovertemplate=f"sparsity %{{customdata[2]}}: tradeoff %{{y:.3f}}<br>metric %{{customdata[0]:.3f}} ±"
        f" %{{customdata[1]:.3f}}<br>{label}<extra></extra>",
    )


def cost_figure(data: CostData) -> go.Figure:
    """Student metric against total cost on a log axis; single maxidisc trials are small and on validation."""
    title = "total cost, seconds (log)" if data.unit == "seconds" else "total cost, FLOPs (log)"
    figure = empty_figure(title, f"student metric, {escape(shortened(data.split or 'final split'))}")
    if data.trials:
        figure.add_scatter(
            x=[point.cost for point in data.trials],
            y=[point.metric for point in data.trials],
            mode="markers",
            name="maxidisc's single trials (validation)",
            marker={"symbol": "circle-open", "size": 6, "color": STRATEGIES["maxidisc"][0]},
            hovertext=[escape(point.label) for point in data.trials],
            hoverinfo="text",
        )
    for point in data.students:
        color, symbol = STRATEGIES.get(point.strategy, (GREY, "circle"))
        figure.add_scatter(
            x=[point.cost],
            y=[point.metric],
            error_y={"type": "data", "array": [point.standard_error or 0.0], "thickness": 1.5},
            mode="markers+text",
            name=escape(point.strategy),
            text=[f" {escape(point.strategy)}"],
            # Ours and direct often cost much the same.
            textposition="middle left" if point.strategy in ("autodisc", "maxidisc") else "middle right",
            marker={"symbol": symbol, "size": 13, "color": color},
            hovertext=[escape(point.label)],
            hoverinfo="text",
            showlegend=False,
        )
    if data.teacher is not None:
        figure.add_hline(
            y=data.teacher,
            line={"color": GREY, "dash": "dash", "width": 1.5},
            annotation={"text": f"teacher {data.teacher:.3f}"},
            annotation_position="top left",
        )
    figure.update_xaxes(type="log", **_log_axis([p.cost for p in (*data.students, *data.trials)]))
    return figure


def _log_axis(costs: Sequence[float]) -> dict[str, Any]:
    """Room for the labels at both ends, and ticks at 1, 2 and 5 with a decimal prefix."""
    low, high = math.log10(min(costs)), math.log10(max(costs))
    room = max(0.35, 0.12 * (high - low))
    return {"range": [low - room, high + room], "dtick": "D2", "tickformat": "~s"}


def stage_figure(bars: Sequence[StageBar], *, unit: str) -> go.Figure:
    """Where each strategy's cost went: stacked bars; hover names the stage."""
    figure = empty_figure("seconds" if unit == "seconds" else "FLOPs", "")
    strategies = list(dict.fromkeys(bar.strategy for bar in bars))
    for stage, i in {bar.stage: bar.number for bar in bars}.items():
        costs = {bar.strategy: bar.cost for bar in bars if bar.stage == stage}
        figure.add_bar(
            y=[escape(strategy) for strategy in strategies],
            x=[costs.get(strategy) for strategy in strategies],
            orientation="h",
            name=escape(shortened(stage)),
            marker={
                "color": STAGES[i % len(STAGES)],
                "line": {"width": 1, "color": GREY},
                "pattern": {
                    "shape": PATTERNS[(i + i // len(STAGES)) % len(PATTERNS)],
                    "fillmode": "overlay",  # else the stripes replace the colour
                    "fgcolor": "#222",
                    "fgopacity": 0.55,
                    "size": 7,
                },
            },
            hovertemplate=f"%{{y}}, {escape(stage)}: %{{x:.3s}}<extra></extra>",
        )
    legend_rows = -(-len({bar.stage for bar in bars}) // 3)
    plot_height = 55 * len(strategies) + 20
    set_height(figure, plot_height, below=80 + 22 * legend_rows)
    figure.update_layout(barmode="stack", legend={"traceorder": "normal"})
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(tickformat="~s")
    return figure


def kept_figure(data: KeptData) -> go.Figure:
    """How many heads or neurons each candidate keeps in each layer; the number stands in the cell."""
    labels = [f"{point}{' ★' if i == data.chosen else ''}" for i, point in enumerate(data.points)]
    figure = empty_figure("candidate's sparsity (★ chosen)", "layer")
    figure.add_heatmap(
        z=[list(row) for row in data.kept],
        x=labels,
        y=[str(layer) for layer in range(len(data.kept))],
        colorscale="Cividis",
        texttemplate="%{z}" if len(data.points) <= MOST_TICKS else None,
        xgap=1,
        ygap=1,
        showscale=len(data.points) > MOST_TICKS,  # else the number stands in the cell
        hovertemplate=f"sparsity %{{x}}, layer %{{y}}: %{{z}} {data.unit}<extra></extra>",
    )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False)
    set_height(figure, max(140, 26 * len(data.kept)), below=70)
    return figure


def curve_figure(curves: Sequence[Curve], *, quantity: str) -> go.Figure:
    """Loss or metric by step; autodisc's own stages first, the baselines' shown from the legend."""
    figure = empty_figure("step", quantity)
    ours = any(curve.strategy == "autodisc" for curve in curves)
    for i, curve in enumerate(curves):
        x, y = (curve.steps, curve.losses) if quantity == "training loss" else (curve.metric_steps, curve.metrics)
        if not x:
            continue
        figure.add_scatter(
            x=list(x),
            y=list(y),
            mode="lines" if quantity == "training loss" else "lines+markers",
            name=escape(shortened(f"{curve.strategy}: {curve.stage}")),
            line={"color": STAGES[i % len(STAGES)], "dash": DASHES.get(curve.strategy, "solid"), "width": 1.8},
            marker={"symbol": i % 20},
            visible=True if curve.strategy == "autodisc" or not ours else "legendonly",
        )
    return figure


def escape(text: str) -> str:
    """As plotly reads text: of what `html.escape` makes of a quotation mark it knows nothing."""
    return html.escape(text, quote=False)


def shortened(name: str) -> str:
    """A name from outside, of a length that leaves room for the picture."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def empty_figure(x_title: str, y_title: str) -> go.Figure:
    figure = go.Figure(layout={"template": "none"})
    figure.update_layout(
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"color": GREY, "family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0, "yanchor": "top"},
        hoverlabel={"font": {"size": 13}},
    )
    axis = {"gridcolor": GRID, "zeroline": False, "automargin": True, "linecolor": GREY, "tickcolor": GREY}
    figure.update_xaxes(title={"text": x_title}, **axis)
    figure.update_yaxes(title={"text": y_title}, **axis)
    set_height(figure, 290, below=120)
    return figure


def set_height(figure: go.Figure, plot: int, *, below: int) -> None:
    """Heights in pixels; a legend's place is in plot heights, and must clear the axis title at any of them."""
    margin = {"l": 60, "r": 20, "t": 35, "b": below}
    figure.update_layout(height=plot + below + 35, margin=margin, legend={"y": -70 / plot})
