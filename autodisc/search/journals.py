"""Where Optuna studies live: in a journal, whose lines are whole, or in a database."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from autodisc.errors import StudyError, one_line
from autodisc.files import disk_error
from autodisc.search.patience import open_database
from autodisc.urls import public, redacted, with_password

Say = Callable[[str], None]


def open_storage(
    storage: str, *, say: Say = lambda text: None, heartbeat_s: int | None = None, wait_s: float = 0.0
) -> BaseStorage:
    """A journal file (a path ending in .log) or any Optuna storage URL; raises StudyError where it cannot be had.

    With ``heartbeat_s`` a database's trials show that their processes live; it may take ``wait_s`` to be reachable.
    """
    try:
        if storage.endswith(".log"):
            Path(storage).parent.mkdir(parents=True, exist_ok=True)
            return open_journal(storage)
        return open_database(with_password(storage), say, heartbeat_s=heartbeat_s, wait_s=wait_s)
    except ImportError as error:
        lacking = getattr(error.__cause__, "name", None) or error.name or "its driver"
        raise StudyError(
            f"search.storage: '{public(storage)}' needs {lacking}; pip install 'autodisc[postgresql]' and write"
            " postgresql+psycopg://…, or 'autodisc[mysql]' and mysql+pymysql://…"
        ) from None
    except Exception as error:  # SQLAlchemy's and the drivers' errors have no common base
        if isinstance(error, StudyError) or disk_error(error) is not None:
            raise
        reason = redacted(one_line(error), storage)
        shown = public(storage)
    # Not from the error, whose traceback and arguments may hold the URL.
    raise StudyError(f"search.storage: '{shown}' cannot be opened ({reason}); give an Optuna storage URL")


class WholeLines(JournalFileSymlinkLock):
    """The lock of a journal, which cuts off the half of a line that a full disk or a kill has left at its end.

    Optuna reads over such a half, but would write the next line after it in the same line, and then read no more.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = Path(path)
        # The name alone leads there from beside it, whatever the path. For a lock that leads nowhere Optuna waits
        # without a pause, and without end.
        self._lock_target_file = self._path.name

    def acquire(self) -> bool:
        held = super().acquire()
        try:
            _cut_half_line(self._path)
        except BaseException:
            self.release()
            raise
        return held


def _cut_half_line(path: Path) -> None:
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end == 0 or _ends_a_line(file, end):
            return
        at = end
        while at and not _ends_a_line(file, at):
            at -= 1
        file.truncate(at)


def _ends_a_line(file: BinaryIO, at: int) -> bool:
    file.seek(at - 1)
    return file.read(1) == b"\n"


def open_journal(path: str) -> JournalStorage:
    """Raises StudyError where it is damaged."""
    try:
        return JournalStorage(JournalFileBackend(path, lock_obj=WholeLines(path)))
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        reason = one_line(error, 80)
    raise StudyError(f"search.storage: {path} is damaged ({reason}); start afresh beside it with --new")
