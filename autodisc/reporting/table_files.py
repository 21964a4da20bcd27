"""Every table of a report as CSV, unrounded: what somebody plots or computes further from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from autodisc.reporting.rows import Curve, StudySummary
from autodisc.reporting.texts import csv_text


def study_tables(studies: Sequence[StudySummary]) -> dict[str, str]:
    """One CSV a table by its name, all studies in it; tables without a row are left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    for study in studies:
        head = {"study": study.name, "task": study.task, "seed": study.seed, "student_sparsity": study.student_sparsity}
        for name, rows in _rows(study).items():
            found.setdefault(name, []).extend(head | row for row in rows)
    return {name: csv_text(rows) for name, rows in found.items() if rows}


def _rows(study: StudySummary) -> dict[str, list[dict[str, Any]]]:
    known = study.answers
    return {
        "strategies": _plain(study.strategies),
        "candidates": _plain(study.trials),
        "baseline-trials": _plain(study.baseline_trials),
        "costs": _plain(study.costs),
        "curves": [point for curve in study.curves for point in _points(curve)],
        "classes": _plain(known.classes),
        "confusion": [
            {"role": role, "label": known.labels[i], "predicted": known.labels[j], "examples": count}
            for role, table in known.confusions
            for i, row in enumerate(table)
            for j, count in enumerate(row)
        ],
        "examples": _plain(known.examples),
        "layers": _plain(known.profiles),
        "latency": _plain(known.latency),
        "provenance": [{"what": what, "value": value} for what, value in study.provenance],
        "configuration": [{"setting": key, "value": value} for key, value in study.configuration],
    }


def _plain(rows: Iterable[Any]) -> list[dict[str, Any]]:
    """Dataclasses as cells; what is by layer stands in one, with spaces between."""
    return [
        {
            key: " ".join(map(str, value)) if isinstance(value, list | tuple) else value
            for key, value in dataclasses.asdict(row).items()
        }
        for row in rows
    ]


def _points(curve: Curve) -> list[dict[str, Any]]:
    head = {"strategy": curve.strategy, "stage": curve.stage}
    losses = [head | {"step": s, "loss": loss} for s, loss in zip(curve.steps, curve.losses, strict=True)]
    metrics = [head | {"step": s, "metric": m} for s, m in zip(curve.metric_steps, curve.metrics, strict=True)]
    return losses + metrics
