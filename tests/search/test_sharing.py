"""Who takes which trial, process by process, without a model; whole searches are in tests/test_working.py."""

from __future__ import annotations

import types

import optuna
import pytest
from optuna.trial import TrialState

from autodisc import leases
from autodisc.errors import StudyError
from autodisc.search import sharing
from autodisc.search.journals import open_storage
from autodisc.search.sharing import SharedStudy

POINT = {"x": 0.25}
HEARTBEAT_S = 1
LEASE_S = 3.0


@pytest.fixture
def shared(tmp_path):
    def call(storage="journal.log", **settings):
        opened = open_storage(f"{tmp_path}/{storage}")
        study = optuna.create_study(study_name="study", storage=opened, direction="maximize")
        known = {"seed": 0, "retries": 1, "sampler": "tpe", **settings}
        return SharedStudy(study, tmp_path, HEARTBEAT_S, **known)

    return call


@pytest.fixture
def asleep(monkeypatch):
    """What is done while a process waits for others, and the pauses; the clock of leases moves by these alone."""
    pauses, meanwhile = [], []

    def sleep(seconds):
        pauses.append(seconds)
        for each in meanwhile:
            each()

    monkeypatch.setattr(sharing, "time", types.SimpleNamespace(sleep=sleep))
    clock = types.SimpleNamespace(monotonic=lambda: sum(pauses), time=lambda: 0.0)
    monkeypatch.setattr("filelock._soft.time", clock)
    return pauses, meanwhile


def taken_elsewhere(mine, number=0):
    lease = leases.make(mine.folder / "leases" / f"trial-{number}.lease", seconds=LEASE_S)
    lease.acquire()
    return lease


def test_a_trial_that_another_is_just_taking_is_waited_for(shared, asleep):
    mine = shared()
    mine.study.enqueue_trial(POINT)
    other = taken_elsewhere(mine)
    pauses, meanwhile = asleep
    meanwhile.append(other.release)
    trial = next(mine.trials([POINT]))
    assert (trial.number, len(pauses)) == (0, 1)


def test_a_trial_whose_process_died_elsewhere_while_taking_it_is_taken_after_its_lease(shared, asleep):
    mine = shared()
    mine.study.enqueue_trial(POINT)
    other = taken_elsewhere(mine)
    other._stop_heartbeat()  # of this process itself, as of one elsewhere, it cannot be told that it is gone
    pauses, _ = asleep
    trial = next(mine.trials([POINT]))
    assert trial.number == 0
    assert LEASE_S <= sum(pauses) <= LEASE_S + 2 * sharing.POLL_S


def test_what_another_queues_before_the_last_look_is_no_end(shared):
    mine = shared()
    mine.study.enqueue_trial(POINT)
    assert mine.fill([POINT]) == 1
    assert len(mine.study.trials) == 1
    mine.study.tell(mine.study.ask(), 1.0)
    assert mine.fill([POINT]) == 0


def test_a_trial_is_given_back_while_nobody_looks_for_what_is_missing(shared, monkeypatch):
    mine = shared()
    trials = mine.trials([POINT])
    trial = next(trials)
    held, queue = [], mine.study.enqueue_trial
    monkeypatch.setattr(
        mine.study, "enqueue_trial", lambda point: held.append((mine.folder / "queue.lease").exists()) or queue(point)
    )
    trials.close()
    assert held == [True]
    assert [t.state for t in mine.study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert trial.number == 0


def test_processes_of_another_duration_are_refused_at_their_first_look(shared):
    mine = shared()
    mine.study.enqueue_trial(POINT)
    other = leases.make(mine.folder / "leases" / "trial-0.lease", seconds=LEASE_S + 1)
    other.acquire()
    with pytest.raises(StudyError, match=r"search\.heartbeat_s: differs"):
        next(mine.trials([POINT]))
    mine.storage.set_trial_state_values(mine.study.trials[0]._trial_id, TrialState.RUNNING)
    with pytest.raises(StudyError, match=r"search\.heartbeat_s: differs"):
        mine.close_dead()
    other.release()
