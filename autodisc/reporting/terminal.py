"""What a person sees while a command works, and the tables at its end.

Progress goes to standard error, tables to standard output. Where standard error is no terminal a stage is
one clean line when it ends, without control characters.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table as RichTable
from rich.text import Text

from autodisc.costs import Cost
from autodisc.progress import Bar, Progress, Silent
from autodisc.reporting import units
from autodisc.reporting.bench import bench_tables
from autodisc.reporting.events import EventProgress
from autodisc.reporting.rows import StrategyRow, Summary
from autodisc.reporting.summary import baseline_rows, trial_rows
from autodisc.reporting.tables import Table, baseline_table, strategy_table, trial_table, trials_as_table
from autodisc.search.budgets import said

PIPE_WIDTH = 160  # columns


def terminal_progress(*, quiet: bool = False, json: bool = False) -> Progress:
    """Bars on a terminal, lines elsewhere; with ``json`` an event a line."""
    if quiet:
        return Silent()
    return EventProgress() if json else RichProgress()


class _CostColumn(ProgressColumn):
    """The run's FLOPs so far, all its stages together."""

    max_refresh = 1.0

    def __init__(self, cost: Callable[[], Cost]) -> None:
        super().__init__()
        self._cost = cost

    def render(self, task: Task) -> Text:
        flops = self._cost().flops
        return Text(units.scaled(flops, "FLOPs") if flops else "", style="dim")


class _TerminalBar:
    def __init__(self, bars: Bars, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, steps: int = 1) -> None:
        self._bars.advance(self._task, steps)

    def note(self, text: str) -> None:
        self._bars.update(self._task, note=text)


class _LineBar:
    """Counts, and says it once at the end."""

    def __init__(self, name: str, total: int | None) -> None:
        self._name, self._total, self._since = name, total, time.perf_counter()
        self._steps, self._note = 0, ""

    def advance(self, steps: int = 1) -> None:
        self._steps += steps

    def note(self, text: str) -> None:
        self._note = text

    def line(self, *, broken: bool) -> str:
        count = f"{self._steps}/{self._total}" if self._total is not None else str(self._steps)
        spent = units.duration(time.perf_counter() - self._since)
        parts = [count] if self._steps or self._total else []
        parts += [f"stopped after {spent}" if broken else spent, self._note]
        return f"{self._name}: {', '.join(part for part in parts if part)}"


class RichProgress:
    """autodisc.progress.Progress on standard error; stages may open inside stages."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
        self._bars: Bars | None = None
        self._cost: Callable[[], Cost] = Cost

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Bar]:
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            bar = _LineBar(name, total)
            broken = True
            try:
                yield bar
                broken = False
            finally:
                self._console.print(bar.line(broken=broken))
            return
        outermost = self._bars is None
        bars = self._bars or self._start()
        task = bars.add_task(name, total=total, note="")
        try:
            yield _TerminalBar(bars, task)
        finally:
            bars.stop_task(task)
            if outermost:  # its last state stays on the screen; stages inside vanish with their end
                bars.stop()
                self._bars = None
            else:
                bars.remove_task(task)

    def say(self, text: str) -> None:
        self._console.print(text)

    def spending(self, cost: Callable[[], Cost]) -> None:
        self._cost = cost

    def _start(self) -> Bars:
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False),
            _CostColumn(lambda: self._cost()),
            console=self._console,
        )
        self._bars.start()
        return self._bars


def print_work(result: dict[str, Any]) -> None:
    print(f"{result['study']}: {result['trials']} trials here, {result['completed']} done in all")


def print_search(result: dict[str, Any], *, console: Console | None = None) -> None:
    """The candidates of a search's result, the chosen one marked."""
    rows = trial_rows(result)
    best, student = result["best"], result.get("student")
    marked = next((i for i, row in enumerate(rows) if best and row.number == best.get("number")), None)
    out = _console(console)
    _print_table(out, trials_as_table(rows, lam=None, marked=marked))
    if best:
        out.print(
            f"chosen: sparsity {units.point_of(best)}, metric"
            f" {units.plus_minus(best['metric'], best['standard_error'])}, tradeoff {best['tradeoff']:.3f}"
        )
    elif any(not row.failed for row in rows):
        out.print("chosen: none; no candidate left the floor by its standard error")
    else:
        out.print("chosen: none; no trial completed")
    if student is not None:
        out.print(f"student: sparsity {units.plain(student['sparsity'])}, the least within the budget: {said(student)}")


def print_candidates(result: dict[str, Any], *, console: Console | None = None) -> None:
    """Teacher, candidates and student by size, the chosen one marked."""
    rows = [("teacher", result["teacher"]), *(("candidate", row) for row in result["candidates"])]
    rows.append(("student", result["student"]))
    columns = ("model", "sparsity", "metric", "parameters", "MACs", "latency ms", "feasible")
    cells = [
        (
            name,
            units.point_of(row),
            units.plus_minus(row["metric"], row.get("standard_error")),
            units.scaled(row["params"]),
            units.scaled(row["macs"]),
            units.fixed(row["latency_ms"], 2),
            {True: "yes", False: "no", None: units.NONE}[row.get("feasible")],
        )
        for name, row in rows
    ]
    marked = next((i for i, (_, row) in enumerate(rows) if row.get("chosen")), None)
    out, latency, reach = _console(console), result["latency"], result["exportable"]
    _print_table(out, Table("Candidates on validation", columns, tuple(cells), marked=marked, words=(0, 6)))
    out.print("parameters: of the encoder; MACs: of one sequence of 128 tokens")
    out.print(
        f"latency: predicted from timings of the layers in torch, batch {latency['batch']}, length {latency['length']},"
        f" {latency['precision']}, {units.plural(latency['threads'], 'thread')}, {latency['device']}"
    )
    out.print(f"exportable: any sparsity from {units.plain(reach['from'])} to {units.plain(reach['to'])}")


def print_export(result: dict[str, Any], *, console: Console | None = None) -> None:
    """What was written, and what it is worth."""
    out = _console(console)
    if "sparsity" in result:
        out.print(f"sparsity: {units.plain(result['sparsity'])}")
    if "used" in result:
        out.print(f"budget: {said(result['used'])}")
    sizes = f"{units.scaled(result['params'])} encoder parameters, {units.scaled(result['macs'])} MACs"
    out.print(f"size: {sizes}, {units.scaled(result['bytes'], 'B')} on disk")
    if "metric" in result:
        spread = units.plus_minus(result["metric"], result["standard_error"])
        text = f"metric: {spread} on {result['split']} ({result['examples']} examples), floor {result['floor']:.3f}"
        out.print(text if result["feasible"] else f"{text}; it has not left the floor")
    if "max_difference" in result:
        out.print(f"largest difference of a logit to torch's, on validation: {result['max_difference']:.1e}")
    if "int8" in result:
        small = result["int8"]
        size = units.scaled(small["bytes"], "B")
        out.print(
            f"int8: metric {result['metric']:.3f} before, {small['metric']:.3f} after, on validation"
            f" ({small['file']}, {size})"
        )
    if result["format"] == "dense":
        out.print("dense: opens by plain from_pretrained, and is as large and no faster than the teacher")
    out.print(f"{result['format']}: {result['path']}, in {units.duration(result['seconds'])}")


def print_distill(result: dict[str, Any], *, console: Console | None = None) -> None:
    """Teacher, assistant and student side by side."""
    teacher, assistant, student = (result[name] for name in ("teacher", "assistant", "student"))
    columns = ("model", "sparsity", f"metric ({student['split']})", "validation metric", "parameters", "MACs")
    sizes = [(units.scaled(part["params"]), units.scaled(part["macs"])) for part in (teacher, assistant, student)]
    rows = (
        ("teacher", "0", units.fixed(teacher["metric"]), units.fixed(teacher["validation_metric"]), *sizes[0]),
        ("assistant", units.point_of(assistant), units.NONE, units.fixed(assistant["metric"]), *sizes[1]),
        (
            "student",
            units.plain(student["sparsity"]),
            units.plus_minus(student["metric"], student["standard_error"]),
            units.fixed(student["validation_metric"]),
            *sizes[2],
        ),
    )
    out = _console(console)
    _print_table(out, Table("Distilled", columns, rows, marked=2))
    out.print(f"student: {student['path']}")


def print_baseline(result: dict[str, Any], *, console: Console | None = None) -> None:
    """The trials of a baseline's result and its best student."""
    out = _console(console)
    _print_table(out, baseline_table(baseline_rows(result)))
    best = result["best"]
    if best is None:
        out.print(f"{result['strategy']}: no trial completed")
        return
    row = StrategyRow(
        name=result["strategy"],
        metric=best["final_metric"],
        standard_error=best["standard_error"],
        split=best["split"],
        validation_metric=best["student_metric"],
        assistant_sparsity=best["sparsity"],
    )
    text = f"{row.name}: student {units.plus_minus(row.metric, row.standard_error)} on {row.split}"
    if row.assistant_sparsity is not None:
        text += f", assistant of sparsity {units.plain(row.assistant_sparsity)}"
    out.print(text)


def print_prediction(result: dict[str, Any], *, console: Console | None = None) -> None:
    """What a search would cost, stage by stage."""
    predicted = result["predicted"]
    rows = [
        (
            name,
            units.duration(cost["seconds"]),
            units.scaled(cost["flops"]),
            f"{cost['peak_mib']:.0f}",
            f"{cost['disk_gib']:.3f}",
        )
        for name, cost in (*predicted["stages"].items(), ("all", predicted))
    ]
    columns = ("stage", "time", "FLOPs", "peak MiB", "disk GiB")
    out = _console(console)
    _print_table(out, Table("Predicted", columns, tuple(rows), marked=len(rows) - 1))
    out.print("What a cache already holds is charged as if made: the search itself may take less.")


def print_bench(result: dict[str, Any], *, console: Console | None = None) -> None:
    """Latencies of models, and what could not be timed."""
    out = _console(console)
    for table in bench_tables(result):
        _print_table(out, table)
    for kind, why in result["left_out"].items():
        out.print(f"{kind}: left out; {why}")


def print_summary(summary: Summary, *, console: Console | None = None) -> None:
    """The report's verdict and its two main tables."""
    out = _console(console)
    for study in summary.studies:
        if len(summary.studies) > 1:
            seed = "" if study.seed is None else f", seed {study.seed}"
            out.print(f"\n{study.name}: {study.task}, student of sparsity {units.plain(study.student_sparsity)}{seed}")
        for sentence in study.verdict:
            out.print(sentence)
        for title, sentences in (("What speaks against it", study.against), ("Caveats", study.caveats)):
            if sentences:
                out.print(f"\n{title}:")
                for sentence in sentences:
                    out.print(f"  - {sentence}")
        for table in (strategy_table(study.strategies), trial_table(study), baseline_table(study.baseline_trials)):
            _print_table(out, table)


def _console(console: Console | None) -> Console:
    console = console or Console(markup=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:  # a pipe has no width: a table cut to 80 columns would lose its numbers
        console.width = PIPE_WIDTH
    return console


def _print_table(console: Console, table: Table) -> None:
    if not table.rows:
        return
    rich = RichTable(
        title=Text(table.title, style="bold"), title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for i, column in enumerate(table.columns):
        words = i in table.words
        longest = max(len(row[i]) for row in table.rows)  # a heading wraps, a number does not
        rich.add_column(Text(column), justify="left" if words else "right", min_width=None if words else longest)
    for i, row in enumerate(table.rows):
        rich.add_row(*(Text(cell) for cell in row), style="bold" if i == table.marked else None)
    console.print()
    console.print(rich, soft_wrap=False)
