"""What a distillation's record says of its models beyond their metrics: classes, differences, layers, latency.

precision = hits / predicted,   recall = hits / actual,   F1 = 2 hits / (predicted + actual)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autodisc.reporting.records import Record

ROLES = ("teacher", "assistant", "student")
Matrix = tuple[tuple[int, ...], ...]  # label by prediction


@dataclass(frozen=True)
class ClassRow:
    """One class as one model answers it; nothing where it was never said, or never there."""

    role: str
    label: str
    examples: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Example:
    """A text on which student and teacher differ; ``confidence`` is the student's in what it says."""

    text: str
    label: str
    teacher: str
    student: str
    confidence: float | None


@dataclass(frozen=True)
class Profile:
    """Units that a model keeps, by layer from the first up."""

    role: str
    sparsity: float
    heads: tuple[int, ...]
    neurons: tuple[int, ...]


@dataclass(frozen=True)
class LatencyRow:
    """Median milliseconds of a forward under one setting."""

    setting: str
    teacher: float | None
    assistant: float | None
    student: float | None


@dataclass(frozen=True)
class Answers:
    """All of it; what a record of an earlier version lacks is empty."""

    labels: tuple[str, ...] = ()
    confusions: tuple[tuple[str, Matrix], ...] = ()  # by role
    classes: tuple[ClassRow, ...] = ()
    of: int = 0  # examples that were compared
    counts: tuple[tuple[str, int], ...] = ()  # of those that differ, by who is right
    examples: tuple[Example, ...] = ()
    profiles: tuple[Profile, ...] = ()
    latency: tuple[LatencyRow, ...] = ()


def answers(distilled: Record | None) -> Answers:
    """What the record of a distillation holds."""
    if distilled is None:
        return Answers()
    result, task = distilled.result, distilled.values["task"]
    parts = {
        "teacher": result["teacher"],
        "assistant": result["assistant"].get("final") or {},
        "student": result["student"],
    }
    tables = {role: _matrix(part["confusion"]) for role, part in parts.items() if part.get("confusion")}
    size = max((len(table) for table in tables.values()), default=0)
    labels = tuple(str(name) for name in task.get("label_names") or range(size))
    rows = tuple(row for role, table in tables.items() for row in class_rows(role, table, labels))
    apart = result.get("differing") or {}
    return Answers(
        labels,
        tuple(tables.items()),
        rows,
        apart.get("of", 0),
        tuple((name, apart[name]) for name in ("teacher right", "student right", "neither right") if name in apart),
        tuple(
            Example(one["text"], one["label"], one["teacher"], one["student"], one.get("confidence"))
            for one in apart.get("shown", ())
        ),
        tuple(
            Profile(role, part["sparsity"], tuple(part["candidate"]["heads"]), tuple(part["candidate"]["neurons"]))
            for role, part in ((role, result[role]) for role in ROLES[1:])
            if part.get("candidate")
        ),
        tuple(LatencyRow(row["setting"], *(row.get(role) for role in ROLES)) for row in result.get("latency") or ()),
    )


def class_rows(role: str, table: Matrix, labels: Sequence[str]) -> tuple[ClassRow, ...]:
    """Precision, recall and F1 of each class."""
    found = []
    for i, label in enumerate(labels):
        hits, actual, said = table[i][i], sum(table[i]), sum(row[i] for row in table)
        found.append(
            ClassRow(role, label, actual, _share(hits, said), _share(hits, actual), _share(2 * hits, said + actual))
        )
    return tuple(found)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _matrix(rows: Any) -> Matrix:
    return tuple(tuple(int(count) for count in row) for row in rows)
