"""Work that one of several processes does, and the others wait for: a lease on a file in a folder that all of them see.

The file names host, process and a token of who does it, and a thread renews it (filelock's SoftFileLease). It is taken
over where its process is gone from this machine, or where this process has watched it for the lease's duration without
seeing it renewed; so no two machines' clocks are compared. Who has lost a lease does not put its result in place.

Not in the study's attributes: a storage sets those without comparing, and what is waited for is a folder anyway.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from autodisc.errors import AutodiscError, StudyError
from autodisc.progress import Progress

LEASE_S = 30.0
POLL_S = 0.2
Made = TypeVar("Made")


class LostLeaseError(AutodiscError):
    """Another process has taken over what this one was doing."""


class Lease:
    """The right to do one thing, as long as nobody has taken it over."""

    def __init__(self, lease: SoftFileLease) -> None:
        self._lease = lease
        self.token = lease.token

    def check(self) -> None:
        """Raise LostLeaseError where the file names another by now, or none."""
        found = _token(self._lease)
        if found is None:
            raise LostLeaseError(f"{self._lease.lock_file}: is gone or cannot be read, so another may have taken over")
        if found != self.token:
            raise LostLeaseError(f"{self._lease.lock_file}: another process has taken over; its result counts")


def _token(lease: SoftFileLease) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        owner = lease.owner
        return None if owner is None else owner.token
    return None


class _AnyDisk(SoftFileLease):
    """Taken over on NFS and SMB too, which refuse the exchange of two names by which filelock does it; and where a
    power cut or a kill has left the file empty, which filelock waits for without end."""

    def _try_break_stale_lock(self) -> None:
        super()._try_break_stale_lock()
        with contextlib.suppress(OSError):
            marker = os.lstat(self.lock_file)
            if marker.st_size == 0 and self._marker_unchanged_for(marker) >= self.lease_duration:
                self._set_aside(marker)  # who lives renews it, and has written its name long since

    def _take_over(self, marker: os.stat_result, breaker_pid: int | None) -> None:
        """Of a file that filelock has found dead; where this only removes it, the next try has the lease."""
        super()._take_over(marker, breaker_pid)
        if not self.is_locked and _unchanged(self.lock_file, marker):
            self._set_aside(marker)

    def _set_aside(self, marker: os.stat_result) -> None:
        aside = f"{self.lock_file}.{uuid.uuid4().hex}.aside"
        os.rename(self.lock_file, aside)
        if not _unchanged(aside, marker):  # another took over in between; if this fails, its next look says so
            with contextlib.suppress(OSError):
                os.link(aside, self.lock_file)
        os.unlink(aside)


def _unchanged(path: str, marker: os.stat_result) -> bool:
    found = os.lstat(path)
    return (found.st_ino, found.st_mtime) == (marker.st_ino, marker.st_mtime)


def make(path: Path, *, seconds: float = LEASE_S) -> SoftFileLease:
    """A lease that is not held yet; every process gives the same duration."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return _AnyDisk(path, lease_duration=float(seconds), poll_interval=POLL_S, timeout=-1, thread_local=False)


def acquire(lease: SoftFileLease, *, timeout: float = -1) -> None:
    """Raises StudyError where the file has another duration.

    Whoever has it may remove its folder with it: that is made again.
    """
    while True:
        try:
            lease.acquire(timeout=timeout)
            return
        except FileNotFoundError:
            Path(lease.lock_file).parent.mkdir(parents=True, exist_ok=True)
        except LeaseSettingsMismatch as error:
            raise StudyError(f"search.heartbeat_s: differs between the processes of one study ({error})") from None


def held_by(path: Path) -> str | None:
    """Who has a lease, as its file says; none where there is none, or its process is gone from this machine."""
    try:
        owner = make(path).owner if path.exists() else None
    except (OSError, ValueError):
        return None
    if owner is None or (owner.hostname == socket.gethostname() and not _runs(owner.pid)):
        return None
    return f"process {owner.pid} on {owner.hostname}"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


@contextlib.contextmanager
def leased(path: Path, *, seconds: float = LEASE_S, waiting: Callable[[str], None] | None = None) -> Iterator[Lease]:
    """Hold the lease inside; before, wait for whoever has it, which ``waiting`` is told."""
    lease = make(path, seconds=seconds)
    try:
        acquire(lease, timeout=0)
    except Timeout:
        if waiting is not None:
            waiting(held_by(path) or "a process that has left no name")
        acquire(lease)
    try:
        yield Lease(lease)
    finally:
        lease.release()


def once(
    path: Path,
    *,
    there: Callable[[], bool],
    make: Callable[[], Made],
    put: Callable[[Made], None],
    progress: Progress,
    seconds: float = LEASE_S,
) -> Made | None:
    """What this process made, where it was not ``there`` yet; none where another did, which is waited for.

    ``put`` is called only while the lease is held.
    """
    while not there():
        with (
            leased(path, seconds=seconds, waiting=lambda who: progress.say(f"{path.stem}: waiting for {who}")) as lease,
            contextlib.suppress(LostLeaseError),
        ):
            if there():
                break
            made = make()
            lease.check()
            put(made)
            return made
    return None
