"""Words and text, from a folder of files to a distilled student, on tiny models."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autodisc import api
from autodisc.config import RuntimeConfig, StudyConfig, TaskConfig, make_config
from autodisc.errors import ConfigError, DataError, ModelError
from autodisc.exporting import export
from autodisc.labelling import evaluate_file, predict_file
from autodisc.models.checkpoints import load_model
from autodisc.tasks.formats import read_conll

RUNTIME = {"threads": 1, "precision": "fp32"}
SEARCH = {
    "sparsities": [0.25, 0.5],
    "importance": {"examples": 32, "rounds": 2},
    "recovery": {"steps": 12, "lr": 3e-3},
}
DISTILLATION = {"epochs": 1, "batch_size": 16, "lr": 3e-3}


def sentence(rng: random.Random) -> list[tuple[str, str]]:
    """Names are good, or bad and one of ten words; what is no name is one of forty others."""
    words: list[tuple[str, str]] = []
    while len(words) < 5:
        kind = rng.randrange(4)
        if kind == 0:
            words.append(("good", "B-one"))
        elif kind == 1:
            words += [("bad", "B-two"), (f"w{rng.randrange(40, 50)}", "I-two")]
        words.append((f"w{rng.randrange(40)}", "O"))
    return words


@pytest.fixture(scope="session")
def tagged(tmp_path_factory, tiny, word_tokenizer) -> Path:
    """data/ in CoNLL, and teacher/, which has learnt it."""
    home, rng = tmp_path_factory.mktemp("tagged"), random.Random(2)
    (home / "data").mkdir()
    for split, count in (("train", 160), ("validation", 60), ("test", 50)):
        lines = ["".join(f"{word}\t{tag}\n" for word, tag in sentence(rng)) for _ in range(count)]
        (home / "data" / f"{split}.conll").write_text("\n".join(lines))
    tiny(layers=2).base_model.save_pretrained(home / "encoder")
    word_tokenizer.save_pretrained(home / "encoder")
    recipe = {"epochs": 8, "batch_size": 16, "lr": 1e-2}
    assert api.finetune(settings(home, home / "encoder", finetune=recipe), home / "teacher")["metric"] > 0.9
    return home


def settings(home: Path, teacher: Path, *, finetune: dict[str, Any] | None = None, **changes: Any) -> StudyConfig:
    values = {
        "task": {"name": "mine", "data": str(home / "data")},
        "teacher": {"model": str(teacher), "finetune": finetune},
        "cache": {"dir": str(home / "cache")},
        "student_sparsity": 0.75,
        "search": SEARCH,
        "distillation": DISTILLATION,
        "runtime": RUNTIME,
    }
    return make_config({**values, **changes})


@pytest.fixture(scope="session")
def tagged_study(tagged) -> tuple[Path, dict[str, Any]]:
    out = tagged / "study"
    assert api.search(settings(tagged, tagged / "teacher"), out)["best"] is not None
    return out, api.distill(out)


def test_names_are_searched_and_distilled_and_the_student_knows_them(tagged, tagged_study):
    _, made = tagged_study
    student = made["student"]
    assert list(student["metrics"]) == ["word_accuracy", "entity_f1"]
    assert student["metric"] == student["metrics"]["entity_f1"] > student["floor"] > 0
    model = load_model(student["path"])
    assert type(model).__name__ == "BertForTokenClassification"
    assert model.config.id2label == {0: "O", 1: "B-one", 2: "B-two", 3: "I-two"}
    card = (Path(student["path"]) / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert "AutoModelForTokenClassification.from_pretrained" in card
    again = api.evaluate(settings(tagged, Path(student["path"])), "test")
    assert again["metric"] == pytest.approx(student["metric"])


@pytest.mark.parametrize("strategy", ["direct", "maxidisc"])
def test_the_baselines_run_on_words(tagged, tmp_path, strategy):
    config = settings(tagged, tagged / "teacher", search={**SEARCH, "sparsities": [0.5]})
    assert api.baseline(config, strategy, tmp_path / "out")["best"]["final_metric"] > 0


@pytest.mark.parametrize("importance", [{"criterion": "fisher"}, {"criterion": "first-order", "rounds": 1}])
def test_a_study_that_trains_nothing_runs_on_words(tagged, tmp_path, importance):
    search = {"sparsities": [0.25, 0.5], "scorer": "pruned", "importance": {**importance, "examples": 32}}
    found = api.search(settings(tagged, tagged / "teacher", search=search), tmp_path / "out")
    assert [trial["state"] for trial in found["trials"]] == ["COMPLETE", "COMPLETE"]
    assert found["trials"][0]["metric"] > found["trials"][0]["floor"]


def test_what_a_search_on_words_will_cost_is_predicted(tagged):
    predicted = api.predict_search(settings(tagged, tagged / "teacher"))["predicted"]
    assert {"importance", "recovery", "trials", "teacher outputs"} <= predicted["stages"].keys()
    assert predicted["stages"]["teacher outputs"]["disk_gib"] > 0


@pytest.mark.parametrize("suffix", [".conll", ".jsonl", ".csv", ".parquet"])
def test_a_file_gets_a_tag_for_every_word(tagged, tmp_path, suffix):
    task, runtime = TaskConfig(name="mine"), RuntimeConfig(**RUNTIME)
    source, out = tagged / "data" / "test.conll", tmp_path / f"out{suffix}"
    result = predict_file(tagged / "teacher", source, out, task=task, runtime=runtime, batch_size=7)
    assert (result["rows"], result["columns"]) == (50, ["prediction"])
    true = read_conll(source)
    if suffix == ".conll":
        found = read_conll(out)
        assert found["tokens"] == true["tokens"]
        said = found["tags"]
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["tokens"] for row in rows] == true["tokens"]
        said = [row["prediction"] for row in rows]
    else:
        import pandas

        table = pandas.read_csv(out) if suffix == ".csv" else pandas.read_parquet(out)
        said = [cell.split() if isinstance(cell, str) else list(cell) for cell in table["prediction"]]
    right = [a == b for one, other in zip(said, true["tags"], strict=True) for a, b in zip(one, other, strict=True)]
    evaluated = evaluate_file(tagged / "teacher", source, task=task, runtime=runtime)
    assert np.mean(right) == pytest.approx(evaluated["metrics"]["word_accuracy"])
    expected = api.evaluate(settings(tagged, tagged / "teacher"), "test")
    assert evaluated["metrics"] == pytest.approx(expected["metrics"])
    assert (evaluated["floor"], evaluated["examples"]) == (expected["floor"], 50)


def test_words_beyond_the_models_length_are_tagged_as_none(tagged, tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps({"tokens": "good w1 bad w42 w3 w4 w5 w6 good good"}) + "\n")
    task, runtime = TaskConfig(name="mine", max_length=8), RuntimeConfig(**RUNTIME)
    predict_file(tagged / "teacher", tmp_path / "in.jsonl", tmp_path / "out.jsonl", task=task, runtime=runtime)
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert row["prediction"] == ["B-one", "O", "B-two", "I-two", "O", "O", "O", "O", "O", "O"]


def test_a_candidate_of_words_is_exported_with_its_metric(tagged, tagged_study, tmp_path):
    out, _ = tagged_study
    for format in ("autodisc", "dense"):
        found = export(out, tmp_path / format, sparsity=0.5, format=format)
        assert found["metric"] > found["floor"]


def test_a_teacher_of_another_head_is_refused_though_its_weights_would_fit(tagged, furnished, tmp_path):
    with pytest.raises(
        ModelError, match="is a fine-tuned classifier, but task 'mine' is of kind tokens, which takes a"
    ):
        api.search(settings(tagged, furnished / "teacher"), tmp_path / "out")
    config = settings(
        furnished, tagged / "teacher", task={"name": "m", "data": str(furnished / "data"), "metric": "f1"}
    )
    with pytest.raises(ModelError, match="is a fine-tuned token classifier, but task 'm' is of kind classification"):
        api.search(config, tmp_path / "out")
    with pytest.raises(ModelError, match="is a fine-tuned classifier, but kind tokens takes a"):
        evaluate_file(furnished / "teacher", tagged / "data" / "test.conll", task=TaskConfig(name="mine"))


def test_a_file_of_words_that_has_predictions_or_none_is_refused(tagged, tmp_path):
    path, task = tmp_path / "in.jsonl", TaskConfig(name="mine")
    for row, message in (
        ({"tokens": ["w1"], "prediction": "x"}, "has a column 'prediction' already"),
        ({"tokens": []}, "row 1: no words; expected a list of them"),
        ({"sentence": "w1"}, "no column tokens or words; it has sentence"),
    ):
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises(DataError, match=message):
            predict_file(tagged / "teacher", path, tmp_path / "out.jsonl", task=task, runtime=RuntimeConfig(**RUNTIME))
        assert not (tmp_path / "out.jsonl").exists()
    path.write_text('{"tokens": ["w1"]}\n')
    with pytest.raises(ConfigError, match="--format parquet"):
        predict_file(tagged / "teacher", path, None, task=task, format="parquet")
