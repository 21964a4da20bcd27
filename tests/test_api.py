"""The main path on a tiny teacher and a CSV that it has learnt; reruns, refusals and full disks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import autodisc
from autodisc import api, exporting, preparing
from autodisc.config import StudyConfig
from autodisc.errors import AutodiscError, ConfigError, DataError, ModelError, StudyError
from autodisc.finished import open_finished
from autodisc.models.checkpoints import load_model, load_tokenizer, save_model
from autodisc.opening import open_workspace
from autodisc.reporting.records import read_records
from autodisc.reporting.report import write_report


@pytest.fixture
def study(searched, tmp_path) -> Path:
    """A copy of a finished search, to change."""
    return Path(shutil.copytree(searched, tmp_path / "study"))


def records(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "records").glob("*"))


def chosen(result: dict[str, Any]) -> list[Any]:
    rows = [row for row in result["trials"] if row["state"] == "COMPLETE"]
    return [result["best"] and result["best"]["sparsity"], *((row["sparsity"], row["metric"]) for row in rows)]


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_search_then_distill_then_baselines_from_csv_to_students(config, tmp_path):
    out = tmp_path / "study"
    settings = config(search={"sparsities": [0.5, 0.75]})
    found = api.search(settings, out)
    assert [row["sparsity"] for row in found["trials"]] == [0.5, 0.75]
    assert found["best"]["feasible"]
    assert {"importance", "recovery", "teacher outputs", "trials"} <= set(found["cost"]["stages"])

    made = api.distill(out)
    assert made["assistant"]["sparsity"] == found["best"]["sparsity"]
    assert made["student"]["sparsity"] == 0.9
    assert made["student"]["split"] == "test"
    assert "importance" not in made["cost"]["stages"]  # the search has paid for it
    loaded = autodisc.load(made["student"]["path"])
    assert made["student"]["params"] == sum(p.numel() for p in loaded.bert.encoder.parameters())
    evaluated = api.evaluate(config(teacher={"model": made["student"]["path"]}), "test")
    assert evaluated["metric"] == made["student"]["metric"]
    assert evaluated["examples"] == 60
    on_validation = api.evaluate(config(teacher={"model": made["student"]["path"]}))
    assert on_validation["metric"] == made["student"]["validation_metric"]

    for strategy in ("maxidisc", "direct"):
        compared = api.baseline(settings, strategy, out)
        assert compared["best"]["student_metric"] == max(row["student_metric"] for row in compared["trials"])
        again = api.evaluate(config(teacher={"model": compared["best"]["path"]}))
        assert again["metric"] == compared["best"]["student_metric"]
        assert compared["cost"]["flops"] > found["cost"]["flops"] / 10
    kinds = [(record.kind, record.strategy) for record in read_records([out])]
    assert kinds == [("search", "autodisc"), ("distill", "autodisc"), ("baseline", "maxidisc"), ("baseline", "direct")]


@pytest.mark.parametrize("scorer", ["recovered", "pruned"])
def test_trials_are_scored_on_the_rows_asked_for_and_the_student_on_all(config, tmp_path, scorer):
    settings = config(search={"sparsities": [0.5, 0.75], "examples": 30, "scorer": scorer})
    found = api.search(settings, tmp_path)
    finished = open_finished(tmp_path)
    space = finished.open()
    seen = preparing.scored(space).task.validation
    assert (found["examples"], len(seen), len(space.task.validation)) == (30, 30, 80)
    for row in found["trials"]:
        model = finished.cut(space, space.assistant(row))
        assert space.evaluate(model, seen)["metric"] == row["metric"]
    assert found["teacher"]["metric"] == space.evaluate(space.teacher, space.task.validation)["metric"]
    student = api.distill(tmp_path)["student"]
    on_all = api.evaluate(config(teacher={"model": student["path"]}))
    assert (on_all["examples"], on_all["metric"]) == (80, student["validation_metric"])
    with pytest.raises(StudyError, match=r"search\.examples: 30 -> all"):
        api.search(config(search={"sparsities": [0.5, 0.75], "examples": "all", "scorer": scorer}), tmp_path)


def test_the_rows_that_trials_see_are_the_seed_s_and_all_where_all_are_asked_for(config):
    def seen(**search):
        return preparing.scored(open_workspace(config(search=search, runtime={"seed": 3}))).task.validation

    whole = open_workspace(config()).task.validation
    assert seen(examples=30).fingerprint == seen(examples=30).fingerprint
    assert (
        seen(examples=30).fingerprint
        != preparing.scored(open_workspace(config(search={"examples": 30}))).task.validation.fingerprint
    )
    assert {seen().fingerprint, seen(examples="all").fingerprint, seen(examples=80).fingerprint} == {whole.fingerprint}


def test_a_part_of_one_label_is_refused_before_anything_is_written(config, furnished, tmp_path):
    data = Path(shutil.copytree(furnished / "data", tmp_path / "data"))
    rows = [f"w1 w2,{int(i == 7)}" for i in range(80)]
    (data / "validation.csv").write_text("\n".join(["sentence,label", *rows]) + "\n")
    settings = config(task={"data": str(data)}, search={"examples": 10})
    with pytest.raises(
        DataError, match=r"^search\.examples: the 10 rows of validation .* have one label alone"
    ) as caught:
        api.search(settings, tmp_path / "out")
    one_line(caught)
    assert not (tmp_path / "out").exists()


def test_a_rerun_returns_the_same_result_and_computes_nothing(config, study, monkeypatch):
    first = json.loads(next((study / "records").glob("search-*.json")).read_text())
    before = records(study)
    monkeypatch.setattr(api, "open_workspace", None)
    again = api.search(config(), study)
    assert again["cost"] == first["cost"]
    assert {key: again[key] for key in ("best", "trials")} == {key: first["result"][key] for key in ("best", "trials")}
    assert records(study) == before


def test_a_finished_baseline_is_not_run_again(config, tmp_path, monkeypatch):
    settings = config(search={"sparsities": [0.5]})
    first = api.baseline(settings, "maxidisc", tmp_path)
    monkeypatch.setattr(api, "open_workspace", None)
    assert api.baseline(settings, "maxidisc", tmp_path) == first
    assert len(records(tmp_path)) == 1


def test_a_warm_cache_chooses_alike_and_costs_what_it_cost_to_make(config, searched, tmp_path):
    settings = config(cache={"dir": str(tmp_path / "cache")})
    runs = [api.search(settings, tmp_path / name) for name in ("cold", "warm")]
    assert chosen(runs[0]) == chosen(runs[1]) == chosen(api.search(config(), searched))
    cold, warm = (run["cost"]["stages"] for run in runs)
    for stage in ("importance", "teacher outputs", "recovery"):
        assert warm[stage]["flops"] == pytest.approx(cold[stage]["flops"], rel=0.05)
    assert warm["importance"] == cold["importance"]


def test_an_interrupted_search_goes_on_and_chooses_alike(config, searched, tmp_path, make_listener, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        api.search(config(), tmp_path / "out", progress=make_listener("trials", after=2))
    assert not (tmp_path / "out" / "records").exists()
    monkeypatch.setattr(preparing, "recover", None)  # done, and found again
    found = api.search(config(), tmp_path / "out")
    assert chosen(found) == chosen(api.search(config(), searched))
    once = api.search(config(), searched)["cost"]["stages"]
    for stage in ("importance", "recovery", "teacher metric"):
        assert found["cost"]["stages"][stage]["flops"] == pytest.approx(once[stage]["flops"], rel=0.01)


def test_an_interrupted_baseline_goes_on_and_pays_for_each_part_once(config, tmp_path, make_listener):
    settings = config(search={"sparsities": [0.5, 0.75]})
    whole = api.baseline(settings, "maxidisc", tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        api.baseline(settings, "maxidisc", tmp_path / "out", progress=make_listener("maxidisc trials", after=1))
    found = api.baseline(settings, "maxidisc", tmp_path / "out")
    assert chosen_students(found) == chosen_students(whole)
    once, resumed = whole["cost"]["stages"], found["cost"]["stages"]
    for stage in ("importance", "teacher to assistant", "assistant to student"):
        assert resumed[stage]["flops"] == pytest.approx(once[stage]["flops"], rel=0.02), stage


def chosen_students(result: dict[str, Any]) -> list[Any]:
    return [result["best"]["sparsity"], *((row["sparsity"], row["student_metric"]) for row in result["trials"])]


def test_another_configuration_is_refused_with_the_fields_and_the_study_stays(config, study):
    before = records(study)
    with pytest.raises(StudyError) as caught:
        api.search(config(search={"lam": 0.4}, runtime={"seed": 3}), study)
    message = one_line(caught)
    assert "search.lam: 0.2 -> 0.4" in message
    assert "runtime.seed: 0 -> 3" in message
    assert records(study) == before


def test_settings_that_do_not_change_the_result_may_change(config, study, furnished):
    api.search(config(runtime={"threads": None}, cache={"max_gib": 0.5}), study)


def test_nothing_feasible_is_said_and_cannot_be_distilled(config, tmp_path):
    out = tmp_path / "study"
    nothing_left = {"scorer": "pruned", "sparsities": [0.98]}  # no head, no neuron: one answer for everything
    found = api.search(config(student_sparsity=0.99, search=nothing_left), out)
    assert found["best"] is None
    with pytest.raises(StudyError, match="no candidate left the floor") as caught:
        api.distill(out)
    assert "--recovery-steps" in one_line(caught)
    assert len(records(out)) == 1


def test_distilling_needs_a_finished_search(tmp_path):
    with pytest.raises(StudyError, match="holds no finished search") as caught:
        api.distill(tmp_path / "nothing")
    one_line(caught)
    assert not (tmp_path / "nothing").exists()


def test_what_a_copied_study_is_distilled_to_is_shown_in_the_copy(study, searched):
    original, own = (searched / "journal.log").read_bytes(), (study / "journal.log").read_bytes()
    api.distill(study)
    assert (searched / "journal.log").read_bytes() == original
    assert len((study / "journal.log").read_bytes()) > len(own)


def test_distilling_anew_is_a_new_folder_and_a_new_record(study):
    for number in (1, 2):
        made = api.distill(study, new=True)
        assert made["student"]["path"] == str(study / f"distilled-{number}" / "student")
    first, second = (autodisc.load(study / f"distilled-{n}" / "student").state_dict() for n in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [record.kind for record in read_records([study])] == ["search", "distill", "distill"]


def test_a_teacher_that_changed_since_the_search_is_refused(config, study, furnished, tmp_path, tiny, word_tokenizer):
    save_model(tiny(layers=2, seed=5), word_tokenizer, tmp_path / "other")
    with pytest.raises(StudyError, match="has changed since the search") as caught:
        api.distill(study, config=config(teacher={"model": str(tmp_path / "other")}))
    one_line(caught)


def test_the_pruned_scorer_trains_nothing(config, tmp_path):
    found = api.search(config(search={"scorer": "pruned", "margin": 0.0}), tmp_path / "study")
    assert not {"recovery", "teacher outputs"} & set(found["cost"]["stages"])
    assert len(found["trials"]) == 3


@pytest.mark.parametrize("change", [{"importance": {"examples": 16}}, {"recovery": {"steps": 3}}, {"lam": 0.5}])
def test_a_storage_refuses_a_study_of_the_same_name_made_otherwise(config, tmp_path, change):
    shared = {"storage": f"sqlite:///{tmp_path}/shared.db", "sparsities": [0.25]}
    api.search(config(search=shared), tmp_path / "one")
    with pytest.raises(StudyError, match=r"exists with another configuration .*--set name=NAME") as caught:
        api.search(config(search={**shared, **change}), tmp_path / "two")
    one_line(caught)
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("marked", [True, False])
def test_a_storage_refuses_the_study_of_another_folder_whose_supernet_its_trials_are_of(
    config, tmp_path, monkeypatch, marked
):
    if not marked:  # as of before studies knew their folders
        monkeypatch.setattr(api, "mark", lambda study, place: None)
    shared = config(search={"storage": f"sqlite:///{tmp_path}/shared.db", "sparsities": [0.25]})
    first = api.search(shared, tmp_path / "one")
    monkeypatch.undo()
    with pytest.raises(StudyError, match=r"its trials are of what lies in another folder.*--set name=NAME") as caught:
        api.search(shared, tmp_path / "two")
    one_line(caught)
    assert not (tmp_path / "two").exists()
    moved = (tmp_path / "one").rename(tmp_path / "moved")
    shutil.rmtree(moved / "records")  # as if it had been stopped before its end
    assert chosen(api.search(shared, moved)) == chosen(first)


def test_a_pruned_study_is_distilled_from_the_cut_it_scored(config, tmp_path, monkeypatch):
    out = tmp_path / "study"
    found = api.search(config(search={"scorer": "pruned", "margin": 0.0, "sparsities": [0.1, 0.25]}), out)
    started = []
    sandwich = api.distill_sandwich
    monkeypatch.setattr(api, "distill_sandwich", lambda *args: started.append(args[1]) or sandwich(*args))
    api.distill(out)
    space = api.open_workspace(config())
    assert found["best"]["metric"] == space.evaluate(started[0], space.task.validation)["metric"]


def test_a_baseline_beside_a_study_orders_the_units_as_the_study_did(config, study, monkeypatch):
    monkeypatch.setattr(api.Workspace, "ranking", lambda space: space.extra["ranking"])  # none is made
    result = api.baseline(config(search={"lam": 0.5, "scorer": "recovered"}), "direct", study)
    assert result["cost"]["stages"]["importance"]["flops"] > 0


def test_a_baseline_ranks_by_its_own_settings_and_its_own_teacher(config, study):
    def took(**changes):
        space = open_workspace(config(**changes))
        preparing.take_ranking(space, study)
        return "ranking" in space.extra

    assert took()
    assert took(search={"importance": {"examples": 32, "refit": False}})
    assert not took(search={"importance": {"examples": 16}})
    assert not took(search={"importance": {"examples": 32, "criterion": "fisher"}})
    made_of = json.loads((study / "made_of.json").read_text())
    for name, takes in (("teacher", False), ("train", False), ("validation", True)):
        (study / "made_of.json").write_text(json.dumps({**made_of, name: "another"}))
        assert took() == takes


def test_a_study_can_be_predicted_for_a_teacher_that_is_itself_pruned(config, study, tmp_path):
    api.distill(study)
    teacher = study / "distilled-1" / "assistant"
    predicted = api.predict_search(config(teacher={"model": str(teacher)}))["predicted"]
    assert predicted["flops"] > 0


def test_a_study_of_balances_can_be_predicted_and_distilled_through_a_chain(config, tmp_path):
    settings = config(
        search={"sparsities": (0.2, 0.4), "balances": (0.25, 0.5), "trials": 3}, distillation={"assistants": 2}
    )
    assert api.predict_search(settings)["predicted"]["flops"] > 0
    found = api.search(settings, tmp_path / "out")
    made = api.distill(tmp_path / "out")
    assert made["between"][0]["balance"] == found["best"]["balance"] > 0
    assert made["student"]["balance"] == 0


def test_a_search_over_a_sampled_range_can_be_distilled_from_its_choice(config, tmp_path):
    out = tmp_path / "study"
    found = api.search(config(search={"sparsities": None, "low": 0.2, "high": 0.5, "step": 0.05, "trials": 3}), out)
    assert len(found["trials"]) == 3
    made = api.distill(out)
    assert made["assistant"]["sparsity"] == found["best"]["sparsity"]


@pytest.mark.parametrize("scorer", ["recovered", "pruned"])
def test_a_search_over_balances_is_distilled_from_its_choice_and_exports_what_it_measured(config, tmp_path, scorer):
    out = tmp_path / "out"
    settings = config(search={"scorer": scorer, "sparsities": (0.3, 0.6), "balances": (-0.5, 0.0, 0.5)})
    found = api.search(settings, out)
    assert len(found["trials"]) == 6
    made = api.distill(out)
    best = found["best"]
    assert (made["assistant"]["sparsity"], made["assistant"]["balance"]) == (best["sparsity"], best["balance"])
    (chosen,) = [row for row in found["trials"] if row["number"] == best["number"]]
    assert made["assistant"]["candidate"] == chosen["candidate"]
    student = config(teacher={"model": made["student"]["path"]})
    assert api.evaluate(student, "final")["metric"] == made["student"]["metric"]
    listed = exporting.candidates(out)["candidates"]
    assert [row["balance"] for row in listed if row["chosen"]] == [best["balance"]]
    for balance in (None, 0.5):
        written = exporting.export(out, tmp_path / f"b{balance}", sparsity=best["sparsity"], balance=balance)
        expected = best["balance"] if balance is None else balance
        assert written["balance"] == expected
        (measured,) = [
            row for row in found["trials"] if (row["sparsity"], row["balance"]) == (best["sparsity"], expected)
        ]
        assert (written["metric"], written["params"]) == (measured["metric"], measured["params"])
    with pytest.raises(ConfigError, match=r"balance: got 0\.25; the study has -0\.5, 0, 0\.5"):
        exporting.export(out, tmp_path / "none", sparsity=best["sparsity"], balance=0.25)
    with pytest.raises(StudyError, match=r"which these settings do not have"):
        api.distill(out, config=config(search={"scorer": scorer, "sparsities": (0.1,)}), new=True)


def test_a_run_is_all_of_a_study_and_again_nothing(config, tmp_path, monkeypatch):
    settings = config(search={"sparsities": [0.5]}, baseline={"strategies": ["direct"]})
    first = api.run(settings, tmp_path / "study")
    assert set(first) == {"search", "distill", "direct"}
    before = records(tmp_path / "study")
    monkeypatch.setattr(api, "open_workspace", None)
    again = api.run(settings, tmp_path / "study")
    assert again["distill"]["student"] == first["distill"]["student"]
    assert records(tmp_path / "study") == before


def test_an_unknown_split_names_those_there_are(config):
    with pytest.raises(DataError, match="no split 'dev'; it has train, validation, final, test") as caught:
        api.evaluate(config(), "dev")
    one_line(caught)


def test_a_teacher_of_another_task_is_refused_before_anything_is_written(config, tmp_path, tiny, word_tokenizer):
    save_model(tiny(layers=2, num_labels=1), word_tokenizer, tmp_path / "one")
    with pytest.raises((ModelError, DataError)) as caught:
        api.search(config(teacher={"model": str(tmp_path / "one")}), tmp_path / "study")
    one_line(caught)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("family", "message"), [("opt", r"^model: family 'opt' has no layout"), ("vit", "a vit model has no sequence head")]
)
def test_an_unsupported_family_is_refused_before_the_data_is_read(config, tmp_path, family, message, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": family}))
    monkeypatch.setattr("autodisc.opening.load_task", lambda *args, **named: pytest.fail("the data is read"))
    model = str(tmp_path / "model")
    teacher = config(teacher={"model": model, "finetune": {"epochs": 1, "batch_size": 32, "lr": 3e-3}})
    student = config(student_sparsity=None, student_model=model)
    for call, given in ((api.finetune, teacher), (api.search, teacher), (api.search, student)):
        with pytest.raises(ModelError, match=message):
            call(given, tmp_path / "out")


def test_a_folder_that_holds_a_model_is_not_fine_tuned_into(config, furnished):
    with pytest.raises(StudyError, match="holds something already") as caught:
        api.finetune(config(teacher={"model": str(furnished / "teacher")}), furnished / "encoder")
    one_line(caught)


def test_a_run_whose_teacher_was_made_otherwise_is_refused_and_its_other_settings_are_free(
    config, furnished, tmp_path, monkeypatch
):
    def settings(lr: float, **others: Any) -> StudyConfig:
        return config(teacher={"model": str(furnished / "encoder"), "finetune": {"epochs": 1, "lr": lr}}, **others)

    first = api.finetune(settings(3e-3), tmp_path / "study" / "teacher")
    monkeypatch.setattr(api, "search", lambda *_, **__: {"best": None})
    with pytest.raises(StudyError, match=r"teacher: .*teacher\.finetune\.lr: 0\.003 -> 0\.001") as caught:
        api.run(settings(1e-3), tmp_path / "study")
    one_line(caught)
    others = {"search": {"lam": 0.5}, "student_sparsity": 0.8, "baseline": {"strategies": []}}
    assert api.run(settings(3e-3, **others), tmp_path / "study")["finetune"] == first


def test_a_study_pays_once_for_the_rows_that_its_recovery_and_its_distillation_read(config, tmp_path):
    settings = config(search={"recovery": {"steps": 30}}, cache={"dir": str(tmp_path / "cache")})
    searched = api.search(settings, tmp_path / "study")["cost"]["stages"]
    distilled = api.distill(tmp_path / "study")["cost"]["stages"]
    # The assistant's outputs alone, of a smaller model; the teacher's, of every row, are the search's.
    assert 0 < distilled["teacher outputs"]["tokens"] < 1.1 * searched["teacher outputs"]["tokens"]
    assert distilled["teacher outputs"]["flops"] < searched["teacher outputs"]["flops"]


FULL = OSError(28, "No space left on device")
READ_ONLY = OSError(30, "Read-only file system")


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("resuming.write_config", READ_ONLY),
        ("preparing.save_model", FULL),
        ("api.save_ledger", FULL),
        ("costs.write_json", FULL),
    ],
)
def test_a_disk_that_takes_nothing_is_one_line_and_the_same_call_goes_on(
    config, searched, tmp_path, monkeypatch, where, error
):
    out = tmp_path / "study"

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(f"autodisc.{where}", fail)
        with pytest.raises(AutodiscError, match="cannot be written") as caught:
            api.search(config(), out)
    message = one_line(caught)
    assert str(out) in message
    assert error.strerror in message
    assert chosen(api.search(config(), out)) == chosen(api.search(config(), searched))


def test_a_disk_that_fills_up_while_the_settings_are_written_does_not_spoil_the_folder(
    config, searched, tmp_path, monkeypatch
):
    out = tmp_path / "study"
    write = Path.write_text

    def half(self, text, *others, **settings):
        if self.parent == out:
            write(self, text[: len(text) // 2], *others, **settings)
            raise FULL
        return write(self, text, *others, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(AutodiscError, match="No space left"):
            api.search(config(), out)
    assert chosen(api.search(config(), out)) == chosen(api.search(config(), searched))


def test_a_full_disk_while_distilling_leaves_no_half_student(study, monkeypatch):
    with monkeypatch.context() as patch:

        def fail(model, tokenizer, path):
            raise FULL

        patch.setattr(api, "save_model", fail)
        with pytest.raises(AutodiscError, match="No space left") as caught:
            api.distill(study)
    one_line(caught)
    assert [record.kind for record in read_records([study])] == ["search"]
    assert autodisc.load(api.distill(study)["student"]["path"])


def test_a_teacher_whose_settings_changed_since_the_search_is_refused(config, furnished, tmp_path):
    shutil.copytree(furnished / "teacher", tmp_path / "teacher")
    settings = config(teacher={"model": str(tmp_path / "teacher")}, search={"sparsities": [0.5]})
    api.search(settings, tmp_path / "study")
    values = json.loads((tmp_path / "teacher/config.json").read_text())
    (tmp_path / "teacher/config.json").write_text(json.dumps({**values, "layer_norm_eps": 1e-3}))
    with pytest.raises(StudyError, match="has changed since the search"):
        api.distill(tmp_path / "study")
    (tmp_path / "study/records").rename(tmp_path / "gone")
    with pytest.raises(StudyError, match="teacher settings: "):
        api.search(settings, tmp_path / "study")


def test_rows_that_are_not_the_search_s_are_refused_and_another_draw_of_train_is_not(config, furnished, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train.csv", "validation.csv"):  # no test: a part of train is held out for the final figure
        shutil.copy(furnished / "data" / name, tmp_path / "data" / name)
    out, data = tmp_path / "study", {"data": str(tmp_path / "data")}
    api.search(config(task=data, search={"sparsities": [0.5]}), out)
    with pytest.raises(StudyError, match=r"task: the rows of train, final are not the search's") as caught:
        api.distill(out, config=config(task={**data, "held_out": 0.3}, search={"sparsities": [0.5]}))
    one_line(caught)
    fewer = config(task={**data, "limit_train": 100}, search={"sparsities": [0.5]})
    assert api.distill(out, config=fewer)["student"]["path"]
    with (tmp_path / "data" / "validation.csv").open("a") as file:
        file.write("w1 good w2,1\n")
    for settings in (None, fewer.model_copy(update={"student_sparsity": 0.8})):
        with pytest.raises(StudyError, match="task: the rows of validation are not the search's"):
            api.distill(out, config=settings)
    assert not (out / "distilled-2").exists()


def only(furnished: Path, folder: Path, split: str, label: int) -> Path:
    """The furnished data, of one split the rows of one label alone."""
    shutil.copytree(furnished / "data", folder)
    lines = (folder / f"{split}.csv").read_text().splitlines()
    (folder / f"{split}.csv").write_text(
        "\n".join([lines[0], *(x for x in lines[1:] if x.endswith(str(label)))]) + "\n"
    )
    return folder


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_labels_that_are_all_one_are_refused_before_anything_is_computed(config, furnished, tmp_path, split):
    data = only(furnished, tmp_path / "data", split, 1)
    settings = config(task={"name": "mine", "metric": "accuracy", "data": str(data)})
    for call in (
        lambda: api.search(settings, tmp_path / "s"),
        lambda: api.baseline(settings, "direct", tmp_path / "s"),
    ):
        with pytest.raises(DataError, match=f"^{split}: all [0-9]+ labels are '1', so no model does better") as caught:
            call()
        one_line(caught)
    assert not (tmp_path / "s").exists()


def test_a_teacher_at_the_floor_is_said_by_search_and_report(
    config, furnished, tmp_path, make_listener, word_tokenizer
):
    model = load_model(furnished / "teacher")
    with torch.no_grad():
        model.classifier.bias += torch.tensor([100.0, 0.0])  # it says one class alone
    save_model(model, word_tokenizer, tmp_path / "teacher")
    listener = make_listener()
    settings = config(teacher={"model": str(tmp_path / "teacher")}, search={"scorer": "pruned", "sparsities": [0.5]})
    assert api.search(settings, tmp_path / "s", progress=listener)["best"] is None
    said = "teacher: its accuracy of 0.500 on 80 rows of validation does not leave the floor of 0.500, so nothing can"
    assert any(line.startswith(said) for line in listener.said)
    write_report([tmp_path / "s"], tmp_path / "r.html")
    assert "The teacher, with 0.500, does not leave it either" in (tmp_path / "r.md").read_text()


def test_a_final_split_that_the_teacher_may_have_seen_is_said_so(config, furnished, tmp_path):
    data = Path(shutil.copytree(furnished / "data", tmp_path / "data"))
    (data / "test.csv").unlink()
    foreign = config(task={"data": str(data)})
    own = config(
        task={"data": str(data)},
        teacher={"model": str(furnished / "encoder"), "finetune": {"epochs": 1, "batch_size": 32, "lr": 3e-3}},
    )
    api.finetune(own, tmp_path / "teacher")
    made = config(task={"data": str(data)}, teacher={"model": str(tmp_path / "teacher")})
    assert open_workspace(foreign).made("distill", None)["task"]["final_is_doubtful"]
    assert not open_workspace(made).made("distill", None)["task"]["final_is_doubtful"]
    assert not open_workspace(config()).made("distill", None)["task"]["final_is_doubtful"]  # with a test file
    shorter = config(task={"data": str(data), "max_length": 8}, teacher={"model": str(tmp_path / "teacher")})
    assert not open_workspace(shorter).made("distill", None)["task"]["final_is_doubtful"]  # the same texts
    other = config(task={"data": str(data), "held_out": 0.3}, teacher={"model": str(tmp_path / "teacher")})
    assert open_workspace(other).made("distill", None)["task"]["final_is_doubtful"]


def test_the_latencies_of_models_with_few_positions_are_of_texts_that_fit(config, furnished, tmp_path):
    teacher = load_model(furnished / "teacher")
    embeddings = teacher.bert.embeddings
    embeddings.position_embeddings = torch.nn.Embedding.from_pretrained(embeddings.position_embeddings.weight[:20])
    teacher.config.max_position_embeddings = 20
    save_model(teacher, load_tokenizer(furnished / "teacher"), tmp_path / "teacher")
    short = config(teacher={"model": str(tmp_path / "teacher")}, task={"max_length": 16})
    api.baseline(short, "direct", tmp_path / "out")
    assert "batch 8, length 20" in (tmp_path / "out/baseline-direct/student/README.md").read_text()
