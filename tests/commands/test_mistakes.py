"""Every mistake on a command line is one line that names it, exit code 2, and nothing is written or changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

TEACHER = "--teacher teachers/mrpc --task mrpc --data data/mrpc"
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
    (f"{SEARCH} --device-map everywhere", ["teacher.device_map", "everywhere", "balanced", "disk"]),
    (f"{SEARCH} --set 'teacher.device_map={{bert: tpu}}'", ["teacher.device_map", "tpu", "cuda:1"]),
    (f"{SEARCH} --set 'teacher.device_map={{bert: disk}}'", ["teachers/mrpc", "device_map"]),
    (f"{SEARCH} --device-map auto --workers 2", ["teacher.device_map", "search.jobs", "worker"]),
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
    # Numbers out of their range, of the wrong kind, or that contradict each other.
    (f"{SEARCH} --seed -1", ["runtime.seed", "-1"]),
    (f"{SEARCH} --seed one", ["runtime.seed", "one"]),
    (f"{SEARCH} --threads 0", ["runtime.threads", "0"]),
    (f"{SEARCH} --batch-size 0", ["distillation.batch_size", "0"]),
    (f"{SEARCH} --batch-size 1.5", ["distillation.batch_size", "1.5"]),
    (f"{SEARCH} --lr 0", ["distillation.lr", "0"]),
    (f"{SEARCH} --lr fast", ["distillation.lr", "fast"]),
    (f"{SEARCH} --sandwich-size 0", ["distillation.sandwich_size", "0"]),
    (f"{SEARCH} --assistants 9", ["distillation.assistants", "9"]),
    (f"{SEARCH} --trials 0", ["search.trials", "0"]),
    (f"{SEARCH} --workers 0", ["search.jobs", "0"]),
    (f"{SEARCH} --low 0.5", ["search", "low and high"]),
    (f"{SEARCH} --low 0.6 --high 0.5", ["low", "0.6"]),
    (f"{SEARCH} --low 0.3 --high 0.5 --step 0", ["search.step", "0"]),
    (f"{SEARCH} --sparsities 1.5", ["search.sparsities", "1.5"]),
    (f"{SEARCH} --sparsities ,", ["search.sparsities"]),
    (f"{SEARCH} --recovery-steps 0", ["search.recovery.steps", "0"]),
    (f"{SEARCH} --criterion best", ["search.importance.criterion", "best"]),
    (f"{SEARCH} --criterion fisher --importance-rounds 2", ["search.importance", "rounds"]),
    (f"{SEARCH} --max-length 2", ["task.max_length", "2"]),
    (f"{SEARCH} --limit-train 0", ["task.limit_train", "0"]),
    (f"{SEARCH} --set task.held_out=0.9", ["task.held_out", "0.9"]),
    (f"{SEARCH} --track tensorbord", ["runtime.trackers", "tensorbord", "tensorboard"]),
    (f"{SEARCH} --set runtime.checkpoint_minutes=-1", ["runtime.checkpoint_minutes", "-1"]),
    (f"{SEARCH} --set runtime.checkpoint_minutes=often", ["runtime.checkpoint_minutes", "often"]),
    (f"{SEARCH} --set search.retries=-1", ["search.retries", "-1"]),
    (f"{SEARCH} --set cache.max_gib=-1", ["cache.max_gib", "-1"]),
    (f"{SEARCH} --set search=none", ["search", "none"]),
    (f"{SEARCH} --set sercah.lam=1", ["sercah", "'search'"]),
    (f"{SEARCH} --set search.lam=[", ["--set", "search.lam"]),
    (f"{SEARCH} --set =1", ["--set", "KEY=VALUE"]),
    (f"{SEARCH} --max-params 10", ["student_sparsity", "budget"]),
    (SEARCH.replace("--student-sparsity 0.9", "--max-params 0"), ["budget.params", "0"]),
    (SEARCH.replace("--student-sparsity 0.9", "--max-params 5X"), ["budget.params", "5X"]),
    (SEARCH.replace("--student-sparsity 0.9", "--budget-batch 2"), ["budget"]),
    (SEARCH.replace("--student-sparsity 0.9", "--max-latency-ms 0"), ["budget.latency_ms", "0"]),
    # Files and folders.
    (SEARCH.replace("teachers/mrpc", "data/mrpc/train.csv"), ["teacher.model", "is a file"]),
    (SEARCH.replace("teachers/mrpc", "package:nosuch/model"), ["nosuch"]),
    (SEARCH.replace("data/mrpc", "data/mrpc/train.csv"), ["train.csv"]),
    (f"{SEARCH} --storage sqlite:///none/none.db", ["search.storage", "none/none.db"]),
    (f"{SEARCH} --storage sqlite:///x.db --new", ["--new", "--set name=NAME"]),
    ("run data/mrpc/train.csv", ["train.csv"]),
    ("run data/mrpc", ["data/mrpc"]),
    ("distill --study data", ["--study", "data"]),
    ("finetune --model models/none/x --task mrpc --data data/mrpc --out teachers/new", ["models/none/x"]),
    ("finetune --model models/encoder --task mrpc --data data/mrpc --out teachers/mrpc", ["teachers/mrpc", "--new"]),
    ("finetune --model models/encoder --task mrpc --data data/mrpc --epochs 0 --out teachers/new", ["epochs", "0"]),
    ("evaluate --model teachers/mrpc --task mrpc", ["mrpc"]),
    ("evaluate --model teachers/none/x --task mrpc --data data/mrpc", ["teachers/none/x"]),
    ("predict --model teachers/mrpc --file none.csv --out labelled.csv", ["none.csv"]),
    ("candidates --study runs/bad", ["runs/bad"]),
    ("export --study runs/bad --out exports/bad", ["runs/bad"]),
    ("compare none.yaml --out runs/bad", ["none.yaml"]),
    ("search --teacher", ["--teacher"]),
    (f"{SEARCH} extra", ["extra"]),
]


def test_the_table_has_more_than_sixty_mistakes_and_each_once():
    lines = [line for line, _ in MISTAKES]
    assert len(lines) == len(set(lines)) > 60


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
    config = {"model_type": "opt", "num_hidden_layers": 1, "hidden_size": 8, "vocab_size": 60}
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
    unsupported_family: ["opt", "bert"],
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
