"""What training and trials tell TensorBoard, MLflow and Weights & Biases, through accelerate's trackers.

    STAGE/loss, STAGE/metric, STAGE/lr     by the stage's steps, at the points of its learning curve
    trials/sparsity, metric, tradeoff      by the trial's number
    cost/STAGE seconds, cost/STAGE FLOPs   once, at the end

A command is one run of the project that the study is named after, with its settings as hyperparameters. A tracker that
fails while the command works is let go of, and said so: looking on must not end what is looked at.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autodisc.config import StudyConfig, TrackerName, flatten
from autodisc.costs import Ledger
from autodisc.errors import ConfigError, one_line
from autodisc.progress import Tracker, Untracked
from autodisc.urls import public

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from autodisc.runtime import Runtime

FOLDER = "tracking"
Value = bool | int | float | str


def check_installed(names: Sequence[TrackerName]) -> None:
    """Raise ConfigError, naming the extra, for a tracker whose package is not there."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"runtime.trackers: {name} is not installed; pip install 'autodisc[{name}]', or leave --track out"
            )


@contextlib.contextmanager
def tracking(
    config: StudyConfig, name: str, logs: Path, *, runtime: Runtime, ledger: Ledger, say: Callable[[str], None]
) -> Iterator[Tracker]:
    """The study's trackers for one command, the run ``name``; they are told the costs when the body ends."""
    if not config.runtime.trackers:
        yield Untracked()
        return
    check_installed(config.runtime.trackers)
    told = Told(_start(config, name, logs, runtime), say)
    try:
        yield told
    finally:
        for stage, cost in ledger.stages.items():
            told.log("cost", {f"{stage} seconds": cost.seconds, f"{stage} FLOPs": cost.flops}, step=0)
        told.finish()


def hyperparameters(config: StudyConfig) -> dict[str, Value]:
    """The settings as one level of plain values, without the passwords of URLs."""
    flat = flatten(config.model_dump(mode="json"))
    return {name: _plain(value) for name, value in flat.items()}


@dataclass
class Told:
    """The trackers that are still told."""

    trackers: list[GeneralTracker]
    say: Callable[[str], None]
    prefix: str = ""

    def within(self, name: str) -> Told:
        return Told(self.trackers, self.say, f"{self.prefix}{name}/")

    def log(self, stage: str, values: Mapping[str, float], *, step: int) -> None:
        named = {f"{self.prefix}{stage}/{name}": value for name, value in values.items()}
        self._each(lambda tracker: _log(tracker, named, f"{self.prefix}{stage}", step))

    def finish(self) -> None:
        self._each(lambda tracker: tracker.finish())

    def _each(self, tell: Callable[[GeneralTracker], None]) -> None:
        for tracker in list(self.trackers):
            try:
                with contextlib.redirect_stdout(sys.stderr):  # standard output is the result's
                    tell(tracker)
            except Exception as error:
                self.trackers.remove(tracker)
                self.say(f"{tracker.name} is told no more: {one_line(error)}")


def _start(config: StudyConfig, name: str, logs: Path, runtime: Runtime) -> list[GeneralTracker]:
    """The trackers, with a run each; ConfigError, which leaves nothing behind, where one does not start."""
    from accelerate import Accelerator

    asked, there = list(config.runtime.trackers), logs.exists()
    logs.mkdir(parents=True, exist_ok=True)
    settings = {"mlflow": {"run_name": name}, "wandb": {"name": name, "dir": str(logs)}}
    accelerator = Accelerator(cpu=runtime.device.type == "cpu", log_with=asked, project_dir=logs)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            accelerator.init_trackers(config.name, hyperparameters(config), settings)
    except Exception as error:
        if not there:
            shutil.rmtree(logs, ignore_errors=True)
        names = " or ".join(asked)
        raise ConfigError(
            f"runtime.trackers: {names} does not start ({one_line(error)}); set it up, or leave --track out"
        ) from error
    return list(accelerator.trackers)


def _log(tracker: GeneralTracker, values: Mapping[str, float], stage: str, step: int) -> None:
    if tracker.name == "wandb":  # its own step only ever grows, over all stages; what is behind it would be dropped
        tracker.log({**values, f"{stage}/step": step})
    else:
        tracker.log(dict(values), step=step)


def _plain(value: object) -> Value:
    if isinstance(value, str):
        return public(value)
    return value if isinstance(value, bool | int | float) else str(value)
