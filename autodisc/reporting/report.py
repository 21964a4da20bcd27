"""The report: one HTML page that opens offline, and a Markdown summary beside it.

plotly.js is inlined once; the page's own policy forbids every request. Names from outside are text,
never markup. Opens a finished study without torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import jinja2
import plotly.graph_objects as go
import plotly.offline

from autodisc.errors import UserError
from autodisc.reporting import figure_data, figures, units
from autodisc.reporting.figure_data import CostUnit, KeptUnit
from autodisc.reporting.records import read_records
from autodisc.reporting.rows import StudySummary, Summary
from autodisc.reporting.summary import summarize
from autodisc.reporting.tables import Table, tables
from autodisc.reporting.texts import markdown_table, md, replace_all

PROJECT = "autodisc"
UNITS: tuple[tuple[CostUnit, str], ...] = (("seconds", "wall time"), ("flops", "FLOPs"))
KEPT: tuple[KeptUnit, ...] = ("heads", "neurons")


@dataclass(frozen=True)
class Picture:
    """A figure with its words for those who do not see it; ``wide`` takes the page's whole width."""

    title: str
    caption: str
    alternative: str
    figure: go.Figure
    wide: bool = False

    @property
    def json(self) -> str:
        """For a script element: no character in it can end the element."""
        text = json.dumps(json.loads(self.figure.to_json()), separators=(",", ":"))
        return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


class Told(Protocol):
    """What a part of a page is about, and says of it before tables and pictures."""

    @property
    def name(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def student_sparsity(self) -> float: ...
    @property
    def verdict(self) -> tuple[str, ...]: ...
    @property
    def against(self) -> tuple[str, ...]: ...
    @property
    def caveats(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Part:
    """One study of a page."""

    study: Told
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...] = ()


def write_report(folders: Sequence[Path], out: Path, *, lam: float | None = None) -> Summary:
    """Write ``out`` (HTML) and the Markdown beside it from the records in ``folders``; nothing on error."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out: got {out}; expected a file name that ends in .html (the .md is written beside it)")
    if lam is not None and not lam >= 0.0:
        raise UserError(f"lam: got {lam}; expected a number of at least 0, such as the authors' 0.2")
    summary = summarize(read_records(folders), lam=lam)
    texts = {out: render_html(summary), out.with_suffix(".md"): render_markdown(summary)}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_all(texts)
    except OSError as error:
        raise UserError(f"out: {out} cannot be written ({error.strerror}); choose another --out") from None
    return summary


def render_html(summary: Summary) -> str:
    return page(_title(summary), [Part(study, tables(study), pictures(study)) for study in summary.studies])


def render_markdown(summary: Summary) -> str:
    return text(_title(summary), [Part(study, tables(study)) for study in summary.studies])


def page(title: str, parts: Sequence[Part]) -> str:
    """HTML that is complete in itself."""
    template = _environment().get_template("report.html.j2")
    return template.render(title=title, studies=parts, plotly_js=plotly.offline.get_plotlyjs(), project=PROJECT)


def text(title: str, parts: Sequence[Part]) -> str:
    """Markdown: what the page says, without the pictures."""
    written = [f"# {md(title)}"]
    for part in parts:
        study = part.study
        if len(parts) > 1:
            written.append(f"## {md(study_title(study))}")
        written.append("\n".join(md(sentence) + "  " for sentence in study.verdict).rstrip())
        for heading, sentences in (("What speaks against it", study.against), ("Caveats", study.caveats)):
            if sentences:
                written.append(f"**{heading}**\n\n" + "\n".join(f"- {md(sentence)}" for sentence in sentences))
        written += [markdown_table(table) for table in part.tables]
    return "\n\n".join(written) + "\n"


def study_title(study: Told) -> str:
    return f"{study.name}: {study.task}, student of sparsity {units.plain(study.student_sparsity)}"


def pictures(study: StudySummary) -> tuple[Picture, ...]:
    """The pictures that the study's records can fill, each with its text alternative."""
    found: list[Picture] = []
    if (curve := figure_data.study_tradeoff(study)) is not None:
        found.append(
            Picture(
                "Which teacher assistant",
                f"The assistant's metric falls with sparsity; the tradeoff adds λ·sparsity"
                f" (λ = {units.plain(study.lam)}). Bars are one standard error.",
                "; ".join(_tradeoff_words(point) for point in curve.points)
                + (f"; floor {curve.floor:.3f}" if curve.floor is not None else ""),
                figures.tradeoff_figure(curve),
                wide=True,
            )
        )
    for unit, word in UNITS:
        if (cost := figure_data.cost_data(study, unit)) is not None:
            teacher = "" if cost.teacher is None else f"; teacher {cost.teacher:.3f}"
            found.append(
                Picture(
                    f"Student against cost: {word}",
                    "Up and to the left is better. Teacher's own training is not counted; it is given.",
                    "; ".join(point.label for point in cost.students) + teacher,
                    figures.cost_figure(cost),
                )
            )
    for unit, word in UNITS:
        if bars := figure_data.stage_data(study, unit):
            write = units.duration if unit == "seconds" else (lambda value: units.scaled(value, "FLOPs"))
            found.append(
                Picture(
                    f"Where the cost went: {word}",
                    "Stages that run in no time are too thin to see; the table below has them all.",
                    "; ".join(f"{bar.strategy}, {bar.stage}: {write(bar.cost)}" for bar in bars),
                    figures.stage_figure(bars, unit=unit),
                )
            )
    for name in KEPT:
        if (kept := figure_data.kept_data(study, name)) is not None:
            columns = zip(kept.sparsities, zip(*kept.kept, strict=True), strict=True)
            found.append(
                Picture(
                    f"Kept {name} by layer",
                    "Layer 0 is next to the embeddings.",
                    "; ".join(
                        f"sparsity {units.plain(sparsity)}: {', '.join(map(str, column))}"
                        for sparsity, column in columns
                    ),
                    figures.kept_figure(kept),
                )
            )
    return (*found, *_curve_pictures(study))


def _curve_pictures(study: StudySummary) -> list[Picture]:
    curves = figure_data.curve_data(study)
    hidden = any(curve.strategy != "autodisc" for curve in curves)
    caption = "Other strategies' curves appear when their legend entry is chosen." if hidden else ""
    found = []
    if any(loss is not None for curve in curves for loss in curve.losses):
        words = [
            f"{c.strategy}, {c.stage}: {units.fixed(c.losses[0])} to {units.fixed(c.losses[-1])} in {c.steps[-1]} steps"
            for c in curves
        ]
        figure = figures.curve_figure(curves, quantity="training loss")
        found.append(Picture("Learning curves: loss", caption, "; ".join(words), figure))
    if any(curve.metrics for curve in curves):
        words = [f"{c.strategy}, {c.stage}: at best {max(c.metrics):.3f}" for c in curves if c.metrics]
        figure = figures.curve_figure(curves, quantity="validation metric")
        found.append(Picture("Learning curves: validation metric", caption, "; ".join(words), figure))
    return found


def _tradeoff_words(point: figure_data.TradeoffPoint) -> str:
    state = "chosen" if point.chosen else ("" if point.feasible else "infeasible")
    text = f"sparsity {units.plain(point.sparsity)}: metric {point.metric:.3f}, tradeoff {point.tradeoff:.3f}"
    return f"{text} ({state})" if state else text


def _title(summary: Summary) -> str:
    if len(summary.studies) == 1:
        return study_title(summary.studies[0])
    return f"{PROJECT}: {units.plural(len(summary.studies), 'study').replace('studys', 'studies')}"


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("autodisc.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
