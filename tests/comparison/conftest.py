"""A comparison on a tiny teacher and a CSV that it has learnt, computed once a process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autodisc.comparison import parts
from autodisc.comparison.config import ComparisonConfig, make_comparison
from autodisc.comparison.running import run

SETTINGS: dict[str, Any] = {
    "search": {
        "sparsities": [0.25, 0.5, 0.75],
        "margin": 0.0,
        "importance": {"examples": 32},
        "recovery": {"steps": 12, "lr": 3e-3},
    },
    "distillation": {"epochs": 1, "student_epochs": 1, "batch_size": 32, "lr": 3e-3},
    "runtime": {"threads": 1, "precision": "fp32"},
}


@pytest.fixture(autouse=True)
def _few_parts(monkeypatch) -> None:
    """A report draws parts of validation for more than half of its time."""
    monkeypatch.setattr(parts, "DRAWS", 4)


@pytest.fixture(scope="package")
def settings(furnished) -> Callable[..., dict[str, Any]]:
    """A comparison's YAML as a mapping; ``compare`` and the sections take changes."""

    def call(**changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "name": "toy",
            **SETTINGS,
            "cache": {"dir": str(furnished / "cache")},
            "compare": {
                "tasks": [
                    {
                        "task": {"name": "mine", "metric": "accuracy_f1", "data": str(furnished / "data")},
                        "teacher": {"model": str(furnished / "teacher")},
                    }
                ],
                "seeds": [0, 1],
                "resamples": 40,
            },
        }
        for key, change in changes.items():
            values[key] = {**values.get(key, {}), **change} if isinstance(change, dict) else change
        return values

    return call


@pytest.fixture(scope="package")
def config(settings) -> Callable[..., ComparisonConfig]:
    return lambda **changes: make_comparison(settings(**changes))


@pytest.fixture(scope="package")
def computed(config, tmp_path_factory) -> Path:
    """Every strategy, and one search more, with two seeds."""
    out = tmp_path_factory.mktemp("computed") / "out"
    assert run(config(compare={"searches": MORE}), out) == {}
    return out


MORE = {"steps-0": {"scorer": "pruned", "importance": {"refit": False}}, "half": {"examples": 40}}


@pytest.fixture
def copied(computed, tmp_path) -> Path:
    """The computed cells, to change."""
    return Path(shutil.copytree(computed, tmp_path / "out"))


@pytest.fixture
def whole(config) -> ComparisonConfig:
    """The comparison that ``computed`` holds."""
    return config(compare={"searches": MORE})
