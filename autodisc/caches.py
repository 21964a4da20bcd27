"""What the cache folder holds, entry by entry, and making room in it: never a result, and nothing that is not ours.

CACHE/teacher/KEY/          a teacher's outputs
CACHE/ranking/KEY.json      the order of a teacher's units
CACHE/data/tokenised/       tokens
CACHE/data/docstrings-KEY/  the embedded task
CACHE/data/csv/, …          data sets as read, by the library datasets; OWNER___NAME/ is one of the hub
CACHE/assistant-…/          an assistant's outputs, for as long as a student is distilled from it

Whatever else lies in the folder is not seen, whoever put it there: a folder of results may be a cache's too. What is
removed is made again when it is needed next.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autodisc.errors import AutodiscError

TEACHER, RANKING, TOKENS, DOCSTRINGS, ROWS = "teacher outputs", "ranking", "tokens", "docstrings", "data set"
LEFT_OVER = "left over"  # of a process that was ended while it wrote
ABANDONED_DAYS = 1 / 24
_REMOVED = re.compile(r"\.removed-.+-\d+")  # an entry that ``free`` had begun to remove
_KEY = re.compile(r"[0-9a-f]{32}")
_TEACHER_FILE = re.compile(
    r"cost\.json|hidden\.f16|logits\.f32|classes\.i32|likeliest\.f32|filled\.u8|\.cost\.json\.\d+"
)
_READERS = ("csv", "json", "parquet")  # what datasets calls its folders


@dataclass(frozen=True)
class Entry:
    """Something that can be removed as a whole."""

    path: Path
    kind: str
    bytes: int
    used: float  # when it was last written or read, in seconds since 1970
    damage: str = ""  # what is wrong with it, if anything

    @property
    def age_days(self) -> float:
        return max(0.0, time.time() - self.used) / 86400

    @property
    def abandoned(self) -> bool:
        """Whether it is damaged or unfinished, and not just being written."""
        return bool(self.damage) and self.age_days > ABANDONED_DAYS


def default_folder() -> Path:
    return Path(os.environ.get("AUTODISC_CACHE") or Path.home() / ".cache" / "autodisc")


def entries(folder: Path) -> list[Entry]:
    """Everything that autodisc keeps in ``folder``, the least recently used first."""
    found = [entry for path, kind in _known(folder) if (entry := _entry(path, kind)) is not None]
    return sorted(found, key=lambda entry: (entry.used, str(entry.path)))


def _known(folder: Path) -> Iterator[tuple[Path, str]]:
    data = folder / "data"
    readers = [data / reader for reader in _READERS]
    for place in (folder, folder / "teacher", folder / "ranking", data, data / "tokenised", *readers, *_of_hub(data)):
        yield from ((path, LEFT_OVER) for path in _within(place) if _REMOVED.fullmatch(path.name))
    for path in _within(folder):
        if (
            re.fullmatch(r"assistant-[a-z0-9_]{8}", path.name)
            and path.is_dir()
            and all(map(_is_teacher, _all_in(path)))
        ):
            yield path, LEFT_OVER
    for path in _within(folder / "teacher"):
        if _is_teacher(path):
            yield path, TEACHER
    for path in _within(folder / "ranking"):
        if _KEY.fullmatch(path.stem) and path.suffix == ".json":
            yield path, RANKING
        elif re.fullmatch(r"\.[0-9a-f]{32}\.json\.\d+", path.name):
            yield path, LEFT_OVER
    for path in _within(data / "tokenised"):
        if _KEY.fullmatch(path.stem) and path.suffix == ".arrow":
            yield path, TOKENS
        elif re.fullmatch(r"tmp[a-z0-9_]{8}", path.name):  # as `datasets` writes it
            yield path, LEFT_OVER
    for path in _within(data):
        if re.fullmatch(r"docstrings-[0-9a-f]{16}(\.[a-z0-9_]{8})?", path.name) and all(
            map(_is_of_corpus, _all_in(path))
        ):
            yield path, LEFT_OVER if "." in path.name else DOCSTRINGS
    for place in _of_hub(data):
        yield from ((path, ROWS) for path in _within(place) if not _REMOVED.fullmatch(path.name))
    for place in readers:
        yield from ((path, ROWS) for path in _within(place) if re.fullmatch(r"default-[0-9a-f]+", path.name))


def _of_hub(data: Path) -> list[Path]:
    return [path for path in _within(data) if re.fullmatch(r"[\w.-]+___[\w.-]+", path.name)]


def _is_teacher(path: Path) -> bool:
    """Whether a folder holds a teacher's outputs, and nothing else."""
    names = [file.name if not file.is_symlink() else "" for file in _all_in(path)]
    return bool(_KEY.fullmatch(path.name)) and path.is_dir() and all(map(_TEACHER_FILE.fullmatch, names))


def _is_of_corpus(path: Path) -> bool:
    return (path.name == "sources.json" or path.suffix == ".parquet") and not path.is_symlink()


def _all_in(folder: Path) -> list[Path]:
    """Links too."""
    return sorted(folder.iterdir()) if folder.is_dir() else [folder]


def _within(folder: Path) -> list[Path]:
    """What lies in a folder; links are somebody else's."""
    if not folder.is_dir() or folder.is_symlink():
        return []
    return sorted(path for path in folder.iterdir() if not path.is_symlink())


def _entry(path: Path, kind: str) -> Entry | None:
    """None where it is gone by now."""
    size, used = 0, 0.0
    try:
        for file in [path, *path.rglob("*")]:
            status = file.lstat()
            # On the disk: a teacher's file has room for every row from the start, and takes what is filled.
            size += status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size
            if not file.is_dir():
                used = max(used, status.st_mtime, status.st_atime)
        return Entry(path, kind, size, used or path.lstat().st_mtime, _damage(path, kind))
    except FileNotFoundError:
        return None


def _damage(path: Path, kind: str) -> str:
    """What can be seen without the libraries that wrote it."""
    if kind == LEFT_OVER:
        return "not finished"
    if kind == RANKING or (kind == TEACHER and (path / "cost.json").exists()):
        file = path if kind == RANKING else path / "cost.json"
        before = file.stat()
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            return "not valid JSON"
        finally:
            with contextlib.suppress(OSError):  # to look at it is not to use it
                os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    if kind == TOKENS and path.stat().st_size == 0:
        return "empty"
    return ""


def clean(
    folder: Path, *, older_than_days: float | None = None, max_gib: float | None = None, remove: bool = False
) -> dict[str, Any]:
    """What the cache holds and what of it has to go; with ``remove`` it goes, or AutodiscError says why it cannot."""
    held = entries(folder)
    going = to_free(held, older_than_days=older_than_days, max_gib=max_gib)
    if remove:
        for entry in going:
            try:
                free(entry)
            except OSError as error:
                raise AutodiscError(f"{entry.path}: cannot be removed ({error.strerror or error})") from None
    rows = [
        {
            "path": str(entry.path),
            "kind": entry.kind,
            "bytes": entry.bytes,
            "age_days": entry.age_days,
            "damage": entry.damage,
            "goes": entry in going,
        }
        for entry in held
    ]
    freed = sum(entry.bytes for entry in going)
    return {"folder": str(folder), "entries": rows, "bytes_to_free": freed, "removed": remove and bool(going)}


def to_free(
    entries: Sequence[Entry], *, older_than_days: float | None = None, max_gib: float | None = None
) -> list[Entry]:
    """What has to go: everything older and what nobody will finish, then the least recently used over the limit."""
    if older_than_days is None and max_gib is None:
        return []
    going = [
        entry
        for entry in entries
        if (older_than_days is not None and entry.age_days > older_than_days) or entry.abandoned
    ]
    if max_gib is not None:
        left = sum(entry.bytes for entry in entries) - sum(entry.bytes for entry in going)
        for entry in entries:
            if left <= max_gib * 2**30:
                break
            if entry not in going:
                going.append(entry)
                left -= entry.bytes
    return going


def free(entry: Entry) -> None:
    """Remove an entry: renamed first, so that nobody finds half of it."""
    name = entry.path.name
    going = entry.path.with_name(name if _REMOVED.fullmatch(name) else f".removed-{name}-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):  # another process removes it
        entry.path.rename(going)
        if going.is_dir():
            shutil.rmtree(going)
        else:
            going.unlink()
