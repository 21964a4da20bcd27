"""Words and text, from a folder of files to a distilled student, on tiny models."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from autodisc import api, tagging
from autodisc.cli import main
from autodisc.comparison.config import make_comparison
from autodisc.comparison.running import run
from autodisc.comparison.summary import report
from autodisc.config import RuntimeConfig, StudyConfig, TaskConfig, make_config
from autodisc.errors import ConfigError, DataError, ModelError, TrainingError
from autodisc.exporting import export
from autodisc.labelling import evaluate_file, predict_file
from autodisc.models.checkpoints import load_model, load_tokenizer, save_model
from autodisc.tasks import files
from autodisc.tasks.data import load_task
from autodisc.tasks.formats import read_conll
from autodisc.tasks.splits import IGNORED

RUNTIME = {"threads": 1, "precision": "fp32"}
SEARCH = {
    "sparsities": [0.25, 0.5],
    "importance": {"examples": 32, "rounds": 2},
    "recovery": {"steps": 12, "lr": 3e-3},
}
DISTILLATION = {"epochs": 1, "student_epochs": 1, "batch_size": 16, "lr": 3e-3}


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
        table = pandas.read_csv(out) if suffix == ".csv" else pandas.read_parquet(out)
        said = [cell.split() if isinstance(cell, str) else list(cell) for cell in table["prediction"]]
    right = [a == b for one, other in zip(said, true["tags"], strict=True) for a, b in zip(one, other, strict=True)]
    evaluated = evaluate_file(tagged / "teacher", source, task=task, runtime=runtime)
    assert np.mean(right) == pytest.approx(evaluated["metrics"]["word_accuracy"])
    expected = api.evaluate(settings(tagged, tagged / "teacher"), "test")
    assert evaluated["metrics"] == pytest.approx(expected["metrics"])
    assert (evaluated["floor"], evaluated["examples"]) == (expected["floor"], 50)


@pytest.mark.parametrize("side", ["right", "left"])
def test_words_beyond_the_models_length_are_tagged_as_none(tagged, tmp_path, side, monkeypatch):
    opened = load_tokenizer(tagged / "teacher")
    opened.truncation_side = side
    monkeypatch.setattr(tagging, "load_tokenizer", lambda name: opened)
    (tmp_path / "in.jsonl").write_text(json.dumps({"tokens": "good w1 bad w42 w3 w4 w5 w6 good good"}) + "\n")
    task, runtime = TaskConfig(name="mine", max_length=8), RuntimeConfig(**RUNTIME)
    predict_file(tagged / "teacher", tmp_path / "in.jsonl", tmp_path / "out.jsonl", task=task, runtime=runtime)
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert row["prediction"] == ["B-one", "O", "B-two", "I-two", "O", "O", "O", "O", "O", "O"]


def test_lists_of_others_are_json_in_a_csv_of_tags(tagged, tmp_path):
    row = {"tokens": ["good", "w1"], "ner_tags": [1, 0], "tags": ["B-one", "O"]}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    task, runtime = TaskConfig(name="mine"), RuntimeConfig(**RUNTIME)
    predict_file(tagged / "teacher", tmp_path / "in.jsonl", tmp_path / "out.csv", task=task, runtime=runtime)
    (found,) = pandas.read_csv(tmp_path / "out.csv").to_dict("records")
    assert found == {"tokens": "good w1", "ner_tags": "[1, 0]", "tags": '["B-one", "O"]', "prediction": "B-one O"}


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


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_column_that_comes_late_is_kept_beside_the_tags(tagged, tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(files, "AT_ONCE", 4)
    rows = [*({"tokens": ["good", "w1"]} for _ in range(6)), {"tokens": ["w1"], "new": 7}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, task = tmp_path / f"out{suffix}", TaskConfig(name="mine")
    predict_file(tagged / "teacher", tmp_path / "in.jsonl", out, task=task, runtime=RuntimeConfig(**RUNTIME))
    if suffix == ".jsonl":
        last = json.loads(out.read_text().splitlines()[-1])
        assert (last["new"], last["prediction"]) == (7, ["O"])
    else:
        table = pandas.read_csv(out) if suffix == ".csv" else pandas.read_parquet(out)
        assert (len(table), table["new"].iloc[-1], table["new"].notna().sum()) == (7, 7, 1)


def test_a_parquet_file_of_words_keeps_its_types(tagged, tmp_path):
    table = pa.table({"tokens": [["good"], ["w1", "w2"]], "n": pa.array([1, None], pa.int8())})
    pq.write_table(table, tmp_path / "in.parquet")
    source, out, task = tmp_path / "in.parquet", tmp_path / "out.parquet", TaskConfig(name="mine")
    predict_file(tagged / "teacher", source, out, task=task, runtime=RuntimeConfig(**RUNTIME))
    found = pq.read_table(out)
    assert found.drop(["prediction"]).equals(table)
    assert found["prediction"].to_pylist() == [["B-one"], ["O", "O"]]


def test_a_mistake_in_the_last_row_of_words_is_found_without_the_model(tagged, tmp_path, monkeypatch):
    monkeypatch.setattr("autodisc.tagging.load_model", None)
    (tmp_path / "in.jsonl").write_text('{"tokens": ["w1"]}\n' * 5 + '{"tokens": []}\n')
    with pytest.raises(DataError, match="row 6: no words"):
        predict_file(tagged / "teacher", tmp_path / "in.jsonl", tmp_path / "out.jsonl", task=TaskConfig(name="mine"))


def test_a_model_that_answers_nan_gives_no_tags(tagged, tmp_path):
    model = load_model(tagged / "teacher")
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    save_model(model, load_tokenizer(tagged / "teacher"), tmp_path / "bad")
    with pytest.raises(TrainingError, match="not finite"):
        predict_file(tmp_path / "bad", tagged / "data" / "test.conll", tmp_path / "o.conll", task=TaskConfig(name="m"))
    assert not (tmp_path / "o.conll").exists()


def test_words_of_more_tokens_than_the_model_has_positions_are_refused(tagged, tmp_path):
    model, tokenizer = load_model(tagged / "teacher"), copy.deepcopy(load_tokenizer(tagged / "teacher"))
    tokenizer.model_max_length = 10_000  # as one that was saved without
    save_model(model, tokenizer, tmp_path / "model")
    (tmp_path / "in.conll").write_text("w1\tO\n" * 150 + "\n")
    task, runtime = TaskConfig(name="mine", max_length=300), RuntimeConfig(**RUNTIME)
    with pytest.raises(ConfigError, match=r"--max-length: got 300; .* has positions for 140 tokens"):
        predict_file(tmp_path / "model", tmp_path / "in.conll", tmp_path / "o.conll", task=task, runtime=runtime)
    with pytest.raises(ConfigError, match="has positions for 140 tokens, and a text has 152; give 140"):
        evaluate_file(tmp_path / "model", tmp_path / "in.conll", task=task, runtime=runtime)


@pytest.mark.parametrize("name", ["IN.CONLL", "IN.JSONL"])
def test_a_files_ending_may_be_in_capitals_and_nothing_is_printed(tagged, tmp_path, capfd, name):
    rows = ['{"tokens": ["good", "w1"], "tags": ["B-one", "O"]}\n', "good\tB-one\nw1\tO\n\n"]
    (tmp_path / name).write_text(rows[name.endswith("CONLL")])
    task, runtime = TaskConfig(name="mine", kind="tokens"), RuntimeConfig(**RUNTIME)
    assert evaluate_file(tagged / "teacher", tmp_path / name, task=task, runtime=runtime)["metric"] == 1
    result = predict_file(tagged / "teacher", tmp_path / name, tmp_path / "OUT.CONLL", task=task, runtime=runtime)
    assert result["rows"] == 1
    assert read_conll(tmp_path / "OUT.CONLL") == {"tokens": [["good", "w1"]], "tags": [["B-one", "O"]]}
    assert capfd.readouterr() == ("", "")


def test_command_lines_know_words_by_their_files(tagged, tmp_path, capsys):
    teacher, data, cache = tagged / "teacher", tagged / "data", tagged / "cache"
    here = f"--precision fp32 --threads 1 --quiet --cache-dir {cache}"

    def ran(line: str) -> tuple[int, str, str]:
        code = main(line.split())
        return code, *capsys.readouterr()

    code, out, err = ran(f"evaluate --model {teacher} --task mine --file {data}/test.conll --json {here}")
    assert code == 0, err
    on_file = json.loads(out.splitlines()[-1])
    code, out, err = ran(f"evaluate --model {teacher} --task mine --data {data} --split test --json {here}")
    assert code == 0, err
    on_split = json.loads(out.splitlines()[-1])
    assert {**on_file, "split": "test"} == on_split
    code, out, err = ran(f"predict --model {teacher} --file {data}/test.conll --precision fp32 --quiet")
    assert code == 0, err
    assert {"tokens", "prediction"} == json.loads(out.splitlines()[0]).keys()
    study = tmp_path / "study.yaml"
    study.write_text(
        f"task: {{name: mine, kind: tokens, metric: entity_f1, data: gone}}\nteacher: {{model: {teacher}}}\n"
        "student_model: another\nsearch: {sparsities: [0.5, 0.92]}\n"
    )
    assert ran(f"predict --config {study} --file {data}/test.conll --precision fp32 --quiet") == (0, out, "")
    code, _, err = ran(f"evaluate --model {teacher} --task mine --data {data} --kind classification {here}")
    assert (code, err.count("\n")) == (2, 1)
    assert "--metric" in err
    code, _, err = ran(f"evaluate --model {teacher} --task mine --data {data} --kind causal-lm {here}")
    assert code == 2
    assert "is of kind causal-lm, which takes a causal language model" in err


@pytest.fixture(scope="session")
def written(tmp_path_factory, word_tokenizer) -> Path:
    """data/ in plain text, where every word but one in four follows from the word before; teacher/ has learnt it."""
    home, rng = tmp_path_factory.mktemp("written"), random.Random(3)
    (home / "data").mkdir()
    for split, count in (("train", 60), ("validation", 20), ("test", 20)):
        texts = []
        for _ in range(count):
            words = [rng.randrange(50)]
            while len(words) < 30:
                words.append((7 * words[-1] + 3) % 50 if rng.randrange(4) else rng.randrange(50))
            texts.append(" ".join(f"w{word}" for word in words))
        (home / "data" / f"{split}.txt").write_text("\n\n".join(texts))
    config = LlamaConfig(
        vocab_size=62,  # two more than the tokenizer's, as real ones are padded
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=140,
        pad_token_id=0,
        eos_token_id=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(home / "plain")
    tokenizer = copy.deepcopy(word_tokenizer)
    tokenizer.eos_token = "[SEP]"
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(home / "plain")
    recipe = {"epochs": 12, "batch_size": 8, "lr": 1e-2}
    found = api.finetune(of_text(home, home / "plain", finetune=recipe), home / "teacher")
    assert found["metric"] > found["floor"] + 0.2
    return home


def of_text(home: Path, teacher: Path, **changes: Any) -> StudyConfig:
    task = {"name": "text", "data": str(home / "data"), "max_length": 24}
    return settings(home, teacher, **{"task": task, "distillation": {**DISTILLATION, "top_k": 8}, **changes})


def test_text_is_searched_and_distilled_and_the_student_predicts_it(written):
    config, out = of_text(written, written / "teacher"), written / "study"
    assert api.search(config, out)["best"] is not None
    student = api.distill(out)["student"]
    assert list(student["metrics"]) == ["perplexity", "bits_saved"]
    assert student["metric"] == student["metrics"]["bits_saved"] > student["floor"] > 0
    model = load_model(student["path"])
    assert type(model).__name__ == "LlamaForCausalLM"
    again = api.evaluate(of_text(written, Path(student["path"])), "test")
    assert again["metric"] == pytest.approx(student["metric"])
    nll = again["metrics"]["perplexity"]
    assert np.log(nll) == pytest.approx((1 - again["metric"]) * np.log(60))
    prompt = torch.tensor([[10, 20]])
    assert model.generate(prompt, max_new_tokens=5, do_sample=False).shape == (1, 7)
    card = (Path(student["path"]) / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card
    assert "AutoModelForCausalLM.from_pretrained" in card


def test_perplexity_is_that_of_transformers_own_loss(written):
    config = of_text(written, written / "teacher")
    found = api.evaluate(config, "validation")
    model, tokenizer = load_model(written / "teacher"), load_tokenizer(written / "teacher")
    task = load_task(config.task, tokenizer, seed=0, cache_dir=written / "cache")
    total = tokens = 0.0
    for row in task.validation.rows:
        ids = [*row["input_ids"], *([row["labels"][-1]] if row["labels"][-1] != IGNORED else [])]
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss
        total += float(loss) * (len(ids) - 1)
        tokens += len(ids) - 1
    assert found["metrics"]["perplexity"] == pytest.approx(np.exp(total / tokens), rel=1e-4)


@pytest.mark.parametrize("strategy", ["direct", "maxidisc"])
def test_the_baselines_run_on_text(written, tmp_path, strategy):
    config = of_text(written, written / "teacher", search={**SEARCH, "sparsities": [0.5]})
    assert api.baseline(config, strategy, tmp_path / "out")["best"]["final_metric"] > 0


@pytest.mark.parametrize("importance", [{"criterion": "fisher"}, {"criterion": "first-order", "rounds": 1}])
def test_a_study_that_trains_nothing_runs_on_text(written, tmp_path, importance):
    search = {"sparsities": [0.25, 0.5], "scorer": "pruned", "importance": {**importance, "examples": 16}}
    found = api.search(of_text(written, written / "teacher", search=search), tmp_path / "out")
    assert [trial["state"] for trial in found["trials"]] == ["COMPLETE", "COMPLETE"]


def test_what_a_search_on_text_will_cost_is_predicted(written):
    predicted = api.predict_search(of_text(written, written / "teacher"))["predicted"]
    tokens = 60 * 31
    likeliest = predicted["stages"]["teacher outputs"]["disk_gib"] * 2**30 / tokens
    assert 0 < likeliest <= 2 * 2 * 32 + 4 * 8 + 4 * 9


def test_a_text_is_evaluated_and_has_no_label_to_predict(written, tmp_path):
    text, runtime = written / "data" / "test.txt", RuntimeConfig(**RUNTIME)
    task = TaskConfig(name="text", max_length=24)
    found = evaluate_file(written / "teacher", text, task=task, runtime=runtime)
    assert found["metrics"] == pytest.approx(api.evaluate(of_text(written, written / "teacher"), "test")["metrics"])
    with pytest.raises(ModelError, match="is a causal language model, which gives words no tags"):
        predict_file(written / "teacher", tmp_path / "in.jsonl", tmp_path / "out.jsonl", task=task, runtime=runtime)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tagged", "written"])
def test_a_comparison_reports_on_words_and_on_text(request, tmp_path, kind):
    home = request.getfixturevalue(kind)
    task = {"name": "mine", "data": str(home / "data"), "max_length": 24}
    config = make_comparison(
        {
            "name": kind,
            "search": {**SEARCH, "sparsities": [0.5], "margin": 0.0},
            "distillation": {**DISTILLATION, "top_k": 8},
            "cache": {"dir": str(home / "cache")},
            "runtime": RUNTIME,
            "compare": {
                "tasks": [{"task": task, "teacher": {"model": str(home / "teacher")}}],
                "seeds": [0, 1],
                "strategies": ["autodisc", "direct", "maxidisc"],
                "resamples": 40,
            },
        }
    )
    assert run(config, tmp_path) == 0
    result = report(config, tmp_path)
    metric = {"tagged": "entity_f1", "written": "bits_saved"}[kind]
    assert not result["failed"]
    assert metric in (tmp_path / "report.md").read_text()
    losses = json.loads(next(tmp_path.rglob("search-recovered.json")).read_text())["result"]["losses"]
    assert list(losses) == ["0.5"]
    assert losses["0.5"] > 0
