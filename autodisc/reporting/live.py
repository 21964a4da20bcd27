"""A study in optuna-dashboard while it runs: its note, its pictures, and a note and artifacts for each trial.

Pictures are the report's, overwritten by their ids. They are drawn again when a trial ends, but never for more than a
twentieth of the time (SHARE): the storage takes them in pieces of 2,045 characters, and a dashboard is there to be
glanced at. What is left undrawn is drawn by the next, and by ``refresh`` at the end.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
import optuna_dashboard  # type: ignore[import-untyped]
import plotly.graph_objects as go
from optuna.artifacts import FileSystemArtifactStore, upload_artifact

from autodisc.reporting import choice_figures, figure_data, figures, units
from autodisc.reporting.drawing import draw
from autodisc.reporting.rows import BaselineTrialRow, CostRow, Shares, StrategyRow, StudySummary
from autodisc.reporting.summary import baseline_rows, recorded_choice, trial_rows
from autodisc.reporting.tables import Table
from autodisc.reporting.texts import csv_text, markdown_table, md
from autodisc.reporting.verdict import verdict

SHARE = 0.05  # of the time may go into drawing
ARTIFACTS = "artifacts"  # the folder beside the study's journal
DECORATED = 200  # trials of a study that get artifacts: three files each
POINTS = 150  # of a picture in the storage
TITLE_SPACE = 30  # pixels: the dashboard shows a figure without a heading


class Spent(Protocol):
    """autodisc.costs.Cost."""

    @property
    def seconds(self) -> float: ...
    @property
    def flops(self) -> float: ...
    @property
    def tokens(self) -> int: ...
    @property
    def peak_mib(self) -> float: ...


@dataclass(frozen=True)
class About:
    """What a study asks, of what."""

    name: str
    strategy: str  # autodisc or maxidisc
    task: str
    metric_name: str
    teacher: str
    teacher_metric: float | None  # on validation
    student_sparsity: float
    lam: float
    margin: float
    scorer: str
    labels: tuple[str, ...]
    heads: int  # of a layer of the teacher
    neurons: int
    projected_flops: float | None


class Live:
    """What ``run_study`` and ``run_maxidisc`` call while they work; ``result`` gives the study's result so far."""

    def __init__(
        self,
        study: optuna.Study,
        about: About,
        artifacts: Path,
        *,
        result: Callable[[], Mapping[str, Any]],
        spent: Callable[[], Mapping[str, Spent]],
    ) -> None:
        self._study, self.about, self._artifacts = study, about, artifacts
        self._result, self._spent = result, spent
        self._took_s, self._since = 0.0, time.perf_counter()

    def measured(self, trial: optuna.Trial, confusion: Sequence[Sequence[int]] | None) -> None:
        optuna_dashboard.save_note(trial, trial_note(trial.user_attrs, self.about))
        if trial.number < DECORATED:
            self._upload(trial, confusion)

    def told(self) -> None:
        if self._took_s <= SHARE * (time.perf_counter() - self._since):
            self.refresh()

    def refresh(self) -> None:
        """Write the study's note and pictures as things stand."""
        since = time.perf_counter()
        decorate(self._study, live_summary(self.about, self._result(), self._spent()), self.about)
        self._since = time.perf_counter()
        self._took_s = self._since - since

    def _upload(self, trial: optuna.Trial, confusion: Sequence[Sequence[int]] | None) -> None:
        self._artifacts.mkdir(parents=True, exist_ok=True)
        store = FileSystemArtifactStore(self._artifacts)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in trial_files(trial.user_attrs, self.about, confusion).items():
                path = Path(folder) / name
                path.write_bytes(content)
                upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)


def decorate(study: optuna.Study, summary: StudySummary, about: About) -> None:
    """The study's note, and every picture that its trials and costs can fill."""
    optuna_dashboard.save_note(study, study_note(summary, about))
    for name, figure in live_figures(summary, about):
        optuna_dashboard.save_plotly_graph_object(study, figure, graph_object_id=name)


def live_figures(summary: StudySummary, about: About) -> Iterator[tuple[str, go.Figure]]:
    """By id; ids are those of HTML elements."""
    if (curve := figure_data.study_tradeoff(summary)) is not None:
        figure = figures.tradeoff_figure(figure_data.thinned(curve, POINTS))
        yield "autodisc-1-tradeoff", titled(figure, "Which teacher assistant")
    if (scale := choice_figures.scale_data(summary, most=POINTS)) is not None:
        yield "autodisc-2-scale", titled(choice_figures.scale_figure(scale), "Metric against scale")
    if any(not row.failed for row in summary.baseline_trials):
        figure = choice_figures.students_figure(summary.baseline_trials, about.metric_name)
        yield "autodisc-1-students", titled(figure, "Students by assistant")
    if wins := choice_figures.lambda_data(summary):
        figure = choice_figures.lambda_figure(wins, summary.lam)
        yield "autodisc-3-lambda", titled(figure, "Which λ chooses which assistant")
    for unit in ("heads", "neurons"):
        if (kept := figure_data.kept_of(summary.trials, unit, summary.shown)) is not None:
            yield f"autodisc-4-{unit}", titled(figures.kept_figure(kept), f"Kept {unit} by layer")
    if bars := figure_data.stage_data(summary, "flops"):
        yield "autodisc-5-cost", titled(figures.stage_figure(bars, unit="flops"), "Cost so far")


def titled(figure: go.Figure, title: str) -> go.Figure:
    """The figure under a heading of its own."""
    return figure.update_layout(
        title={"text": title, "x": 0, "xanchor": "left", "font": {"size": 15}},
        meta="autodisc",  # tells ours from the dashboard's own
        height=figure.layout.height + TITLE_SPACE,
        margin={"t": figure.layout.margin.t + TITLE_SPACE},
    )


def live_summary(about: About, result: Mapping[str, Any], spent: Mapping[str, Spent]) -> StudySummary:
    """The study so far, as the report's pictures and sentences take it."""
    searching = about.strategy == "autodisc"
    trials = trial_rows(dict(result), lam=about.lam) if searching else ()
    tried: tuple[BaselineTrialRow, ...] = () if searching else baseline_rows({"strategy": about.strategy, **result})
    costs = tuple(
        CostRow(about.strategy, "baseline", stage, cost.seconds, cost.flops, cost.tokens, cost.peak_mib)
        for stage, cost in spent.items()
    )
    return StudySummary(
        name=about.name,
        task=about.task,
        metric_name=about.metric_name,
        student_sparsity=about.student_sparsity,
        scorer=about.scorer,
        margin=about.margin,
        studied=searching,
        recorded=recorded_choice(dict(result), about.lam) if searching else None,
        reranked=None,
        lam=about.lam,
        asked_lam=None,
        floor=next((row.floor for row in trials if row.floor is not None), None),
        split=None,
        teacher_metric=None,
        strategies=(StrategyRow("teacher", validation_metric=about.teacher_metric),),
        trials=trials,
        baseline_trials=tried,
        shares=Shares(),
        costs=costs,
        curves=(),
        projected_flops=about.projected_flops,
    )


def study_note(summary: StudySummary, about: About) -> str:
    """Markdown: what is asked, of what, the verdict so far, and what it has cost."""
    students = units.plain(about.student_sparsity)
    if about.strategy == "autodisc":
        asked = (
            f"**Which teacher assistant should stand between {md(about.teacher)} and its student of sparsity"
            f" {students}?** Task {md(about.task)}. A trial's value is {md(about.metric_name)} + λ·sparsity on"
            f" validation, λ = {units.plain(about.lam)}; no trial trains a student."
        )
    else:
        asked = (
            f"**The exhaustive search, for comparison**: an assistant and a student of sparsity {students} are"
            f" distilled from {md(about.teacher)} in every trial. Task {md(about.task)}. A trial's value is"
            f" the student's {md(about.metric_name)} on validation."
        )
    lines = [asked, *(md(sentence) for sentence in _so_far(summary, about))]
    if summary.floor is not None:
        lines.append(f"Floor (best constant prediction): {summary.floor:.3f}.")
    infeasible = [row for row in summary.trials if not row.failed and not row.feasible]
    if infeasible:
        more = f" and {len(infeasible) - 12} more" if len(infeasible) > 12 else ""
        listed = "; ".join(units.point(row.sparsity, row.balance) for row in infeasible[:12])
        lines.append(f"Infeasible, at the floor: {listed}{more}.")
    flops = sum(row.flops for row in summary.costs if row.strategy == about.strategy)
    seconds = sum(row.seconds for row in summary.costs if row.strategy == about.strategy)
    cost = f"Cost so far: {units.duration(seconds)}, {units.scaled(flops, 'FLOPs')}."
    if about.projected_flops:
        share = units.share(flops / about.projected_flops)
        cost += f" The exhaustive search is projected at {units.scaled(about.projected_flops, 'FLOPs')}: {share} of it."
    return "\n\n".join([*lines, cost])


def _so_far(summary: StudySummary, about: About) -> tuple[str, ...]:
    if about.strategy == "autodisc":
        return (summary.headline, *verdict(summary)) if summary.headline else verdict(summary)[:1]
    done = [row for row in summary.baseline_trials if not row.failed]
    if not done:
        return ("No student is finished yet.",)
    best = max(done, key=lambda row: (row.student_metric or 0.0, row.sparsity or 0.0))
    return (
        f"The best of {units.plural(len(done), 'student')} so far reaches {units.fixed(best.student_metric)}, through"
        f" the assistant of sparsity {units.plain(best.sparsity)} ({units.fixed(best.assistant_metric)}).",
    )


def trial_note(attributes: Mapping[str, Any], about: About) -> str:
    """Markdown: the candidate in words and numbers."""
    sparsity, kept = attributes["sparsity"], attributes["candidate"]
    lines = [
        f"**The candidate of sparsity {units.point_of(attributes)}** keeps"
        f" {sum(kept['heads'])} of"
        f" {about.heads * len(kept['heads'])} heads and {sum(kept['neurons'])} of"
        f" {about.neurons * len(kept['neurons'])} neurons, scale {1 - sparsity:.2g}."
    ]
    if "metric" in attributes:
        clear = attributes["metric"] - attributes["floor"] > about.margin * attributes["standard_error"]
        lines.append(
            f"{md(about.metric_name)} {units.plus_minus(attributes['metric'], attributes['standard_error'])} on"
            f" {attributes['examples']} validation examples; the floor is {attributes['floor']:.3f}, so it is"
            f" **{'feasible' if clear else 'infeasible'}**. Tradeoff {attributes['metric'] + about.lam * sparsity:.3f}."
        )
        lines.append(
            f"{units.scaled(attributes['params'])} encoder parameters, {units.scaled(attributes['macs'])} MACs of 128"
            f" tokens, measured in {units.duration(attributes['seconds'])}."
        )
    else:
        lines.append(
            f"Distilled, the assistant reaches {units.fixed(attributes['assistant_metric'])}; assistant and student"
            f" took {units.duration(attributes['seconds'])} and {units.scaled(attributes['flops'], 'FLOPs')}."
        )
    rows = tuple(
        (str(layer), str(heads), str(neurons))
        for layer, (heads, neurons) in enumerate(zip(kept["heads"], kept["neurons"], strict=True))
    )
    return "\n\n".join([*lines, markdown_table(Table("", ("layer", "heads", "neurons"), rows))])


def trial_files(
    attributes: Mapping[str, Any], about: About, confusion: Sequence[Sequence[int]] | None
) -> dict[str, bytes]:
    """What a trial leaves to look at or to compute from, by file name."""
    sparsity, kept = attributes["sparsity"], attributes["candidate"]
    candidate = {"sparsity": sparsity, "balance": attributes.get("balance", 0.0), "scale": 1 - sparsity, **kept}
    files = {
        "candidate.json": json.dumps(candidate, indent=1).encode(),
        "kept-by-layer.png": draw(candidate_figure(kept, about), scale=1.0, width=420),
    }
    if confusion is not None:
        labels = about.labels or tuple(str(i) for i in range(len(confusion)))
        rows = [
            {"label": label, **{f"says {name}": count for name, count in zip(labels, counts, strict=True)}}
            for label, counts in zip(labels, confusion, strict=True)
        ]
        files["confusion.csv"] = csv_text(rows).encode()
    return files


def candidate_figure(kept: Mapping[str, Sequence[int]], about: About) -> go.Figure:
    """One candidate: the share of its heads and neurons that each layer keeps, their number in the cell."""
    columns = [(kept["heads"], about.heads), (kept["neurons"], about.neurons)]
    figure = figures.empty_figure("", "layer")
    figure.add_heatmap(
        z=[[numbers[layer] / whole for numbers, whole in columns] for layer in range(len(kept["heads"]))],
        text=[[str(numbers[layer]) for numbers, _ in columns] for layer in range(len(kept["heads"]))],
        x=["heads", "neurons"],
        y=[str(layer) for layer in range(len(kept["heads"]))],
        zmin=0,
        zmax=1,
        colorscale="Cividis",
        texttemplate="%{text}",
        showscale=False,
    )
    figures.set_height(figure, max(140, 26 * len(kept["heads"])), below=40)
    return figure
