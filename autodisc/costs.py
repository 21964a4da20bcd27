"""Count what a strategy costs: seconds, tokens, FLOPs and peak memory, stage by stage.

A stage's seconds are its own: a stage that opens inside another (the teacher cache inside a training
phase) pauses the outer clock, so the stages add up to the whole. FLOPs are counted by torch's
``FlopCounterMode`` on real batches of each kind of work and multiplied out (padding included, since padding is
computed too): training by the tokens of the first batches, a forward pass exactly (models/inference.py). Work read
from a cache is charged what it cost to make. Of processes side by side seconds are the sum, and ``elapsed_s`` is
what the clock says; peak memory is the largest process's.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from autodisc.errors import StudyError
from autodisc.files import write_json

Found = TypeVar("Found")
COUNTED_BATCHES = 2  # FlopCounterMode doubles a step's time; rates differ between batches by < 3 %


@dataclass
class Cost:
    """What one stage used: seconds, tokens (with padding), FLOPs, peak resident memory in MiB."""

    seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    peak_mib: float = 0.0

    def add(self, other: Cost) -> None:
        self.seconds += other.seconds
        self.tokens += other.tokens
        self.flops += other.flops
        self.peak_mib = max(self.peak_mib, other.peak_mib)

    def since(self, before: Cost) -> Cost:
        """What came on top of ``before``."""
        return Cost(
            self.seconds - before.seconds, self.tokens - before.tokens, self.flops - before.flops, self.peak_mib
        )


@dataclass
class _Rate:
    batches: int = 0
    tokens: int = 0
    flops: float = 0.0


class Ledger:
    """Costs by stage of one run of one strategy."""

    def __init__(self) -> None:
        self.stages: dict[str, Cost] = {}
        self.paid: dict[str, Any] = {}  # rows (boolean array) that a cache has charged this run for, by the cache's key
        self.decisions: dict[str, str] = {}  # what was decided by a measurement of this run, and the reason
        self._open: list[tuple[str, float]] = []
        self.beside_s = 0.0  # seconds of the stages that passed while another process was at work
        self._rates: dict[str, _Rate] = {}
        self._found: dict[Hashable, Any] = {}

    @property
    def total(self) -> Cost:
        total = Cost()
        for cost in self.stages.values():
            total.add(cost)
        return total

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Cost]:
        """Time a stage; entering the same name again adds to it."""
        cost = self.stages.setdefault(name, Cost())
        self.pause()
        self._open.append((name, time.perf_counter()))
        outermost = len(self._open) == 1
        if outermost:
            _reset_peak()
        try:
            yield cost
        finally:
            self.pause()
            self._open.pop()
            cost.peak_mib = max(cost.peak_mib, _peak_mib())
            if self._open:
                self._open[-1] = (self._open[-1][0], time.perf_counter())

    def pause(self) -> None:
        """Book the innermost open stage's time up to now."""
        if self._open:
            name, since = self._open[-1]
            now = time.perf_counter()
            self.stages[name].seconds += now - since
            self._open[-1] = (name, now)

    @staticmethod
    @contextlib.contextmanager
    def timed() -> Iterator[Cost]:
        """Time the body beside the stages: yields a cost whose seconds are set at the end."""
        took = Cost()
        since = time.perf_counter()
        try:
            yield took
        finally:
            took.seconds = time.perf_counter() - since

    def charge(self, name: str, cost: Cost) -> None:
        """Book work that was read from a cache at what it cost to make."""
        self.stages.setdefault(name, Cost()).add(cost)

    def charge_once(self, key: str, name: str, cost: Cost) -> None:
        """The same, where this run has not paid for ``key`` yet, however often it was stopped."""
        if key not in self.paid:
            self.pay(key)
            self.charge(name, cost)

    def pay(self, key: str) -> None:
        """Note that what ``key`` stands for is booked."""
        self.paid[key] = np.ones(1, dtype=bool)

    @contextlib.contextmanager
    def count(self, kind: Hashable, tokens: int) -> Iterator[None]:
        """Book the FLOPs of the body, which processes ``tokens`` tokens, to the innermost open stage.

        ``kind`` names work of one cost per token (an active candidate, forward or training).
        """
        rate = self._rates.setdefault(repr(kind), _Rate())
        if rate.batches < COUNTED_BATCHES:
            with flop_counter() as counter:
                yield
            flops = float(counter.get_total_flops())
            rate.batches += 1
            rate.tokens += tokens
            rate.flops += flops
        else:
            yield
            flops = rate.flops / rate.tokens * tokens
        self.book(flops, tokens)

    def book(self, flops: float, tokens: int) -> None:
        """Book work whose FLOPs are known to the innermost open stage."""
        if self._open:
            cost = self.stages[self._open[-1][0]]
            cost.flops += flops
            cost.tokens += tokens

    def once(self, kind: Hashable, find: Callable[[], Found]) -> Found:
        """What ``find`` returned when it was first called for this kind of work."""
        if kind not in self._found:
            self._found[kind] = find()
        return self._found[kind]

    def merge(self, other: Ledger, elapsed_s: float) -> None:
        """Add what another process booked; ``elapsed_s`` is by how much that made this run longer on the clock."""
        for name, cost in other.stages.items():
            self.charge(name, cost)
        self.share(other)
        self.decisions |= other.decisions
        self.beside_s += other.total.seconds - elapsed_s

    def share(self, other: Ledger) -> None:
        """Not pay again for what ``other`` has."""
        for key, rows in other.paid.items():
            self.paid[key] = self.paid[key] | rows if key in self.paid else rows

    def as_dict(self) -> dict[str, Any]:
        """``{"seconds", "flops", "tokens", "peak_mib", "elapsed_s", "stages": {name: the first four}, "decisions"}``.

        ``decisions`` says of what, and why.
        """
        stages = {name: dict(vars(cost)) for name, cost in self.stages.items()}
        total = self.total
        elapsed_s = total.seconds - self.beside_s
        return {**vars(total), "elapsed_s": elapsed_s, "stages": stages, "decisions": dict(self.decisions)}


def save_ledger(ledger: Ledger, path: Path) -> None:
    """Keep what was spent up to now and what it paid for, so that a resumed run counts all of it, once."""
    ledger.pause()
    write_json(
        path,
        {
            "stages": {name: vars(cost) for name, cost in ledger.stages.items()},
            "decisions": ledger.decisions,
            "beside_s": ledger.beside_s,
            "paid": {key: [len(rows), np.flatnonzero(rows).tolist()] for key, rows in ledger.paid.items()},
            "rates": {kind: vars(rate) for kind, rate in ledger._rates.items()},
        },
    )


def resume_ledger(ledger: Ledger, path: Path) -> None:
    """Add what was kept in ``path``, where there is such a file."""
    if not path.exists():
        return
    try:
        kept = json.loads(path.read_text())
        stages = {name: Cost(**cost) for name, cost in kept["stages"].items()}
        rates = {kind: _Rate(**rate) for kind, rate in kept.get("rates", {}).items()}
        paid = {key: np.isin(np.arange(count), rows) for key, (count, rows) in kept["paid"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StudyError(
            f"{path}: is damaged, and with it what was spent up to now; remove it to go on without, or give --new"
        ) from None
    for name, cost in stages.items():
        ledger.charge(name, cost)
    ledger.paid |= paid
    ledger.decisions |= kept.get("decisions", {})
    ledger.beside_s += kept.get("beside_s", 0.0)
    ledger._rates |= rates  # counted once: a resumed run books what an uninterrupted one does


def take_paid(ledger: Ledger, path: Path) -> None:
    """Let ``ledger`` not pay again for what another part of the same strategy has, whose own was kept in ``path``."""
    other = Ledger()
    resume_ledger(other, path)
    ledger.share(other)


def flop_counter() -> Any:
    """torch's FLOP counter, taught the CPU flash-attention kernels that its table lacks."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
    from torch.utils.module_tracker import ModuleTracker

    class Tracker(ModuleTracker):
        """Names modules in passes without gradients alone: only of these is it asked. In training its hooks kept what a
        checkpointed layer had made until the end of the backward pass (importance, BERT-base, 8 x 64: 215 MiB, now 57).
        """

        def _fw_pre_hook(self, mod: Any, input: Any) -> None:
            if not torch.is_grad_enabled():
                super()._fw_pre_hook(mod, ())

        def _fw_post_hook(self, mod: Any, input: Any, output: Any) -> None:
            if not torch.is_grad_enabled():
                super()._fw_post_hook(mod, (), ())

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    aten = torch.ops.aten
    custom = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    counter = FlopCounterMode(display=False, custom_mapping=custom)
    counter.mod_tracker = Tracker()
    return counter


def _reset_peak() -> None:
    # Writing 5 resets the peak-memory mark (VmHWM), proc(5); where that is not allowed the process's peak stands.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    import psutil

    return psutil.Process().memory_info().rss / 2**20
