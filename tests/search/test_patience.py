"""A database that is away: calls wait for it, once said; what it refuses is an error at once."""

from __future__ import annotations

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from autodisc.errors import AutodiscError
from autodisc.search import patience
from autodisc.search.patience import PatientStorage, open_database


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    return clock


class Outage:
    """Makes the statements of a storage fail from now on, ``count`` times."""

    def __init__(self, storage: RDBStorage) -> None:
        self.left = 0
        event.listen(storage.engine, "before_cursor_execute", self)

    def __call__(self, *_: object) -> None:
        if self.left:
            self.left -= 1
            raise OperationalError("SELECT 1", None, Exception("server closed the connection unexpectedly"))


@pytest.fixture
def opened(tmp_path):
    said: list[str] = []
    storage = PatientStorage(f"sqlite:///{tmp_path}/study.db", say=said.append)
    study = optuna.create_study(storage=storage, study_name="study", direction="maximize")
    return study, Outage(storage), said


def test_a_study_goes_on_when_its_database_is_back(opened, clock):
    study, outage, said = opened
    for number in range(3):
        outage.left = 4
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        outage.left = 2
        study.tell(trial, float(number))
    assert [trial.value for trial in study.trials] == [0.0, 1.0, 2.0]
    assert clock.pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert len(said) == 6
    assert said[0].startswith("storage: not reachable (")
    assert "server closed the connection" in said[0]


def test_a_database_that_stays_away_is_one_line_after_two_minutes(opened, clock):
    study, outage, said = opened
    outage.left = 10**6
    with pytest.raises(
        AutodiscError, match=r"search.storage: not reachable for 120 s .*the same command goes on"
    ) as caught:
        study.ask()
    assert "\n" not in str(caught.value)
    assert 100 < clock.now <= 120
    assert max(clock.pauses) == 15.0
    assert len(said) == 1


def test_what_the_database_refuses_is_not_tried_again(opened, clock):
    study, _, said = opened
    trial = study.ask()
    study.tell(trial, 1.0)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        study._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [2.0])
    with pytest.raises(KeyError):
        optuna.load_study(storage=study._storage, study_name="another")
    assert clock.pauses == said == []


def test_every_call_that_optuna_makes_of_a_database_is_patient(tmp_path):
    storage = open_database(f"sqlite:///{tmp_path}/study.db", lambda text: None)
    plain = [name for name in dir(optuna.storages.BaseStorage) if not name.startswith("_")]
    assert isinstance(storage._backend, PatientStorage)
    assert all(getattr(PatientStorage, name) is not getattr(RDBStorage, name) for name in plain)
