"""The comparison's page, its Markdown and its tables as CSV; the pictures are data first, then a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from statistics import fmean

import plotly.graph_objects as go

from autodisc.reporting import units
from autodisc.reporting.choice_figures import SYMBOLS
from autodisc.reporting.comparison import (
    QUESTIONS,
    Section,
    bounds,
    choices_table,
    csv_texts,
    overview_table,
    section_tables,
)
from autodisc.reporting.figures import BLUE, GREEN, GREY, ORANGE, RED, STAGES, empty_figure, set_height
from autodisc.reporting.pictures import Picture
from autodisc.reporting.report import Overview, Part, page, text
from autodisc.reporting.texts import put_in_place

GAINS = "To the right of zero autodisc's student is better. Bars: 95 % intervals, not corrected for their number."
TICKS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
PLOT, LETTER, LINE, BESIDE = (640, 300), 7, 16, 12  # pixels: of the plot, a letter, a line of text, a label's distance


@dataclass(frozen=True)
class Mark:
    """A labelled point with its error bar's ends; no ends where nothing is known."""

    label: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    best: bool = False


def write_comparison(name: str, sections: Sequence[Section], out: Path) -> Path:
    """Write OUT/report.html, report.md and tables/*.csv; returns the page's path."""
    title = f"{name}: does the choice of the teacher assistant pay?"
    parts = [Part(section, section_tables(section), section_pictures(section)) for section in sections]
    above = _overview(sections)
    paths = {
        out / "report.html": page(title, parts, overview=above),
        out / "report.md": text(title, parts, overview=above),
    }
    paths |= {out / "tables" / f"{table}.csv": rows for table, rows in csv_texts(sections).items()}
    put_in_place(out, paths)
    return out / "report.html"


def _overview(sections: Sequence[Section]) -> Overview | None:
    """Where there are several tasks or students: a sentence for each, one table, and one picture."""
    if len(sections) < 2 or not any(section.strategy("autodisc") for section in sections):
        return None
    sentences = tuple(sentence for section in sections for sentence in section.verdict)
    picture = None
    if marks := gains_data(sections):
        words = "; ".join(f"{mark.label}: {100 * mark.x:+.1f} points" for own in marks.values() for mark in own)
        picture = Picture("What autodisc gains on each task", GAINS, words, gains_figure(marks), wide=True)
    tables = (overview_table(sections), choices_table(sections))
    return Overview(tuple(table for table in tables if table.rows), picture, sentences)


def gains_data(sections: Sequence[Section]) -> dict[str, tuple[Mark, ...]]:
    """By what is compared with, a mark a task and student; its height is the section's number."""
    shown = [section for section in sections if section.strategy("autodisc") is not None]
    found = {
        name: tuple(
            Mark(
                f"{section.task}, {units.plain(section.student_sparsity)}, {name}",
                gain.estimate,
                i,
                gain.low,
                gain.high,
            )
            for i, section in enumerate(shown)
            if (gain := section.gain_over(name)) is not None
        )
        for name in QUESTIONS
    }
    return {name: marks for name, marks in found.items() if marks}


def gains_figure(marks: Mapping[str, Sequence[Mark]]) -> go.Figure:
    figure = empty_figure("autodisc's student − the other's, test", "")
    rows = {mark.y: mark.label.rpartition(", ")[0] for own in marks.values() for mark in own}
    for number, (name, own) in enumerate(marks.items()):
        figure.add_scatter(
            x=[mark.x for mark in own],
            y=[mark.y + 0.18 * (number - (len(marks) - 1) / 2) for mark in own],
            error_x=_bars([(mark.x, mark) for mark in own]),
            mode="markers",
            name=f"over {escape(name)}",
            marker={"size": 10, "color": STAGES[number], "symbol": SYMBOLS[number]},
            hovertemplate="%{x:+.3f}<extra>" + escape(name) + "</extra>",
        )
    figure.add_vline(x=0, line={"color": GREY, "dash": "dash", "width": 1.5})
    names = [escape(rows[row]) for row in rows]
    figure.update_yaxes(autorange="reversed", tickvals=list(rows), ticktext=names)
    set_height(figure, 60 + 70 * len(rows), below=110)
    return figure


def section_pictures(section: Section) -> tuple[Picture, ...]:
    """The pictures that the section's lines can fill."""
    found = []
    if marks := frontier_data(section):
        words = "; ".join(f"{mark.label}: {100 * mark.y:.1f} points for {units.share(mark.x)}" for mark in marks)
        caption = (
            "Down and to the left is better. Filled: no choice of an assistant costs less without losing more."
            f" Over the seeds that all have ({_shared_seeds(section)}); below zero: better than through any assistant."
        )
        found.append(Picture("Frontier: regret against search cost", caption, words, frontier_figure(marks), wide=True))
    if marks := cost_data(section):
        words = "; ".join(f"{mark.label}: {mark.y:.3f} for {units.share(mark.x)}" for mark in marks)
        caption = "Up and to the left is better. The whole schedule's FLOPs, as a share of maxidisc's."
        found.append(Picture("Student against cost", caption, words, cost_figure(marks, section.teacher), wide=True))
    if marks := difference_data(section):
        words = "; ".join(
            f"{line.comparison.theirs}: {bounds(line.comparison.interval, points=True)}" for line in section.differences
        )
        found.append(Picture("What autodisc gains over", GAINS, words, difference_figure(marks)))
    if section.truth:
        words = "; ".join(f"{units.plain(line.sparsity)}: {fmean(line.by_seed):.3f}" for line in section.truth)
        caption = "One point a seed, the line is their mean. Dashed: without an assistant."
        found.append(Picture("The truth: students by assistant", caption, words, truth_figure(section)))
    return tuple(found)


def frontier_data(section: Section) -> tuple[Mark, ...]:
    return tuple(
        Mark(
            line.setting,
            line.shared_flops_share,
            line.shared_regret,
            best=line.best,
        )
        for line in section.frontier
        if line.shared_regret is not None and line.shared_flops_share is not None
    )


def _shared_seeds(section: Section) -> str:
    known = [line for line in section.frontier if line.shared_regret is not None]
    shared = [seed for seed in known[0].seeds if all(seed in line.seeds for line in known)] if known else []
    return ", ".join(map(str, shared))


def cost_data(section: Section) -> tuple[Mark, ...]:
    return tuple(
        Mark(
            line.strategy,
            line.flops_share,
            line.metric.estimate,
            line.metric.low,
            line.metric.high,
            line.strategy == "autodisc",
        )
        for line in section.strategies
        if line.flops_share
    )


def difference_data(section: Section) -> tuple[Mark, ...]:
    return tuple(
        Mark(
            line.comparison.theirs,
            line.comparison.difference,
            number,
            line.comparison.interval.low,
            line.comparison.interval.high,
        )
        for number, line in enumerate(section.differences)
    )


def frontier_figure(marks: Sequence[Mark]) -> go.Figure:
    figure = empty_figure("search cost, share of maxidisc's FLOPs (its square root)", "regret, test")
    marks = _together(marks)
    places = [math.sqrt(mark.x) for mark in marks]  # most lie below a fifth, some at 0
    for mark, x in zip(marks, places, strict=True):
        _add(figure, mark, RED if mark.best else GREY, "circle" if mark.best else "circle-open", x)
    _label(figure, marks, places)
    best = [mark for mark in marks if mark.best]
    figure.add_scatter(
        x=[math.sqrt(mark.x) for mark in best],
        y=[mark.y for mark in best],
        mode="lines",
        line={"color": RED, "shape": "hv", "dash": "dot", "width": 1.5},
        hoverinfo="skip",
        showlegend=False,
    )
    figure.update_xaxes(tickvals=[math.sqrt(x) for x in TICKS], ticktext=[f"{x:.0%}" for x in TICKS])
    return figure


def cost_figure(marks: Sequence[Mark], teacher: float | None) -> go.Figure:
    figure = empty_figure("whole cost, share of maxidisc's FLOPs (log)", "student's metric, test")
    marks = _together(marks)
    for mark in marks:
        _add(figure, mark, BLUE if mark.best else ORANGE, "star" if mark.best else "circle", mark.x)
    _label(figure, marks, [math.log10(mark.x) for mark in marks])  # where an annotation stands on a log axis
    if teacher is not None:
        line = {"color": GREY, "dash": "dash", "width": 1.5}
        figure.add_hline(y=teacher, line=line, annotation={"text": f"teacher {teacher:.3f}"})
    figure.update_xaxes(type="log", tickformat=".0%", dtick="D2")
    return figure


def difference_figure(marks: Sequence[Mark]) -> go.Figure:
    figure = empty_figure("autodisc's student − the other's, test", "")
    figure.add_scatter(
        x=[mark.x for mark in marks],
        y=[escape(mark.label) for mark in marks],
        error_x=_bars([(mark.x, mark) for mark in marks]),
        mode="markers",
        marker={"size": 11, "color": BLUE, "symbol": "diamond"},
        hovertemplate="%{y}: %{x:+.3f}<extra></extra>",
        showlegend=False,
    )
    figure.add_vline(x=0, line={"color": GREY, "dash": "dash", "width": 1.5})
    figure.update_yaxes(autorange="reversed", type="category")
    set_height(figure, 60 + 40 * len(marks), below=70)
    return figure


def truth_figure(section: Section) -> go.Figure:
    figure = empty_figure("sparsity of the assistant", "student's metric, test")
    lines = [line for line in section.truth if line.sparsity is not None]
    points = [(line.sparsity, value) for line in lines for value in line.by_seed]
    figure.add_scatter(
        x=[x for x, _ in points],
        y=[y for _, y in points],
        mode="markers",
        name="a seed",
        marker={"color": BLUE, "symbol": "circle-open", "size": 8},
    )
    figure.add_scatter(
        x=[line.sparsity for line in lines],
        y=[fmean(line.by_seed) for line in lines],
        name="mean",
        line={"color": BLUE},
    )
    direct = next((line for line in section.truth if line.sparsity is None), None)
    if direct is not None:
        mean = fmean(direct.by_seed)
        line = {"color": GREEN, "dash": "dash", "width": 1.5}
        figure.add_hline(y=mean, line=line, annotation={"text": f"no assistant {mean:.3f}"})
    return figure


def _together(marks: Sequence[Mark]) -> list[Mark]:
    """Marks at one place as one, with all of their labels; from left to right."""
    places: dict[tuple[float, float], list[Mark]] = {}
    for mark in sorted(marks, key=lambda mark: (mark.x, mark.y)):
        places.setdefault((round(mark.x, 4), round(mark.y, 4)), []).append(mark)
    return [
        replace(found[0], label=", ".join(mark.label for mark in found), best=any(mark.best for mark in found))
        for found in places.values()
    ]


def label_places(marks: Sequence[Mark], xs: Sequence[float]) -> list[tuple[bool, int]]:
    """Where each mark's label stands so that none covers another: on its left or right, and how many pixels above it.

    ``xs`` are the marks' places along the axis. The plot is taken as ``PLOT`` pixels, a label as wide as its text.
    """
    ys = [end for mark in marks for end in (mark.y, mark.low, mark.high) if end is not None and math.isfinite(end)]
    spans = [max(values) - min(values) or 1.0 for values in (xs, ys)]
    taken: list[tuple[float, float, float]] = []  # left, right, height
    places = []
    for mark, x in zip(marks, xs, strict=True):
        across, up = (x - min(xs)) / spans[0] * PLOT[0], (mark.y - min(ys)) / spans[1] * PLOT[1]
        width = LETTER * len(mark.label) + 2 * BESIDE
        right = across + width < PLOT[0] * 1.05
        left = across if right else across - width
        for shift in sorted(range(-PLOT[1], PLOT[1] + 1, LINE // 2), key=abs):
            height = up + shift
            if not any(left < end and start < left + width and abs(height - h) < LINE for start, end, h in taken):
                break
        taken.append((left, left + width, height))
        places.append((right, shift))
    return places


def _label(figure: go.Figure, marks: Sequence[Mark], xs: Sequence[float]) -> None:
    for mark, x, (right, shift) in zip(marks, xs, label_places(marks, xs), strict=True):
        figure.add_annotation(
            x=x,
            y=mark.y,
            text=escape(mark.label),
            ax=BESIDE if right else -BESIDE,
            ay=-shift,
            xanchor="left" if right else "right",
            arrowhead=0,
            arrowwidth=0.8,
            arrowcolor=GREY,
        )


def _add(figure: go.Figure, mark: Mark, color: str, symbol: str, x: float) -> None:
    figure.add_scatter(
        x=[x],
        y=[mark.y],
        error_y=_bars([(mark.y, mark)]),
        mode="markers",
        cliponaxis=False,
        marker={"size": 11, "color": color, "symbol": symbol},
        hovertemplate=f"{escape(mark.label)}: %{{y:.3f}} for {mark.x:.1%}<extra></extra>",
        showlegend=False,
    )


def _bars(marks: Sequence[tuple[float, Mark]]) -> dict[str, object]:
    """Error bars; an end that is unknown or infinite is not drawn."""

    def reach(value: float, end: float | None) -> float:
        return 0.0 if end is None or abs(end) == float("inf") else max(0.0, abs(end - value))

    return {
        "type": "data",
        "symmetric": False,
        "array": [reach(value, mark.high) for value, mark in marks],
        "arrayminus": [reach(value, mark.low) for value, mark in marks],
        "thickness": 1.2,
    }
