"""The whole job, killed by SIGKILL at any moment and given again, ends as if nothing had happened."""

from __future__ import annotations

import csv
import functools
import json
import os
import random
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

KILLED = -9
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
    "distillation": {"epochs": 1, "batch_size": 32, "lr": 3e-3},
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


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., dict[str, Any]]]:
    """``run(*arguments, die_at=…)`` in a process of its own: its exit code, or minus the signal that ended it."""
    own = {"PYTHONPATH": str(Path(autodisc.__file__).parents[1]), "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **own}
    driver = Path(__file__).with_name("chaos_driver.py")
    with subprocess.Popen(
        [sys.executable, str(driver)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin
        assert process.stdout
        asked, answers = process.stdin, process.stdout

        def call(*arguments: str | Path, **request: int | None) -> dict[str, Any]:
            asked.write(json.dumps({"arguments": [str(a) for a in arguments], **request}) + "\n")
            asked.flush()
            return json.loads(answers.readline())

        yield call
        asked.close()


class Job:
    """`autodisc run` on a tiny task, in a folder of its own."""

    def __init__(self, run: Callable[..., dict[str, Any]], home: Path, name: str, minutes: float) -> None:
        self.out, self._run = home / name, run
        values = {**STUDY, "cache": {"dir": str(home / f"{name}-cache")}}
        values["task"] = {**values["task"], "data": str(home / "data")}
        values["teacher"] = {**values["teacher"], "model": str(home / "encoder")}
        values["runtime"] = {**values["runtime"], "checkpoint_minutes": minutes}
        self.file = home / f"{name}.yaml"
        self.file.write_text(yaml.safe_dump(values))

    def __call__(self, **request: int) -> dict[str, Any]:
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


def assert_same(out: Path, whole: Path, kills: int) -> None:
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


def test_a_job_killed_five_times_ends_as_one_that_was_not(run, home, whole):
    folder, moments = whole(0.0)
    job, generator, kills = Job(run, home, "killed", 0.0), random.Random(7), 0
    for _ in range(5):
        ran = job(die_at=generator.randrange(1, moments // 5))
        assert ran["code"] == KILLED
        kills += 1
    ran = job()
    assert ran["code"] == 0, ran["printed"]
    assert_same(job.out, folder, kills)
    again = job()
    assert again["code"] == 0
    assert len(read_records([job.out])) == 4


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("part", range(25))
def test_a_job_killed_at_a_random_moment_of_any_stage_ends_as_one_that_was_not(run, home, whole, part):
    minutes = (0.0, 60.0)[part % 2]
    folder, moments = whole(minutes)
    first, last = (1 + edge * moments // 26 for edge in (part, part + 1))  # booking by the clock adds some or none
    job = Job(run, home, f"killed-{part}", minutes)
    ran = job(die_at=random.Random(part).randrange(first, last))
    assert ran["code"] == KILLED
    ran = job()
    assert ran["code"] == 0, ran["printed"]
    assert_same(job.out, folder, 1)
