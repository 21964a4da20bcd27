"""candidates and export as a user types them, and budgets on the command line of a search."""

from __future__ import annotations

from pathlib import Path

import pytest

from autodisc import exporting
from autodisc.search import students

STUDY = "--task mrpc --data data/mrpc --threads 1 --precision fp32"
SEARCH = (
    f"search --teacher teachers/mrpc {STUDY} --sparsities 0.3,0.5 --recovery-steps 4 --epochs 1"
    " --set search.importance.examples=32 --set search.importance.rounds=1 --set search.margin=0"
)


@pytest.fixture(autouse=True)
def _fewer_students(monkeypatch):
    """A trial is a dozen writes to a journal: every twentieth will do."""
    monkeypatch.setattr(students, "POINTS", tuple(round(0.05 * i, 2) for i in range(1, 20)))


@pytest.fixture
def searched(autodisc, home) -> Path:
    ran = autodisc(f"{SEARCH} --max-params 8k --max-macs 9M --out runs/a")
    assert ran.code == 0, ran.err
    assert "the least within the budget" in ran.out
    assert "of 8,000 encoder parameters" in ran.out
    return home


def test_from_a_budget_to_files_to_deploy(autodisc, searched):
    ran = autodisc("candidates --study runs/a --batch 2 --length 16 --threads 1")
    assert ran.code == 0, ran.err
    assert "batch 2, length 16" in ran.out
    assert "exportable: any sparsity from 0.3 to" in ran.out
    listed = autodisc("candidates --study runs/a --threads 1 --json").json
    assert [row["sparsity"] for row in listed["candidates"]] == [0.3, 0.5]
    assert listed["student"]["params"] <= 8000

    made = autodisc("export --study runs/a --sparsity 0.41 --threads 1 --precision fp32 --out small --json").json
    line = f"evaluate --model small {STUDY} --json"
    assert autodisc(line).json["metric"] == made["metric"]
    ran = autodisc("export --study runs/a --sparsity 0.41 --threads 1 --format dense --out dense")
    assert ran.code == 0, ran.err
    assert "no faster than the teacher" in ran.out
    ran = autodisc("export --study runs/a --max-params 9k --threads 1 --format onnx --int8 --out onnx")
    assert ran.code == 0, ran.err
    assert "largest difference" in ran.out
    assert "before" in ran.out
    assert "of 9,000 encoder parameters" in ran.out
    ran = autodisc(f"export --model small {STUDY} --format onnx --out again")
    assert ran.code == 0, ran.err
    assert Path("again/model.onnx").is_file()


MISTAKES = [
    ("export --out x", ["--study", "--model"]),
    ("export --study runs/a --model teachers/mrpc --out x", ["one of the two"]),
    ("export --study runs/none --sparsity 0.5 --out x", ["runs/none", "autodisc search"]),
    ("candidates --study runs/none", ["runs/none", "autodisc search"]),
    ("export --study runs/a --out x", ["no student", "distill --study runs/a"]),
    ("export --study runs/a --sparsity 0.5 --format gguf --out x", ["gguf", "onnx"]),
    ("export --study runs/a --sparsity much --out x", ["--sparsity", "number"]),
    ("export --study runs/a --sparsity 0.1 --out x", ["0.1", "from 0.3"]),
    ("export --study runs/a --sparsity 85 --out x", ["85", "from 0.3"]),
    ("export --study runs/a --sparsity 0.5 --max-params 9k --out x", ["--sparsity", "budget"]),
    ("export --study runs/a --max-params 3 --out x", ["nearest", "3 encoder parameters"]),
    ("export --study runs/a --max-params none --out x", ["budget.params", "none"]),
    ("export --study runs/a --max-macs 9M --budget-batch 8 --out x", ["budget", "latency_ms"]),
    ("export --study runs/a --sparsity 0.5 --task mrpc --out x", ["--task", "--model"]),
    ("export --study runs/a --sparsity 0.5 --int8 --out x", ["--int8", "onnx"]),
    ("export --study runs/a --sparsity 0.5 --opset 7 --format onnx --out x", ["opset", "7"]),
    ("export --study runs/a --sparsity 0.5 --out data/mrpc", ["data/mrpc", "holds something"]),
    ("export --study runs/a --sparsity 0.5 --out data/mrpc/train.csv", ["--out", "train.csv"]),
    ("export --model teachers/mrpc --sparsity 0.5 --out x", ["--sparsity", "--study"]),
    ("export --model teachers/mrpc --format onnx --out x", ["--task", "--data"]),
    ("export --model teachers/none --format dense --out x", ["teachers/none", "config.json"]),
    (f"{SEARCH} --student-sparsity 0.8 --max-params 8k --out x", ["student_sparsity", "budget"]),
    (f"{SEARCH} --max-params 3 --out x", ["budget", "nearest"]),
    (f"{SEARCH} --max-params 9M --out x", ["budget", "teacher itself"]),
    (f"{SEARCH} --max-latency-ms -1 --out x", ["budget.latency_ms", "-1"]),
    (f"{SEARCH} --max-params 14k --out x", ["search.sparsities", "beyond", "budget"]),
    (f"{SEARCH} --max-params 9k --out runs/a", ["budget.params: 8000 -> 9000"]),
]


def test_a_mistake_is_one_line_that_names_it_and_nothing_is_written(autodisc, searched):
    before = sorted(searched.rglob("*"))
    for line, named in MISTAKES:
        ran = autodisc(f"{line} --quiet")
        assert ran.code == 2, (line, ran)
        assert ran.out == ""
        assert ran.err.startswith("error: "), (line, ran.err)
        assert len(ran.err.splitlines()) == 1, (line, ran.err)
        for word in named:
            assert word in ran.err, (line, ran.err)
        assert sorted(searched.rglob("*")) == before, line


@pytest.mark.parametrize("command", ["candidates", "export"])
def test_the_example_in_a_help_works(autodisc, home, monkeypatch, command):
    text = autodisc(f"{command} --help").out
    example = [word for word in text.split("Example:")[1].split() if word != "\\"]
    assert example[:2] == ["autodisc", command]
    called = []

    def note(*arguments, **_):
        called.append(arguments)
        raise KeyboardInterrupt  # far enough

    monkeypatch.setattr(exporting, command, note)
    (home / "runs/mrpc").mkdir(parents=True)
    study = "task: {name: mrpc, data: data/mrpc}\nteacher: {model: teachers/mrpc}\n"
    (home / "runs/mrpc/config.yaml").write_text(study)
    ran = autodisc(" ".join(example[1:]))
    assert called, ran.err
