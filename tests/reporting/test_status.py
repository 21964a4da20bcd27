from __future__ import annotations

import contextlib
import io
import json
import os

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autodisc.config import make_config, write_config
from autodisc.costs import Cost
from autodisc.errors import StudyError
from autodisc.progress import Silent
from autodisc.reporting import status
from autodisc.reporting.events import EventProgress
from autodisc.reporting.status import Noted, lines, read_status


@pytest.fixture
def folder(tmp_path):
    """A study that has been begun."""
    config = make_config({"name": "mrpc", "task": {"name": "mrpc"}, "teacher": {"model": "/t"}})
    write_config(config, tmp_path / "config.yaml")
    return tmp_path


def events(text):
    return [json.loads(line) for line in text.splitlines()]


def test_events_are_a_line_of_json_each_with_the_cost_so_far(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("autodisc.reporting.events.time.perf_counter", lambda: clock[0])
    out = io.StringIO()
    progress = EventProgress(out)
    progress.spending(lambda: Cost(seconds=3.0, flops=1e9))
    with progress.stage("recovery", 10) as bar:
        bar.note("metric 0.8")
        for _ in range(10):
            clock[0] += 0.5
            bar.advance()
    progress.say("kept\nhere")
    found = events(out.getvalue())
    assert [one["event"] for one in found] == ["stage", "step", "step", "end", "say"]
    assert all(one["spent_flops"] == 1e9 and one["time"].endswith("+00:00") for one in found)
    assert (found[1]["done"], found[1]["total"], found[1]["note"]) == (4, 10, "metric 0.8")
    assert found[1]["left_s"] == pytest.approx(2.0 / 3 * 6)  # the first advance may be a resumed run's
    assert found[3]["ok"] is True


def test_a_stage_that_raises_ends_not_ok():
    out = io.StringIO()
    with pytest.raises(ValueError, match="boom"), EventProgress(out).stage("trials", None):
        raise ValueError("boom")
    assert events(out.getvalue())[-1]["ok"] is False


def test_a_study_that_runs_says_where_it_is_and_what_is_left(folder):
    progress = Noted(Silent(), folder, "search")
    progress.spending(lambda: Cost(seconds=61.0, flops=2e12))
    with progress.stage("recovery", 230) as bar:
        progress._kept = -status.EVERY_S
        bar.note("metric 0.8")
        bar.advance(10)
        progress._kept = -status.EVERY_S
        bar.advance(13)
        text = "\n".join(lines(read_status(folder)))
    assert "running: search, recovery 23/230, metric 0.8" in text
    assert "left of this stage" in text
    assert "1 min 01 s and 2 TFLOPs" in text


def test_a_run_that_still_makes_its_teacher_is_seen(tmp_path):
    with Noted(Silent(), tmp_path, "run").stage("fine-tuning", 175):
        first, second = lines(read_status(tmp_path))
    assert first == f"{tmp_path}: no study yet"
    assert second.startswith("  running: run, fine-tuning 0/175")


def test_a_command_that_was_killed_is_not_said_to_run(folder, monkeypatch):
    with Noted(Silent(), folder, "search").stage("trials", 7):
        pass

    def gone(_pid, _signal):
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", gone)
    assert "stopped at search, trials 0/7" in lines(read_status(folder))[-1]
    monkeypatch.setattr(status.platform, "node", lambda: "elsewhere")
    assert "last heard of" in lines(read_status(folder))[-1]


def test_nothing_is_written_where_there_is_no_folder_yet_or_a_lease_alone(tmp_path):
    with Noted(Silent(), tmp_path / "absent", "search").stage("set-up", None) as bar:
        bar.advance()
    assert not (tmp_path / "absent").exists()
    (tmp_path / "absent" / "baseline-direct").mkdir(parents=True)
    for folder in (tmp_path / "absent", tmp_path / "absent" / "baseline-direct"):
        (folder / "running.lease").touch()
    with Noted(Silent(), tmp_path / "absent", "search").stage("set-up", None) as bar:
        bar.advance()
    assert not (tmp_path / "absent" / "status.json").exists()


def test_trials_of_a_running_search_are_counted_and_the_infeasible_never_best(folder):
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    study = optuna.create_study(study_name="mrpc-mrpc", storage=storage, direction="maximize")
    for sparsity, value, lack in ((0.5, 0.90, -0.1), (0.9, 0.99, 0.1)):
        trial = study.ask()
        trial.set_constraint("leaves the floor", lack)
        trial.set_user_attr("sparsity", sparsity)
        trial.set_user_attr("metric", value - 0.2 * sparsity)
        study.tell(trial, value)
    part = read_status(folder).parts[0]
    assert (part.name, part.state, part.trials) == ("search", "begun", 2)
    assert part.best == "assistant of sparsity 0.5, metric 0.800 so far"


def test_a_finished_study_has_its_results_and_no_running_command(make, folder):
    with Noted(Silent(), folder, "distill").stage("student", 3):
        pass
    later = {"created": "2099-01-01T00:00:00+00:00"}
    make.write(folder, make.search(), make.distill(), make.baseline(**later), make.baseline("direct"))
    found = read_status(folder)
    assert [part.state for part in found.parts] == ["done"] * 4
    assert found.running is None
    text = "\n".join(lines(found))
    for words in ("assistant of sparsity 0.8", "student 0.795 ± 0.010 on test", "7 trials", "1 trial;"):
        assert words in text


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(StudyError, match="holds no study"):
        read_status(tmp_path)
    with contextlib.suppress(StudyError):
        read_status(tmp_path)
    assert not list(tmp_path.iterdir())
