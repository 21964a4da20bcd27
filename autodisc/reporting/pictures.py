"""What the page shows of a study: each picture with its words for those who do not see it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from autodisc.reporting import choice_figures, figure_data, figures, student_figures, units
from autodisc.reporting.figure_data import CostUnit, KeptUnit
from autodisc.reporting.rows import StudySummary

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


def pictures(study: StudySummary) -> tuple[Picture, ...]:
    """The pictures that the study's records can fill, each with its text alternative."""
    found: list[Picture] = []
    if (curve := figure_data.study_tradeoff(study)) is not None:
        found.append(
            Picture(
                "Which teacher assistant",
                f"The assistant's metric falls with sparsity; the tradeoff adds λ·sparsity"
                f" (λ = {units.plain(study.lam)}). Bars are one standard error; the student lies at the green line.",
                listed([_tradeoff_words(point) for point in curve.points])
                + (f"; floor {curve.floor:.3f}" if curve.floor is not None else ""),
                figures.tradeoff_figure(curve),
                wide=True,
            )
        )
    found += _choice_pictures(study)
    for unit, word in UNITS:
        if (cost := figure_data.cost_data(study, unit)) is not None:
            teacher = "" if cost.teacher is None else f"; teacher {cost.teacher:.3f}"
            found.append(
                Picture(
                    f"Student against cost: {word}",
                    "Up and to the left is better. Bars are one standard error. The teacher's own training, which is"
                    " given, is not counted.",
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
                    wide=True,
                )
            )
    for name in KEPT:
        if (kept := figure_data.kept_data(study, name)) is not None:
            columns = zip(kept.points, zip(*kept.kept, strict=True), strict=True)
            found.append(
                Picture(
                    f"Kept {name} by layer",
                    "Layer 0 is next to the embeddings.",
                    listed([f"sparsity {point}: {', '.join(map(str, column))}" for point, column in columns]),
                    figures.kept_figure(kept),
                )
            )
    return (*found, *_curve_pictures(study), *_student_pictures(study))


def _choice_pictures(study: StudySummary) -> list[Picture]:
    found = []
    if (scale := choice_figures.scale_data(study)) is not None:
        words = [f"scale {units.plain(round(p.scale, 6))}: {p.metric:.3f}" for p in scale.candidates]
        words += [f"{name}, scale {units.plain(round(at, 6))}: {metric:.3f}" for name, at, metric in scale.distilled]
        teacher = "" if scale.teacher is None else f"; teacher {scale.teacher:.3f}"
        found.append(
            Picture(
                "Metric against scale",
                "On validation. A candidate is measured as a slice, before any distillation of its own.",
                listed(words) + teacher,
                choice_figures.scale_figure(scale),
            )
        )
    if wins := choice_figures.lambda_data(study):
        found.append(
            Picture(
                "Which λ chooses which assistant",
                "A long step is a choice that another λ would make too. Only candidates that left the floor take part.",
                choice_figures.said(wins),
                choice_figures.lambda_figure(wins, study.lam),
            )
        )
    return found


def _student_pictures(study: StudySummary) -> list[Picture]:
    known, found = study.answers, []
    if known.classes:
        words = [f"{row.role}, {row.label}: F1 {units.fixed(row.f1)}" for row in known.classes]
        caption = "F1 on the final split. " + (
            f"The {student_figures.MOST_CLASSES} classes where the student is weakest."
            if len(known.labels) > student_figures.MOST_CLASSES
            else "A class where the marks lie apart is where the student lost."
        )
        found.append(Picture("Class by class", caption, listed(words), student_figures.class_figure(known.classes)))
    for name in KEPT if known.profiles else ():
        words = [f"{p.role}: {', '.join(map(str, p.heads if name == 'heads' else p.neurons))}" for p in known.profiles]
        figure = student_figures.profile_figure(known.profiles, name)
        found.append(
            Picture(f"Layer profile: {name}", "What each layer of the models keeps.", "; ".join(words), figure)
        )
    if known.latency:
        words = [
            f"{row.setting}: teacher {units.fixed(row.teacher, 2)}, assistant {units.fixed(row.assistant, 2)},"
            f" student {units.fixed(row.student, 2)} ms"
            for row in known.latency
        ]
        caption = "Timed by turns on the machine that distilled. Left is faster."
        found.append(Picture("Latency", caption, "; ".join(words), student_figures.latency_figure(known.latency)))
    return found


def side_by_side(studies: Sequence[StudySummary]) -> Picture | None:
    """All studies' candidates in one picture."""
    data = [(study, found) for study in studies if (found := choice_figures.scale_data(study)) is not None]
    if len(data) < 2:
        return None
    words = [
        f"{study.name}, {study.task}: " + listed([f"{p.scale:.2g}: {p.metric:.3f}" for p in found.candidates], 12)
        for study, found in data
    ]
    figure = choice_figures.overlay_figure([(f"{study.name}: {study.task}", found) for study, found in data])
    caption = "Candidates on validation; a filled star is the study's choice. Tasks and metrics may differ."
    return Picture("Studies side by side", caption, "; ".join(words), figure, wide=True)


def listed(words: Sequence[str], most: int = 40) -> str:
    """A text alternative that somebody may have to listen to."""
    more = f"; and {len(words) - most} more, in the table" if len(words) > most else ""
    return "; ".join(words[:most]) + more


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
    name = units.point(point.sparsity, point.balance)
    text = f"sparsity {name}: metric {point.metric:.3f}, tradeoff {point.tradeoff:.3f}"
    return f"{text} ({state})" if state else text
