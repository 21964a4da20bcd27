"""The state of a training loop on disk, from which it goes on and ends in the same bits.

FILE.safetensors: trained weights, the optimizer's moments, the best weights and torch's random state as tensors; in its
header, as JSON, the step, the place in the pass, the learning rate, numpy's generators, the curve, and what all of it
was made of. One file, written beside and renamed, is whole or not there. accelerate's ``save_state`` is not used: it
pickles optimizer, scheduler and random states, and loads pickles again; and it writes many files, not one.

What a step reads beside the state (teacher outputs, data, frozen weights) is made again, or kept by its own cache. What
was spent is booked on disk before each state: a step that has to be done again is counted twice, as it was spent.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from autodisc.costs import Ledger, save_ledger
from autodisc.distillation.sharding import Shards
from autodisc.errors import StudyError, one_line
from autodisc.files import as_os_error, replacing
from autodisc.runtime import Runtime

HEADER = "autodisc"
LEDGER_S = 10.0  # between two bookings on disk: so much of the lost work may go uncounted
Made = Mapping[str, object]  # what a state was made of: strings and numbers, by name


@dataclass(frozen=True)
class Keeping:
    """Where a command keeps what is unfinished, and how often; ``ledger`` is the file of what was spent."""

    folder: Path
    minutes: float
    ledger: Path
    process: int = field(default_factory=os.getpid)  # whose ledger that is

    @property
    def booked(self) -> Path:
        """Where this process books: in the command's ledger, or, one of several processes, beside its states."""
        return self.ledger if os.getpid() == self.process else self.folder / self.ledger.name

    @property
    def curves(self) -> Path:
        return self.folder / "curves.json"

    def within(self, name: str) -> Keeping:
        return replace(self, folder=self.folder / name)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class TrainingState:
    """Everything that a step reads and changes, beside the weights and torch's random state."""

    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LambdaLR
    order: np.random.Generator  # of the batches
    draws: np.random.Generator  # of what a step trains
    accumulation: int = 1
    step: int = 0
    pass_start: dict[str, Any] = field(init=False)  # the state of ``order`` when the pass began
    place: int = 0  # batches taken of the pass
    halvings: int = 0  # of the learning rate, after a loss that was not finite
    best_step: int = 0
    best_metric: float | None = None
    best_weights: dict[str, torch.Tensor] | None = None
    curve: list[dict[str, float | int | None]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)  # losses since the curve's last point

    def __post_init__(self) -> None:
        self.pass_start = dict(self.order.bit_generator.state)

    def lower_lr(self, halvings: int) -> None:
        """Halve the learning rate, now and on all of the schedule, until that was done so often."""
        factor = 0.5 ** (halvings - self.halvings)
        self.halvings = halvings
        self.lr_scheduler.base_lrs = [lr * factor for lr in self.lr_scheduler.base_lrs]
        for group in self.optimizer.param_groups:
            group["lr"] *= factor


@dataclass(frozen=True)
class Snapshot:
    """A training state as it is kept: tensors by name, and what JSON can say."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]


_PLAIN = ("accumulation", "step", "pass_start", "place", "halvings", "best_step", "best_metric", "curve", "recent")


class States:
    """The states of one training loop: the last in ``path``; before there is one, or without a path, its start."""

    def __init__(
        self,
        path: Path | None = None,
        *,
        made_of: Made | None = None,
        minutes: float = 0.0,
        book: Callable[[], None] = lambda: None,
    ) -> None:
        self.path, self.minutes, self._book = path, minutes, book
        self._made_of = json.loads(json.dumps({**(made_of or {}), **_versions()}))
        self._start: Snapshot | None = None
        self._kept_at = self._booked_at = time.monotonic()
        self.damaged = ""  # why a state that was there could not be used
        self.shards: Shards | None = None  # with these all processes call alike, and the first has the file

    def resume(self, model: PreTrainedModel, state: TrainingState) -> None:
        """Put what was kept into ``model`` and ``state``; raises StudyError where it was made of anything else."""
        self._kept_at = self._booked_at = time.monotonic()
        if self.path is not None and self._said(self.path.exists()):
            found = self._read(self.path)
            if found is not None:
                self._check(found.values["made_of"])
                self._restore(model, state, found)
                return
        self._start = _snapshot(model, state, finished=False)

    def keep(self, model: PreTrainedModel, state: TrainingState, *, steps: int, at_once: bool = False) -> None:
        """Called after each step of ``steps``: write the state where it is time, at the end, or ``at_once``."""
        now, finished = time.monotonic(), state.step == steps
        if self.path is None:
            return
        due = now - self._kept_at >= 60 * self.minutes
        if finished or at_once or (due if self.shards is None else self.shards.any(due)):
            self._book()  # before the state: what a state holds has been booked
            snapshot = _snapshot(model, state, finished=finished)
            if self.shards is not None:
                snapshot = replace(snapshot, tensors=self.shards.whole(snapshot.tensors))
            if self.shards is None or self.shards.first:
                _write(self.path, snapshot, self._made_of)
            self._start = None
            self._kept_at = self._booked_at = time.monotonic()
        elif now - self._booked_at >= LEDGER_S:
            self._book()
            self._booked_at = time.monotonic()

    def go_back(self, model: PreTrainedModel, state: TrainingState) -> None:
        """Return to the last state."""
        if self._start is not None:
            _restore(model, state, self._start)
            return
        assert self.path is not None
        found = self._read(self.path)
        if found is None:
            raise StudyError(f"{self.damaged}; remove it, and run the same command again")
        self._restore(model, state, found)

    def _said(self, value: Any) -> Any:
        return value if self.shards is None else self.shards.said(value)

    def _read(self, path: Path) -> Snapshot | None:
        """What the file holds; with shards its tensors in the first process alone. None where it is damaged."""
        found: Snapshot | None = None
        if self.shards is None or self.shards.first:
            try:
                found = _read(path)
            except (SafetensorError, ValueError, KeyError) as error:
                self.damaged = f"{path}: is damaged ({one_line(error, 80)})"
        self.damaged = self._said(self.damaged)
        if self.damaged:
            return None
        values = self._said(None if found is None else found.values)
        return found or Snapshot({}, values)

    def _restore(self, model: PreTrainedModel, state: TrainingState, found: Snapshot) -> None:
        if self.shards is not None:
            found = replace(found, tensors=_shared_out(found.tensors, model, state, self.shards))
        _restore(model, state, found)

    def _check(self, made_of: Mapping[str, object]) -> None:
        names = sorted(made_of.keys() | self._made_of.keys())
        changed = [name for name in names if made_of.get(name) != self._made_of.get(name)]
        if changed:
            listed = "; ".join(f"{name}: {made_of.get(name)} -> {self._made_of.get(name)}" for name in changed[:5])
            raise StudyError(
                f"{self.path}: a training was stopped here that was made of something else ({listed}). Go back to what"
                " it was, or start afresh beside it with --new"
            )


def states(
    keeping: Keeping | None, stage: str, made_of: Callable[[], Made], *, runtime: Runtime, ledger: Ledger
) -> States:
    """Those of one stage of a command's unfinished work; ``made_of`` is asked for only where there is a folder."""
    if keeping is None:
        return States()
    return States(
        keeping.folder / f"{stage.replace(' ', '-')}.safetensors",
        made_of={**made_of(), "seed": runtime.seed, "precision": runtime.precision, "device": runtime.device.type},
        minutes=keeping.minutes,
        book=lambda: save_ledger(ledger, keeping.booked),
    )


def _versions() -> dict[str, str]:
    """Those that decide the bits."""
    return {name: metadata.version(name) for name in ("torch", "transformers", "numpy")}


def _snapshot(model: PreTrainedModel, state: TrainingState, *, finished: bool) -> Snapshot:
    """Copies; of a ``finished`` loop only what it ends with."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    best = state.best_weights or {}
    tensors = {f"best.{name}": best[name] for name in trained if name in best}
    kept = state.optimizer.state_dict()
    values = {
        **{name: getattr(state, name) for name in _PLAIN},
        "draws": state.draws.bit_generator.state,
        "lr_schedule": state.lr_scheduler.state_dict(),
        "groups": kept["param_groups"],
    }
    if not (finished and best):
        tensors |= {f"weights.{name}": tensor for name, tensor in trained.items()}
    if not finished:
        for number, moments in kept["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if model.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(model.device)
    return Snapshot({name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(values)))


def _shared_out(
    tensors: Mapping[str, torch.Tensor], model: PreTrainedModel, state: TrainingState, shards: Shards
) -> dict[str, torch.Tensor]:
    """Each process's share of what the first has read."""
    by_name = dict(model.named_parameters())
    numbered = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    found = {}
    for name, tensor in shards.received(tensors):
        part, _, rest = name.partition(".")
        if part == "random":
            found[name] = tensor.cpu()
        else:
            like = numbered[int(rest.partition(".")[0])] if part == "optimizer" else by_name[rest]
            found[name] = shards.part(tensor, like)
    return found


def _restore(model: PreTrainedModel, state: TrainingState, found: Snapshot) -> None:
    parts: dict[str, dict[str, torch.Tensor]] = {"best": {}, "weights": {}, "optimizer": {}, "random": {}}
    for name, tensor in found.tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in parts["weights"]:
                parameter.copy_(parts["weights"][name])
    for name in _PLAIN:
        setattr(state, name, found.values[name])
    state.curve, state.recent = [dict(point) for point in state.curve], list(state.recent)
    state.best_weights = None
    if parts["best"]:
        best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        first: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            kept = parts["best"].get(first.setdefault(id(parameter), name))  # tied ones are kept once
            if kept is not None:
                best[name] = kept.clone()
        state.best_weights = best
    state.order.bit_generator.state = state.pass_start
    state.draws.bit_generator.state = found.values["draws"]
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        number, _, rest = name.partition(".")
        moments.setdefault(int(number), {})[rest] = tensor
    state.optimizer.load_state_dict({"state": moments, "param_groups": found.values["groups"]})
    state.lr_scheduler.load_state_dict(found.values["lr_schedule"])
    if "cpu" in parts["random"]:
        torch.set_rng_state(parts["random"]["cpu"].cpu())
    if "cuda" in parts["random"]:
        torch.cuda.set_rng_state(parts["random"]["cuda"].cpu(), model.device)


def _write(path: Path, snapshot: Snapshot, made_of: Made) -> None:
    header = json.dumps({**snapshot.values, "made_of": made_of})
    with replacing(path) as partial:
        try:
            save_file(snapshot.tensors, partial, metadata={HEADER: header})
        except SafetensorError as error:  # what it makes of a full disk; OSError is what callers know
            raise as_os_error(error, path) from error


def _read(path: Path) -> Snapshot:
    with safe_open(path, framework="pt") as file:
        values = json.loads((file.metadata() or {})[HEADER])
        return Snapshot({name: file.get_tensor(name) for name in file.keys()}, values)  # noqa: SIM118
