from __future__ import annotations

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autodisc.errors import StudyError
from autodisc.reporting import dashboard


@pytest.fixture
def journal(tmp_path):
    path = str(tmp_path / "study.log")
    storage = JournalStorage(JournalFileBackend(path))
    optuna.create_study(study_name="mrpc", storage=storage, direction="maximize")
    return path


def _attributes(journal):
    study = optuna.load_study(study_name="mrpc", storage=dashboard.open_storage(journal))
    return study._storage.get_study_system_attrs(study._study_id)


def test_publishing_saves_a_note_and_a_figure_and_overwrites_both(make, journal):
    result = make.search()["result"]
    dashboard.publish(journal, "mrpc", result, 0.2)
    first = _attributes(journal)
    dashboard.publish(journal, "mrpc", result, 0.2)
    assert _attributes(journal).keys() == first.keys()
    stored = "".join(str(value) for value in first.values())
    assert "Chosen: sparsity 0.8" in stored
    assert "Infeasible, at the floor: 0.85" in stored
    assert any(dashboard.FIGURE_ID in key for key in first)
    assert len(stored) < 20_000  # the storage takes it in small pieces


def test_publishing_a_study_without_a_choice_leaves_a_note(make, journal):
    dashboard.publish(journal, "mrpc", make.search([])["result"], 0.2)
    assert any("No teacher assistant was chosen" in str(value) for value in _attributes(journal).values())


def test_storages_and_studies_that_do_not_exist_are_named(make, journal, tmp_path):
    with pytest.raises(StudyError, match=r"absent\.log does not exist"):
        dashboard.open_storage(str(tmp_path / "absent.log"))
    with pytest.raises(StudyError, match="cannot be opened"):
        dashboard.open_storage("no-such-scheme://x")
    with pytest.raises(StudyError, match="no study named 'other'"):
        dashboard.publish(journal, "other", make.search()["result"], 0.2)


def test_serving_stays_on_the_loopback_and_names_a_taken_port(journal, monkeypatch):
    calls = []
    monkeypatch.setattr(
        dashboard.optuna_dashboard, "run_server", lambda storage, **where: calls.append((storage, where))
    )
    dashboard.serve(journal, port=9000)
    assert calls[0][1] == {"host": "127.0.0.1", "port": 9000}

    def taken(*_args, **_where):
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(dashboard.optuna_dashboard, "run_server", taken)
    with pytest.raises(StudyError, match="Address already in use"):
        dashboard.serve(journal)
