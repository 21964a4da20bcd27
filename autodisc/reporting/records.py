"""Run records: what a command computed, written once, read by everything that reports.

A record is DIR/records/<kind>[-<strategy>]-<UTC timestamp>.json, schema 1: configuration, task, teacher,
environment, result, cost and curves. A rerun is a new file; nothing is ever overwritten. Neither
writing nor reading needs torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from autodisc.errors import StudyError
from autodisc.files import sync
from autodisc.leases import leased

SCHEMA = 1
KINDS = ("finetune", "search", "distill", "baseline")
_FIELDS = ("kind", "strategy", "created", "config", "task", "teacher", "environment", "seed", "result", "cost")
_PACKAGES = (
    "autodisc",
    "torch",
    "transformers",
    "optuna",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "scikit-learn",
    "numpy",
)


@dataclass(frozen=True)
class Record:
    """One record as read; ``values`` is the JSON document."""

    path: Path
    values: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The study's folder, which holds ``records/``."""
        return self.path.parent.parent

    @property
    def kind(self) -> str:
        return str(self.values["kind"])

    @property
    def strategy(self) -> str | None:
        return self.values["strategy"]

    @property
    def created(self) -> datetime:
        return _utc(self.values["created"])

    @property
    def result(self) -> dict[str, Any]:
        return self.values["result"]


def write_record(folder: Path, record: dict[str, Any]) -> Path:
    """Write ``record`` under ``folder/records`` and return its path; an existing file is never touched.

    ``schema`` and ``created`` are filled in where they are missing; numbers that are not finite become null.
    """
    created = record.get("created") or datetime.now(timezone.utc).isoformat(timespec="microseconds")
    values = {"schema": SCHEMA, "created": created, **record}
    missing = [name for name in _FIELDS if name not in values]
    if missing or values["kind"] not in KINDS:
        raise ValueError(f"record of kind {values.get('kind')!r}: missing {missing}")
    stamp = _utc(created).strftime("%Y%m%dT%H%M%S.%fZ")
    name = "-".join(part for part in (values["kind"], values["strategy"], stamp) if part)
    text = json.dumps(plain(values), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path = folder / "records" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_once(path, text)
    except FileExistsError:
        raise StudyError(f"{path}: exists already; a record is written once, a rerun is a new file") from None
    return path


def write_once(path: Path, text: str) -> None:
    """Create ``path`` with all of ``text`` or not at all; raises FileExistsError rather than overwrite."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    temporary = Path(name)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        try:
            os.link(temporary, path)  # unlike rename, it refuses an existing name
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            with leased(path.with_name(f".{path.name}.lease")):
                if path.exists():
                    raise FileExistsError(path) from None
                os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_records(folders: Iterable[Path]) -> list[Record]:
    """Every record of ``folders``, oldest first; StudyError names the folder or the file that is not right."""
    records: list[Record] = []
    for folder in dict.fromkeys(Path(folder) for folder in folders):
        if not folder.is_dir():
            raise StudyError(f"{folder}: no such folder; expected the --out of a search or a baseline")
        paths = sorted((folder / "records").glob("*.json"))
        if not paths:
            raise StudyError(f"{folder}: holds no records; expected the --out of a finished search or baseline")
        records.extend(_read(path) for path in paths)
    return sorted(records, key=lambda record: record.created)


def latest(records: Sequence[Record], kind: str, *, strategy: str | None = None) -> Record | None:
    """The newest record of ``kind``, and of ``strategy`` where one is named."""
    fitting = [r for r in records if r.kind == kind and (strategy is None or r.strategy == strategy)]
    return max(fitting, key=lambda record: record.created, default=None)


def held_out_by(teacher: str, texts: str) -> bool:
    """Whether the folder of ``teacher`` records a fine-tuning that held the rows of these ``texts`` (a digest) out."""
    folder = Path(teacher)
    if not any((folder / "records").glob("finetune-*.json")):
        return False
    made = latest(read_records([folder]), "finetune")
    return made is not None and made.values["task"].get("held_out") == texts


def environment(*, device: str, precision: str, threads: int) -> dict[str, Any]:
    """Where a run took place: versions, hardware, and the revision of autodisc's source where it is a checkout."""
    revision, dirty = _revision(Path(__file__).resolve().parents[1])
    return {
        **{name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "hardware": _hardware(device),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "device": device,
        "precision": precision,
        "revision": revision,
        "dirty": dirty,
        "platform": platform.platform(),
    }


def _read(path: Path) -> Record:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise StudyError(f"{path}: not valid JSON; remove the file, or run the command again") from None
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA:
        raise StudyError(f"{path}: record schema {schema!r}; this version of autodisc reads schema {SCHEMA}")
    missing = [name for name in _FIELDS if name not in values]
    if missing:
        raise StudyError(f"{path}: not a complete record, {', '.join(missing)} missing; remove the file")
    if values["kind"] not in KINDS:
        raise StudyError(f"{path}: record of kind {values['kind']!r}; expected one of {', '.join(KINDS)}")
    try:
        _utc(values["created"])
    except (TypeError, ValueError):
        raise StudyError(f"{path}: created: got {values['created']!r}; expected ISO 8601") from None
    return Record(path, values)


def _utc(text: str) -> datetime:
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 does not read the Z
    return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)


def plain(value: Any) -> Any:
    """``value`` as strict JSON can say it: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a numpy or torch scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _hardware(device: str) -> str:
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    if not device.startswith("cuda"):
        return cpu
    models = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            models += [
                line.split(":", 1)[1].strip() for line in path.read_text().splitlines() if line.startswith("Model:")
            ]
    return ", ".join([*dict.fromkeys(models), cpu])


def _revision(source: Path) -> tuple[str | None, bool | None]:
    """Commit of ``source`` and whether it was changed since; nothing where git does not track it."""
    if _git(source, "ls-files", "--error-unmatch", "__init__.py") is None:  # e.g. a venv inside a checkout
        return None, None
    revision = _git(source, "rev-parse", "HEAD")
    changes = _git(source, "status", "--porcelain", "--", ".")
    return revision, None if changes is None else bool(changes)


def _git(folder: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
