"""Several processes at one search: a journal on a shared disk here, a database in tests/services."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from autodisc import api
from autodisc.errors import DivergedError, StudyError
from autodisc.reporting.records import read_records
from autodisc.search.sharing import WORKER, SharedStudy
from autodisc.search.storage import tell
from autodisc.working import portable, work

NAME = "study-mine"
# Of a worker: with its first trial it says that it is up, and waits.
WAITS = """
import os, pathlib, time, autodisc.search.assistants as a
folder, evaluate = pathlib.Path({folder!r}), a.evaluate
def waits(*given, **named):
    (folder / f"up-{{os.getpid()}}").touch()
    while not (folder / "go").exists():
        time.sleep(0.05)
    return evaluate(*given, **named)
a.evaluate = waits"""
QUICK = {"heartbeat_s": 1, "recovery": {"steps": 2}, "examples": 50}


def opened(out: Path) -> optuna.Study:
    return optuna.load_study(study_name=NAME, storage=JournalStorage(JournalFileBackend(str(out / "shared.log"))))


def worker(out: Path, code: str = "pass") -> subprocess.Popen:
    line = f"{code}; from autodisc.cli import main; import sys; sys.exit(main())"
    command = ["worker", "--study", NAME, "--storage", str(out / "shared.log"), "--out", str(out), "--json"]
    return subprocess.Popen(
        [sys.executable, "-c", line, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def shared(config, tmp_path):
    """Settings of a search that others may join, and its folder."""

    def call(**search):
        out = tmp_path / "study"
        return config(search={**QUICK, "storage": str(out / "shared.log"), **search}), out

    return call


def measured(result):
    """All but clocks and trial numbers."""
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "number")} for row in result["trials"]
    ]


def test_a_search_that_may_be_joined_finds_what_one_alone_finds(config, shared, tmp_path):
    settings, out = shared()
    alone = api.search(config(search=QUICK), tmp_path / "alone")
    assert measured(api.search(settings, out)) == measured(alone)
    assert work(NAME, settings.search.storage, out)["trials"] == 0  # late
    study = opened(out)
    assert {trial.user_attrs[WORKER].partition(":")[2] for trial in study.trials} == {str(os.getpid())}


@pytest.mark.parametrize(("jobs", "said"), [(1, 0), (2, 1)])
def test_processes_asked_of_a_search_that_others_join_are_said_to_be_workers(shared, make_listener, jobs, said):
    settings, out = shared(jobs=jobs)
    listener = make_listener()
    api.search(settings, out, progress=listener)
    assert len([line for line in listener.said if line.startswith("search.jobs: one trial")]) == said


def test_workers_share_the_trials_of_a_search_and_its_cost_is_the_sum(shared, make_listener):
    grid = [round(0.05 * i, 2) for i in range(1, 17)]
    settings, out = shared(sparsities=grid)
    # Ended in its second trial, each being three batches: the supernet is there, and most trials are left.
    with pytest.raises(KeyboardInterrupt):
        api.search(settings, out, progress=make_listener("trials", after=4))
    assert 0 < sum(trial.state is TrialState.COMPLETE for trial in opened(out).trials) < len(grid)
    supernet = (out / "supernet" / "model.safetensors").stat().st_mtime_ns
    both = [worker(out, WAITS.format(folder=str(out.parent))) for _ in range(2)]
    while len(list(out.parent.glob("up-*"))) < 2:  # so that the first has not done it all before the second comes
        assert all(process.poll() is None for process in both), [process.communicate() for process in both]
        time.sleep(0.05)
    (out.parent / "go").touch()
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    ended = [json.loads(out.splitlines()[-1]) for out, _ in said]
    assert [result["completed"] for result in ended] == [len(grid)] * 2, said
    found = api.search(settings, out)
    assert [row["sparsity"] for row in found["trials"]] == grid
    assert (out / "supernet" / "model.safetensors").stat().st_mtime_ns == supernet
    ledgers = [json.loads(path.read_text()) for path in (out / "workers").glob("*.json")]
    assert len(ledgers) == 2
    spent = sum(ledger["stages"]["trials"]["flops"] for ledger in ledgers)
    assert 0 < spent < found["cost"]["stages"]["trials"]["flops"]
    (record,) = read_records([out])
    assert record.values["cost"]["stages"]["trials"]["flops"] == found["cost"]["stages"]["trials"]["flops"]


def test_a_killed_workers_trial_is_done_by_another(shared, make_listener):
    settings, out = shared()
    with pytest.raises(KeyboardInterrupt):
        api.search(settings, out, progress=make_listener("recovery", after=1))
    # It stops for good in the middle of its first trial.
    hang = "import autodisc.search.assistants as a, time; a.evaluate = lambda *b, **c: time.sleep(600)"
    process = worker(out, hang)
    try:
        while not any(trial.state is TrialState.RUNNING and WORKER in trial.user_attrs for trial in opened(out).trials):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    found = api.search(settings, out)
    assert [row["state"] for row in found["trials"]] == ["COMPLETE"] * 3
    states = [trial.state for trial in opened(out).trials]
    assert sorted(state.name for state in states) == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL"]


def test_a_point_that_was_queued_twice_is_done_once(shared, tmp_path):
    settings, _ = shared()
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "twice.log")))
    study = optuna.create_study(study_name="twice", storage=storage)
    points = [{"x": 0.25}, {"x": 0.5}]
    for point in [*points, *points]:
        study.enqueue_trial(point)
    mine = SharedStudy.of(study, tmp_path, settings)
    for trial in mine.trials(points):
        study.tell(trial, trial.suggest_float("x", 0, 1))
    done = [trial.params for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    assert done == points


def test_a_point_that_keeps_failing_is_tried_as_often_as_asked_for_and_left(shared, tmp_path):
    settings, _ = shared(retries=2)
    study = optuna.create_study(study_name="fails", storage=JournalStorage(JournalFileBackend(str(tmp_path / "f.log"))))
    tried = []
    for trial in SharedStudy.of(study, tmp_path, settings).trials([{"x": 0.25}, {"x": 0.5}]):
        tried.append(trial.suggest_float("x", 0, 1))
        if tried[-1] == 0.5:
            study.tell(trial, 1.0)
        else:
            trial.set_user_attr("error", "no luck")
            study.tell(trial, state=TrialState.FAIL)
    assert sorted(tried) == [0.25, 0.25, 0.25, 0.5]


def test_a_point_that_diverged_is_not_tried_again(shared, tmp_path):
    settings, _ = shared(retries=2)
    study = optuna.create_study(study_name="fails", storage=JournalStorage(JournalFileBackend(str(tmp_path / "f.log"))))
    tried = []
    for trial in SharedStudy.of(study, tmp_path, settings).trials([{"x": 0.25}]):
        tried.append(trial.suggest_float("x", 0, 1))
        tell(study, trial, DivergedError("no lower loss"))
    assert tried == [0.25]


def test_the_sampler_s_trials_are_as_many_as_asked_for_and_differ(shared):
    settings, out = shared(sparsities=None, low=0.1, high=0.8, step=0.01, trials=4)
    found = api.search(settings, out)
    assert len(found["trials"]) == 4
    assert len({row["sparsity"] for row in found["trials"]}) > 1


def test_who_has_another_teacher_or_other_rows_is_refused(shared, furnished, tmp_path):
    settings, out = shared()
    api.search(settings, out)
    other = tmp_path / "data"
    other.mkdir()
    for name in ("train", "validation", "test"):
        rows = (furnished / "data" / f"{name}.csv").read_text().splitlines()
        (other / f"{name}.csv").write_text("\n".join(rows[:-1]) + "\n")
    with pytest.raises(StudyError, match="another configuration"):
        work(NAME, settings.search.storage, out, overrides={"task.data": str(other)})


def test_a_worker_in_a_folder_that_is_another_study_s_is_refused_and_in_the_same_by_another_path_is_not(
    config, shared, tmp_path
):
    settings, out = shared()
    api.search(settings, out)
    (tmp_path / "elsewhere").symlink_to(out)
    assert work(NAME, settings.search.storage, tmp_path / "elsewhere")["trials"] == 0
    api.search(config(search=QUICK), tmp_path / "alone")
    with pytest.raises(StudyError, match=r"its trials are of what lies in another folder\. Give its --out"):
        work(NAME, settings.search.storage, tmp_path / "alone")


def test_what_cannot_be_joined_is_one_line(config, shared, tmp_path):
    settings, out = shared()
    api.search(settings, out)
    with pytest.raises(StudyError, match="no study 'nothing'; it has study-mine"):
        work("nothing", settings.search.storage, out)
    with pytest.raises(StudyError, match="does not hold the study"):
        work(NAME, settings.search.storage, tmp_path)
    with pytest.raises(StudyError, match="does not exist"):
        work(NAME, str(tmp_path / "none.log"), out)
    alone = tmp_path / "alone"
    api.search(config(search=QUICK), alone)
    with pytest.raises(StudyError, match="by one process alone"):
        work(NAME, str(alone / "journal.log"), alone)


def test_what_is_published_has_no_password_and_no_relative_folder(config, furnished, monkeypatch):
    monkeypatch.chdir(furnished)
    storage = {"storage": "postgresql://ann:hunter2@db/x"}
    settings = config(task={"data": "data"}, search=storage, student_model="encoder")
    published = portable(settings)
    assert "hunter2" not in json.dumps(published)
    assert published["task"]["data"] == str(furnished / "data")
    assert published["student_model"] == str(furnished / "encoder")
