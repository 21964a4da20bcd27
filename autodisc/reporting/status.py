"""A study at a glance, running or finished: what is done, what runs, the best so far, what it has cost.

A command that works in a folder says there how far it is (STATUS, replaced whole, at most every EVERY_S seconds); the
records say what is finished, and the Optuna storages what their trials have found. Needs no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from autodisc.config import CONFIG, JOURNAL, StudyConfig, read_config
from autodisc.costs import Cost
from autodisc.errors import StudyError
from autodisc.progress import Bar, Progress
from autodisc.reporting import units
from autodisc.reporting.dashboard import open_storage
from autodisc.reporting.events import Pace
from autodisc.reporting.records import Record, latest, read_records
from autodisc.reporting.texts import replace_all

STATUS = "status.json"
EVERY_S = 1.0


class Noted:
    """Progress that is kept in a folder too, where there is one; a command makes its folder only when it may."""

    def __init__(self, inner: Progress, folder: Path, command: str) -> None:
        self._inner, self._folder, self._command = inner, folder, command
        self._cost: Callable[[], Cost] = Cost
        self._kept = -EVERY_S

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Bar]:
        pace = Pace(name, total)
        with self._inner.stage(name, total) as bar:
            self.keep(pace)
            yield _NotedBar(self, bar, pace)

    def say(self, text: str) -> None:
        self._inner.say(text)

    def spending(self, cost: Callable[[], Cost]) -> None:
        self._cost = cost
        self._inner.spending(cost)

    def keep(self, pace: Pace) -> None:
        """Write how far it is, if that is due."""
        now = time.monotonic()
        if now - self._kept < EVERY_S or not _is_begun(self._folder):
            return
        self._kept, spent = now, self._cost()
        values = {
            "command": self._command,
            "pid": os.getpid(),
            "host": platform.node(),
            "updated": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "stage": pace.name,
            "done": pace.done,
            "total": pace.total,
            "left_s": pace.left_s,
            "note": pace.text,
            "seconds": spent.seconds,
            "flops": spent.flops,
        }
        replace_all({self._folder / STATUS: json.dumps(values)})


def _is_begun(folder: Path) -> bool:
    """Whether it is there, and holds more than the lease of a command that may yet be refused."""
    own = (path.suffix != ".lease" for path in folder.rglob("*") if path.is_file())
    return folder.is_dir() and (next(own, True) or any(own))


class _NotedBar:
    def __init__(self, noted: Noted, bar: Bar, pace: Pace) -> None:
        self._noted, self._bar, self._pace = noted, bar, pace

    def advance(self, steps: int = 1) -> None:
        self._bar.advance(steps)
        self._pace.advance(steps)
        self._noted.keep(self._pace)

    def note(self, text: str) -> None:
        self._bar.note(text)
        self._pace.text = text


@dataclass(frozen=True)
class Part:
    """One command's share of a study; ``state`` is done, begun or not run."""

    name: str
    state: str
    trials: int | None = None  # finished
    best: str | None = None
    seconds: float | None = None
    flops: float | None = None


@dataclass(frozen=True)
class Running:
    """What the folder's last command said of itself; ``alive`` is unknown of another machine's."""

    command: str
    stage: str
    done: int
    total: int | None
    left_s: float | None
    note: str
    updated: str
    host: str
    seconds: float
    flops: float
    alive: bool | None


@dataclass(frozen=True)
class Status:
    """``name`` and ``task`` are None of a folder whose study has not begun, as its teacher is still being made."""

    folder: str
    name: str | None
    task: str | None
    student_sparsity: float | None
    parts: tuple[Part, ...]
    running: Running | None


def read_status(folder: Path) -> Status:
    """Raises StudyError where ``folder`` holds no study, nor the word of a command that is to make one."""
    begun = sorted(folder.glob(f"baseline-*/{CONFIG}"))
    found = folder / CONFIG if (folder / CONFIG).is_file() else next(iter(begun), None)
    if found is None:
        running = _running(folder, None)
        if running is None:
            raise StudyError(f"{folder}: holds no study; expected the --out of a search or a baseline")
        return Status(str(folder), None, None, None, (), running)
    config = read_config(found)
    records = read_records([folder]) if any((folder / "records").glob("*.json")) else []
    searched, distilled = latest(records, "search"), latest(records, "distill")
    sparsity = searched.values["config"]["student_sparsity"] if searched else config.student_sparsity
    parts = [_search(folder, config, searched), _distill(distilled)]
    parts += [_baseline(folder, name, latest(records, "baseline", strategy=name)) for name in ("maxidisc", "direct")]
    running = _running(folder, max((record.created for record in records), default=None))
    return Status(str(folder), config.name, config.task.name, sparsity, tuple(parts), running)


def lines(status: Status) -> list[str]:
    """For people."""
    study = f"{status.name}, task {status.task}, student of sparsity {_of(status.student_sparsity)}"
    found = [f"{status.folder}: {'no study yet' if status.name is None else study}"]
    for part in status.parts:
        words = [part.state]
        if part.trials is not None:
            words.append(units.plural(part.trials, "trial"))
        words += [part.best] if part.best else []
        if part.seconds is not None:
            words.append(f"{units.duration(part.seconds)}, {units.scaled(part.flops, 'FLOPs')}")
        found.append(f"  {part.name:<9} {'; '.join(words)}")
    return [*found, *([] if status.running is None else [_said(status.running)])]


def _said(running: Running) -> str:
    count = "" if not running.total else f" {running.done}/{running.total}"
    left = "" if running.left_s is None else f", {units.duration(running.left_s)} left of this stage"
    note = f", {running.note}" if running.note else ""
    cost = f", so far {units.duration(running.seconds)} and {units.scaled(running.flops, 'FLOPs')}"
    at = f"{running.command}, {running.stage}{count}"
    if running.alive is False:
        return f"  stopped at {at}{note}{cost}; the same command again goes on"
    where = "" if running.alive else f" on {running.host}, last heard of {running.updated}"
    return f"  running: {at}{note}{left}{cost}{where}"


def _search(folder: Path, config: StudyConfig, record: Record | None) -> Part:
    storage = config.search.storage or str(folder / JOURNAL)
    if record is not None:
        best, done = record.result["best"], [t for t in record.result["trials"] if t["state"] != "FAIL"]
        text = "no assistant left the floor" if best is None else _assistant(best)
        return _finished("search", record, len(done), text)
    found = _trials(storage, f"{config.name}-{config.task.name}")
    if found is None:
        return Part("search", "begun" if (folder / CONFIG).is_file() else "not run")
    # Only what left the floor may be chosen: a constraint below zero.
    feasible = [t for t in found if all(value <= 0 for value in t.constraints.values())]
    best_trial = max(feasible, key=lambda t: t.value or 0.0, default=None)
    attributes = {} if best_trial is None else best_trial.user_attrs
    so_far = _assistant(attributes) + " so far" if attributes else None
    return Part("search", "begun", len(found), so_far)


def _distill(record: Record | None) -> Part:
    if record is None:
        return Part("distill", "not run")
    student = record.result["student"]
    text = f"student {units.plus_minus(student['metric'], student['standard_error'])} on {student['split']}"
    return _finished("distill", record, None, text)


def _baseline(folder: Path, name: str, record: Record | None) -> Part:
    if record is not None:
        best, trials = record.result["best"], record.result["trials"]
        text = None if best is None else f"student {units.fixed(best['final_metric'])} on {best['split']}"
        return _finished(name, record, len([t for t in trials if t["state"] == "COMPLETE"]), text)
    place = folder / f"baseline-{name}"
    if not (place / CONFIG).is_file():
        return Part(name, "not run")
    config = read_config(place / CONFIG)
    found = _trials(str(place / JOURNAL), f"{config.name}-{config.task.name}-{name}")
    if not found:
        return Part(name, "begun", None if found is None else 0)
    best_trial = max(found, key=lambda t: t.value or 0.0)
    return Part(name, "begun", len(found), f"student {units.fixed(best_trial.value)} on validation so far")


def _finished(name: str, record: Record, trials: int | None, best: str | None) -> Part:
    cost = record.values["cost"]
    return Part(name, "done", trials, best, cost["seconds"], cost["flops"])


def _trials(storage: str, study: str) -> Sequence[optuna.trial.FrozenTrial] | None:
    """The complete trials; None where there is no such study yet."""
    if storage.endswith(".log") and not Path(storage).is_file():
        return None
    try:
        opened = optuna.load_study(study_name=study, storage=open_storage(storage))
    except KeyError:
        return None
    return opened.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _running(folder: Path, finished: datetime | None) -> Running | None:
    """The last command's word, unless a record has been written since."""
    try:
        values: dict[str, Any] = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if finished is not None and finished >= datetime.fromisoformat(values["updated"]):
        return None
    pid = values.pop("pid")
    alive = _alive(pid) if values["host"] == platform.node() else None
    return Running(**values, alive=alive)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _assistant(found: Mapping[str, Any]) -> str:
    return f"assistant of sparsity {units.point_of(found)}, metric {units.fixed(found['metric'])}"


def _of(sparsity: float | None) -> str:
    return "the budget's" if sparsity is None else units.plain(sparsity)
