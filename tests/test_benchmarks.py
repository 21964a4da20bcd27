"""The benchmarks run: on a tiny teacher, what they measure means nothing."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(furnished, tmp_path, monkeypatch):
    """``benchmark(name, *options)``: the rows that a script publishes of the furnished teacher."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(importlib.import_module("common"), "RESULTS", tmp_path)

    def call(name: str, *options: str) -> list[dict]:
        script = importlib.import_module(name)
        given = ["--teacher", str(furnished / "teacher"), "--task", "sst2", "--data", str(furnished / "data")]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *given, "--threads", "1", *options])
        script.main()
        (found,) = tmp_path.glob(f"{name}-*.json")
        return json.loads(found.read_text())["rows"]

    yield call
    for name in ("common", "plain", "speed", "prediction"):
        sys.modules.pop(name, None)


def test_every_stage_is_timed_beside_its_limit(benchmark, tmp_path):
    other = {"benchmark": "bench", "environment": {}, "rows": []}  # of ``autodisc bench``, which has no settings
    (tmp_path / "bench-mrpc.json").write_text(json.dumps(other))
    rows = benchmark("speed", "--steps", "2", "--batch", "4", "--repeats", "1", "--precision", "fp32")
    assert [row["stage"] for row in rows] == list(sys.modules["speed"].STAGES)
    assert all(row["ours s"] > 0 and row["limit s"] > 0 for row in rows)


def test_a_prediction_stands_beside_what_a_search_took(benchmark, monkeypatch):
    """Both parts in this process: where kernels were compiled is of no matter here."""
    prediction = importlib.import_module("prediction")

    def here(script, arguments, *, environment):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        printed: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr("builtins.print", lambda text, **_: printed.append(text))
            prediction.main()
        return json.loads(printed[-1])

    monkeypatch.setattr(prediction, "in_a_fresh_process", here)
    rows = {(row["stage"], row["what"]): row for row in benchmark("prediction")}
    assert rows["whole", "flops"]["ratio"] == pytest.approx(1, rel=0.25)
    assert {what for stage, what in rows if stage == "whole"} == {*prediction.COMPARED, "disk_mib"}
