"""Who takes which trial, process by process, without a model; whole searches are in tests/test_working.py."""

from __future__ import annotations

import types

import optuna
import pytest
from optuna.trial import TrialState

from autodisc import leases
from autodisc.errors import DivergedError, StudyError, TrainingError
from autodisc.search import sharing
from autodisc.search.journals import open_storage
from autodisc.search.sharing import SharedStudy
from autodisc.search.storage import DIVERGED, tell

POINT = {"x": 0.25}
HEARTBEAT_S = 1
LEASE_S = 3.0


@pytest.fixture
def shared(tmp_path):
    def call(storage="journal.log", **settings):
        url = f"{tmp_path}/{storage}" if storage.endswith(".log") else f"sqlite:///{tmp_path}/{storage}"
        opened = open_storage(url, heartbeat_s=HEARTBEAT_S)
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


def fail(mine, trial):
    tell(mine.study, trial, TrainingError("no luck"))


def die(mine, trials, monkeypatch):
    """As when a process is killed in its trial: nothing of it runs any more, and its sign of life is gone."""
    trial = next(trials)
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("sparsity", 0.3)
    stale = [trial._trial_id]
    if not isinstance(mine.storage, optuna.storages.JournalStorage):
        monkeypatch.setattr(mine.storage, "_get_stale_trial_ids", lambda study_id: stale)
    else:
        mine._watched[trial.number].release()
    mine.close_dead()
    stale.clear()
    return trial


@pytest.mark.parametrize("storage", ["journal.log", "study.db"])
def test_a_trial_whose_process_died_is_queued_again_as_it_was_before_it_began(shared, monkeypatch, storage):
    mine = shared(storage)
    die(mine, mine.trials([POINT]), monkeypatch)
    dead, again = mine.study.trials
    assert (dead.state, again.state) == (TrialState.FAIL, TrialState.WAITING)
    assert again.system_attrs == {"fixed_params": POINT}
    assert again.user_attrs == {}


@pytest.mark.parametrize("storage", ["journal.log", "study.db"])
def test_a_point_that_keeps_ending_its_process_is_given_up(shared, monkeypatch, storage):
    mine = shared(storage, retries=1)
    for _ in range(3):
        die(mine, mine.trials([POINT]), monkeypatch)
    said = "its process was ended 3 times; is memory short?"
    assert [t.user_attrs.get("error") for t in mine.study.trials] == [None, None, said]
    assert list(mine.trials([POINT])) == []


def test_deaths_before_a_point_was_chosen_are_no_points(shared, monkeypatch):
    mine = shared()
    for _ in range(4):
        trial = mine.study.ask()
        mine._give_back(trial._trial_id, died=True)
    assert not any(DIVERGED in trial.user_attrs for trial in mine.study.trials)


def test_a_trial_that_its_process_gave_back_is_no_death(shared):
    mine = shared(retries=0)
    for _ in range(4):
        trials = mine.trials([POINT])
        next(trials).suggest_float("x", 0, 1)
        trials.close()
    assert mine.study.trials[-1].state is TrialState.WAITING


@pytest.mark.parametrize(("retries", "times"), [(0, 1), (1, 2), (2, 3)])
def test_what_a_sampler_chose_and_failed_is_tried_again_as_often_as_asked_for(shared, retries, times):
    mine, tried = shared(retries=retries), []
    for trial in mine.trials([{}] * 3):
        tried.append(trial.suggest_float("x", 0, 1))
        if tried[-1] == tried[0]:
            fail(mine, trial)
        else:
            mine.study.tell(trial, 1.0)
    assert tried.count(tried[0]) == times
    assert len(set(tried)) == 3


def test_a_sampler_whose_trials_all_fail_or_diverge_comes_to_an_end(shared):
    for name, error in (("a.log", TrainingError("no luck")), ("b.log", DivergedError("nan"))):
        mine = shared(name)
        for trial in mine.trials([{}] * 3):
            trial.suggest_float("x", 0, 1)
            tell(mine.study, trial, error)
        assert len(mine.study.trials) == {"a.log": 6, "b.log": 3}[name]
