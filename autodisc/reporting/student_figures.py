"""Pictures of what was distilled: classes, layers and latency of teacher, assistant and student."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from autodisc.reporting import units
from autodisc.reporting.answers import ROLES, ClassRow, LatencyRow, Profile
from autodisc.reporting.figures import BLUE, GREEN, GREY, ORANGE, empty_figure, escape, set_height

LOOKS = {"teacher": (GREY, "circle"), "assistant": (ORANGE, "diamond"), "student": (BLUE, "star")}
MOST_CLASSES = 30  # in a picture; the table has them all


def class_figure(rows: Sequence[ClassRow]) -> go.Figure:
    """F1 of each class, one row a class; teacher, assistant and student are marks on it."""
    figure = empty_figure("F1", "")
    labels = shown_classes(rows)
    for role in ROLES:
        own = {row.label: row for row in rows if row.role == role}
        if own:
            color, symbol = LOOKS[role]
            figure.add_scatter(
                x=[own[label].f1 for label in labels],
                y=[escape(label) for label in labels],
                mode="markers",
                name=role,
                marker={"color": color, "symbol": symbol, "size": 13 if symbol == "star" else 10},
                hovertemplate=f"{role}, %{{y}}: F1 %{{x:.3f}}<extra></extra>",
            )
    shown = [escape(label if len(label) <= 24 else f"{label[:11]}…{label[-12:]}") for label in labels]
    ticks = {"tickvals": [escape(label) for label in labels], "ticktext": shown}
    figure.update_yaxes(type="category", range=[len(labels) - 0.5, -0.5], **ticks)
    set_height(figure, max(120, 34 * len(labels)), below=110)
    return figure


def shown_classes(rows: Sequence[ClassRow]) -> list[str]:
    """The classes, or of very many those where the student is weakest."""
    labels = list(dict.fromkeys(row.label for row in rows))
    student = {row.label: row.f1 or 0.0 for row in rows if row.role == "student"}
    if len(labels) > MOST_CLASSES:
        weakest = set(sorted(labels, key=lambda label: student.get(label, 0.0))[:MOST_CLASSES])
        labels = [label for label in labels if label in weakest]
    return labels


def profile_figure(profiles: Sequence[Profile], unit: str) -> go.Figure:
    """How many units each layer keeps, in the assistant and in the student."""
    figure = empty_figure("layer (0 is next to the embeddings)", f"{unit} kept")
    for profile in profiles:
        color, symbol = LOOKS[profile.role]
        kept = profile.heads if unit == "heads" else profile.neurons
        figure.add_scatter(
            x=list(range(len(kept))),
            y=list(kept),
            mode="lines+markers",
            name=f"{profile.role}, sparsity {units.plain(profile.sparsity)}",
            line={"color": color, "dash": "dash" if profile.role == "assistant" else "solid", "width": 2},
            marker={"symbol": symbol, "size": 10},
            hovertemplate=f"{profile.role}, layer %{{x}}: %{{y}} {unit}<extra></extra>",
        )
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(dtick=1 if len(profiles[0].heads) <= 16 else 4)
    return figure


def latency_figure(rows: Sequence[LatencyRow]) -> go.Figure:
    """Median milliseconds a forward, one row a setting, on a log axis."""
    figure = empty_figure("median ms a forward (log)", "")
    for role, color in (("teacher", GREY), ("assistant", ORANGE), ("student", GREEN)):
        times = [getattr(row, role) for row in rows]
        if any(time is not None for time in times):
            figure.add_scatter(
                x=times,
                y=[escape(short(row.setting)) for row in rows],
                mode="markers",
                name=role,
                marker={"symbol": LOOKS[role][1], "size": 12, "color": color},
                hovertemplate=f"{role}, %{{y}}: %{{x:.2f}} ms<extra></extra>",
            )
    times = [ms for row in rows for ms in (row.teacher, row.assistant, row.student) if ms]
    figure.update_xaxes(type="log", **ticks_between(min(times), max(times)))
    figure.update_yaxes(type="category", range=[len(rows) - 0.5, -0.5])
    set_height(figure, 60 + 40 * len(rows), below=110)
    return figure


def ticks_between(low: float, high: float) -> dict[str, Any]:
    """1, 2 and 5 of each power of ten, and room for them at both ends."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    first = max(tick for tick in ticks if tick <= low)
    last = min(tick for tick in ticks if tick >= high)
    shown = [tick for tick in ticks if first <= tick <= last]
    return {
        "tickvals": shown,
        "ticktext": [f"{tick:g}" for tick in shown],
        "range": [math.log10(first) - 0.05, math.log10(last) + 0.05],
    }


def short(setting: str) -> str:
    """Batch and length; the rest stands in the table."""
    parts = setting.split(", ")
    return ", ".join(part for part in parts if part.startswith(("batch", "length"))) or setting
