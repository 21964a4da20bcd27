"""Progress for machines: with ``--json`` a line of JSON an event, on standard error.

    {"event": "stage", "name": "recovery", "total": 230, ...}
    {"event": "step",  "name": "recovery", "done": 50, "total": 230, "left_s": 81.2, "note": "metric 0.81", ...}
    {"event": "end",   "name": "recovery", "done": 230, "seconds": 102.4, "ok": true, ...}
    {"event": "say",   "text": "…", ...}

Every event has ``time`` (UTC), and ``spent_s`` and ``spent_flops``, the run's cost so far. Steps come at most every
EVERY_S seconds. The result stays the one line of standard output, and an error its plain line.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any, TextIO

from autodisc.costs import Cost
from autodisc.progress import Bar

EVERY_S = 2.0


class Pace:
    """How far a stage is, and how long the rest takes at the pace so far."""

    def __init__(self, name: str, total: int | None) -> None:
        self.name, self.total, self.done, self.text = name, total, 0, ""
        self._since, self._first = time.perf_counter(), 0

    def advance(self, steps: int) -> None:
        if not self.done:  # what a resumed run had done before says nothing of the pace
            self._first = steps
        self.done += steps

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._since

    @property
    def left_s(self) -> float | None:
        worked = self.done - self._first
        return self.seconds / worked * (self.total - self.done) if self.total and worked else None


class EventProgress:
    """autodisc.progress.Progress as JSON lines."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out
        self._cost: Callable[[], Cost] = Cost

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Bar]:
        pace = Pace(name, total)
        self._write("stage", name=name, total=total)
        done = False
        try:
            yield _EventBar(self, pace)
            done = True
        finally:
            self._write("end", name=name, done=pace.done, seconds=pace.seconds, ok=done)

    def say(self, text: str) -> None:
        self._write("say", text=text)

    def spending(self, cost: Callable[[], Cost]) -> None:
        self._cost = cost

    def step(self, pace: Pace) -> None:
        self._write("step", name=pace.name, done=pace.done, total=pace.total, left_s=pace.left_s, note=pace.text)

    def _write(self, event: str, **values: Any) -> None:
        spent = self._cost()
        values |= {"spent_s": spent.seconds, "spent_flops": spent.flops}
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        print(json.dumps({"event": event, "time": now, **values}), file=self._out or sys.stderr, flush=True)


class _EventBar:
    def __init__(self, progress: EventProgress, pace: Pace) -> None:
        self._progress, self._pace, self._said = progress, pace, time.perf_counter()

    def advance(self, steps: int = 1) -> None:
        self._pace.advance(steps)
        if time.perf_counter() - self._said >= EVERY_S:
            self._progress.step(self._pace)
            self._said = time.perf_counter()

    def note(self, text: str) -> None:
        self._pace.text = text
