"""Files that are whole or not there: written under a temporary name beside, synced to the disk, then renamed.

Whatever ends the process, and whenever, a reader finds the old file or the new one, and no half of either.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from autodisc.errors import AutodiscError, StudyError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name for what is to be written; it becomes ``path`` when the body ends well, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, lie on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """The same for all the files of a folder."""
    for path in sorted(folder.iterdir()):
        sync(path)
    sync(folder)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    write_text(path, json.dumps(values))


def check_writable(folder: Path) -> None:
    """Raise OSError where nothing can be written to ``folder``, before hours of work find out; makes no folder."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    with tempfile.TemporaryFile(dir=there) as file:
        file.write(b"\0" * 4096)


def disk_error(error: BaseException) -> OSError | None:
    """What the disk said, where an error, or one that it came of, is a disk's that is full, failing or read-only."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def refuse_here(out: Path) -> None:
    """Raise StudyError for the working folder: what is put in its place by a rename, nobody in it would see."""
    if out.resolve() == Path.cwd():
        raise StudyError(f"{out}: is the folder that you are in, which a new one would replace; give --out another")


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A full or read-only disk becomes one line that names the folder, before there is anything to lose if it can."""
    try:
        check_writable(folder)
        yield
    except AutodiscError:
        raise
    except Exception as error:
        found = _kept_from_writing(error)
        if found is None:
            raise
        written = found.filename2 or found.filename or folder  # of a copy or a rename the second one
        raise AutodiscError(
            f"{written}: cannot be written ({found.strerror or found}); what was finished is kept, "
            "free some space or give another folder, and run the same command again"
        ) from error


def _kept_from_writing(error: BaseException) -> OSError | None:
    """What the disk or its rights said, also where another error came of it: Optuna's journal then speaks of a lock."""
    if isinstance(error, OSError):
        return None if isinstance(error, (FileNotFoundError, ConnectionError, TimeoutError)) else error
    return disk_error(error)


def as_os_error(error: Exception, path: Path) -> OSError:
    """What a library in Rust makes of an error of the system's, "… (os error 28)", as Python would raise it."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is None:
        return OSError(errno.EIO, " ".join(str(error).split()), str(path))
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path))


def is_free(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def csv_writer(file: SupportsWrite, columns: Sequence[str]) -> csv.DictWriter[str]:
    """Of rows under ``columns``, in lines that end in a newline alone."""
    return csv.DictWriter(_Lines(file), columns, restval="")


class SupportsWrite(Protocol):
    def write(self, text: str, /) -> Any: ...


class _Lines:
    """Of a row a line: told to end lines in a newline itself, an older csv leaves a carriage return unquoted."""

    def __init__(self, file: SupportsWrite) -> None:
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(row.removesuffix("\r\n") + "\n")
