"""The command lines: what scripts rely on, and what a mistake says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autodisc import api, cli

TEACHER = "--teacher teachers/mrpc --task mrpc --data data/mrpc"
SMALL = (
    "--sparsities 0.3,0.5 --epochs 1 --recovery-steps 4 --threads 1 --precision fp32"
    " --criterion first-order --importance-rounds 1 --set search.importance.examples=32 --set search.margin=0.5"
)
SMALL_BASELINE = SMALL.replace(" --recovery-steps 4", "")  # a search's alone
SEARCH = f"search {TEACHER} --student-sparsity 0.9 --out runs/bad"
COMMANDS = ["finetune", "search", "distill", "baseline", "run", "report", "dashboard", "demo", "evaluate"]


def test_the_contract_from_search_to_report(autodisc, home):
    ran = autodisc(f"search {TEACHER} --student-sparsity 0.8 {SMALL} --out runs/a --json")
    assert ran.code == 0, ran.err
    assert len(ran.out.splitlines()) == 1
    searched = ran.json
    assert {"sparsity", "metric", "floor", "tradeoff", "feasible"} <= searched["best"].keys()
    names = {"sparsity", "metric", "floor", "tradeoff", "feasible", "scale", "params", "macs", "seconds"}
    assert [trial["sparsity"] for trial in searched["trials"]] == [0.3, 0.5]
    assert all(names <= trial.keys() for trial in searched["trials"])
    assert {"seconds", "flops", "stages"} <= searched["cost"].keys()
    assert searched["storage"]
    assert searched["study"]
    assert "recovery" in ran.err

    distilled = autodisc("distill --study runs/a --epochs 1 --limit-train 100 --seed 1 --json").json
    assert {"path", "sparsity", "metric"} <= distilled["assistant"].keys()
    assert {"path", "sparsity", "metric", "split"} <= distilled["student"].keys()
    assert distilled["student"]["split"] == "test"

    student = distilled["student"]["path"]
    line = f"evaluate --model {student} --task mrpc --data data/mrpc --split test --precision fp32 --threads 1 --json"
    evaluated = autodisc(line).json
    assert evaluated["metric"] == pytest.approx(distilled["student"]["metric"])
    assert {"accuracy", "f1"} <= evaluated["metrics"].keys()
    assert evaluated["examples"] == 60
    assert 0 < evaluated["floor"] < 1

    for strategy in ("maxidisc", "direct"):
        line = f"baseline --strategy {strategy} {TEACHER} --student-sparsity 0.8 {SMALL_BASELINE} --out runs/a --json"
        ran = autodisc(line)
        assert ran.code == 0, ran.err
        assert ran.json["best"]
        assert {"sparsity", "assistant_metric", "student_metric", "seconds", "flops"} <= ran.json["trials"][0].keys()
        assert ran.json["cost"]["flops"] > 0

    ran = autodisc("report runs/a --out report.html --lam 0.1 --json")
    assert ran.json["studies"][0]["verdict"]
    assert Path("report.html").is_file()
    assert Path("report.md").is_file()
    assert "report: report.html" in autodisc("report runs/a --out report.html").out

    another = autodisc(f"search {TEACHER} --student-sparsity 0.7 {SMALL} --out runs/a")
    assert another.code == 2
    assert "student_sparsity: 0.8 -> 0.7" in another.err


def test_a_dry_run_predicts_and_leaves_no_study(autodisc, home):
    line = f"search {TEACHER} --student-sparsity 0.8 {SMALL} --out runs/dry --dry-run"
    ran = autodisc(f"{line} --json")
    assert ran.code == 0, ran.err
    predicted = ran.json["predicted"]
    keys = {"seconds", "flops", "peak_mib", "disk_gib"}
    assert keys <= predicted.keys()
    assert predicted["stages"].keys() == {
        *("set-up", "importance", "teacher outputs", "recovery", "teacher metric", "trials")
    }
    assert all(keys <= cost.keys() for cost in predicted["stages"].values())
    assert not Path("runs").exists()

    table = autodisc(line).out
    assert all(name in table for name in predicted["stages"])


def test_finetune_makes_a_teacher_that_evaluate_agrees_with(autodisc, home):
    line = (
        "finetune --model models/encoder --task mrpc --data data/mrpc --epochs 1 --threads 1 --out teachers/new --json"
    )
    made = autodisc(line).json
    evaluated = autodisc("evaluate --model teachers/new --task mrpc --data data/mrpc --json").json
    assert evaluated["metric"] == pytest.approx(made["metric"])
    again = autodisc("finetune --model models/encoder --task mrpc --data data/mrpc --out teachers/new")
    assert again.code == 2


def test_without_json_a_table_is_on_standard_output_and_quiet_silences_progress(autodisc, home):
    ran = autodisc(f"search {TEACHER} --student-sparsity 0.8 {SMALL} --scorer pruned --out runs/a --quiet")
    assert ran.code == 0, ran.err
    assert "Candidates" in ran.out
    assert ran.err == ""
    assert autodisc("report runs/a --quiet").out == "report: runs/a/report.html\n"  # of a search alone


def test_an_unforeseen_error_is_one_line_and_debug_gives_the_traceback(autodisc, home, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr(api, "search", fail)
    ran = autodisc(SEARCH)
    assert (ran.code, ran.err) == (
        1,
        "error: ZeroDivisionError: by accident; run again with --debug for the traceback\n",
    )
    with pytest.raises(ZeroDivisionError):
        autodisc(f"{SEARCH} --debug")


def test_ctrl_c_is_exit_code_130_and_a_line(autodisc, home, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "search", interrupt)
    ran = autodisc(SEARCH)
    assert ran.code == 130
    assert ran.err.startswith("interrupted")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_in_a_help_works(autodisc, home, monkeypatch, command):
    text = autodisc(f"{command} --help").out
    example = [word for word in text.split("Example:")[1].split() if word != "\\"]
    assert example[:2] == ["autodisc", command]
    called = []

    def note(*arguments, **_):
        called.append(arguments)
        raise KeyboardInterrupt  # far enough

    for name in ("finetune", "search", "distill", "baseline", "run", "evaluate"):
        monkeypatch.setattr(api, name, note)
    monkeypatch.setattr("autodisc.reporting.report.write_report", note)
    monkeypatch.setattr("autodisc.reporting.dashboard.serve", note)
    autodisc_root = Path(cli.__file__).parents[1]
    (home / "studies").symlink_to(autodisc_root / "studies")
    (home / "runs/mrpc").mkdir(parents=True)
    study = "task: {name: mrpc, data: data/mrpc}\nteacher: {model: teachers/mrpc}\n"
    (home / "runs/mrpc/config.yaml").write_text(study)
    shutil.rmtree(home / "teachers/mrpc") if command == "finetune" else None
    ran = autodisc(" ".join(example[1:]))
    assert called, ran.err


def test_help_costs_no_torch():
    code = "import sys; from autodisc.cli import main; main(['search', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_options_override_a_study_and_set_overrides_options(autodisc, home, monkeypatch):
    seen = []
    monkeypatch.setattr(api, "search", lambda config, out, progress: seen.append(config) or {})
    Path("study.yaml").write_text(
        "task: {name: mrpc, data: data/mrpc}\nteacher: {model: teachers/mrpc}\nsearch: {lam: 0.3, margin: 2}\n"
    )
    line = (
        "search --config study.yaml --out runs/a --lam 0.1 --seed 3 --set search.lam=0.05 --set runtime.seed=4 --json"
    )
    assert autodisc(line).code == 0
    (config,) = seen
    assert (config.search.lam, config.search.margin, config.runtime.seed) == (0.05, 2.0, 4)
