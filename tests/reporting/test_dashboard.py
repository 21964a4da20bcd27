from __future__ import annotations

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autodisc.errors import StudyError
from autodisc.reporting import dashboard
from autodisc.reporting.dashboard import Shown
from autodisc.reporting.together import Stores, Together


@pytest.fixture
def journal(tmp_path):
    def make(folder="a", name="mrpc"):
        (tmp_path / folder).mkdir(exist_ok=True)
        path = str(tmp_path / folder / "study.log")
        study = optuna.create_study(
            study_name=name, storage=JournalStorage(JournalFileBackend(path)), direction="maximize"
        )
        return path, study

    return make


def test_storages_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(StudyError, match=r"absent\.log does not exist"):
        dashboard.open_storage(str(tmp_path / "absent.log"))
    with pytest.raises(StudyError, match="cannot be opened"):
        dashboard.open_storage("no-such-scheme://x")


def test_a_note_after_half_a_line_leaves_the_study_readable(journal):
    path, study = journal()
    study.set_user_attr("before", 1)
    with open(path, "a") as file:
        file.write('{"op_code": 4, "worker')  # what a full disk or a kill leaves
    shown = dashboard.open_storage(path)
    shown.set_study_system_attr(study._study_id, "dashboard:note", "a note")
    again = dashboard.open_storage(path)
    assert again.get_study_user_attrs(study._study_id) == {"before": 1}
    assert again.get_study_system_attrs(study._study_id) == {"dashboard:note": "a note"}


def test_a_folder_shows_its_search_and_the_baselines_that_have_begun(tmp_path):
    baseline = tmp_path / "baseline-maxidisc" / "journal.log"
    shown = dashboard.shown_of(tmp_path, "sqlite:///x.db", [baseline])
    assert [one.storage for one in shown] == ["sqlite:///x.db", str(baseline)]
    assert [one.artifacts.parent for one in shown] == [tmp_path, baseline.parent]
    assert len(dashboard.shown_of(tmp_path, None, [baseline])) == 1


def test_serving_stays_on_the_loopback_and_names_a_taken_port(journal, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        dashboard.optuna_dashboard, "run_server", lambda storage, **where: calls.append((storage, where))
    )
    shown = [Shown("a", journal("a")[0], tmp_path), Shown("b", journal("b")[0], tmp_path)]
    dashboard.serve([shown[0], Shown("again", shown[0].storage, tmp_path / "more")], port=9000)  # one storage
    dashboard.serve(shown, port=9000)
    for (storage, where), kind in zip(calls, (JournalStorage, Together), strict=True):
        assert isinstance(storage, kind)
        assert (where["host"], where["port"]) == ("127.0.0.1", 9000)

    def taken(*_args, **_where):
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(dashboard.optuna_dashboard, "run_server", taken)
    with pytest.raises(StudyError, match="Address already in use"):
        dashboard.serve(shown)


def test_several_storages_are_read_and_written_as_one(journal):
    (first, a), (second, b) = journal("a"), journal("b")
    a.add_trial(optuna.trial.create_trial(value=0.1))
    for value in (0.5, 0.7):
        b.add_trial(optuna.trial.create_trial(value=value))
    both = Together([("a", dashboard.open_storage(first)), ("b", dashboard.open_storage(second))])
    studies = {study.study_name: study._study_id for study in both.get_all_studies()}
    assert set(studies) == {"mrpc (a)", "mrpc (b)"}
    assert both.get_study_id_from_name("mrpc (b)") == studies["mrpc (b)"]
    trials = {name: both.get_all_trials(number) for name, number in studies.items()}
    assert [trial.value for trial in trials["mrpc (b)"]] == [0.5, 0.7]
    assert len({trial._trial_id for found in trials.values() for trial in found}) == 3
    for trial in trials["mrpc (b)"]:
        assert both.get_trial(trial._trial_id).value == trial.value
    assert b.trials[0]._trial_id in {trial._trial_id for trial in b.trials}  # the originals keep their ids
    b.add_trial(optuna.trial.create_trial(value=0.9))
    assert both.get_n_trials(studies["mrpc (b)"]) == 3  # live


def test_a_trial_s_note_is_found_and_kept_under_its_own_id(journal):
    (first, _), (second, b) = journal("a"), journal("b", "other")
    b.add_trial(optuna.trial.create_trial(value=0.5))
    inner = b.trials[0]._trial_id
    b._storage.set_study_system_attr(b._study_id, f"dashboard:{inner}:note_ver", 1)
    both = Together([("a", dashboard.open_storage(first)), ("b", dashboard.open_storage(second))])
    study = both.get_study_id_from_name("other")
    outer = both.get_all_trials(study)[0]._trial_id
    assert outer != inner
    assert both.get_study_system_attrs(study)[f"dashboard:{outer}:note_ver"] == 1
    both.set_study_system_attr(study, f"dashboard:{outer}:note_ver", 2)
    assert b._storage.get_study_system_attrs(b._study_id)[f"dashboard:{inner}:note_ver"] == 2


def test_artifacts_are_found_in_whichever_folder_has_them(tmp_path):
    stores = Stores([tmp_path / "not yet", tmp_path / "b"])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "id-1").write_bytes(b"kept")
    with stores.open_reader("id-1") as file:
        assert file.read() == b"kept"
    with pytest.raises(optuna.artifacts.exceptions.ArtifactNotFound):
        stores.open_reader("id-2")
    stores.remove("id-1")
    assert not (tmp_path / "b" / "id-1").exists()
