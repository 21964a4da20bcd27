"""Processes at one search, killed at random moments and started again, end as one process that nothing disturbed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from autodisc import api
from autodisc.config import StudyConfig

NAME = "study-mine"
GRID = [round(0.05 * i, 2) for i in range(1, 17)]
KILLS = 4


def command(*arguments: str | Path) -> subprocess.Popen:
    line = "import sys; from autodisc.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", line, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def trials(out: Path) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(out / "shared.log")))
    return optuna.load_study(study_name=NAME, storage=storage).trials


def by_sparsity(found: dict) -> list[tuple[float, float, str]]:
    return [(row["sparsity"], row["metric"], row["state"]) for row in found["trials"]]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_and_the_search_itself_killed_at_random_moments_lose_and_double_nothing(config, tmp_path):
    settings: StudyConfig = config(search={"sparsities": GRID, "heartbeat_s": 2, "storage": str(tmp_path / "x.log")})
    alone = api.search(config(search={"sparsities": GRID}), tmp_path / "alone")
    out, file, generator = tmp_path / "study", tmp_path / "study.yaml", random.Random(3)
    values = settings.model_dump(mode="json")
    values["search"]["storage"] = str(out / "shared.log")
    file.write_text(yaml.safe_dump(values))
    search = ("search", "--config", file, "--out", out, "--quiet")
    joins = ("worker", "--study", NAME, "--storage", out / "shared.log", "--out", out)
    supernets = set()
    for _ in range(KILLS):
        processes = [command(*search)]
        while not (out / "config.yaml").is_file() and processes[0].poll() is None:
            time.sleep(0.1)
        processes += [command(*joins), command(*joins)]
        time.sleep(generator.uniform(0.5, 12.0))
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        supernets |= {path.stat().st_mtime_ns for path in out.glob("supernet/model.safetensors")}
    last = command(*search)
    _, said = last.communicate()
    assert last.returncode == 0, said
    found = api.search(
        settings.model_copy(update={"search": settings.search.model_copy(update={"storage": str(out / "shared.log")})}),
        out,
    )
    assert by_sparsity(found) == by_sparsity(alone)
    complete = Counter(trial.params["sparsity"] for trial in trials(out) if trial.state is TrialState.COMPLETE)
    assert complete == Counter(dict.fromkeys(GRID, 1))
    assert not [trial for trial in trials(out) if trial.state in (TrialState.RUNNING, TrialState.WAITING)]
    supernets |= {(out / "supernet" / "model.safetensors").stat().st_mtime_ns}
    assert len(supernets) == 1  # recovered once, whoever was killed
    weights = [folder / "supernet" / "model.safetensors" for folder in (out, tmp_path / "alone")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
