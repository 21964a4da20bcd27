from __future__ import annotations

import csv
import dataclasses
import io
import json

import optuna
import optuna_dashboard
import pytest
from optuna.artifacts import get_all_artifact_meta

from autodisc.costs import Cost
from autodisc.reporting.live import About, Live, live_figures, live_summary, study_note, trial_note

ABOUT = About(
    name="mrpc",
    strategy="autodisc",
    task="mrpc",
    metric_name="accuracy_f1",
    teacher="/models/mrpc",
    teacher_metric=0.84,
    student_sparsity=0.9,
    lam=0.2,
    margin=1.0,
    scorer="recovered",
    labels=("different", "same"),
    heads=12,
    neurons=1536,
    projected_flops=4e14,
)


def attributes_of(trial):
    return {name: trial[name] for name in trial if name not in ("number", "state", "tradeoff", "feasible")} | {
        "examples": 408
    }


@pytest.fixture
def study():
    return optuna.create_study(direction="maximize")


@pytest.fixture
def live(study, make, tmp_path):
    """A study of the records' seven candidates, told one by one."""
    found = make.search()["result"]["trials"]
    told = []

    def result():
        return make.search_result(found[: len(told)])

    live = Live(
        study, ABOUT, tmp_path / "artifacts", result=result, spent=lambda: {"recovery": Cost(30.0, 100, 2e12, 1.0)}
    )
    return live, found, told


def attributes(study):
    return study._storage.get_study_system_attrs(study._study_id)


def ids(study):
    return {key.split(":")[2] for key in attributes(study) if key.startswith("dashboard:plot_data:")}


def test_a_study_that_has_just_begun_says_what_it_asks_and_what_it_cost(live, study):
    live[0].refresh()
    note = optuna_dashboard._note.get_note(study)
    assert "Which teacher assistant should stand between /models/mrpc and its student of sparsity 0.9?" in note
    assert "2 TFLOPs" in note
    assert "projected at 400 TFLOPs: 0.5 % of it" in note
    assert ids(study) == {"autodisc-5-cost"}


def test_pictures_follow_the_trials_under_the_same_ids(live, study):
    watch, found, told = live
    told.append(found[0])
    watch.refresh()
    first, keys = ids(study), len(attributes(study))
    told += found[1:]
    watch.refresh()
    names = ("1-tradeoff", "2-scale", "3-lambda", "4-heads", "4-neurons", "5-cost")
    assert first == {f"autodisc-{name}" for name in names}
    assert ids(study) == first
    assert "the study chose the teacher assistant of sparsity 0.8" in optuna_dashboard._note.get_note(study)
    stored = sum(len(str(value)) for value in attributes(study).values())
    assert stored < 40_000  # the storage takes it in pieces of 2,045 characters
    watch.refresh()
    assert len(attributes(study)) < keys + 20


def test_drawing_is_left_out_when_it_would_cost_more_than_its_share(live, study, monkeypatch):
    watch = live[0]
    clock = [0.0]
    monkeypatch.setattr("autodisc.reporting.live.time.perf_counter", lambda: clock[0])
    drawn = []

    def slow(*_):
        drawn.append(clock[0])
        clock[0] += 1.0

    monkeypatch.setattr("autodisc.reporting.live.decorate", slow)
    watch.refresh()
    for moment in (2.0, 15.0, 25.0, 26.0, 50.0):
        clock[0] = moment
        watch.told()
    assert drawn == [0.0, 25.0, 50.0]  # a second of drawing, then twenty of work


def test_a_trial_gets_a_note_and_its_artifacts(live, study, make):
    watch, found, _ = live
    trial = study.ask()
    for name, value in attributes_of(found[4]).items():
        trial.set_user_attr(name, value)
    watch.measured(trial, [[120, 9], [20, 259]])
    study.tell(trial, 0.9)
    note = optuna_dashboard._note.get_note(trial)
    assert "The candidate of sparsity 0.7" in note
    assert "on 408 validation examples" in note
    assert "**feasible**" in note
    kept = {meta.filename: meta for meta in get_all_artifact_meta(study.trials[0], storage=study._storage)}
    assert set(kept) == {"candidate.json", "kept-by-layer.png", "confusion.csv"}
    content = {name: (watch._artifacts / meta.artifact_id).read_bytes() for name, meta in kept.items()}
    assert json.loads(content["candidate.json"])["heads"] == found[4]["candidate"]["heads"]
    assert content["kept-by-layer.png"].startswith(b"\x89PNG")
    rows = list(csv.DictReader(io.StringIO(content["confusion.csv"].decode())))
    assert rows[1] == {"label": "same", "says different": "20", "says same": "259"}


def test_a_baseline_s_trial_says_what_was_distilled(make):
    found = {
        "sparsity": 0.7, "candidate": make.trial(0, 0.7, 0.8)["candidate"], "assistant_metric": 0.81,
        "seconds": 60.0, "flops": 1e12,
    }  # fmt: skip
    assert "the assistant reaches 0.810" in trial_note(found, dataclasses.replace(ABOUT, strategy="maxidisc"))


def test_a_baseline_shows_its_students_and_its_cost(make):
    about = dataclasses.replace(ABOUT, strategy="maxidisc")
    summary = live_summary(about, make.baseline()["result"], {"students": Cost(60.0, 10, 1e13, 1.0)})
    assert [name for name, _ in live_figures(summary, about)] == ["autodisc-1-students", "autodisc-5-cost"]
    assert "The best of 7 students so far" in study_note(summary, about)


def test_names_from_outside_are_text_in_notes_and_pictures(make):
    evil = "<img src=x onerror=alert(1)>"
    about = dataclasses.replace(ABOUT, task=evil, metric_name=evil, teacher=evil)
    summary = live_summary(about, make.search()["result"], {evil: Cost(1.0, 1, 1e12, 1.0)})
    assert "<img" not in study_note(summary, about)
    for _, figure in live_figures(summary, about):
        assert "<img" not in figure.to_json()


def test_two_thousand_trials_stay_small_in_the_storage(make, study):
    many = [make.trial(i, 0.2 + i * 0.0003, 0.85 - i * 0.00004) for i in range(2000)]
    summary = live_summary(ABOUT, make.search_result(many), {})
    sizes = {name: len(figure.to_json()) for name, figure in live_figures(summary, ABOUT)}
    assert max(sizes.values()) < 60_000, sizes
