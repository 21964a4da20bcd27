"""Cells: what is computed once for a task, seed and student sparsity, and read by every strategy that needs it.

    OUT/cells/TASK/seed-N/shared.json                the ranking and the teacher's outputs, which all pay for once
    OUT/cells/TASK/seed-N/student-S/KIND.json        one record, written once, with the student's test predictions
    OUT/cells/TASK/seed-N/student-S/KIND.npz         beside it; of a search every candidate's on validation
    OUT/cells/TASK/seed-N/student-S/KIND.failed-K    why a cell failed; the next run tries again

Reading needs no torch.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from autodisc import config
from autodisc.config import OF_SEARCHES, differences, make_config, upgraded
from autodisc.errors import StudyError
from autodisc.files import replacing
from autodisc.reporting.records import plain, write_once

SCHEMA = 2  # 1: units were ranked otherwise, and the student had no phase of its own
SHARED = "shared"
# Stages that measure for the report alone, or that a cell repeats only because it stands alone.
NOT_COUNTED = ("set-up", "teacher metric", "final evaluation")
# Settings that change no result, or that the teacher's and the data's fingerprints stand for.
FREE = (*config.FREE, "name", "teacher", "task.data")
OF_STUDENTS = ("student_sparsity", "search.sparsities", "distillation")


@dataclass(frozen=True)
class Cell:
    """The key of a cell; a shared one belongs to no student."""

    task: str
    seed: int
    student: float | None
    kind: str

    @property
    def group(self) -> str:
        student = "" if self.student is None else f", student sparsity {self.student:g}"
        return f"task {self.task}, seed {self.seed}{student}"

    def __str__(self) -> str:
        return f"{self.group}, {self.kind}"

    @property
    def folder(self) -> Path:
        """Relative to what holds all cells."""
        seed = Path(self.task) / f"seed-{self.seed}"
        return seed if self.student is None else seed / f"student-{self.student:g}"

    def path(self, out: Path) -> Path:
        return out / "cells" / self.folder / f"{self.kind}.json"

    def failures(self, out: Path) -> list[Path]:
        """The records of its failures, the oldest first."""
        found = (out / "cells" / self.folder).glob(f"{self.kind}.failed-*.json")
        return sorted(found, key=_number)


def assistant(sparsity: float) -> str:
    """The kind of cell that distils through the assistant of a sparsity."""
    return f"assistant-{sparsity:g}"


@dataclass(frozen=True)
class Spent:
    """Seconds and FLOPs."""

    seconds: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.flops + other.flops)

    def __mul__(self, factor: float) -> Spent:
        return Spent(self.seconds * factor, self.flops * factor)


@dataclass(frozen=True)
class Recorded:
    """A cell as read."""

    cell: Cell
    path: Path
    values: dict[str, Any]

    @property
    def result(self) -> dict[str, Any]:
        return self.values["result"]

    @property
    def spent(self) -> Spent:
        return sum((self.stage(name) for name in self.values["cost"]["stages"] if name not in NOT_COUNTED), Spent())

    def stage(self, name: str) -> Spent:
        """What one stage took; nothing where there was none."""
        cost = self.values["cost"]["stages"].get(name, {"seconds": 0.0, "flops": 0.0})
        return Spent(cost["seconds"], cost["flops"])

    @property
    def predicted(self) -> bool:
        """Whether predictions are kept: a search's were not always."""
        return self.path.with_suffix(".npz").exists()

    @cached_property
    def predictions(self) -> np.ndarray:
        """(N,) on the final split; of a search (K, N), a row a candidate in the grid's order, on validation."""
        return self._arrays["predictions"]

    @cached_property
    def labels(self) -> np.ndarray:
        return self._arrays["labels"]

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        path = self.path.with_suffix(".npz")
        try:
            with open(path, "rb") as file, np.load(file) as kept:
                return {name: kept[name] for name in ("predictions", "labels")}
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
            raise StudyError(f"{path}: the predictions of a recorded cell cannot be read; remove {self.path}") from None


def version() -> str | None:
    try:
        return metadata.version("autodisc")
    except metadata.PackageNotFoundError:
        return None


def write_cell(
    out: Path, cell: Cell, values: dict[str, Any], arrays: tuple[np.ndarray, np.ndarray] | None = None
) -> None:
    """Keep what a cell computed; a record that is there already is never touched."""
    path = cell.path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise FileExistsError(f"{path}: is recorded already")
    if arrays is not None:
        with (
            replacing(path.with_suffix(".npz")) as partial,  # before the record, which says that the cell is done
            open(partial, "wb") as file,  # to a bare name numpy would add its own suffix
        ):
            np.savez_compressed(file, predictions=_narrow(arrays[0]), labels=_narrow(arrays[1]))
    _write(path, cell, values)


def write_failure(out: Path, cell: Cell, reason: str) -> None:
    path = cell.path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    number = max(map(_number, cell.failures(out)), default=0) + 1
    _write(path.with_name(f"{cell.kind}.failed-{number}.json"), cell, {"error": reason})


def read_cell(out: Path, cell: Cell, settings: dict[str, Any]) -> Recorded | None:
    """None: not computed yet. Raises StudyError where the record is another version's or of other settings."""
    path = cell.path(out)
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        schema, made_by, written = values["schema"], values["autodisc"], upgraded(values["config"])
    except (OSError, ValueError, KeyError, TypeError):
        raise StudyError(f"{path}: not a cell's record; remove the file, and it is computed again") from None
    if (schema, made_by) != (SCHEMA, version()):
        raise StudyError(
            f"{path}: a record of autodisc {made_by}, schema {schema}; this is {version()}, schema {SCHEMA}."
            " Give another --out, or that version."
        )
    free: tuple[str, ...] = FREE
    if cell.kind == SHARED:
        free = (*FREE, *OF_SEARCHES, *OF_STUDENTS)
    elif cell.kind == "direct" or cell.kind.startswith("assistant-"):
        free = (*FREE, *OF_SEARCHES)
    if changed := differences(written, make_config(settings), ignore=free):
        raise StudyError(
            f"{path}: was computed with other settings ({'; '.join(changed[:4])}). Give another --out, or those."
        )
    return Recorded(cell, path, values)


def failure(out: Path, cell: Cell) -> str | None:
    """Why a cell failed last, where it has not been computed since."""
    failures = cell.failures(out)
    if not failures or cell.path(out).exists():
        return None
    return str(json.loads(failures[-1].read_text(encoding="utf-8"))["error"])


def read_all(out: Path, cells: Iterable[Cell], settings: Callable[[Cell], dict[str, Any]]) -> dict[Cell, Recorded]:
    """Every cell that has been computed; raises StudyError where two are of other data or another teacher."""
    found: dict[Cell, Recorded] = {}
    first: dict[tuple[Any, ...], tuple[str, Path]] = {}
    for cell in cells:
        record = read_cell(out, cell, settings(cell))
        if record is None:
            continue
        found[cell] = record
        for what, key, fingerprint in fingerprints(cell, record.values["data"], record.values["teacher"]):
            known, where = first.setdefault(key, (fingerprint, record.path))
            if known != fingerprint:
                raise StudyError(
                    f"{record.path}: {what} has fingerprint {fingerprint}, in {where} {known};"
                    " they cannot be compared. Remove the files of one."
                )
    return found


def fingerprints(cell: Cell, data: dict[str, Any], teacher: dict[str, Any]) -> list[tuple[str, tuple[Any, ...], str]]:
    """What it is, between which cells it must agree, and the fingerprint: train may be drawn by the seed."""
    found: list[tuple[str, tuple[Any, ...], str]] = [("the teacher", (cell.task, "teacher"), teacher["fingerprint"])]
    if "settings" in teacher:  # it was not always told
        found.append(("the teacher's settings", (cell.task, "teacher settings"), teacher["settings"]))
    for split, print_ in data["fingerprints"].items():
        seed = cell.seed if split == "train" else None
        found.append((f"the data's {split}", (cell.task, split, seed), print_))
    return found


def _write(path: Path, cell: Cell, values: dict[str, Any]) -> None:
    head = {
        "schema": SCHEMA,
        "autodisc": version(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "task": cell.task,
        "seed": cell.seed,
        "student_sparsity": cell.student,
        "kind": cell.kind,
    }
    write_once(path, json.dumps(plain({**head, **values}), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _number(failure: Path) -> int:
    return int(failure.stem.rpartition("-")[2])


def _narrow(values: np.ndarray) -> np.ndarray:
    """Class ids in as few bytes as they need."""
    if values.dtype.kind not in "iu":
        return values
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))
