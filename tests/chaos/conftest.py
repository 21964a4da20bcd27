"""Jobs on a tiny task in processes that are killed or whose writes fail, and the comparison with an undisturbed one."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import autodisc
from autodisc.models.checkpoints import save_model
from autodisc.reporting.records import read_records

Call = Callable[..., dict[str, Any]]
GRID = [0.25, 0.5, 0.75]
STUDY = {
    "name": "chaos",
    "task": {"name": "mine", "metric": "accuracy", "data": "data"},
    "teacher": {"model": "encoder", "finetune": {"epochs": 5, "batch_size": 16, "lr": 3e-3}},
    "search": {
        "sparsities": GRID,
        "margin": 0.0,
        "importance": {"examples": 16, "rounds": 2},
        "recovery": {"steps": 12, "lr": 3e-3},
    },
    "distillation": {"epochs": 1, "student_epochs": 1, "batch_size": 32, "lr": 3e-3},
    "runtime": {"threads": 1, "precision": "fp32", "device": "cpu"},
}
WEIGHTS = (
    "teacher",
    "supernet",
    "distilled-1/assistant",
    "distilled-1/student",
    "baseline-maxidisc/student",
    "baseline-direct/student",
)


@contextlib.contextmanager
def driven(**own: str) -> Iterator[Call]:
    """The driver, with variables of its own."""
    package = str(Path(autodisc.__file__).parents[1])
    set_here = {"PYTHONPATH": package, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("driver.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **set_here, **own},
    ) as process:
        assert process.stdin
        assert process.stdout
        asked, answers = process.stdin, process.stdout

        def call(*arguments: str | Path, **request: Any) -> dict[str, Any]:
            asked.write(json.dumps({"arguments": [str(a) for a in arguments], **request}) + "\n")
            asked.flush()
            return json.loads(answers.readline())

        yield call
        asked.close()


@pytest.fixture(scope="module")
def run() -> Iterator[Call]:
    """``run(*arguments, die_at=…)`` in a process of its own: its exit code, or minus the signal that ended it."""
    with driven() as call:
        yield call


@pytest.fixture(scope="module")
def run_failing(tmp_path_factory) -> Iterator[Call]:
    """``run`` with failing_writes.c loaded; skips where nothing compiles it."""
    compiler, library = shutil.which("cc"), tmp_path_factory.mktemp("library") / "failing_writes.so"
    if compiler is None or sys.platform != "linux":
        pytest.skip("writes are made to fail by a library that is loaded before libc: takes Linux and a C compiler, cc")
    source = Path(__file__).with_name("failing_writes.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    with driven(LD_PRELOAD=str(library)) as call:
        yield call


class Job:
    """`autodisc run` on a tiny task, in a folder of its own."""

    def __init__(self, run: Call, home: Path, name: str, minutes: float) -> None:
        self.out, self._run = home / name, run
        values = {**STUDY, "cache": {"dir": str(home / f"{name}-cache")}}
        values["task"] = {**values["task"], "data": str(home / "data")}
        values["teacher"] = {**values["teacher"], "model": str(home / "encoder")}
        values["runtime"] = {**values["runtime"], "checkpoint_minutes": minutes}
        self.file = home / f"{name}.yaml"
        self.file.write_text(yaml.safe_dump(values))

    def __call__(self, **request: Any) -> dict[str, Any]:
        return self._run("run", self.file, "--out", self.out, **request)


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny, word_tokenizer) -> Path:
    home = tmp_path_factory.mktemp("chaos")
    generator = random.Random(1)
    (home / "data").mkdir()
    for split, count in (("train", 128), ("validation", 60), ("test", 24)):
        with (home / "data" / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["sentence", "label"])
            for i in range(count):
                words = [f"w{generator.randrange(50)}" for _ in range(generator.randrange(3, 8))]
                words[generator.randrange(len(words))] = "good" if i % 2 else "bad"
                rows.writerow([" ".join(words), i % 2])
    save_model(tiny(layers=2), word_tokenizer, home / "encoder")
    return home


@pytest.fixture(scope="module")
def whole(run, home) -> Callable[[float], tuple[Path, int]]:
    """``whole(minutes)``: the folder of a job that nothing disturbed, and how many moments it had."""

    @functools.cache
    def made(minutes: float) -> tuple[Path, int]:
        job = Job(run, home, f"whole-{minutes:g}", minutes)
        ran = job()
        assert ran["code"] == 0, ran["printed"]
        assert ran["moments"] > 300
        assert all((job.out / name).is_dir() for name in WEIGHTS)
        return job.out, ran["moments"]

    return made


@pytest.fixture(scope="module")
def make_job(home) -> Callable[..., Job]:
    """``make_job(run, name, minutes)``: `autodisc run` in a folder of its own."""
    return lambda run, name, minutes: Job(run, home, name, minutes)


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Path, Path, int], None]:
    """``assert_same(out, whole, kills)``: two jobs came to the same, one of which was stopped so often."""
    return check_same


def found(out: Path) -> dict[str, Any]:
    """What a job came to, but for how long it took and what was interrupted on the way."""
    changing = {"number", "seconds", "flops", "path", "cost", "storage", "study", "student_folder"}

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items() if key not in changing}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    records = read_records([out, out / "teacher"])
    return {f"{record.kind} {record.strategy}": (plain(record.result), record.values["curves"]) for record in records}


def spent(out: Path) -> dict[tuple[str, str], dict[str, float]]:
    records = read_records([out, out / "teacher"])
    return {
        (f"{record.kind} {record.strategy}", stage): cost
        for record in records
        for stage, cost in record.values["cost"]["stages"].items()
    }


def states(journal: Path) -> Counter[tuple[float | None, str]]:
    """How many trials of each point ended how, in all studies of a journal, without those that were cut short."""
    storage = JournalStorage(JournalFileBackend(str(journal)))
    trials = [
        trial
        for study in optuna.get_all_study_names(storage)
        for trial in optuna.load_study(study_name=study, storage=storage).trials
    ]
    return Counter(
        (trial.params.get("sparsity"), trial.state.name) for trial in trials if trial.state is not TrialState.FAIL
    )


def check_same(out: Path, whole: Path, kills: int) -> None:
    for name in WEIGHTS:
        assert (out / name / "model.safetensors").read_bytes() == (whole / name / "model.safetensors").read_bytes(), (
            name
        )
    assert found(out) == found(whole)
    for journal in ("journal.log", "baseline-maxidisc/journal.log"):
        assert states(out / journal) == Counter({(sparsity, "COMPLETE"): 1 for sparsity in GRID})
    once, here = spent(whole), spent(out)
    assert here.keys() == once.keys()
    for key, cost in once.items():
        for name in ("tokens", "flops"):  # the rates of FLOPs are measured on the first batches after a kill again
            assert 0.97 * cost[name] <= here[key][name] <= 1.03 * (kills + 1) * cost[name], (key, name)
        if key[1] != "teacher outputs":  # rows that the killed run had made are charged without their padding
            assert here[key]["tokens"] >= cost["tokens"], key
    left = [path for path in out.rglob("*") if "unfinished" in path.name or path.name.endswith((".partial", ".former"))]
    assert not left
