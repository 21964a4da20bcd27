"""predict and evaluate on files, as command lines."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

PREDICT = "predict --model teachers/mrpc --precision fp32 --threads 1"
EVALUATE = "evaluate --model teachers/mrpc --task mrpc --precision fp32 --threads 1"


def test_predict_writes_a_file_that_evaluate_agrees_with(autodisc, home):
    ran = autodisc(f"{PREDICT} --file data/mrpc/test.csv --out predicted.jsonl --json")
    assert ran.code == 0, ran.err
    assert ran.json["rows"] == 60
    assert ran.json["out"] == "predicted.jsonl"
    events = [json.loads(line) for line in ran.err.splitlines()]
    ended = {event["name"]: event["done"] for event in events if event["event"] == "end"}
    assert ended["Predicting data/mrpc/test.csv"] == 60
    rows = [json.loads(line) for line in Path("predicted.jsonl").read_text().splitlines()]
    names = {row["prediction"] for row in rows}
    assert names == {"not_equivalent", "equivalent"}
    right = sum((row["prediction"] == "equivalent") == (row["label"] == "1") for row in rows)

    on_file = autodisc(f"{EVALUATE} --file data/mrpc/test.csv --json").json
    assert on_file["metrics"]["accuracy"] == right / 60
    on_split = autodisc(f"{EVALUATE} --data data/mrpc --split test --json").json
    assert {name: on_file[name] for name in on_split if name != "split"} == {
        name: value for name, value in on_split.items() if name != "split"
    }
    assert "metric" in autodisc(f"{EVALUATE} --file data/mrpc/test.csv").out


def test_predict_reads_standard_input_and_writes_standard_output(autodisc, home, monkeypatch):
    lines = [json.dumps({"sentence1": "w1 good", "sentence2": f"w{i}"}) for i in range(3)]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    ran = autodisc(f"{PREDICT} --file - --quiet")
    assert (ran.code, ran.err) == (0, "")
    assert [json.loads(line)["sentence2"] for line in ran.out.splitlines()] == ["w0", "w1", "w2"]
    as_csv = autodisc(f"{PREDICT} --file data/mrpc/test.csv --format csv").out.splitlines()
    assert as_csv[0] == "sentence1,sentence2,label,prediction,probability_not_equivalent,probability_equivalent"
    assert len(as_csv) == 61


def test_a_reader_that_has_had_enough_is_no_error(home):
    line = f"{sys.executable} -m autodisc.cli {PREDICT} --file data/mrpc/train.csv --quiet"
    ran = subprocess.run(f"{line} | true", shell=True, capture_output=True, text=True, check=False)
    assert ran.stderr == ""


MISTAKES = [
    (f"{PREDICT} --file none.csv", ["none.csv", "no such file"]),
    (f"{PREDICT} --file data/mrpc", ["data/mrpc"]),
    (f"{PREDICT} --file data/mrpc/test.csv --text body", ["body", "sentence1", "--text"]),
    (f"{PREDICT} --file data/mrpc/test.csv --json", ["--json", "--out"]),
    (f"{PREDICT} --file data/mrpc/test.csv --out out.txt", ["out.txt", ".csv"]),
    (f"{PREDICT} --file data/mrpc/test.csv --out data", ["data"]),
    (f"{PREDICT} --file data/mrpc/test.csv --max-length 4", ["max_length", "4"]),
    (f"{PREDICT} --file data/mrpc/test.csv --format xlsx", ["--format", "xlsx"]),
    (PREDICT.replace("teachers/mrpc", "teachers/none") + " --file data/mrpc/test.csv", ["teachers/none"]),
    (PREDICT.replace("teachers/mrpc", "teachers/mrpc/x.onnx") + " --file data/mrpc/test.csv", ["x.onnx", "export"]),
    (f"{EVALUATE} --file data/mrpc/test.csv --split test", ["--file", "--split"]),
    (f"{EVALUATE} --file data/mrpc/test.csv --metric pearson", ["pearson", "2 classes"]),
    (f"{EVALUATE} --file data/mrpc/test.csv --label gold", ["gold", "--label"]),
    (f"{EVALUATE.replace('mrpc --prec', 'mine --prec')} --file data/mrpc/test.csv", ["mine"]),
]


@pytest.mark.parametrize(("line", "named"), MISTAKES, ids=[f"{i}" for i in range(len(MISTAKES))])
def test_a_mistake_is_one_line_that_names_it_and_writes_nothing(autodisc, home, line, named):
    before = sorted(home.rglob("*"))
    ran = autodisc(line)
    assert ran.code == 2, ran.err
    last = ran.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert all(name in last for name in named), last
    assert sorted(home.rglob("*")) == before


def test_an_onnx_folder_is_evaluated_on_files_alone(autodisc, home):
    (home / "exported").mkdir()
    (home / "exported/model.onnx").write_bytes(b"")
    ran = autodisc("evaluate --model exported --task mrpc --data data/mrpc")
    assert ran.code == 2
    assert "--file" in ran.err
