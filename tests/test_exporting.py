"""Any candidate out of a finished study, in every format, and a student by what it may use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import autodisc
from autodisc import api, exporting, rehearsal
from autodisc.config import BudgetConfig, make_budget
from autodisc.errors import AutodiscError, ConfigError, ModelError, StudyError
from autodisc.finished import open_finished
from autodisc.models.checkpoints import load_model_config
from autodisc.models.layouts import encoder_parameters
from autodisc.models.modeling_autodisc import seal
from autodisc.opening import open_workspace
from autodisc.pruning.candidates import candidate
from autodisc.pruning.supernet import extract
from autodisc.reporting.records import read_records
from autodisc.search import students
from autodisc.workspace import Workspace

BATCH = {"input_ids": torch.tensor([[2, 9, 4, 11, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}


@pytest.fixture(autouse=True)
def _fewer_students(monkeypatch):
    """A trial is a dozen writes to a journal: every twentieth will do."""
    monkeypatch.setattr(students, "POINTS", tuple(round(0.05 * i, 2) for i in range(1, 20)))


@pytest.fixture
def counted_latency(monkeypatch):
    """A latency that no clock has a say in: a hundredth of a millisecond a unit."""

    def latency(space: Workspace, batch: int, length: int):
        return lambda each: 0.01 * (sum(each.heads) + sum(each.neurons)) * batch

    monkeypatch.setattr(Workspace, "latency", latency)


@pytest.fixture
def study(searched, tmp_path) -> Path:
    """A copy of a finished search, to change."""
    return Path(shutil.copytree(searched, tmp_path / "study"))


def refused(error: type[AutodiscError], match: str, call: Any, *arguments: Any, **others: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        call(*arguments, **others)
    assert "\n" not in str(caught.value)


def test_a_cut_at_a_trials_sparsity_is_what_the_trial_measured(searched, tmp_path):
    trials = open_finished(searched).searched.result["trials"]
    for trial in trials:
        out = tmp_path / str(trial["sparsity"])
        made = exporting.export(searched, out, sparsity=trial["sparsity"])
        assert {name: made[name] for name in ("metric", "params", "macs", "feasible")} == {
            name: trial[name] for name in ("metric", "params", "macs", "feasible")
        }
        assert encoder_parameters(autodisc.load(out)) == trial["params"]


def test_any_sparsity_between_the_supernets_and_the_students_can_be_cut(searched, config, tmp_path):
    finished = open_finished(searched)
    space = finished.open()
    for sparsity in (0.25, 0.61, 0.9):
        made = exporting.export(searched, tmp_path / f"{sparsity}", sparsity=sparsity)
        loaded = autodisc.load(tmp_path / f"{sparsity}")
        expected = finished.cut(space, candidate(space.ranking(), sparsity))
        assert torch.equal(loaded(**BATCH).logits, expected(**BATCH).logits)
        assert made["metric"] == space.evaluate(loaded, space.task.validation)["metric"]
        assert made["sparsity"] == sparsity


def test_a_cut_has_no_card_of_a_folder_that_is_called_as_its_scorer_is(searched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recovered").mkdir()
    (tmp_path / "recovered" / "README.md").write_text("another model")
    exporting.export(searched, tmp_path / "cut", sparsity=0.5)
    assert "sparsity 0.5" in (tmp_path / "cut" / "README.md").read_text()


@pytest.mark.parametrize("sparsity", [0.2, 0.91, 0.0, 1.5, -1.0])
def test_a_sparsity_beyond_the_supernet_is_refused_with_its_range(searched, tmp_path, sparsity):
    refused(
        ConfigError, r"has weights from 0\.25 to 0\.9", exporting.export, searched, tmp_path / "x", sparsity=sparsity
    )
    assert not list(tmp_path.iterdir())


def test_a_dense_export_opens_by_transformers_alone_and_computes_the_same(searched, tmp_path):
    small = exporting.export(searched, tmp_path / "small", sparsity=0.7)
    made = exporting.export(searched, tmp_path / "dense", sparsity=0.7, format="dense")
    assert made["max_difference"] < 1e-5
    assert made["metric"] == small["metric"]
    dense = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense")
    assert "autodisc" not in (tmp_path / "dense" / "config.json").read_text()
    torch.testing.assert_close(dense(**BATCH).logits, autodisc.load(tmp_path / "small")(**BATCH).logits)


def test_an_onnx_export_computes_what_torch_does_and_int8_says_what_it_costs(searched, tmp_path):
    from autodisc.models.onnx import OnnxModel

    exporting.export(searched, tmp_path / "small", sparsity=0.5)
    made = exporting.export(searched, tmp_path / "onnx", sparsity=0.5, format="onnx", int8=True)
    assert made["max_difference"] <= 1e-4
    assert {"metric", "bytes"} <= made["int8"].keys()
    expected = autodisc.load(tmp_path / "small")(**BATCH).logits.detach().numpy()
    inputs = {name: x.numpy() for name, x in BATCH.items()}
    inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])
    np.testing.assert_allclose(OnnxModel(tmp_path / "onnx").logits(inputs), expected, atol=1e-4)
    assert OnnxModel(tmp_path / "onnx" / made["int8"]["file"]).logits(inputs).shape == (1, 2)


def test_without_a_sparsity_the_newest_student_is_exported_wherever_the_study_lies(study, tmp_path):
    refused(StudyError, "no student was distilled yet; give a sparsity from", exporting.export, study, tmp_path / "x")
    api.distill(study)
    moved = study.rename(tmp_path / "moved")
    made = exporting.export(moved, tmp_path / "student")
    own = moved / "distilled-1" / "student"
    assert torch.equal(autodisc.load(own)(**BATCH).logits, autodisc.load(tmp_path / "student")(**BATCH).logits)
    assert made["sparsity"] == 0.9
    assert made["metric"] == read_records([moved])[-1].result["student"]["validation_metric"]
    assert (tmp_path / "student" / "README.md").read_text() == (own / "README.md").read_text()

    assert [load_model_config(folder).trained_length for folder in (own, tmp_path / "student")] == [64, 64]
    assert [load_model_config(folder).trained_texts for folder in (own, tmp_path / "student")] == [["sentence"]] * 2
    dense = exporting.export_model(own, tmp_path / "dense", format="dense")
    assert "metric" not in dense
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense")
    torch.testing.assert_close(found(**BATCH).logits, autodisc.load(own)(**BATCH).logits)
    listed = exporting.candidates(moved)["student"]
    assert (listed["metric"], listed["path"]) == (made["metric"], str(own))


def test_a_models_folder_needs_its_task_for_onnx(searched, config, tmp_path):
    exporting.export(searched, tmp_path / "small", sparsity=0.5)
    refused(ConfigError, "real texts", exporting.export_model, tmp_path / "small", tmp_path / "onnx", format="onnx")
    settings = config(teacher={"model": str(tmp_path / "small")})
    told = json.loads((tmp_path / "small" / "config.json").read_text())
    edited = {**told, "trained_length": 16}
    (tmp_path / "small" / "config.json").write_text(json.dumps(edited))
    seal(tmp_path / "small", [])
    made = exporting.export_model(tmp_path / "small", tmp_path / "onnx", format="onnx", config=settings)
    beside = json.loads((tmp_path / "onnx" / "onnx.json").read_text())
    assert (beside["max_length"], beside["trained_texts"]) == (16, ["sentence"])
    assert made["max_difference"] <= 1e-4
    assert (tmp_path / "onnx" / "model.onnx").is_file()
    refused(ConfigError, "copy it", exporting.export_model, tmp_path / "small", tmp_path / "x", format="autodisc")


def test_the_least_sparse_candidate_within_a_budget_is_cut(searched, tmp_path):
    teacher = open_finished(searched).searched.result["teacher"]
    budget = BudgetConfig(params=round(0.4 * teacher["params"]), macs=round(0.55 * teacher["macs"]))
    made = exporting.export(searched, tmp_path / "small", budget=budget)
    assert made["params"] <= budget.params
    assert made["macs"] <= budget.macs
    larger = exporting.export(searched, tmp_path / "larger", sparsity=round(made["sparsity"] - 0.01, 2))
    assert larger["params"] > budget.params or larger["macs"] > budget.macs
    assert made["used"]["budget"]["params"] == budget.params


def test_a_latency_leads_to_the_candidate_that_has_it(searched, tmp_path, counted_latency):
    made = exporting.export(searched, tmp_path / "small", budget=BudgetConfig(latency_ms=0.5, batch=2))
    assert made["used"]["latency_ms"] <= 0.5
    tighter = exporting.export(searched, tmp_path / "tight", budget=BudgetConfig(latency_ms=0.25, batch=2))
    assert tighter["sparsity"] > made["sparsity"]


def test_bad_requests_are_one_line_and_write_nothing(searched, tmp_path):
    out, export = tmp_path / "x", exporting.export
    refused(ConfigError, "no candidate of the study meets it; the nearest, of sparsity", export, searched, out,
            budget=make_budget({"params": 3}))  # fmt: skip
    refused(ConfigError, "contradicts the budget", export, searched, out, sparsity=0.5, budget=make_budget({"macs": 3}))
    refused(ConfigError, "format: got 'gguf'; expected", export, searched, out, sparsity=0.5, format="gguf")
    refused(ConfigError, "int8: is for format onnx", export, searched, out, sparsity=0.5, int8=True)
    refused(ModelError, "opset: got 7", export, searched, out, sparsity=0.5, format="onnx", opset=7)
    refused(StudyError, "no finished search", export, tmp_path / "none", out, sparsity=0.5)
    refused(StudyError, "no finished search", exporting.candidates, tmp_path / "none")
    assert not list(tmp_path.iterdir())
    out.mkdir()
    (out / "mine.txt").touch()
    refused(StudyError, "holds something already", export, searched, out, sparsity=0.5)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_the_folder_that_one_is_in_is_not_replaced(searched, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in (Path("."), tmp_path, Path(f"../{tmp_path.name}")):
        refused(StudyError, "is the folder that you are in", exporting.export, searched, out, sparsity=0.5)
        refused(StudyError, "is the folder that you are in", api.finetune, config(), out)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_half_export(searched, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "save_model", fail)
    refused(AutodiscError, "No space left", exporting.export, searched, tmp_path / "x", sparsity=0.5)
    assert not list(tmp_path.iterdir())


def test_a_study_whose_supernet_is_gone_says_so(study, tmp_path):
    shutil.rmtree(study / "supernet")
    refused(StudyError, "is gone", exporting.export, study, tmp_path / "x", sparsity=0.5)


def test_a_study_without_a_feasible_candidate_is_exported_by_sparsity(config, tmp_path):
    nothing_left = {"scorer": "pruned", "sparsities": [0.98]}
    api.search(config(student_sparsity=0.99, search=nothing_left), tmp_path / "study")
    made = exporting.export(tmp_path / "study", tmp_path / "out", sparsity=0.98)
    assert not made["feasible"]
    assert not any(row["chosen"] or row["feasible"] for row in exporting.candidates(tmp_path / "study")["candidates"])


def test_a_pruned_study_is_cut_and_refitted_at_any_sparsity(config, tmp_path):
    found = api.search(config(search={"scorer": "pruned", "margin": 0.0, "sparsities": [0.25]}), tmp_path / "study")
    made = exporting.export(tmp_path / "study", tmp_path / "scored", sparsity=0.25)
    assert made["metric"] == found["trials"][0]["metric"]
    exporting.export(tmp_path / "study", tmp_path / "other", sparsity=0.1)
    space = open_finished(tmp_path / "study").open()
    unfitted = extract(space.teacher, space.ranking(), candidate(space.ranking(), 0.1))
    assert not torch.equal(autodisc.load(tmp_path / "other")(**BATCH).logits, unfitted(**BATCH).logits)


def test_candidates_are_the_trials_beside_teacher_and_student(searched, counted_latency):
    found = exporting.candidates(searched, batch=3)
    recorded = open_finished(searched).searched.result
    assert [row["sparsity"] for row in found["candidates"]] == [0.25, 0.5, 0.75]
    for row, trial in zip(found["candidates"], recorded["trials"], strict=True):
        assert {name: row[name] for name in ("metric", "params", "macs", "feasible")} == {
            name: trial[name] for name in ("metric", "params", "macs", "feasible")
        }
        units = sum(trial["candidate"]["heads"]) + sum(trial["candidate"]["neurons"])
        assert row["latency_ms"] == pytest.approx(0.03 * units)
    assert [row["sparsity"] for row in found["candidates"] if row["chosen"]] == [recorded["best"]["sparsity"]]
    assert found["teacher"]["params"] == recorded["teacher"]["params"]
    assert found["student"]["sparsity"] == 0.9
    assert (found["latency"]["batch"], found["latency"]["length"]) == (3, 64)
    assert found["exportable"] == {"from": 0.25, "to": 0.9}
    json.dumps(found)


def test_a_pruned_teachers_candidates_have_no_latency(searched, config, tmp_path):
    exporting.export(searched, tmp_path / "half", sparsity=0.5)
    api.search(config(teacher={"model": str(tmp_path / "half")}, search={"sparsities": [0.75]}), tmp_path / "study")
    found = exporting.candidates(tmp_path / "study")
    rows = (found["teacher"], *found["candidates"], found["student"])
    assert all(row["latency_ms"] is None and row["params"] > 0 for row in rows)


def test_latencies_of_candidates_are_timed_on_this_machine(searched):
    found = exporting.candidates(searched, length=16)
    assert all(row["latency_ms"] > 0 for row in (found["teacher"], *found["candidates"], found["student"]))


def test_a_budget_stands_in_for_the_students_sparsity_from_search_to_baseline(config, tmp_path, counted_latency):
    out = tmp_path / "study"
    budget = {"params": 5_000, "latency_ms": 0.5}
    settings = config(budget=budget, search={"sparsities": [0.25, 0.5]})
    found = api.search(settings, out)
    student = found["student"]
    assert student["params"] <= 5_000
    assert student["latency_ms"] <= 0.5
    for trial in found["trials"]:
        units = sum(trial["candidate"]["heads"]) + sum(trial["candidate"]["neurons"])
        assert trial["latency_ms"] == pytest.approx(0.01 * units)
        assert trial["params"] > student["params"]
    record = read_records([out])[-1]
    assert record.values["config"]["student_sparsity"] == student["sparsity"]
    assert api.search(settings, out)["student"] == student

    made = api.distill(out)
    assert made["student"]["sparsity"] == student["sparsity"]
    assert made["student"]["params"] == student["params"]
    best = api.baseline(settings, "direct", out)["best"]
    assert best["params"] == student["params"]
    alone = api.baseline(settings, "direct", tmp_path / "alone")["best"]
    assert alone["params"] == student["params"]
    listed = exporting.candidates(out)
    assert listed["student"]["sparsity"] == listed["exportable"]["to"] == student["sparsity"]
    refused(StudyError, r"budget\.params: 5000 -> 4900", api.search, config(budget={**budget, "params": 4_900},
            search={"sparsities": [0.25, 0.5]}), out)  # fmt: skip


def test_a_latency_that_is_measured_otherwise_next_time_changes_no_student(
    config, tmp_path, monkeypatch, make_listener
):
    settings = config(budget={"latency_ms": 0.5}, search={"sparsities": [0.25]})
    monkeypatch.setattr(Workspace, "latency", lambda *_: lambda each: 0.01 * (sum(each.heads) + sum(each.neurons)))
    with pytest.raises(KeyboardInterrupt):
        api.search(settings, tmp_path / "out", progress=make_listener("recovery", after=2))
    monkeypatch.setattr(Workspace, "latency", lambda *_: lambda each: 0.03 * (sum(each.heads) + sum(each.neurons)))
    resumed = api.search(settings, tmp_path / "out")["student"]
    assert resumed["latency_ms"] <= 0.5
    monkeypatch.setattr(Workspace, "latency", lambda *_: lambda each: 0.01 * (sum(each.heads) + sum(each.neurons)))
    assert api.search(settings, tmp_path / "once")["student"] == resumed


@pytest.mark.parametrize(
    ("budget", "search", "match"),
    [
        ({"params": 3}, {}, "no student meets it; the nearest"),
        ({"params": "9M"}, {}, "the teacher itself meets it"),
        ({"params": 5_000}, {"sparsities": [0.25, 0.97]}, r"got 0\.97, at or beyond the student's 0\..*the budget"),
    ],
)
def test_a_budget_that_leads_to_no_student_leaves_nothing_behind(config, tmp_path, budget, search, match):
    refused(ConfigError, match, api.search, config(budget=budget, search=search), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_study_by_budget_is_predicted_for_a_student_within_it(config, tmp_path):
    space = open_workspace(config(budget={"params": 5_000}, search={"sparsities": [0.25]}))
    bench = rehearsal._Bench(space, tmp_path)
    smallest = extract(space.teacher, bench.ranking, bench.nested[-1])
    assert bench.config.student > 0.5
    assert encoder_parameters(smallest) <= 5_000
