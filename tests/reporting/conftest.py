"""Hand-made records, as the commands write them; no model and no torch. Tests get them as ``make``."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autodisc.config import make_config
from autodisc.reporting.records import write_record

SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85)
METRICS = (0.816, 0.818, 0.811, 0.800, 0.817, 0.805, 0.762)
FLOOR, ERROR, LAM = 0.760, 0.0205, 0.2
START = datetime(2026, 8, 1, 10, 0, tzinfo=timezone.utc)


def cost(**stages: tuple[float, float]) -> dict[str, Any]:
    parts = {
        name.replace("_", " "): {"seconds": s, "flops": f, "tokens": int(f / 6e7), "peak_mib": 900.0}
        for name, (s, f) in stages.items()
    }
    return {
        "seconds": sum(part["seconds"] for part in parts.values()),
        "flops": sum(part["flops"] for part in parts.values()),
        "tokens": sum(part["tokens"] for part in parts.values()),
        "peak_mib": 900.0,
        "stages": parts,
    }


def record(
    kind: str, strategy: str | None, result: dict[str, Any], spent: dict[str, Any], *, minute: int = 0, **changes: Any
) -> dict[str, Any]:
    config = make_config(
        {
            "name": changes.pop("name", "mrpc"),
            "task": {"name": "mrpc", "data": "/data/mrpc"},
            "teacher": {"model": "/models/mrpc-minilm"},
            "runtime": {"seed": changes.get("seed", 0)},
        }
    ).model_dump(mode="json")
    return {
        "kind": kind,
        "strategy": strategy,
        "created": (START + timedelta(minutes=minute)).isoformat(),
        "config": config,
        "task": {
            "name": "mrpc",
            "kind": "classification",
            "metric": "accuracy_f1",
            "final_split": "test",
            "examples": {"train": 3668, "validation": 408, "test": 1725},
            "fingerprints": {"train": "aa11", "validation": "bb22", "test": "cc33"},
        },
        "teacher": {"model": "/models/mrpc-minilm", "fingerprint": "dd44"},
        "environment": {
            "autodisc": "0.1.0",
            "python": "3.11.2",
            "torch": "2.13.0+cpu",
            "hardware": "AMD EPYC 9V74",
            "cpus": 2,
            "threads": 2,
            "device": "cpu",
            "precision": "bf16",
            "revision": "e7c5a82",
            "dirty": False,
            "platform": "Linux",
        },
        "seed": 0,
        "result": result,
        "cost": spent,
        "curves": {},
        **changes,
    }


def trial(number: int, sparsity: float, metric: float) -> dict[str, Any]:
    return {
        "number": number,
        "state": "COMPLETE",
        "sparsity": sparsity,
        "metric": metric,
        "floor": FLOOR,
        "standard_error": ERROR,
        "tradeoff": metric + LAM * sparsity,
        "feasible": metric - FLOOR > ERROR,
        "scale": 1 - sparsity,
        "params": int(10.6e6 * (1 - sparsity)),
        "macs": int(6.8e8 * (1 - sparsity)),
        "seconds": 2.1,
        "candidate": {
            "heads": [max(0, round(12 * (1 - sparsity) - layer % 3 + 1)) for layer in range(6)],
            "neurons": [max(0, 8 * round(192 * (1 - sparsity) - 4 * layer + 10)) for layer in range(6)],
        },
    }


def failed(number: int, sparsity: float, error: str = "RuntimeError: out of memory") -> dict[str, Any]:
    names = ("metric", "floor", "standard_error", "tradeoff", "feasible", "scale", "params", "macs", "seconds")
    nothing = dict.fromkeys(names)
    return {"number": number, "state": "FAIL", "sparsity": sparsity, "error": error, "candidate": None} | nothing


def search_result(trials: list[dict[str, Any]]) -> dict[str, Any]:
    feasible = [t for t in trials if t["feasible"]]
    best = max(feasible, key=lambda t: (t["tradeoff"], t["sparsity"]), default=None)
    names = ("sparsity", "metric", "floor", "standard_error", "tradeoff", "feasible", "balance")
    return {
        "best": None if best is None else {name: best[name] for name in names if name in best},
        "trials": trials,
        "teacher": {"metric": 0.8375, "params": 10_600_000, "macs": 680_000_000},
        "storage": "/studies/mrpc/study.log",
        "study": "mrpc",
    }


def search(trials: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    if trials is None:
        trials = [trial(i, s, m) for i, (s, m) in enumerate(zip(SPARSITIES, METRICS, strict=True))]
    spent = cost(teacher_cache=(9.0, 0.9e12), importance=(21.0, 3.1e12), recovery=(38.0, 5.6e12), trials=(15.0, 1.6e12))
    curves = {"recovery": curve(70, 2.6)}
    return record("search", "autodisc", search_result(trials), spent, minute=1, **{"curves": curves} | changes)


def curve(steps: int, loss: float, metric: float | None = None) -> list[dict[str, Any]]:
    return [
        {
            "step": i,
            "loss": loss * math.exp(-i / steps * 2),
            "metric": None if metric is None or i % 50 else metric - 0.05 * math.exp(-i / steps * 3),
        }
        for i in range(1, steps + 1)
    ]


def distill(metric: float = 0.795, **changes: Any) -> dict[str, Any]:
    result = {
        "assistant": {"path": "/out/ta", "sparsity": 0.8, "metric": 0.818, "params": 2_100_000, "macs": 136_000_000},
        "student": {
            "path": "/out/student",
            "sparsity": 0.9,
            "metric": metric,
            "split": "test",
            "metrics": {"accuracy": 0.755, "f1": 0.835},
            "validation_metric": 0.801,
            "floor": 0.76,
            "standard_error": 0.0103,
            "params": 1_060_000,
            "macs": 68_000_000,
            "examples": 1725,
        },
        "teacher": {"metric": 0.829, "validation_metric": 0.8375, "params": 10_600_000, "macs": 680_000_000},
    }
    spent = cost(assistant=(190.0, 28e12), student=(96.0, 12e12), final_evaluation=(2.0, 0.1e12))
    curves = {"assistant": curve(575, 1.9, 0.818), "student": curve(575, 1.2, 0.801)}
    return record("distill", "autodisc", result, spent, minute=5, **{"curves": curves} | changes)


def answered(**changes: Any) -> dict[str, Any]:
    """A distillation with what later versions record too: classes, differences, layers, latency."""
    values = distill(**changes)
    result = values["result"]
    values["task"]["label_names"] = ["different", "same"]
    result["teacher"]["confusion"] = [[400, 178], [90, 1057]]
    result["assistant"]["final"] = {"metric": 0.81, "confusion": [[380, 198], [100, 1047]]}
    result["student"]["confusion"] = [[300, 278], [80, 1067]]
    for role, keep in (("assistant", 3), ("student", 1)):
        result[role]["candidate"] = {"heads": [keep] * 6, "neurons": [100 * keep] * 6}
    result["latency"] = [
        {"setting": "torch, fp32, 1 thread, batch 1, length 64", "teacher": 20.0, "assistant": 9.0, "student": 4.0}
    ]
    shown = {"text": "he said ‖ she said", "label": "same", "teacher": "same", "student": "different"}
    result["differing"] = {
        "of": 1725, "teacher right": 213, "student right": 107, "neither right": 0,
        "shown": [{**shown, "confidence": 0.97}],
    }  # fmt: skip
    return values


def baseline(strategy: str = "maxidisc", metric: float = 0.798, **changes: Any) -> dict[str, Any]:
    maxi = strategy == "maxidisc"
    trials = [
        {
            "number": i,
            "state": "COMPLETE",
            "sparsity": s if maxi else None,
            "assistant_metric": 0.82 - 0.03 * s if maxi else None,
            "student_metric": 0.79 + 0.01 * math.sin(7 * s),
            "seconds": 330.0 - 120 * s,
            "flops": (70 - 30 * s) * 1e12,
            "params": 1_060_000,
        }
        for i, s in enumerate(SPARSITIES if maxi else (0.9,))
    ]
    best = {
        "sparsity": 0.7 if maxi else None,
        "assistant_metric": 0.8 if maxi else None,
        "student_metric": 0.803,
        "final_metric": metric,
        "split": "test",
        "standard_error": 0.0102,
        "path": "/out/best",
    }
    result = {"strategy": strategy, "best": best, "trials": trials, "storage": "study.log", "study": strategy}
    whole = (sum(t["seconds"] for t in trials), sum(t["flops"] for t in trials))
    spent = cost(assistants=(0.6 * whole[0], 0.6 * whole[1]), students=(0.4 * whole[0], 0.4 * whole[1]))
    return record("baseline", strategy, result, spent, minute=9 if maxi else 20, **changes)


def write(folder: Path, *records: dict[str, Any]) -> Path:
    for values in records:
        write_record(folder, values)
    return folder


@pytest.fixture
def make() -> SimpleNamespace:
    """The makers of this file: modules under importlib mode cannot import their conftest."""
    makers = (trial, failed, search_result, search, distill, baseline, record, cost, write)
    return SimpleNamespace(answered=answered, **{maker.__name__: maker for maker in makers})


@pytest.fixture
def whole(make: SimpleNamespace, tmp_path: Path) -> Path:
    """A folder with search, distillation and both baselines."""
    records = (make.search(), make.distill(), make.baseline(), make.baseline("direct", 0.801))
    return make.write(tmp_path / "study", *records)
