"""The command lines: what scripts rely on, and what a mistake says."""

from __future__ import annotations

import json
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
    assert predicted["stages"].keys() == {"set-up", "importance", "teacher outputs", "recovery", "trials"}
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


# Command line; what the message must name.
SEARCH = f"search {TEACHER} --student-sparsity 0.9 --out runs/bad"
MISTAKES = [
    ("search --task mrpc --data data/mrpc --out runs/bad", ["teacher.model", "missing"]),
    ("search --teacher teachers/mrpc --out runs/bad", ["task.name", "--task"]),
    (SEARCH.replace("teachers/mrpc", "teachers/none"), ["teachers/none", "config.json"]),
    (SEARCH.replace("teachers/mrpc", "./none"), ["./none"]),
    (SEARCH.replace("data/mrpc", "data/none"), ["data/none", "train"]),
    (SEARCH.replace(" --data data/mrpc", "").replace("mrpc --st", "mrcp --st"), ["mrcp", "'mrpc'"]),
    (SEARCH.replace("--task mrpc", "--task mine"), ["metric", "--metric", "accuracy"]),
    (f"{SEARCH} --label gold", ["gold", "sentence1", "--label"]),
    (f"{SEARCH} --text body", ["body", "sentence1", "--text"]),
    (SEARCH.replace("0.9", "0"), ["student_sparsity", "(0, 1)"]),
    (SEARCH.replace("0.9", "1"), ["student_sparsity", "(0, 1)"]),
    (SEARCH.replace("0.9", "90"), ["student_sparsity", "0.9"]),
    (SEARCH.replace("0.9", "much"), ["student_sparsity", "much"]),
    (f"{SEARCH} --sparsities 0.5,0.95", ["search.sparsities", "0.95", "0.9"]),
    (f"{SEARCH} --sparsities 0.5,half", ["search.sparsities", "half"]),
    (f"{SEARCH} --sparsities 0.5 --low 0.3 --high 0.5", ["sparsities", "low"]),
    (f"{SEARCH} --set search.lamm=0.1", ["search.lamm", "'lam'"]),
    (f"{SEARCH} --set search.lam", ["--set", "KEY=VALUE"]),
    (f"{SEARCH} --metric acuracy", ["task.metric", "acuracy", "accuracy"]),
    (f"{SEARCH} --metric pearson", ["2 outputs", "1"]),
    (f"{SEARCH} --scorer best", ["search.scorer", "best", "recovered"]),
    (f"{SEARCH} --lam -1", ["search.lam", "-1"]),
    (f"{SEARCH} --epochs 0", ["distillation.epochs", "0"]),
    (f"{SEARCH} --device tpu", ["device", "tpu", "cpu"]),
    (f"{SEARCH} --precision fp8", ["runtime.precision", "fp8"]),
    (f"{SEARCH} --config none.yaml", ["none.yaml"]),
    (f"{SEARCH} --storage nosql://x", ["storage", "nosql://x"]),
    (f"{SEARCH} --sede 1", ["--sede", "--seed"]),
    (SEARCH.replace("runs/bad", "data/mrpc/train.csv"), ["--out", "train.csv"]),
    (f"baseline --strategy best {SEARCH[7:]}", ["--strategy", "best", "maxidisc"]),
    ("distill --study runs/bad", ["runs/bad", "search"]),
    ("evaluate --model teachers/mrpc --task mrpc --data data/mrpc --split dev", ["dev", "validation"]),
    ("report runs/bad --out runs/bad/report.html", ["runs/bad"]),
    ("dashboard runs/bad", ["runs/bad"]),
    ("run none.yaml", ["none.yaml"]),
    ("serach", ["serach"]),
]


@pytest.mark.parametrize(("line", "named"), MISTAKES, ids=[f"{i}" for i in range(len(MISTAKES))])
def test_a_mistake_is_one_line_that_names_it_and_exit_code_2(autodisc, home, line, named):
    before = sorted(home.rglob("*"))
    ran = autodisc(line)
    assert_one_line(ran, named)
    assert sorted(home.rglob("*")) == before


def empty_train(home: Path) -> None:
    (home / "data/mrpc/train.csv").write_text("sentence1,sentence2,label\n")


def strange_label(home: Path) -> None:
    with (home / "data/mrpc/validation.csv").open("a") as file:
        file.write("w1,w2,maybe\n")


def truncated_weights(home: Path) -> None:
    weights = home / "teachers/mrpc/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])


def unsupported_family(home: Path) -> None:
    config = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 60}
    (home / "teachers/mrpc/config.json").write_text(json.dumps(config))


def no_weights(home: Path) -> None:
    (home / "teachers/mrpc/model.safetensors").unlink()


def no_head(home: Path) -> None:
    shutil.rmtree(home / "teachers/mrpc")
    from safetensors.torch import load_file, save_file

    shutil.copytree(home / "models/encoder", home / "teachers/mrpc")
    weights = home / "teachers/mrpc/model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if not name.startswith("classifier")}
    save_file(kept, weights, metadata={"format": "pt"})


def no_validation(home: Path) -> None:
    (home / "data/mrpc/validation.csv").unlink()


SPOILT = {
    empty_train: ["train", "empty"],
    strange_label: ["validation row 101", "maybe"],
    truncated_weights: ["teachers/mrpc"],
    unsupported_family: ["gpt2", "bert"],
    no_weights: ["teachers/mrpc"],
    no_head: ["classifier", "finetune"],
    no_validation: ["data/mrpc", "validation"],
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_spoilt_data_or_models_are_one_line_and_nothing_is_written(autodisc, home, spoil):
    spoil(home)
    before = sorted(home.rglob("*"))
    assert_one_line(autodisc(f"{SEARCH} --quiet"), SPOILT[spoil])
    assert sorted(home.rglob("*")) == before


def assert_one_line(ran, named: list[str]) -> None:
    assert ran.code == 2, ran
    assert ran.out == ""
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ran.err
    assert ran.err.splitlines()[-1] == errors[0]
    for word in named:
        assert word in errors[0]


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
