"""`autodisc compare`: the contract, the mistakes, the help's example and the script beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autodisc import cli
from autodisc.comparison import running

ROOT = Path(cli.__file__).parents[1]
STUDY = """
distillation: {epochs: 1}
search: {sparsities: [0.3, 0.5], recovery: {steps: 4}, importance: {examples: 32}}
runtime: {precision: fp32}
compare:
  tasks: [{task: {name: mrpc, data: data/mrpc}, teacher: {model: teachers/mrpc}}]
  seeds: [0]
  strategies: [autodisc, direct]
  resamples: 20
"""


@pytest.fixture
def study(home) -> Path:
    Path("compare.yaml").write_text(STUDY)
    return home


def test_a_comparison_ends_with_a_report_and_again_computes_nothing(autodisc, study, monkeypatch):
    ran = autodisc("compare compare.yaml --out runs/c --json")
    assert ran.code == 0, ran.err
    assert (ran.json["cells"], ran.json["missing"], ran.json["failed"]) == (4, 0, {})
    assert ran.json["verdicts"][0].startswith("mrpc, student sparsity 0.9: ")
    assert Path(ran.json["report"]).is_file()
    monkeypatch.setattr(running, "compute", None)
    again = autodisc("compare compare.yaml --out runs/c --report-only --quiet")
    assert (again.code, again.out, again.err) == (0, "report: runs/c/report.html\n", "")


def test_a_failed_cell_is_exit_code_1_after_the_report(autodisc, study, monkeypatch):
    compute = running.compute

    def failing(config, cell, out):
        if cell.kind == "direct":
            raise ArithmeticError("by accident")
        compute(config, cell, out)

    monkeypatch.setattr(running, "compute", failing)
    ran = autodisc("compare compare.yaml --out runs/c --json")
    assert ran.code == 1
    (reason,) = ran.json["failed"].values()
    assert reason == "ArithmeticError: by accident"
    assert Path("runs/c/report.html").is_file()


def test_a_task_that_cannot_be_prepared_any_more_is_exit_code_1_with_its_reason(autodisc, study, monkeypatch):
    assert autodisc("compare compare.yaml --out runs/c").code == 0
    next(Path("runs/c").rglob("direct.json")).unlink()

    def failing(*_):
        raise MemoryError("it is full")

    monkeypatch.setattr(running, "prepare", failing)
    ran = autodisc("compare compare.yaml --out runs/c --json")
    assert ran.code == 1
    assert ran.json["failed"] == {"task mrpc, seed 0, shared": "MemoryError: it is full"}


MISTAKES = [
    ("strategies: [autodisc, direct]", "strategies: [autodisk]", ["autodisk", "'autodisc'"]),
    ("seeds: [0]", "seeds: [0, 0]", ["same key"]),
    ("model: teachers/mrpc", "model: teachers/none", ["teachers/none"]),
    ("data: data/mrpc", "data: data/none", ["data/none"]),
    ("seeds: [0]", "sedes: [0]", ["compare.sedes", "'seeds'"]),
    ("compare:", "comparison:", ["compare", "missing"]),
    ("[0.3, 0.5]", "[0.3, 0.95]", ["search.sparsities", "0.95"]),
]


@pytest.mark.parametrize(("text", "wrong", "named"), MISTAKES, ids=[wrong for _, wrong, _ in MISTAKES])
def test_a_mistake_is_one_line_exit_code_2_and_leaves_nothing(autodisc, study, text, wrong, named):
    Path("compare.yaml").write_text(STUDY.replace(text, wrong))
    ran = autodisc("compare compare.yaml --out runs/c")
    assert (ran.code, ran.out) == (2, "")
    (line,) = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in named), line
    assert not Path("runs").exists()


def test_a_report_of_nothing_is_one_line(autodisc, study):
    ran = autodisc("compare compare.yaml --out runs/c --report-only")
    assert (ran.code, ran.out) == (2, "")
    assert "holds no cell" in ran.err


def test_the_example_in_the_help_works(autodisc, study, monkeypatch):
    text = autodisc("compare --help").out
    example = [word for word in text.split("Example:")[1].split() if word != "\\"]
    assert example[:2] == ["autodisc", "compare"]
    called = []

    def note(*arguments, **_):
        called.append(arguments)
        raise KeyboardInterrupt  # far enough

    monkeypatch.setattr(running, "run", note)
    (study / "studies").symlink_to(ROOT / "studies")
    ran = autodisc(" ".join(example[1:]))
    assert called, ran.err


def test_the_benchmark_is_the_command():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "compare.py", "none.yaml", "--out", "runs/c"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "none.yaml" in done.stderr
