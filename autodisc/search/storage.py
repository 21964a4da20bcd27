"""Optuna studies: where they live, how they are opened again, and how a killed run's trials are cleaned up."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study as Study  # for those outside this door
from optuna.trial import TrialState

from autodisc.errors import StudyError

FINGERPRINT, ERROR = "fingerprint", "error"
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def open_storage(storage: str) -> optuna.storages.BaseStorage:
    """A journal file (a path ending in .log) or any Optuna storage URL; raises StudyError where it cannot be had."""
    try:
        if storage.endswith(".log"):
            Path(storage).parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(storage))
        return optuna.storages.get_storage(storage)
    except Exception as error:  # SQLAlchemy's and the drivers' errors have no common base
        reason = " ".join(str(error).split())[:160]
        raise StudyError(
            f"search.storage: '{storage}' cannot be opened ({reason}); give an Optuna storage URL"
        ) from error


def open_study(name: str, storage: str, *, seed: int, fingerprint: dict[str, Any], metric_name: str) -> optuna.Study:
    """Create a study, or go on with it; raises StudyError when it was made with another configuration.

    The TPE sampler's seed advances with the finished trials: a sampler made again from the same seed would
    repeat its first points.
    """
    with quiet_optuna(), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # set_metric_names
        opened = open_storage(storage)
        study = optuna.create_study(study_name=name, storage=opened, direction="maximize", load_if_exists=True)
        recorded = study.user_attrs.get(FINGERPRINT)
        if recorded is None:
            study.set_user_attr(FINGERPRINT, fingerprint)
            study.set_metric_names([metric_name])
        elif recorded != fingerprint:
            changed = sorted(k for k in recorded.keys() | fingerprint.keys() if recorded.get(k) != fingerprint.get(k))
            listed = "; ".join(f"{key}: {recorded.get(key)} -> {fingerprint.get(key)}" for key in changed[:5])
            raise StudyError(
                f"study '{name}' exists with another configuration ({listed}). Give the same settings,"
                " or another name: --set name=NAME."
            )
        close_stale(study)
        finished = sum(t.state.is_finished() for t in study.trials)
        study.sampler = optuna.samplers.TPESampler(seed=seed + finished)
    return study


def load_study(name: str, storage: str) -> optuna.Study:
    """A study that exists; raises StudyError where it does not."""
    if storage.endswith(".log") and not Path(storage).is_file():
        raise StudyError(f"search.storage: {storage} is gone, and with it the study '{name}'")
    try:
        return optuna.load_study(study_name=name, storage=open_storage(storage))
    except KeyError:
        raise StudyError(f"search.storage: {storage} holds no study named '{name}'") from None


def close_stale(study: optuna.Study) -> None:
    """Fail trials that a killed process left running, and queue their points again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)


def enqueue_missing(study: optuna.Study, points: list[dict[str, float]]) -> None:
    """Queue the points that no finished or waiting trial has: a grid without Optuna's own, which skips failures."""
    taken = [
        trial.params or trial.system_attrs.get("fixed_params", {})
        for trial in study.get_trials(deepcopy=False, states=(*DONE, TrialState.WAITING))
    ]
    for point in points:
        if point not in taken:
            study.enqueue_trial(point)


def ask(study: optuna.Study, count: int, *, sample: bool = False) -> list[optuna.Trial]:
    """Up to ``count`` trials, of the queue alone unless ``sample``: a grid is never left to a sampler, which knows
    the bounds and not the points."""
    with quiet_optuna():
        return [study.ask() for _ in range(count if sample else min(count, waiting(study)))]


def tell(study: optuna.Study, trial: optuna.Trial, outcome: float | Exception | None) -> None:
    """End a trial: with its value, with what went wrong, or (none) as stopped early."""
    with quiet_optuna():
        if outcome is None:
            study.tell(trial, state=TrialState.PRUNED)
        elif isinstance(outcome, Exception):
            trial.set_user_attr(ERROR, " ".join(str(outcome).split()))
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, outcome)


def completed(study: optuna.Study) -> int:
    """Trials that need not be run again, those that were stopped early included."""
    return len(study.get_trials(deepcopy=False, states=DONE))


def waiting(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna's log lines off inside: our progress bar and the records say the same, without a failure's traceback."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
