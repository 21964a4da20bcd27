"""A folder as a user has it: an encoder, a teacher that solves its task, and data, all tiny."""

from __future__ import annotations

import csv
import json
import random
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autodisc import api
from autodisc.cli import main
from autodisc.config import make_config
from autodisc.models.checkpoints import save_model

ROWS = {"train": 240, "validation": 100, "test": 60}


@dataclass(frozen=True)
class Ran:
    """What a command line left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        def refuse(text: str) -> None:
            raise ValueError(f"{text} is not JSON")

        return json.loads(self.out.splitlines()[-1], parse_constant=refuse)


@pytest.fixture
def autodisc(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command line in this process."""

    def call(line: str) -> Ran:
        capsys.readouterr()
        code = main(shlex.split(line))
        return Ran(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory, tiny, word_tokenizer) -> Path:
    """models/encoder, teachers/mrpc and data/mrpc, whose label is whether "good" or "bad" is said."""
    home = tmp_path_factory.mktemp("furnished")
    generator = random.Random(0)
    (home / "data" / "mrpc").mkdir(parents=True)
    for split, count in ROWS.items():
        with (home / "data" / "mrpc" / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["sentence1", "sentence2", "label"])
            for i in range(count):
                words = [f"w{generator.randrange(50)}" for _ in range(generator.randrange(4, 10))]
                words[generator.randrange(len(words))] = "good" if i % 2 else "bad"
                rows.writerow([" ".join(words), f"w{i % 50} w{generator.randrange(50)}", i % 2])
    save_model(tiny("bert"), word_tokenizer, home / "models" / "encoder")
    config = make_config(
        {
            "task": {"name": "mrpc", "data": str(home / "data" / "mrpc")},
            "teacher": {
                "model": str(home / "models" / "encoder"),
                "finetune": {"epochs": 6, "batch_size": 16, "lr": 3e-3},
            },
            "cache": {"dir": str(home / "cache")},
            "runtime": {"threads": 1, "precision": "fp32"},
        }
    )
    assert api.finetune(config, home / "teachers" / "mrpc")["metrics"]["accuracy"] > 0.9
    return home


@pytest.fixture
def home(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a copy of `furnished` that a test may spoil."""
    home = tmp_path / "home"
    shutil.copytree(furnished, home)
    monkeypatch.chdir(home)
    monkeypatch.setenv("AUTODISC_CACHE", str(tmp_path / "cache"))
    return home
