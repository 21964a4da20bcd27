"""Cells are computed once; what fails is recorded and tried again; what is not this comparison's is refused."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from autodisc.comparison import running
from autodisc.comparison.cells import FREE, Cell, failure, read_cell, write_cell, write_failure
from autodisc.comparison.config import make_comparison
from autodisc.comparison.plan import all_cells, recorded
from autodisc.comparison.running import jobs_of, run
from autodisc.comparison.summary import report, summarize
from autodisc.config import differences, make_config
from autodisc.errors import StudyError, TrainingError
from autodisc.leases import LostLeaseError, leased
from autodisc.progress import Silent
from autodisc.reporting import units

FEW = {"strategies": ["direct", "smallest"], "seeds": [0]}


def written(out: Path) -> dict[str, int]:
    return {
        str(path.relative_to(out)): path.stat().st_mtime_ns for path in (out / "cells").rglob("*") if path.is_file()
    }


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_every_cell_is_recorded_once_and_a_second_run_opens_nothing(whole, copied, monkeypatch):
    before = written(copied)
    cells = all_cells(whole, copied)
    assert all(cell.path(copied).exists() for cell in cells)
    assert len(cells) == len([name for name in before if name.endswith(".json")])
    assert not any(path.is_file() for path in (copied / "work").rglob("*"))
    monkeypatch.setattr(running, "compute", None)
    monkeypatch.setattr(running, "prepare", None)
    assert run(whole, copied) == {}
    assert written(copied) == before


def test_of_two_processes_with_one_folder_the_second_waits_and_finds_all_there(whole, copied, monkeypatch):
    monkeypatch.setattr(running, "compute", None)
    heard, said = threading.Event(), []

    class Listening(Silent):
        def say(self, line: str) -> None:
            said.append(line)
            heard.set()

    with ThreadPoolExecutor(1) as pool:
        with leased(copied / "running.lease"):
            second = pool.submit(run, whole, copied, progress=Listening())
            assert heard.wait(30)
            assert not second.done()
        assert second.result(30) == {}
    assert said == [f"{copied}: waiting for process {os.getpid()} on {socket.gethostname()}"]
    assert not (copied / "running.lease").exists()


def test_a_run_that_is_refused_leaves_no_folder(config, tmp_path, monkeypatch):
    def refuse(*_):
        raise StudyError("no")

    monkeypatch.setattr(running, "prepare", refuse)
    out = tmp_path / "new" / "er"
    with pytest.raises(StudyError, match="no"):
        run(config(compare=FEW), out)
    assert not out.parent.exists()
    assert tmp_path.exists()


def test_one_that_waits_survives_the_removal_of_the_folder(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_run", lambda *_: {})
    out, heard = tmp_path / "out", threading.Event()

    class Listening(Silent):
        def say(self, line: str) -> None:
            heard.set()

    with ThreadPoolExecutor(1) as pool, leased(out / "running.lease"):
        second = pool.submit(run, whole, out, progress=Listening())
        assert heard.wait(30)
        shutil.rmtree(out)
        assert second.result(30) == {}


def test_a_run_that_is_killed_goes_on_with_what_is_missing(config, whole, copied, tmp_path, monkeypatch):
    compute, settings = running.compute, config(compare=FEW)
    done: list[Cell] = []

    def killed(config, cell, out):
        if done:
            raise KeyboardInterrupt
        done.append(cell)
        compute(config, cell, out)

    with monkeypatch.context() as patch:
        patch.setattr(running, "compute", killed)
        with pytest.raises(KeyboardInterrupt):
            run(settings, tmp_path / "new")
    before = written(tmp_path / "new")
    assert run(settings, tmp_path / "new") == {}
    after = written(tmp_path / "new")
    assert before.items() <= after.items()
    for cell in all_cells(settings, tmp_path / "new"):  # and computes what an undisturbed run does
        ours, theirs = (json.loads(cell.path(out).read_text())["result"] for out in (tmp_path / "new", copied))
        assert ours == theirs


@pytest.mark.services  # processes of its own: half a minute
def test_two_processes_compute_what_one_does(config, tmp_path):
    settings = config(compare={"strategies": ["autodisc", "direct"], "seeds": [0]})
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(settings, one) == {}
    assert run(settings, two, jobs=2) == {}
    for cell in all_cells(settings, two):
        ours, theirs = (json.loads(cell.path(out).read_text())["result"] for out in (two, one))
        for result in (ours, theirs):
            for trial in result.get("trials", ()):
                trial.pop("seconds")
                trial.pop("number")
            (result.get("best") or {}).pop("number", None)
        assert ours == theirs, cell


def test_a_search_of_balances_goes_through_its_own_choice(config, tmp_path):
    comparison = config(compare={"strategies": ["balanced-tpe"], "seeds": [0]})
    assert run(comparison, tmp_path) == {}
    cells = all_cells(comparison, tmp_path)
    records = recorded(comparison, cells, tmp_path)
    done = {cell.kind: record for cell, record in records.items()}
    found, made = done["search-balanced-tpe"].result, done["balanced-tpe"].result
    assert len(found["trials"]) == 3
    best = found["best"]
    assert (made["assistant"], made["assistant_balance"]) == (best["sparsity"], best["balance"])
    (section,) = summarize(comparison, cells, records, tmp_path)
    (line,) = section.strategies
    assert line.assistants == (units.point_of(best),)


def test_a_failed_cell_is_recorded_with_its_reason_the_rest_goes_on_and_a_rerun_tries_again(
    config, tmp_path, make_listener, monkeypatch
):
    settings, compute = config(compare=FEW), running.compute
    broken = Cell("mine", 0, 0.9, "direct")

    def failing(config, cell, out):
        if cell == broken:
            raise TrainingError("the loss is nan")
        compute(config, cell, out)

    listener = make_listener()
    with monkeypatch.context() as patch:
        patch.setattr(running, "compute", failing)
        assert list(run(settings, tmp_path, progress=listener)) == [broken]
        assert len(run(settings, tmp_path)) == 1
    assert f"{broken} failed: the loss is nan" in listener.said
    assert "task mine, seed 0, shared: computed" in listener.said
    assert [json.loads(path.read_text())["error"] for path in broken.failures(tmp_path)] == ["the loss is nan"] * 2
    others = [cell for cell in all_cells(settings, tmp_path) if cell != broken]
    assert all(cell.path(tmp_path).exists() for cell in others)
    assert run(settings, tmp_path) == {}
    assert broken.path(tmp_path).exists()
    assert len(broken.failures(tmp_path)) == 2


def test_a_folder_that_a_stopped_run_left_damaged_fails_its_cells_and_is_made_anew(config, tmp_path, monkeypatch):
    settings, compute = config(compare={**FEW, "strategies": ["autodisc"]}), running.compute
    broken = Cell("mine", 0, 0.9, "search-recovered")
    folder = tmp_path / "work" / broken.folder / broken.kind

    def stopped(config, cell, out):
        compute(config, cell, out)
        if cell == broken:
            (folder / "ledger.json").write_text("{")
            broken.path(out).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running, "compute", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(settings, tmp_path)
    assert len(run(settings, tmp_path)) == 1
    (failure,) = tmp_path.rglob("*.failed-1.json")
    assert "ledger.json" in json.loads(failure.read_text())["error"]
    assert "begins anew" in json.loads(failure.read_text())["error"]
    assert run(settings, tmp_path) == {}
    assert broken.path(tmp_path).exists()


def test_every_cell_that_an_ended_process_left_undone_has_failed(config, tmp_path, monkeypatch):
    settings = config(compare={**FEW, "strategies": ["autodisc"]})

    def ended(call, keys, jobs, threads, backend):
        for key in keys:
            prepared = key[0].kind == "shared"
            yield key, [running._prepare(settings, tmp_path, key)] if prepared else TrainingError("it was ended")

    monkeypatch.setattr(running, "side_by_side", ended)
    failed = run(settings, tmp_path, jobs=2)
    left = [cell for cell in all_cells(settings, tmp_path) if not cell.path(tmp_path).exists()]
    assert list(failed) == left
    assert len(left) == 2
    assert all(cell.failures(tmp_path) for cell in left)


def test_a_job_that_is_computed_again_leaves_what_is_recorded(whole, copied, monkeypatch):
    kept, left = (Cell("mine", 0, 0.9, kind) for kind in ("search-recovered", "autodisc"))
    before = written(copied)
    left.path(copied).unlink()
    computed = []
    monkeypatch.setattr(running, "compute", lambda config, cell, out: computed.append(cell))
    assert running._compute(whole, copied, (kept, left)) == {}
    assert computed == [left]
    assert before.items() >= written(copied).items()


def test_a_recorded_cell_is_not_written_again(copied):
    cell = Cell("mine", 0, 0.9, "direct")
    before = written(copied)
    with pytest.raises(FileExistsError):
        write_cell(copied, cell, {"config": {}}, (np.zeros(3), np.zeros(3)))
    assert written(copied) == before


@pytest.mark.parametrize("kept", [0, 200])
def test_predictions_that_were_cut_off_are_refused_by_name(whole, copied, kept):
    path = Cell("mine", 0, 0.9, "direct").path(copied).with_suffix(".npz")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        StudyError, match=r"direct\.npz: the predictions of a recorded cell cannot be read; remove .*direct\.json"
    ):
        report(whole, copied)


def test_a_failure_is_numbered_after_the_last_one(tmp_path):
    cell = Cell("mine", 0, 0.9, "direct")
    for reason in "abc":
        write_failure(tmp_path, cell, reason)
    cell.failures(tmp_path)[0].unlink()
    write_failure(tmp_path, cell, "d")
    assert failure(tmp_path, cell) == "d"


def test_what_a_search_computed_again_chose_is_what_its_record_says(whole, copied):
    """A strategy that came later needs the search's weights, which are gone."""
    search, later = (Cell("mine", 0, 0.9, kind) for kind in ("search-recovered", "plain"))
    for name in (later.path(copied), later.path(copied).with_suffix(".npz")):
        name.unlink()
    record = json.loads(search.path(copied).read_text())
    chosen = record["result"]["best"]["sparsity"]
    record["result"]["best"]["sparsity"] = other = next(s for s in (0.25, 0.5) if s != chosen)
    search.path(copied).write_text(json.dumps(record))
    (reason,) = run(whole, copied).values()
    assert reason == (
        f"{search.path(copied)}: chose {other:g}, the same search computed again {chosen:g}; remove that file and the"
        " records of autodisc, plain, chain beside it"
    )
    record["result"]["best"]["sparsity"] = chosen
    search.path(copied).write_text(json.dumps(record))
    assert run(whole, copied) == {}
    assert later.path(copied).exists()


def test_who_stood_still_while_another_took_over_computes_no_more(whole, copied, monkeypatch):
    cells = [Cell("mine", 0, 0.9, kind) for kind in ("direct", "assistant-0.5")]
    for cell in cells:
        cell.path(copied).unlink()

    def taken_over(config, cell, out):
        (out / "running.lease").unlink()

    monkeypatch.setattr(running, "compute", taken_over)
    monkeypatch.setattr(running, "prepare", lambda *_: None)
    with pytest.raises(LostLeaseError, match="another may have taken over"):
        run(whole, copied)


def test_where_preparing_fails_the_seeds_cells_are_left_out(config, tmp_path, monkeypatch):
    settings, prepare = config(compare={**FEW, "seeds": [0, 1]}), running.prepare

    def failing(config, cell, out):
        if cell.seed == 0:
            raise TrainingError("no ranking")
        prepare(config, cell, out)

    monkeypatch.setattr(running, "prepare", failing)
    assert len(run(settings, tmp_path)) == 1
    seeds = {cell.seed for cell in all_cells(settings, tmp_path) if cell.path(tmp_path).exists()}
    assert seeds == {1}


def test_a_process_that_is_ended_from_outside_is_a_failed_cell(config, tmp_path, monkeypatch):
    def ended(call, keys, jobs, threads, backend):
        for key in keys:
            yield key, TrainingError("its process was ended from outside")

    monkeypatch.setattr(running, "side_by_side", ended)
    assert len(run(config(compare=FEW), tmp_path, jobs=2)) == 1  # the shared cell, and so no other is begun
    (path,) = Cell("mine", 0, None, "shared").failures(tmp_path)
    assert "ended from outside" in json.loads(path.read_text())["error"]


def test_a_search_and_what_is_distilled_from_it_are_one_job():
    cells = [Cell("a", 0, 0.9, kind) for kind in ("search-recovered", "search-more", "autodisc", "plain", "direct")]
    assert [[cell.kind for cell in job] for job in jobs_of(cells)] == [
        ["search-recovered", "autodisc", "plain"],
        ["search-more"],
        ["direct"],
    ]
    assert [[cell.kind for cell in job] for job in jobs_of(cells[2:])] == [["autodisc", "plain"], ["direct"]]


def changed(copied: Path, kind: str, change) -> Path:
    path = Cell("mine", 0, None if kind == "shared" else 0.9, kind).path(copied)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values.update(autodisc="0.0.1"), "a record of autodisc 0.0.1"),
        (lambda values: values.update(schema=0), "schema 0"),
        (lambda values: values["data"]["fingerprints"].update(final="other"), "the data's final has fingerprint other"),
        (lambda values: values["teacher"].update(fingerprint="other"), "the teacher has fingerprint"),
        (lambda values: values["config"]["distillation"].update(epochs=7), "distillation.epochs: 7 -> 1"),
        (lambda values: values.pop("schema"), "not a cell's record"),
    ],
)
def test_a_record_of_another_version_data_or_settings_is_refused_by_name(whole, copied, change, said):
    path = changed(copied, "direct", change)
    with pytest.raises(StudyError) as caught:
        run(whole, copied)
    message = one_line(caught)
    assert said in message
    assert path.name in message


def test_a_search_of_before_there_were_parts_was_of_all_of_validation(whole, settings, copied, monkeypatch):
    for path in (copied / "cells").rglob("*.json"):
        values = json.loads(path.read_text())
        if values["config"]["search"]["examples"] is None:
            del values["config"]["search"]["examples"]
        path.write_text(json.dumps(values))
    monkeypatch.setattr(running, "compute", None)
    assert (
        run(make_comparison(settings(compare={"searches": whole.compare.searches}, search={"examples": "all"})), copied)
        == {}
    )
    with pytest.raises(StudyError, match=r"search\.examples: all -> None"):
        run(make_comparison(settings(compare={"searches": whole.compare.searches})), copied)


OTHERWISE = {
    "name": "other",
    "teacher": {"model": "elsewhere"},
    "task.data": "elsewhere",
    "baseline": {"strategies": ["direct"]},
    "cache": {"max_gib": 0.5},
    "reporting": {"examples": 0},
    "runtime.threads": 2,
    "runtime.checkpoint_minutes": 1.0,
    "runtime.trackers": ["wandb"],
    "search.storage": "postgresql://host/database",
    "search.jobs": 2,
    "search.backend": "ray",
    "search.heartbeat_s": 20,
    "search.retries": 3,
}


@pytest.mark.parametrize("name", sorted({*FREE, *OTHERWISE}))
def test_settings_that_change_no_result_may_change(tmp_path, name):
    cell, (section, _, last) = Cell("mine", 0, 0.9, "search-recovered"), name.partition(".")
    then = make_config({"task": {"name": "mine", "metric": "f1"}, "teacher": {"model": "m"}}).model_dump(mode="json")
    now = {**then, section: {**then[section], last: OTHERWISE[name]} if last else OTHERWISE[name]}
    assert differences(then, make_config(now))
    write_cell(tmp_path, cell, {"config": then})
    assert read_cell(tmp_path, cell, now) is not None


@pytest.mark.parametrize("more", [FEW, {"strategies": ["direct"], "seeds": [0, 1]}], ids=["strategy", "seed"])
def test_data_that_changed_since_is_refused_before_anything_is_computed(config, furnished, tmp_path, more):
    settings = config(compare={**FEW, "strategies": ["direct"]})
    run(settings, tmp_path / "out")
    more = config(compare=more)
    data = tmp_path / "data"
    data.mkdir()
    for path in (furnished / "data").iterdir():
        (data / path.name).write_text(path.read_text() + ("w1 good,1\n" if path.name == "test.csv" else ""))
    entry = more.compare.tasks[0]
    moved = entry.model_copy(update={"task": entry.task.model_copy(update={"data": data})})
    more = more.model_copy(update={"compare": more.compare.model_copy(update={"tasks": (moved,)})})
    before = written(tmp_path / "out")
    with pytest.raises(StudyError, match="the data's final") as caught:
        run(more, tmp_path / "out")
    one_line(caught)
    assert written(tmp_path / "out") == before


def test_an_assistant_of_many_digits_is_found_by_its_rounded_name(config, tmp_path):
    comparison = config(search={"sparsities": [1 / 3, 0.5]}, compare={"strategies": ["largest"], "seeds": [0]})
    assert run(comparison, tmp_path) == {}
    (record,) = [
        record
        for cell, record in recorded(comparison, all_cells(comparison, tmp_path), tmp_path).items()
        if cell.kind == "assistant-0.333333"
    ]
    assert record.result["assistant"] == pytest.approx(1 / 3)
