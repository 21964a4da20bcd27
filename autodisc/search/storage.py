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
from optuna.trial import TrialState

from autodisc.errors import StudyError

FINGERPRINT = "fingerprint"


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
                f"study '{name}' exists with another configuration ({listed}). Give another --out,"
                " or the same settings."
            )
        close_stale(study)
        finished = sum(t.state.is_finished() for t in study.trials)
        study.sampler = optuna.samplers.TPESampler(seed=seed + finished)
    return study


def close_stale(study: optuna.Study) -> None:
    """Fail trials that a killed process left running, and queue their points again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)


def enqueue_missing(study: optuna.Study, points: list[dict[str, float]]) -> None:
    """Queue the points that no completed or waiting trial has: a grid without Optuna's own, which skips failures."""
    taken = [
        trial.params or trial.system_attrs.get("fixed_params", {})
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.WAITING))
    ]
    for point in points:
        if point not in taken:
            study.enqueue_trial(point)


def completed(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna's log lines off inside: our progress bar says the same."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
