"""A study whose trials several processes take, one at a time each, on one machine or on many.

The points are queued once, by whoever holds a lease; a storage lets one process alone turn a waiting trial into a
running one; and a process that finds its point taken all the same gives the trial back. A running trial shows that its
process lives: in a database by Optuna's heartbeats, beside a journal by a lease on a file. One that does not any more
is failed, and its point queued again, but not without end: it may be what ends them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from filelock import SoftFileLease, Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from autodisc import leases
from autodisc.config import Sampler, StudyConfig
from autodisc.errors import StudyError
from autodisc.search.journals import open_storage
from autodisc.search.patience import MISSED
from autodisc.search.storage import (
    DIVERGED,
    DONE,
    ERROR,
    SHARED,
    completed,
    make_sampler,
    point_of,
    quiet_optuna,
    startup_trials,
    to_retry,
)

# A trial's: who ran it, whether its point was another's, and whether no sign of its process was left.
WORKER, LOST, DIED = "worker", "duplicate", "died"
POLL_S = 0.5
WAIT_S = 60.0  # for a database that is away when a process wants to join


def me() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def publish(study: optuna.Study, config: dict[str, Any]) -> None:
    """Let others join the study; ``config`` holds no secret."""
    if SHARED not in study.user_attrs:
        study.set_user_attr(SHARED, config)


def published(name: str, storage: str, *, say: Callable[[str], None]) -> dict[str, Any]:
    """The settings of a study that may be joined; StudyError where there is none of that name."""
    if storage.endswith(".log") and not Path(storage).is_file():
        raise StudyError(f"--storage: {storage} does not exist; 'autodisc search --storage' makes it")
    with quiet_optuna():
        opened = open_storage(storage, say=say, wait_s=WAIT_S)
        try:
            config = optuna.load_study(study_name=name, storage=opened).user_attrs.get(SHARED)
        except KeyError:
            there = optuna.get_all_study_names(opened)
            known = f"it has {', '.join(there[:5])}" if there else "it has none yet; 'autodisc search' makes it"
            raise StudyError(f"--study: the storage has no study '{name}'; {known}") from None
    if config is None:
        raise StudyError(f"--study: '{name}' is run by one process alone; search with --storage, and it can be joined")
    return config


@dataclass
class SharedStudy:
    """A study, the folder that all who work on it see, and how they know of each other."""

    study: optuna.Study
    folder: Path
    heartbeat_s: int
    seed: int
    retries: int
    sampler: Sampler
    _watched: dict[int, SoftFileLease] = field(default_factory=dict)  # of open trials beside a journal, by number

    @classmethod
    def of(cls, study: optuna.Study, folder: Path, config: StudyConfig) -> SharedStudy:
        search = config.search
        return cls(study, folder, search.heartbeat_s, config.runtime.seed, search.retries, search.sampler)

    @property
    def storage(self) -> BaseStorage:
        return self.study._storage

    def trials(self, points: Sequence[dict[str, float]]) -> Generator[optuna.Trial, None, None]:
        """This process's trials, each its own until the next is asked for, until all ``points`` are done.

        A point without a parameter is one of the sampler's choice.
        """
        self.fill(points)
        while completed(self.study) < len(points):
            self.close_dead()
            with contextlib.ExitStack() as alive:
                trial = self._claim(alive, startup_trials(len(points)))
                if trial is not None:
                    try:
                        yield trial
                    except GeneratorExit:  # this process was asked to end
                        self._give_back(trial._trial_id, died=False)
                        raise
                    continue
            if self._of(TrialState.WAITING, TrialState.RUNNING):  # one that another just takes is waiting yet
                time.sleep(POLL_S)
            elif not self.fill(points):
                return

    def fill(self, points: Sequence[dict[str, float]]) -> int:
        """Queue the points that nobody has done, has now, or has failed at too often; returns how many are open now."""
        with self._queue() as lease:
            trials = self.study.get_trials(deepcopy=False)
            missing = self._missing(points, trials)
            try:
                for point in missing:
                    lease.check()
                    self.study.enqueue_trial(point)
            except leases.LostLeaseError:
                return 1  # who took over is at it
        return len(missing) + sum(not trial.state.is_finished() for trial in trials)

    def _queue(self) -> contextlib.AbstractContextManager[leases.Lease]:
        """Held by who looks what is missing and queues it, or fails a trial and queues its point again."""
        return leases.leased(self.folder / "queue.lease", seconds=float(MISSED * self.heartbeat_s))

    def _missing(self, points: Sequence[dict[str, float]], trials: Sequence[FrozenTrial]) -> list[dict[str, float]]:
        open_or_done = [point_of(t) for t in trials if t.state is not TrialState.FAIL]
        failed = [t for t in trials if t.state is TrialState.FAIL and ERROR in t.user_attrs]
        diverged = [point_of(t) for t in failed if DIVERGED in t.user_attrs]  # and would again
        others = [point_of(t) for t in failed if DIVERGED not in t.user_attrs]
        if points and not points[0]:  # the sampler chooses: what counts is how many there are
            again = to_retry(trials, self.retries)
            beyond = sum(others[:number].count(point) >= self.retries for number, point in enumerate(others))
            used = len(open_or_done) + len(again) + len(diverged) + beyond
            return [*again, *[{}] * (len(points) - used)]
        return [p for p in points if p not in open_or_done + diverged and others.count(p) <= self.retries]

    def _claim(self, alive: contextlib.ExitStack, startup: int) -> optuna.Trial | None:
        """A waiting trial that is this process's from now on, and shows so until ``alive`` ends."""
        for waiting in self._of(TrialState.WAITING):
            with contextlib.ExitStack() as signs, contextlib.suppress(UpdateFinishedTrialError):
                if not signs.enter_context(self._alive(waiting)):
                    continue
                if not self.storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING):
                    continue
                trial = optuna.Trial(self.study, waiting._trial_id)
                if self._is_duplicate(waiting):
                    trial.set_user_attr(LOST, True)
                    self.study.tell(trial, state=TrialState.FAIL)
                    continue
                trial.set_user_attr(WORKER, me())
                self.study.sampler = make_sampler(self.sampler, seed=self.seed, place=trial.number, startup=startup)
                alive.push(signs.pop_all())
                return trial
        return None

    def _is_duplicate(self, trial: FrozenTrial) -> bool:
        """Whether its point is done, or an earlier trial's: a queue that was filled while its lease was lost."""
        point = point_of(trial)
        others = [t for t in self.study.get_trials(deepcopy=False) if t.number != trial.number and point_of(t) == point]
        return bool(point) and any(
            t.state in DONE or (t.state is not TrialState.FAIL and t.number < trial.number) for t in others
        )

    @contextlib.contextmanager
    def _alive(self, trial: FrozenTrial) -> Iterator[bool]:
        """Inside, others see that the trial's process lives; false where it is another's."""
        if isinstance(self.storage, JournalStorage):
            lease = self._lease_of(trial)
            try:
                leases.acquire(lease, timeout=0)
            except Timeout:
                yield False
                return
            try:
                yield True
            finally:
                lease.release()
        else:
            with _repeating(lambda: self.storage.record_heartbeat(trial._trial_id), self.heartbeat_s):  # type: ignore[attr-defined]
                yield True

    def close_dead(self) -> None:
        """Fail the trials whose processes are gone, and queue their points again."""
        if not isinstance(self.storage, JournalStorage):
            for trial_id in self.storage._get_stale_trial_ids(self.study._study_id):  # type: ignore[attr-defined]
                self._give_back(trial_id, died=True)
            return
        opened = self._of(TrialState.WAITING, TrialState.RUNNING)
        self._watched = {t.number: self._watched[t.number] for t in opened if t.number in self._watched}
        for trial in opened:
            lease = self._lease_of(trial)
            if trial.state is TrialState.RUNNING:
                with contextlib.suppress(Timeout):
                    leases.acquire(lease, timeout=0)
                    try:
                        self._give_back(trial._trial_id, died=True)
                    finally:
                        lease.release()

    def _give_back(self, trial_id: int, *, died: bool) -> None:
        """Fail a trial if it is still running, and queue its point again, unless it has ended a process too often."""
        # It may be told meanwhile; and who takes the queue over queues what is missing.
        with self._queue() as lease, contextlib.suppress(UpdateFinishedTrialError, leases.LostLeaseError):
            trials = self.study.get_trials(deepcopy=False)
            (trial,) = [t for t in trials if t._trial_id == trial_id]
            if trial.state is not TrialState.RUNNING:
                return
            point = point_of(trial)
            before = sum(t.state is TrialState.FAIL and DIED in t.user_attrs and point_of(t) == point for t in trials)
            given_up = died and bool(point) and before > self.retries  # none: it had not been chosen yet
            attributes: dict[str, Any] = {DIED: True} if died else {}
            if given_up:
                reason = f"its process was ended {before + 1} times; is memory short?"
                attributes |= {ERROR: reason, DIVERGED: True}
            for name, value in attributes.items():
                self.storage.set_trial_user_attr(trial_id, name, value)
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
            lease.check()
            if not given_up:
                self.study.enqueue_trial(point)

    def _lease_of(self, trial: FrozenTrial) -> SoftFileLease:
        """The same object each time: it remembers since when it has not seen the file renewed."""
        if trial.number not in self._watched:
            path = self.folder / "leases" / f"trial-{trial.number}.lease"
            self._watched[trial.number] = leases.make(path, seconds=MISSED * self.heartbeat_s)
        return self._watched[trial.number]

    def _of(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def is_ours(self, trial: optuna.Trial) -> bool:
        """Whether a trial still waits for this process's result."""
        return self.storage.get_trial(trial._trial_id).state is TrialState.RUNNING


@contextlib.contextmanager
def _repeating(call: Callable[[], None], seconds: float) -> Iterator[None]:
    """``call`` once before the body, and every so many seconds during it."""
    done = threading.Event()

    def repeat() -> None:
        with contextlib.suppress(Exception):  # the storage has been patient enough; the trial's end will say so
            while not done.wait(seconds):
                call()

    call()
    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
