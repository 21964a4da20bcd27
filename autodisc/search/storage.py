"""Optuna studies: how they are made, opened again, and how a killed run's trials are cleaned up."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.study import Study as Study  # for those outside this door
from optuna.trial import FrozenTrial, TrialState

from autodisc.config import Sampler
from autodisc.errors import DivergedError, StudyError
from autodisc.search.journals import Say, open_storage
from autodisc.urls import public

FINGERPRINT, ERROR = "fingerprint", "error"
FOLDER = "folder"  # the study's attribute that holds its folder's token
SHARED = "config"  # the study's attribute that holds its settings, for whoever joins it
DIVERGED = "diverged"  # of a failed trial: whether the same again would end the same
STARTUP = 10
FIXED = "fixed_params"  # of a queued trial, Optuna's name
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def study_names(storage: str) -> list[str]:
    with quiet_optuna():
        return sorted(optuna.get_all_study_names(open_storage(storage)))


def open_study(
    name: str,
    storage: str,
    *,
    fingerprint: dict[str, Any],
    metric_name: str,
    is_own: Callable[[optuna.Study], bool] = lambda study: True,
    say: Say = lambda text: None,
    defaults: Mapping[str, Any] | None = None,
    heartbeat_s: int | None = None,
    wait_s: float = 0.0,
) -> optuna.Study:
    """Create a study, or go on with it; raises StudyError when it was made with another configuration, or is not
    ``is_own``: another folder's.

    ``defaults`` are what a study has that was made before a setting came. With ``heartbeat_s`` it is one that others
    may be at work on: what they run is left to them. A database may take ``wait_s`` to be reachable.
    """
    with quiet_optuna(), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # set_metric_names
        opened = open_storage(storage, say=say, heartbeat_s=heartbeat_s, wait_s=wait_s)
        study = optuna.create_study(study_name=name, storage=opened, direction="maximize", load_if_exists=True)
        recorded = study.user_attrs.get(FINGERPRINT)
        untold = {
            name: value
            for name, value in (defaults or {}).items()
            if name in fingerprint and name not in (recorded or {})
        }
        if recorded is None:
            study.set_user_attr(FINGERPRINT, fingerprint)
            study.set_metric_names([metric_name])
        elif (recorded := untold | recorded) != fingerprint:
            changed = sorted(k for k in recorded.keys() | fingerprint.keys() if recorded.get(k) != fingerprint.get(k))
            listed = "; ".join(f"{key}: {recorded.get(key)} -> {fingerprint.get(key)}" for key in changed[:5])
            given = [f"--set {key}={_as_given(untold[key])}" for key in changed if key in untold]
            settings = f"the same settings ({', '.join(given)})" if given else "the same settings"
            raise StudyError(
                f"study '{name}' exists with another configuration ({listed}). Give {settings},"
                " or another name: --set name=NAME."
            )
        elif not is_own(study):
            raise StudyError(
                f"study '{name}' exists, and its trials are of what lies in another folder. Give its --out, or another"
                " name: --set name=NAME."
            )
        if heartbeat_s is None and SHARED in study.user_attrs:
            raise StudyError(
                f"study '{name}': others may be at work on it; give --storage {public(storage)}, as before"
            )
        if heartbeat_s is None:
            close_stale(study)
        return study


def _as_given(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def load_study(name: str, storage: str) -> optuna.Study:
    """A study that exists; raises StudyError where it does not."""
    if storage.endswith(".log") and not Path(storage).is_file():
        raise StudyError(f"search.storage: {storage} is gone, and with it the study '{name}'")
    try:
        return optuna.load_study(study_name=name, storage=open_storage(storage))
    except KeyError:
        raise StudyError(f"search.storage: {storage} holds no study named '{name}'") from None


def reseed(study: optuna.Study, *, seed: int, sampler: Sampler, startup: int) -> None:
    """Give the next trial a sampler of its own, by the seed and the trials before it.

    One sampler for all of them would repeat its first points when a study goes on; so a study that was stopped visits
    what one that was not does. Trials that were cut short do not count: their points are queued again.
    """
    before = study.get_trials(deepcopy=False)
    place = sum(
        t.state is not TrialState.WAITING and (t.state is not TrialState.FAIL or ERROR in t.user_attrs) for t in before
    )
    study.sampler = make_sampler(sampler, seed=seed, place=place, startup=startup)


def make_sampler(name: Sampler, *, seed: int, place: int, startup: int) -> optuna.samplers.BaseSampler:
    """Of the trial at a ``place``; it learns from ``startup`` trials on."""
    own = int(np.random.SeedSequence([seed, place]).generate_state(1)[0])
    kind = {"tpe": optuna.samplers.TPESampler, "gp": optuna.samplers.GPSampler}[name]
    return kind(seed=own, n_startup_trials=startup)


def startup_trials(total: int) -> int:
    """Trials at random before the sampler learns from them: Optuna's ten for TPE, or half, where there are few."""
    return min(STARTUP, max(1, total // 2))


def close_stale(study: optuna.Study) -> None:
    """Fail trials that a killed process left running, and queue again what had been queued."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if point := trial.system_attrs.get(FIXED):  # what a sampler chose, it chooses again: the next has its place
            study.enqueue_trial(point)


def enqueue_failed(study: optuna.Study, retries: int) -> None:
    """Queue again what failed, up to so many times a point; not what would end the same."""
    for point in to_retry(study.get_trials(deepcopy=False), retries):
        study.enqueue_trial(point)


def to_retry(trials: Sequence[FrozenTrial], retries: int) -> list[dict[str, float]]:
    """Points that have failed at most so often, are nobody's now, and would not end the same."""
    others = [point_of(t) for t in trials if t.state is not TrialState.FAIL]
    failed = [t for t in trials if t.state is TrialState.FAIL and ERROR in t.user_attrs]
    points = []
    for point in {tuple(point_of(t).items()): point_of(t) for t in failed}.values():
        tries = [t for t in failed if point_of(t) == point]
        if point not in others and len(tries) <= retries and not any(DIVERGED in t.user_attrs for t in tries):
            points.append(point)
    return points


def point_of(trial: FrozenTrial) -> dict[str, float]:
    """What was queued, or, of a trial that was not, what the sampler chose: of one that was cut short not all of it."""
    return trial.system_attrs.get(FIXED) or trial.params


def enqueue_missing(study: optuna.Study, points: list[dict[str, float]]) -> None:
    """Queue the points that no finished or waiting trial has: a grid without Optuna's own, which skips failures."""
    taken = [point_of(trial) for trial in study.get_trials(deepcopy=False, states=(*DONE, TrialState.WAITING))]
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
            if isinstance(outcome, DivergedError):
                trial.set_user_attr(DIVERGED, True)
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, outcome)


def completed(study: optuna.Study) -> int:
    """Trials that need not be run again, those that were stopped early included."""
    return len(study.get_trials(deepcopy=False, states=DONE))


def of_record(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that a result tells of: those that are done, and of each point that is not the last that failed, or
    was cut short where none failed. What a sampler chose for one that was cut short, it chooses again."""
    trials = study.get_trials(deepcopy=False, states=(*DONE, TrialState.FAIL))
    done = [t for t in trials if t.state in DONE]
    measured = [point_of(t) for t in done]
    lost = [t for t in trials if t.state is TrialState.FAIL and (ERROR in t.user_attrs or t.system_attrs.get(FIXED))]
    cut_short_first = sorted(lost, key=lambda t: ERROR in t.user_attrs)
    failed = {tuple(point_of(t).items()): t for t in cut_short_first}
    return [*done, *(t for t in failed.values() if point_of(t) not in measured)]


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
