from __future__ import annotations

import csv
import io
import json
import random
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import softmax

from autodisc.benching import bench
from autodisc.config import RuntimeConfig, TaskConfig, make_config
from autodisc.errors import CheckpointError, ConfigError, DataError, ModelError
from autodisc.labelling import evaluate_file, predict_file
from autodisc.models import onnx
from autodisc.models.checkpoints import load_model, load_tokenizer, save_model
from autodisc.models.other_student import open_other_student
from autodisc.opening import open_workspace
from autodisc.reporting.texts import csv_text
from autodisc.tasks import files
from autodisc.tasks.data import Split, load_task
from autodisc.tasks.metrics import METRICS

FP32 = RuntimeConfig(device="cpu", precision="fp32", threads=1)
TASK = TaskConfig(name="toy", metric="accuracy")
NAMES = ("bad", "good")


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny, word_tokenizer) -> Path:
    made = tiny("bert", layers=2)
    made.config.id2label, made.config.label2id = dict(enumerate(NAMES)), {"bad": 0, "good": 1}
    folder = tmp_path_factory.mktemp("model") / "m"
    save_model(made, word_tokenizer, folder)
    return folder


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(files, "AT_ONCE", 16)


def sentences(count: int, *, pair: bool = False) -> list[dict]:
    draw = random.Random(count)
    rows = []
    for i in range(count):
        texts = [" ".join(f"w{draw.randrange(54)}" for _ in range(draw.randrange(1, 20))) for _ in range(2)]
        named = {"sentence1": texts[0], "sentence2": texts[1]} if pair else {"sentence": texts[0]}
        rows.append({"id": i, **named, "label": NAMES[draw.randrange(2)]})
    return rows


def written(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def read(path: Path) -> list[dict]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return pq.read_table(path).to_pylist()


@pytest.fixture
def logits_by_inference(logits_of):
    return lambda model, rows, tmp_path: logits_of(load_model(model), as_validation(model, rows, tmp_path))


def as_validation(model: Path, rows: list[dict], tmp_path: Path) -> Split:
    """The same rows as a task's validation split."""
    data = tmp_path / "task"
    data.mkdir()
    for split in ("train", "validation", "test"):
        written(data / f"{split}.jsonl", rows)
    config = TASK.model_copy(update={"data": data})
    task = load_task(config, load_tokenizer(model), seed=0, cache_dir=tmp_path / "cache", label_names=NAMES)
    return task.validation


@pytest.mark.parametrize("pair", [False, True], ids=["single", "pair"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_gets_the_predictions_that_inference_gives_in_its_order(
    model, logits_by_inference, tmp_path, suffix, pair
):
    rows = sentences(50, pair=pair)
    out = tmp_path / f"out{suffix}"
    result = predict_file(model, written(tmp_path / f"in{suffix}", rows), out, task=TASK, runtime=FP32, batch_size=7)
    assert result["rows"] == 50
    assert result["columns"] == ["prediction", "probability_bad", "probability_good"]
    found = read(out)
    expected = logits_by_inference(model, rows, tmp_path)
    shares = softmax(expected.astype(np.float64), axis=1)
    assert [row["prediction"] for row in found] == [NAMES[i] for i in expected.argmax(axis=1)]
    for i, name in enumerate(NAMES):
        np.testing.assert_allclose([float(row[f"probability_{name}"]) for row in found], shares[:, i], atol=1e-6)
    kept = [{name: row[name] for name in rows[0]} for row in found]
    assert kept == ([{name: str(value) for name, value in row.items()} for row in rows] if suffix == ".csv" else rows)
    assert list(found[0]) == [*rows[0], *result["columns"]]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_format_of_the_output_is_its_own(model, tmp_path, suffix):
    rows = sentences(20)
    source = written(tmp_path / "in.jsonl", rows)
    predict_file(model, source, tmp_path / f"out{suffix}", task=TASK, runtime=FP32)
    predict_file(model, source, tmp_path / "named", task=TASK, runtime=FP32, format="jsonl")
    plain = read(tmp_path / f"out{suffix}")
    assert [row["prediction"] for row in plain] == [
        json.loads(line)["prediction"] for line in (tmp_path / "named").read_text().splitlines()
    ]
    assert [row["id"] for row in plain] == [str(i) if suffix == ".csv" else i for i in range(20)]


def test_parquet_keeps_its_types_and_what_json_cannot_say_becomes_null(model, tmp_path):
    table = pa.table(
        {
            "sentence": ["w1 w2", "w3"],
            "small": pa.array([1, None], pa.int8()),
            "day": pa.array([0, 1], pa.date32()),
            "ratio": [float("nan"), 0.5],
            "tags": [["a"], []],
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    predict_file(model, tmp_path / "in.parquet", tmp_path / "out.parquet", task=TASK, runtime=FP32)
    assert pq.read_schema(tmp_path / "out.parquet").field("small").type == pa.int8()
    assert pq.read_table(tmp_path / "out.parquet").select(table.column_names).drop(["ratio"]) == table.drop(["ratio"])
    predict_file(model, tmp_path / "in.parquet", tmp_path / "out.jsonl", task=TASK, runtime=FP32)
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert (first["ratio"], first["tags"], first["day"]) == (None, ["a"], "1970-01-01")
    predict_file(model, tmp_path / "in.parquet", tmp_path / "out.csv", task=TASK, runtime=FP32)
    assert read(tmp_path / "out.csv")[0]["tags"] == '["a"]'


def test_rows_of_json_keep_the_keys_that_each_has(model, tmp_path, monkeypatch, capsys):
    rows = [{"sentence": "w1", "x": {"y": [1]}}, {"sentence": "w2 é", "z": None}, *sentences(40)]
    text = "\ufeff" + "\n\n".join(json.dumps(row) for row in rows)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    result = predict_file(model, None, task=TASK, runtime=FP32)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert result["rows"] == len(found) == 42
    assert [{name: row[name] for name in row if name not in result["columns"]} for row in found] == rows


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_decoder_whose_config_names_no_padding_pads_as_its_tokenizer_does(tmp_path, tiny, word_tokenizer, family):
    told, untold = tiny(family), tiny(family)
    untold.config.pad_token_id = None
    for name, model in (("told", told), ("untold", untold)):
        save_model(model, word_tokenizer, tmp_path / name)
    path = written(tmp_path / "in.jsonl", sentences(20))
    found = [
        predict_file(tmp_path / name, path, tmp_path / f"{name}.jsonl", task=TASK, runtime=FP32)["rows"]
        for name in ("told", "untold")
    ]
    assert found == [20, 20]
    assert read(tmp_path / "told.jsonl") == read(tmp_path / "untold.jsonl")
    shape = {"runtimes": ["eager"], "batch_sizes": [2], "lengths": [8], "turns": 1}
    assert len(bench([tmp_path / "untold"], **shape)["rows"]) == 1


def test_a_pretrained_student_whose_config_names_no_padding_pads_as_its_tokenizer_does(
    tmp_path, tiny, word_tokenizer, make_runtime
):
    student = tiny("llama", layers=1)
    student.config.pad_token_id = None
    save_model(student, word_tokenizer, tmp_path / "student")
    other = open_other_student(str(tmp_path / "student"), tiny("llama"), word_tokenizer, make_runtime())
    assert other.model.config.pad_token_id == word_tokenizer.pad_token_id


def test_a_regression_gets_its_value_alone(tmp_path, tiny, word_tokenizer):
    save_model(tiny("bert", layers=1, num_labels=1), word_tokenizer, tmp_path / "m")
    rows = [{**row, "label": i / 7} for i, row in enumerate(sentences(30))]
    source, task = written(tmp_path / "in.csv", rows), TaskConfig(name="toy", metric="pearson")
    result = predict_file(tmp_path / "m", source, tmp_path / "out.csv", task=task, runtime=FP32)
    assert result["columns"] == ["prediction"]
    values = np.array([float(row["prediction"]) for row in read(tmp_path / "out.csv")])
    evaluated = evaluate_file(tmp_path / "m", source, task=task, runtime=FP32)
    assert evaluated["metric"] == pytest.approx(METRICS["pearson"].score(values, np.arange(30) / 7), abs=1e-6)


def test_a_regression_is_computed_in_fp32_unless_a_precision_is_asked_for(tmp_path, tiny, word_tokenizer, monkeypatch):
    monkeypatch.setattr("autodisc.runtime._multiplies_bf16", lambda device: True)
    save_model(tiny("bert", layers=1, num_labels=1), word_tokenizer, tmp_path / "m")
    rows = [{**row, "label": i / 7} for i, row in enumerate(sentences(5))]
    source, task = written(tmp_path / "in.jsonl", rows), TaskConfig(name="toy", metric="pearson")

    def found(precision: str) -> tuple[list[float], float]:
        runtime = RuntimeConfig(device="cpu", precision=precision, threads=1)
        predict_file(tmp_path / "m", source, tmp_path / "out.jsonl", task=task, runtime=runtime)
        metric = evaluate_file(tmp_path / "m", source, task=task, runtime=runtime)["metric"]
        return [row["prediction"] for row in read(tmp_path / "out.jsonl")], metric

    assert found("auto") == found("fp32") != found("bf16")


@pytest.mark.parametrize("named", [True, False], ids=["names", "ids"])
def test_a_file_is_evaluated_as_its_rows_are_as_a_split(model, logits_by_inference, tmp_path, named):
    rows = sentences(60)
    if not named:
        rows = [{**row, "label": NAMES.index(row["label"])} for row in rows]
    labels = np.array([row["label"] if not named else NAMES.index(row["label"]) for row in rows])
    found = evaluate_file(model, written(tmp_path / "in.csv", rows), task=TaskConfig(name="mrpc"), runtime=FP32)
    predictions = logits_by_inference(model, rows, tmp_path).argmax(axis=1)
    metric = METRICS["accuracy_f1"]
    assert found["metric"] == metric.score(predictions, labels)
    assert found["metrics"] == metric.components(predictions, labels)
    assert found["floor"] == metric.floor(labels)
    assert found["standard_error"] == metric.standard_error(predictions, labels, 0)
    assert found["examples"] == 60


def test_f1_of_a_file_is_refused_where_the_model_has_the_positive_class_as_another(tmp_path, tiny, word_tokenizer):
    made = tiny("bert", layers=1)
    made.config.id2label = {0: "equivalent", 1: "not_equivalent"}
    save_model(made, word_tokenizer, tmp_path / "m")
    rows = [{**row, "label": i % 2} for i, row in enumerate(sentences(4))]
    with pytest.raises(ConfigError, match="--metric: accuracy_f1 is of the data set's class 1, equivalent, which the"):
        evaluate_file(tmp_path / "m", written(tmp_path / "in.csv", rows), task=TaskConfig(name="mrpc"), runtime=FP32)


def test_of_f1_of_a_file_the_class_is_named_where_names_alone_decide(model, tmp_path, make_listener):
    heard, task = make_listener(), TaskConfig(name="toy", metric="f1")
    evaluate_file(model, written(tmp_path / "in.csv", sentences(9)), task=task, runtime=FP32, progress=heard)
    told, said = heard.said
    assert told.startswith("texts: of column sentence, not of ")
    assert said.startswith("f1: of class 'good', the model's class 1; where the other is meant")


def test_a_model_of_several_labels_a_text_is_refused_but_for_fine_tuning(tmp_path, tiny, word_tokenizer):
    made = tiny("bert", layers=1, num_labels=3)
    made.config.problem_type = "multi_label_classification"
    save_model(made, word_tokenizer, tmp_path / "m")
    source = written(tmp_path / "in.csv", sentences(3))
    settings = {"task": {"name": "toy", "metric": "accuracy"}, "teacher": {"model": str(tmp_path / "m")}}
    for call in (
        lambda: predict_file(tmp_path / "m", source, tmp_path / "out.csv", task=TASK, runtime=FP32),
        lambda: evaluate_file(tmp_path / "m", source, task=TASK, runtime=FP32),
        lambda: open_workspace(make_config(settings)),
    ):
        with pytest.raises(ModelError, match="m: gives a text several labels"):
            call()
    assert load_model(tmp_path / "m", num_labels=3).config.problem_type is None


@pytest.mark.parametrize("text", ["w1\rw2", "w1\nw2", "w1\r\nw2", "w1\r\n", 'w1 "w2",', " w1"])
def test_a_cell_of_csv_is_read_as_it_was_written(tmp_path, text):
    rows = [{"sentence": text, "last": text}, {"sentence": "w3", "last": "w4"}]
    with files.writing(tmp_path / "out.csv", "csv", ("sentence", "last"), None) as writer:
        writer.write(rows)
    assert [row for chunk in files.read_rows(tmp_path / "out.csv") for row in chunk] == rows
    assert (tmp_path / "out.csv").read_bytes().startswith(b"sentence,last\n")
    assert csv_text(rows).encode() == (tmp_path / "out.csv").read_bytes()


def test_a_model_reads_as_many_tokens_as_it_was_trained_on_unless_asked_for_others(
    tmp_path, tiny, word_tokenizer, make_listener
):
    made = tiny("bert", layers=1)
    made.config.trained_length = 16
    save_model(made, word_tokenizer, tmp_path / "m")
    source = written(tmp_path / "in.jsonl", [{"sentence": " ".join(["w1"] * n), "label": n % 2} for n in (3, 30, 40)])

    def found(**asked: int) -> tuple[list[float], list[str]]:
        heard, task = make_listener(), TaskConfig(name="toy", metric="accuracy", **asked)
        predict_file(tmp_path / "m", source, tmp_path / "out.jsonl", task=task, runtime=FP32, progress=heard)
        evaluate_file(tmp_path / "m", source, task=task, runtime=FP32, progress=heard)
        return [row["probability_LABEL_1"] for row in read(tmp_path / "out.jsonl")], heard.said

    assert found() == found(max_length=16)
    assert (
        found()[1]
        == [f"{source}: 2 of 3 rows have 16 tokens or more, of which so many are read; --max-length is more"] * 2
    )
    assert found(max_length=64) != found()
    assert found(max_length=64)[1] == []


def test_a_model_reads_the_columns_that_it_was_trained_on(tmp_path, tiny, word_tokenizer):
    models = {}
    for name, texts in (("pair", ["question", "sentence"]), ("single", ["sentence1"]), ("untold", None)):
        made = tiny("bert", layers=1)
        if texts is not None:
            made.config.trained_texts = texts
        save_model(made, word_tokenizer, tmp_path / name)
        models[name] = tmp_path / name
    rows = [{"question": f"w{i}", "sentence": "w9 good", "label": i % 2} for i in range(4)]
    usual = [{"sentence1": f"w{i}", "sentence2": "w9 good", "label": i % 2} for i in range(4)]

    def found(model: str, rows: list[dict], **texts: str) -> tuple[list[float], float]:
        source, task = written(tmp_path / "in.jsonl", rows), TaskConfig(name="toy", metric="accuracy", **texts)
        predict_file(models[model], source, tmp_path / "out.jsonl", task=task, runtime=FP32)
        metric = evaluate_file(models[model], source, task=task, runtime=FP32)["metric"]
        return [row["probability_LABEL_1"] for row in read(tmp_path / "out.jsonl")], metric

    both = {"text": "question", "text_pair": "sentence"}
    assert found("pair", rows) == found("pair", rows, **both) == found("untold", rows, **both)
    assert found("pair", rows) != found("untold", rows) == found("untold", rows, text="sentence")
    assert found("pair", usual) == found("untold", usual)
    assert found("single", usual) == found("untold", usual, text="sentence1") != found("untold", usual)
    for model, others, texts, message in (
        ("pair", rows, {"text": "sentence"}, r"--text: got sentence; .* on question \+ sentence, so name both, with"),
        ("single", usual, {"text_pair": "sentence2"}, "was trained on sentence1, so leave --text-pair out"),
        ("pair", sentences(3), {}, r"no text column question \+ sentence or sentence1 \+ sentence2; it has id, sent"),
        ("single", [{"question": "w1", "sentence3": "w2"}], {}, "no text column sentence1 or sentence; it"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            found(model, others, **texts)


def test_rows_are_read_some_at_a_time(tmp_path):
    for suffix in (".csv", ".jsonl", ".parquet"):
        path = written(tmp_path / f"in{suffix}", sentences(50))
        chunks = list(files.read_rows(path))
        assert [len(chunk) for chunk in chunks] == [16, 16, 16, 2]
        assert [int(row["id"]) for chunk in chunks for row in chunk] == list(range(50))


def test_an_exported_onnx_file_predicts_as_its_model_does(tmp_path, tiny, word_tokenizer):
    exported, torch_model = tmp_path / "onnx", tiny("bert", layers=1)
    inputs = word_tokenizer(["w1 w2 good", "w3"], ["w4", "w5 w6"], padding=True, return_tensors="pt")
    onnx.export_onnx(torch_model, exported / "model.onnx", batches=[dict(inputs)])
    onnx.write_beside(exported, torch_model, word_tokenizer, max_length=64, inputs=tuple(inputs))
    save_model(torch_model, word_tokenizer, tmp_path / "torch")
    source = written(tmp_path / "in.jsonl", sentences(30, pair=True))
    found = []
    for model in (tmp_path / "torch", exported, exported / "model.onnx"):
        predict_file(model, source, tmp_path / "out.jsonl", task=TASK, runtime=FP32)
        found.append([row["probability_LABEL_1"] for row in read(tmp_path / "out.jsonl")])
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
    assert found[1] == found[2]

    told = json.loads((exported / "onnx.json").read_text())
    onnx.write_beside(
        exported, torch_model, word_tokenizer, max_length=64, inputs=tuple(inputs), texts=("sentence2", "sentence1")
    )
    texts = TaskConfig(name="toy", metric="accuracy", text="sentence2", text_pair="sentence1")
    for model, task in ((exported, TASK), (tmp_path / "torch", texts)):
        predict_file(model, source, tmp_path / "out.jsonl", task=task, runtime=FP32)
        found.append([row["probability_LABEL_1"] for row in read(tmp_path / "out.jsonl")])
    np.testing.assert_allclose(found[3], found[4], atol=1e-4)
    assert found[3] != found[1]

    for change, message in (
        ({"id2label": {**told["id2label"], "2": "x"}}, "it has 3 labels"),
        ({"id2label": {"0": "x"}}, "it has 1 labels"),
        ({"inputs": told["inputs"][:2]}, "takes input_ids, attention_mask, token_type_ids and has 2"),
        ({"max_length": "long"}, "missing or damaged"),
        ({"head": "token"}, "is ONNX of a fine-tuned token classifier; on words and text give the folder of the torch"),
    ):
        (exported / "onnx.json").write_text(json.dumps({**told, **change}))
        with pytest.raises((CheckpointError, ConfigError), match=message):
            predict_file(exported, source, tmp_path / "out.jsonl", task=TASK, runtime=FP32)


def test_an_onnx_file_that_others_put_beside_the_weights_is_left_alone(tmp_path, tiny, word_tokenizer):
    save_model(tiny("bert", layers=1), word_tokenizer, tmp_path / "torch")
    (tmp_path / "torch" / "model.onnx").write_bytes(b"another exporter's")
    source = written(tmp_path / "in.jsonl", sentences(3))
    assert predict_file(tmp_path / "torch", source, tmp_path / "out.jsonl", task=TASK, runtime=FP32)["rows"] == 3


BROKEN = {
    "missing column": ("x.csv", "id,text\n1,w1\n", "no text column sentence or sentence1 + sentence2; it has id, text"),
    "empty": ("x.csv", "", "x.csv: the file is empty"),
    "header alone": ("x.csv", "sentence\n", "x.csv: no rows"),
    "no text": ("x.csv", "id,sentence\n1,w1\n2,\n", "x.csv row 2: column 'sentence' is empty"),
    "null text": ("x.jsonl", '{"sentence": "w1"}\n{"sentence": null}\n', "x.jsonl row 2: column 'sentence' is empty"),
    "text left out": ("x.jsonl", '{"sentence": "w1"}\n{"a": 1}\n', "x.jsonl row 2: column 'sentence' is empty"),
    "a list": ("x.jsonl", '{"sentence": ["w1"]}\n', "row 1: column 'sentence' holds a list"),
    "not JSON": ("x.jsonl", '{"sentence": "w1"}\n\n{"sentence":\n', "x.jsonl line 3: not JSON"),
    "not an object": ("x.jsonl", "[1]\n", "x.jsonl line 1: a JSON list"),
    "no number": ("x.jsonl", '{"sentence": "w1", "a": NaN}\n', "x.jsonl line 1: not JSON (NaN"),
    "half a character": ("x.jsonl", '{"sentence": "w1 \\ud800"}\n', "x.jsonl line 1: not JSON"),
    "bytes": ("x.jsonl", b'{"sentence": "w1"}\n{"sentence": "\xff"}\n', "x.jsonl line 2: not JSON"),
    "bytes in csv": ("x.csv", b"sentence\nw1\n\xff\n", "cannot be read as csv"),
    "cut inside quotes": ("x.csv", 'sentence\nw1\n"w2\nw3\n', "x.csv line 3: cannot be read as csv"),
    "a cell too many": ("x.csv", "sentence,id\nw1,1\nw2,2,3\n", "x.csv line 3: 3 cells, but 2 columns"),
    "a name twice": ("x.csv", "sentence,sentence\nw1,w2\n", "x.csv: column 'sentence' stands twice"),
    "taken": ("x.csv", "sentence,prediction\nw1,good\n", "x.csv: it has a column 'prediction' already"),
    "no Parquet": ("x.parquet", "PAR1 not really", "x.parquet: cannot be read as parquet"),
    "no format": ("x.tsv", "sentence\nw1\n", "--file x.tsv: no format of that name"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_used_is_refused_before_anything_is_written(model, tmp_path, monkeypatch, case):
    name, content, message = BROKEN[case]
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        predict_file(model, Path(name), Path("out.jsonl"), task=TASK, runtime=FP32)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in Path().iterdir()] == [name]


def test_a_truncated_parquet_file_is_refused(model, tmp_path):
    path = written(tmp_path / "in.parquet", sentences(400))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"in\.parquet: cannot be read"):
        predict_file(model, path, tmp_path / "out.jsonl", task=TASK, runtime=FP32)
    path.write_bytes(bytes([*whole[:4], *([255] * 300), *whole[304:]]))
    with pytest.raises(DataError, match=r"in\.parquet"):
        predict_file(model, path, tmp_path / "out.jsonl", task=TASK, runtime=FP32)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_row_that_fails_late_on_standard_input_leaves_no_file(model, tmp_path, monkeypatch):
    lines = [json.dumps(row) for row in sentences(40)] + ["{"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    with pytest.raises(DataError, match="standard input line 41: not JSON"):
        predict_file(model, None, tmp_path / "out.csv", task=TASK, runtime=FP32)
    assert list(tmp_path.iterdir()) == []


def test_a_column_that_comes_late_is_for_json_lines_alone(model, tmp_path, monkeypatch):
    text = "".join(json.dumps(row) + "\n" for row in [*sentences(20), {"sentence": "w1", "new": 1}])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    with pytest.raises(DataError, match="standard input row 21: new column 'new'"):
        predict_file(model, None, tmp_path / "out.csv", task=TASK, runtime=FP32)
    (tmp_path / "in.jsonl").write_text(text)
    predict_file(model, tmp_path / "in.jsonl", tmp_path / "out.parquet", task=TASK, runtime=FP32)
    assert [row["new"] for row in read(tmp_path / "out.parquet")][-2:] == [None, 1]


def test_a_column_of_several_types_is_no_column_of_parquet(model, tmp_path):
    path = written(
        tmp_path / "in.jsonl", [*({"sentence": "w1", "x": 1} for _ in range(20)), {"sentence": "w", "x": "a"}]
    )
    with pytest.raises(DataError, match=r"--format parquet: .* several types"):
        predict_file(model, path, tmp_path / "out.parquet", task=TASK, runtime=FP32)


def test_numbers_are_the_file_s_own_classes_by_name_and_floats_are_ids(model, tmp_path):
    rows = sentences(40)
    expected = evaluate_file(model, written(tmp_path / "in.csv", rows), task=TASK, runtime=FP32)["metric"]
    backwards = NAMES[::-1]
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=[name.upper() for name in backwards])}
    )
    numbered = [{"sentence": row["sentence"], "label": backwards.index(row["label"])} for row in rows]
    datasets.Dataset.from_list(numbered, features=features).to_parquet(str(tmp_path / "in.parquet"))
    assert evaluate_file(model, tmp_path / "in.parquet", task=TASK, runtime=FP32)["metric"] == expected
    floats = [{**row, "label": float(NAMES.index(row["label"]))} for row in rows]
    path = written(tmp_path / "in.jsonl", floats)
    assert evaluate_file(model, path, task=TASK, runtime=FP32)["metric"] == expected


@pytest.mark.parametrize(
    ("value", "message"), [("maybe", "row 3: unknown label 'maybe'"), ("", "row 3: column 'label'")]
)
def test_a_label_that_the_model_does_not_know_is_refused_with_its_row(model, tmp_path, value, message):
    rows = sentences(5)
    rows[2]["label"] = value
    with pytest.raises(DataError, match=message):
        evaluate_file(model, written(tmp_path / "in.csv", rows), task=TASK, runtime=FP32)


def test_what_does_not_fit_the_model_is_refused(model, tmp_path):
    path = written(tmp_path / "in.csv", [{**row, "label": 0.5} for row in sentences(4)])
    with pytest.raises(ModelError, match="for 2 classes, but pearson needs a regression"):
        evaluate_file(model, path, task=TaskConfig(name="toy", metric="pearson"), runtime=FP32)
    with pytest.raises(DataError, match="no column 'gold'"):
        evaluate_file(model, path, task=TaskConfig(name="toy", metric="accuracy", label="gold"), runtime=FP32)
    with pytest.raises(ConfigError, match="--format parquet"):
        predict_file(model, path, None, task=TASK, runtime=FP32, format="parquet")


def test_an_output_that_cannot_be_written_is_refused(model, tmp_path):
    path = written(tmp_path / "in.csv", sentences(4))
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "folder.csv", tmp_path / "file" / "out.csv", Path("/proc/none/out.csv")):
        with pytest.raises(DataError, match="--out"):
            predict_file(model, path, out, task=TASK, runtime=FP32)


def test_the_bootstrap_of_many_examples_is_that_of_few_drawn_in_parts(monkeypatch):
    from autodisc.tasks import sums

    rng = np.random.default_rng(0)
    predictions, labels = rng.normal(size=90), rng.normal(size=90)
    whole = METRICS["pearson"].standard_error(predictions, labels, 3)
    monkeypatch.setattr(sums, "DRAWN", 700)
    assert METRICS["pearson"].standard_error(predictions, labels, 3) == whole
