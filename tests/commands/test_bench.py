"""autodisc bench: the table, its JSON, and what a mistake says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from autodisc.errors import ModelError
from autodisc.models import runners
from autodisc.models.checkpoints import Kept, load_model, load_tokenizer, save_model
from autodisc.pruning.surgery import keep

KEYS = {
    "model",
    "runtime",
    "batch",
    "length",
    "median_ms",
    "p95_ms",
    "rows_per_s",
    "times_as_fast",
    "as_the_first",
    "mac_reduction",
    "achieved",
    "embedding_share",
    "encoder_share",
    "classifier_share",
}
TEACHER = "bench --model teachers/mrpc --threads 1 --precision fp32"


@pytest.fixture
def student(home) -> str:
    teacher = load_model("teachers/mrpc")
    kept = Kept(((0, 1), (), (3,)), ((0, 1, 2, 3, 4, 5, 6, 7), (), (8, 9)))
    save_model(keep(teacher, kept), load_tokenizer("teachers/mrpc"), Path("student"))
    return "student"


def test_every_model_runtime_batch_and_length_has_a_row(autodisc, student):
    line = f"{TEACHER} --model {student} --task mrpc --data data/mrpc --runtimes eager,written,onnx --batches 1,4"
    ran = autodisc(f"{line} --lengths 6,real --json --out bench.json")
    assert ran.code == 0, ran.err
    result = ran.json
    assert json.loads(Path("bench.json").read_text()) == result
    rows = {(row["model"], row["runtime"], row["batch"], row["length"]): row for row in result["rows"]}
    models, runtimes = ("mrpc", "student"), ("eager", "written", "onnx")
    assert rows.keys() == {(m, r, b, n) for m in models for r in runtimes for b in (1, 4) for n in (6, "real")}
    assert all(row.keys() == KEYS for row in result["rows"])
    for (model, runtime, _, _), row in rows.items():
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["rows_per_s"] > 0
        assert (row["encoder_share"] is not None) == (runtime == "eager")
        if model == "mrpc":
            assert row["times_as_fast"] == row["mac_reduction"] == row["achieved"] == 1
        else:
            assert row["mac_reduction"] > 4
            assert row["achieved"] == pytest.approx(row["times_as_fast"] / row["mac_reduction"])
    assert rows["mrpc", "eager", 1, 6]["as_the_first"] == 1
    assert [model["heads"] for model in result["models"]] == [[4, 4, 4], [2, 0, 1]]
    assert result["models"][1]["of_the_first"] < 0.3
    assert {"torch", "onnxruntime", "hardware", "threads", "precision", "device"} <= result["environment"].keys()
    assert result["left_out"] == {}


def test_the_table_names_the_machine(autodisc, student):
    ran = autodisc(f"{TEACHER} --model {student} --runtimes eager --batches 2 --lengths 5 --quiet")
    assert ran.code == 0, ran.err
    assert ran.err == ""
    for text in ("cpu, 1 thread, fp32", f"torch {torch.__version__}", "2 0 1", "student", "achieved"):
        assert text in ran.out


def test_lists_may_have_spaces(autodisc, home):
    ran = autodisc(f"{TEACHER} --runtimes 'eager, written' --batches '1, 2' --lengths '4, 5' --json")
    assert ran.code == 0, ran.err
    assert len(ran.json["rows"]) == 8


def test_a_compiler_that_is_not_there_leaves_the_others(autodisc, home, monkeypatch):
    def broken(model, **_):
        def call(**_):
            raise RuntimeError("no C++ compiler\nwas found")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    ran = autodisc(f"{TEACHER} --runtimes compile,eager --batches 1 --lengths 4")
    assert ran.code == 0, ran.err
    assert "compile: left out; torch.compile does not work here (no C++ compiler was found)" in ran.out
    assert "eager" in ran.out
    alone = autodisc(f"{TEACHER} --runtimes compile --batches 1 --lengths 4")
    assert alone.code == 2
    assert "no C++ compiler" in alone.err


def test_what_cannot_be_exported_leaves_the_others(autodisc, home, monkeypatch):
    def fail(*_, **__):
        raise ModelError("onnx: its logits differ from torch's by 1")

    monkeypatch.setattr(runners, "export_onnx", fail)
    ran = autodisc(f"{TEACHER} --runtimes onnx,eager --batches 1 --lengths 4")
    assert ran.code == 0, ran.err
    assert "onnx: left out; mrpc: onnx: its logits differ" in ran.out
    assert "eager" in ran.out


def test_a_result_that_cannot_be_kept_is_shown(autodisc, home):
    ran = autodisc(f"{TEACHER} --runtimes eager --batches 1 --lengths 4 --out data/mrpc/train.csv/bench.json --json")
    assert ran.code == 1
    assert ran.json["rows"][0]["model"] == "mrpc"
    assert "cannot be written" in ran.err.splitlines()[-1]


def test_a_model_of_fewer_words_is_refused(autodisc, home, tiny):
    config = tiny("bert").config
    config.vocab_size = 40
    save_model(AutoModelForSequenceClassification.from_config(config), load_tokenizer("teachers/mrpc"), Path("fewer"))
    ran = autodisc(f"{TEACHER} --model fewer --runtimes eager --batches 1 --lengths 4")
    assert ran.code == 2
    assert "fewer knows 40 tokens, mrpc, whose tokens all are given, 60; give it first" in ran.err
    again = autodisc("bench --model fewer --model teachers/mrpc --threads 1 --runtimes eager --batches 1 --lengths 4")
    assert again.code == 0, again.err


def test_a_model_of_images_is_refused_in_a_line(autodisc, home, tiny):
    save_model(tiny("vit"), None, Path("images"))
    ran = autodisc("bench --model images --threads 1 --runtimes eager --batches 1 --lengths 4")
    assert ran.code == 2
    assert "images is a vit, which reads pixel_values; only text is timed" in ran.err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--runtimes eager,tensorrt", ["runtimes", "tensorrt", "written"]),
        ("--batches 0", ["--batches", "'0'"]),
        ("--lengths 16,long", ["--lengths", "long"]),
        ("--lengths real", ["--lengths", "--task"]),
        ("--lengths 5000", ["lengths", "5000", "140"]),
        ("--model teachers/mrpc --lengths 4", ["model", "twice"]),
        ("--model teachers/none --lengths 4", ["teachers/none"]),
        ("--out data", ["--out", "data"]),
        ("--task mrpc --data data/mrpc --batches 5000 --lengths real", ["batches", "5000", "100"]),
    ],
)
def test_a_mistake_is_one_line(autodisc, home, options, named):
    ran = autodisc(f"{TEACHER} {options}")
    assert ran.code == 2
    assert ran.out == ""
    line = ran.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert all(name in line for name in named), line
