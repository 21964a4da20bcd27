"""Commands that were stopped go on, finished ones return what they made, and a folder is one configuration's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from autodisc import api, preparing
from autodisc.cli import main
from autodisc.distillation.launching import _refuse_in_use
from autodisc.errors import StudyError
from autodisc.finished import Finished
from autodisc.leases import LostLeaseError, leased
from autodisc.models.checkpoints import load, save_model
from autodisc.progress import Silent
from autodisc.reporting.records import read_records
from autodisc.resuming import next_free, unfinished_teacher


@pytest.fixture
def study(searched, tmp_path) -> Path:
    return Path(shutil.copytree(searched, tmp_path / "study"))


def kinds(out: Path) -> list[str]:
    return [record.kind for record in read_records([out])]


@pytest.mark.parametrize("stage", ["teacher to assistant", "assistant to student"])
def test_an_interrupted_distillation_goes_on_in_its_folder_and_ends_in_the_same_bits(
    config, study, searched, tmp_path, make_listener, same_weights, stage
):
    whole = api.distill(Path(shutil.copytree(searched, tmp_path / "whole")))
    every_step = config(runtime={"checkpoint_minutes": 0})
    with pytest.raises(KeyboardInterrupt):
        api.distill(study, config=every_step, progress=make_listener(stage, after=3))
    assert kinds(study) == ["search"]
    made = api.distill(study)
    assert Path(made["student"]["path"]) == study / "distilled-1" / "student"
    for role in ("assistant", "student"):
        assert same_weights(load(made[role]["path"]), load(whole[role]["path"]))
    assert not (study / "distilled-1" / "unfinished").exists()
    once, twice = whole["cost"]["stages"], made["cost"]["stages"]
    for name in ("teacher to assistant", "assistant to student"):
        # The step that was cut off between its end and its state is all that is done twice.
        assert once[name]["tokens"] <= twice[name]["tokens"] <= 1.5 * once[name]["tokens"]


def test_a_finished_distillation_is_returned_and_other_settings_are_another(config, study, monkeypatch):
    first = api.distill(study)
    with monkeypatch.context() as patch:
        patch.setattr("autodisc.finished.open_workspace", None)
        again = api.distill(study, config=config(runtime={"threads": None}))
        assert {**again, "cost": None} == {**first, "cost": None}
    other = api.distill(study, config=config(distillation={"lr": 1e-3}))
    assert Path(other["student"]["path"]).parent.name == "distilled-2"
    assert kinds(study) == ["search", "distill", "distill"]


class Listening(Silent):
    """Remembers what it is told, and lets others wait for that."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.heard = threading.Event()

    def say(self, text: str) -> None:
        self.said.append(text)
        self.heard.set()


@pytest.mark.parametrize(
    ("lease", "call"),
    [
        ("study/running.lease", lambda config, out, **how: api.search(config(), out, **how)),
        (
            "study/baseline-direct/running.lease",
            lambda config, out, **how: api.baseline(config(), "direct", out, **how),
        ),
        ("study/teacher.lease", lambda config, out, **how: api.finetune(config(), out / "teacher", **how)),
    ],
)
def test_a_command_waits_for_who_works_in_its_folder_and_says_for_whom(
    config, study, tmp_path, monkeypatch, lease, call
):
    done = {"best": None}
    monkeypatch.setattr(api, "made", lambda *_, **__: done)  # as the other has left it
    listening = Listening()
    with ThreadPoolExecutor(1) as pool:
        with leased(tmp_path / lease):
            second = pool.submit(call, config, study, progress=listening)
            assert listening.heard.wait(30)
            assert not second.done()
        assert second.result(30) is done
    who = f"waiting for process {os.getpid()} on {socket.gethostname()}"
    assert [line.partition(": ")[2] for line in listening.said] == [who]
    assert not list(study.rglob("*.lease"))


def test_who_has_waited_finds_the_settings_of_the_other_and_is_refused(config, searched, tmp_path):
    out, listening = tmp_path / "study", Listening()
    with ThreadPoolExecutor(1) as pool:
        with leased(out / "running.lease"):
            second = pool.submit(api.search, config(search={"lam": 0.5}), out, progress=listening)
            assert listening.heard.wait(30)
            shutil.copy(searched / "config.yaml", out)
        with pytest.raises(StudyError, match=r"search\.lam: 0\.2 -> 0\.5"):
            second.result(30)


@pytest.mark.parametrize("changes", [{}, {"distillation": {"lr": 1e-3}}], ids=["same", "other"])
def test_a_distillation_that_comes_while_another_opens_its_teacher_spoils_nothing(
    config, study, monkeypatch, same_weights, changes
):
    first, opened, both = Finished.open, threading.Event(), ThreadPoolExecutor(1)
    listening, seconds = Listening(), []

    def slowly(self, *arguments, **named):
        if not opened.is_set():
            opened.set()
            seconds.append(both.submit(api.distill, study, config=config(**changes), progress=listening))
            if changes:
                seconds[0].result(60)
            else:
                assert listening.heard.wait(60)
        return first(self, *arguments, **named)

    monkeypatch.setattr(Finished, "open", slowly)
    with both:
        one = api.distill(study)
        two = seconds[0].result(60)
    made = [record for record in read_records([study]) if record.kind == "distill"]
    if not changes:
        assert listening.said[0].startswith(f"{study}/distilled-1: waiting for process")
        assert (two["student"]["path"], len(made)) == (one["student"]["path"], 1)
        return
    paths = [Path(found["student"]["path"]) for found in (one, two)]
    assert [path.parent.name for path in paths] == ["distilled-1", "distilled-2"]
    assert not same_weights(*map(load, paths))
    for folder, lr in zip(paths, (3e-3, 1e-3), strict=True):
        assert yaml.safe_load((folder.parent / "config.yaml").read_text())["distillation"]["lr"] == lr
    assert not list(study.rglob("unfinished"))


def test_who_stood_still_while_another_took_over_records_nothing(config, study, monkeypatch):
    made, booked = api._distil, []

    def taken_over(*arguments):
        found = made(*arguments)
        booked.append((study / "distilled-1" / "ledger.json").read_text())
        (study / "distilled-1" / "running.lease").write_bytes(b"another's")
        return found

    monkeypatch.setattr(api, "_distil", taken_over)
    with pytest.raises(LostLeaseError):
        api.distill(study)
    assert not [record for record in read_records([study]) if record.kind == "distill"]
    assert (study / "distilled-1" / "unfinished").exists()  # which is the other's by now, as the ledger
    assert [(study / "distilled-1" / "ledger.json").read_text()] == booked


def test_launched_processes_refuse_a_folder_that_another_command_works_in(study, tmp_path):
    _refuse_in_use(study)
    for folder in (study, study / "distilled-1"):
        with leased(folder / "running.lease"), pytest.raises(StudyError, match="works in it; wait for it"):
            _refuse_in_use(study)
    teacher = unfinished_teacher(tmp_path / "teacher")
    teacher.folder.mkdir()
    with leased(teacher.lease), pytest.raises(StudyError, match="works in it"):
        _refuse_in_use(tmp_path / "teacher")


def test_a_distillation_that_is_refused_leaves_no_folder(config, study, monkeypatch):
    def refuse(*_, **__):
        raise StudyError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Finished, "open", refuse)
        with pytest.raises(StudyError, match="no"):
            api.distill(study)
    assert not list(study.glob("distilled-*"))


def test_what_was_made_is_returned_where_it_lies_by_now(config, study, tmp_path):
    api.distill(study)
    api.baseline(config(), "direct", study)
    moved = study.rename(tmp_path / "moved")
    again, direct = api.distill(moved), api.baseline(config(), "direct", moved)
    for model, folder in (
        (again["assistant"], "distilled-1/assistant"),
        (again["student"], "distilled-1/student"),
        (direct["best"], "baseline-direct/student"),
    ):
        assert Path(model["path"]) == moved / folder
        assert load(model["path"])


def test_a_distillation_of_other_settings_leaves_an_unfinished_one_alone(config, study, make_listener):
    with pytest.raises(KeyboardInterrupt):
        api.distill(study, progress=make_listener("teacher to assistant", after=2))
    other = api.distill(study, config=config(distillation={"lr": 1e-3}))
    assert Path(other["student"]["path"]).parent.name == "distilled-2"
    assert Path(api.distill(study)["student"]["path"]).parent.name == "distilled-1"


def test_a_student_that_was_removed_is_made_again(study):
    api.distill(study)
    shutil.rmtree(study / "distilled-1")
    assert load(api.distill(study)["student"]["path"])


def test_an_interrupted_fine_tuning_goes_on_and_a_finished_one_is_returned(
    config, furnished, tmp_path, make_listener, same_weights
):
    settings = config(teacher={"model": str(furnished / "encoder"), "finetune": {"epochs": 2, "lr": 3e-3}})
    whole = api.finetune(settings, tmp_path / "whole")
    out = tmp_path / "teacher"
    for after in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            api.finetune(settings, out, progress=make_listener("fine-tuning", after=after))
        assert (tmp_path / "teacher.unfinished").is_dir()
        assert not out.exists()
    with pytest.raises(StudyError, match=r"another configuration \(teacher.finetune.lr: 0.003 -> 0.001\)"):
        api.finetune(config(teacher={"model": str(furnished / "encoder"), "finetune": {"epochs": 2, "lr": 1e-3}}), out)
    made = api.finetune(settings, out)
    assert made["metric"] == whole["metric"]
    assert same_weights(load(out), load(tmp_path / "whole"))
    assert not (tmp_path / "teacher.unfinished").exists()
    assert api.finetune(settings, out) == api.finetune(settings, out)
    assert kinds(out) == ["finetune"]


def test_a_folder_of_another_teacher_or_other_rows_is_refused_with_what_differs(
    config, furnished, tmp_path, tiny, word_tokenizer, make_listener
):
    shutil.copytree(furnished / "teacher", tmp_path / "teacher")
    shutil.copytree(furnished / "data", tmp_path / "data")
    settings = config(teacher={"model": str(tmp_path / "teacher")}, task={"data": str(tmp_path / "data")})
    out = tmp_path / "study"
    with pytest.raises(KeyboardInterrupt):
        api.search(settings, out, progress=make_listener("recovery", after=2))
    with (tmp_path / "data" / "train.csv").open("a") as file:
        file.write("w1 good w2,1\n")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(StudyError, match=r"other data \(train: .* -> .*\).*--new") as caught:
        api.search(settings, out)
    assert "teacher:" not in str(caught.value)
    save_model(tiny(layers=2, seed=9), word_tokenizer, tmp_path / "teacher" / "model")
    for path in (tmp_path / "teacher" / "model").iterdir():
        shutil.copy(path, tmp_path / "teacher" / path.name)
    with pytest.raises(StudyError, match=r"another teacher .*\(teacher: .* -> .*; train: "):
        api.search(settings, out)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_an_unfinished_search_of_before_trials_saw_a_part_goes_on_with_all_which_the_refusal_names(
    config, tmp_path, make_listener, monkeypatch
):
    out = tmp_path / "study"
    every = config(search={"examples": "all", "sparsities": [0.25, 0.5]})
    without = {name: value for name, value in preparing.search_settings(every).items() if name != "search.examples"}
    with monkeypatch.context() as patch:
        patch.setattr(api, "search_settings", lambda _: without)
        with pytest.raises(KeyboardInterrupt):
            api.search(every, out, progress=make_listener("trials", after=1))
    values = yaml.safe_load((out / "config.yaml").read_text())
    del values["search"]["examples"]
    (out / "config.yaml").write_text(yaml.safe_dump(values))
    with monkeypatch.context() as patch:  # as where validation is large beside train
        patch.setattr("autodisc.config.searching.LEAST_SCORED", 30)
        patch.setattr("autodisc.config.searching.SCORED", 0.0)
        with pytest.raises(StudyError, match=r"search\.examples: all -> None.*--set search\.examples=all") as caught:
            api.search(config(search={"sparsities": [0.25, 0.5]}), out)
        assert "\n" not in str(caught.value)
        found = api.search(every, out)
    assert (found["examples"], len(found["trials"])) == (80, 2)


def test_new_takes_the_next_free_folder_and_says_which(tmp_path, capsys, monkeypatch, furnished):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(api, "search", lambda config, out, progress: seen.append(out) or {})
    for taken in ("a", "a-2"):
        (tmp_path / taken).mkdir()
    line = f"search --teacher {furnished}/teacher --task mine --metric accuracy --data {furnished}/data --out a --new"
    assert main([*line.split(), "--json"]) == 0
    assert [str(path) for path in seen] == ["a-3"]
    assert "new: a-3" in capsys.readouterr().err
    (tmp_path / "a-3.unfinished").mkdir()
    assert next_free(tmp_path / "a") == tmp_path / "a-4"


def test_sigterm_is_exit_code_130_and_the_line_that_says_that_the_same_command_goes_on(
    config, furnished, tmp_path, monkeypatch, capsys
):
    def terminate(*_, **__):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(api, "search", terminate)
    before = signal.getsignal(signal.SIGTERM)
    line = f"search --teacher {furnished}/teacher --task mine --metric accuracy --data {furnished}/data"
    assert main([*line.split(), "--out", str(tmp_path / "a")]) == 130
    assert capsys.readouterr().err == ("interrupted; what was finished is kept, the same command goes on from there\n")
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setattr(api, "evaluate", terminate)
    line = line.replace("search --teacher", "evaluate --model")
    assert main(line.split()) == 130
    assert capsys.readouterr().err == "interrupted; the same command begins anew\n"


def test_a_command_that_was_stopped_has_booked_what_it_spent(config, tmp_path, make_listener):
    out = tmp_path / "study"
    with pytest.raises(KeyboardInterrupt):
        api.search(config(), out, progress=make_listener("recovery", after=5))
    booked = json.loads((out / "ledger.json").read_text())["stages"]
    assert booked["recovery"]["tokens"] > 0
    assert booked["importance"]["flops"] > 0
