from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from autodisc.errors import StudyError
from autodisc.leases import Lease, LostLeaseError, acquire, held_by, leased, make, once
from autodisc.progress import Silent

HOLDS = """
import sys, time
from pathlib import Path
from autodisc.leases import leased
with leased(Path(sys.argv[1]), seconds=float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds a lease on ``tmp_path / "x.lease"``, of 0.6 s."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path / "x.lease"), "0.6"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()
    process.stdout.close()


def test_what_several_want_is_made_once_and_waited_for(tmp_path):
    made, got = [], []

    def work():
        def slowly():
            made.append(threading.get_ident())
            time.sleep(0.3)
            return "result"

        put = (tmp_path / "result").write_text
        got.append(
            once(tmp_path / "x.lease", there=(tmp_path / "result").exists, make=slowly, put=put, progress=Silent())
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert sorted(got, key=str) == [None, None, None, "result"]
    assert (tmp_path / "result").read_text() == "result"
    assert not (tmp_path / "x.lease").exists()


def test_who_waits_says_for_whom(tmp_path, holder, make_listener):
    listener = make_listener()
    thread = threading.Thread(
        target=once,
        args=(tmp_path / "x.lease",),
        kwargs={
            "there": (tmp_path / "result").exists,
            "make": lambda: "mine",
            "put": (tmp_path / "result").write_text,
            "progress": listener,
            "seconds": 0.6,
        },
    )
    thread.start()
    while not listener.said:
        time.sleep(0.01)
    assert f"waiting for process {holder.pid}" in listener.said[0]
    holder.kill()
    thread.join()
    assert (tmp_path / "result").read_text() == "mine"


def test_a_lease_is_kept_while_its_process_lives_and_taken_over_when_it_was_killed(tmp_path, holder):
    lease = make(tmp_path / "x.lease", seconds=0.6)
    with pytest.raises(TimeoutError):
        lease.acquire(timeout=1.5)  # well past its duration: it is renewed
    holder.kill()
    holder.wait()
    lease.acquire(timeout=10)
    assert lease.owner.pid == os.getpid()
    lease.release()


def test_who_was_stopped_too_long_finds_its_lease_lost_and_puts_nothing(tmp_path):
    first = make(tmp_path / "x.lease", seconds=0.6)
    first.acquire()
    held = Lease(first)
    held.check()
    first._stop_heartbeat()  # as a process does that is suspended, or cut off from the disk
    # Of this process itself, as of one elsewhere, it cannot be told that it is gone; so the time decides.
    second = make(tmp_path / "x.lease", seconds=0.6)
    second.acquire(timeout=30)
    with pytest.raises(LostLeaseError, match="taken over"):
        held.check()
    Lease(second).check()
    second.release()


def test_a_result_whose_lease_was_lost_is_not_put_in_place_and_the_others_is_taken(tmp_path):
    path, result = tmp_path / "x.lease", tmp_path / "result"

    def overtaken():
        path.unlink()
        result.write_text("theirs")
        return "mine"

    assert once(path, there=result.exists, make=overtaken, put=result.write_text, progress=Silent()) is None
    assert result.read_text() == "theirs"


@pytest.fixture
def no_exchange(monkeypatch):
    """As NFS and SMB are."""
    monkeypatch.setattr("filelock._soft.exchange_names", lambda source, target: False)


def test_a_disk_that_exchanges_no_names_is_taken_over_on_too(tmp_path, holder, no_exchange):
    lease = make(tmp_path / "x.lease", seconds=0.6)
    holder.kill()
    holder.wait()
    lease.acquire(timeout=10)
    assert lease.owner.pid == os.getpid()
    Lease(lease).check()
    lease.release()
    assert list(tmp_path.iterdir()) == []


def test_whose_lease_was_taken_for_a_dead_one_gets_it_back_on_such_a_disk(tmp_path, monkeypatch, no_exchange):
    first, second = make(tmp_path / "x.lease", seconds=5), make(tmp_path / "x.lease", seconds=5)
    first.acquire()
    judged, rename = os.lstat(first.lock_file), os.rename

    def late(source, target):
        first.release()
        second.acquire()  # in the moment before the rename
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    make(tmp_path / "x.lease", seconds=5)._take_over(judged, None)
    Lease(second).check()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_durations_that_differ_are_refused(tmp_path):
    held = make(tmp_path / "x.lease", seconds=5)
    held.acquire()
    with pytest.raises(StudyError, match="heartbeat_s"), leased(tmp_path / "x.lease", seconds=6):
        pass
    with pytest.raises(StudyError, match="heartbeat_s"):
        acquire(make(tmp_path / "x.lease", seconds=6), timeout=0)
    held.release()


def test_a_file_that_a_power_cut_left_empty_is_taken_over(tmp_path):
    path, said = tmp_path / "x.lease", []
    path.touch()
    with leased(path, seconds=0.6, waiting=said.append) as lease:
        lease.check()
    assert said == ["a process that has left no name"]
    assert not path.exists()


def test_who_has_a_lease_is_told_while_its_process_runs(tmp_path, holder):
    path = tmp_path / "x.lease"
    assert held_by(path) == f"process {holder.pid} on {socket.gethostname()}"
    holder.kill()
    holder.wait()
    assert path.exists()
    assert held_by(path) is None
    assert held_by(tmp_path / "none.lease") is None


def test_a_lease_whose_file_is_gone_is_lost(tmp_path):
    with leased(tmp_path / "x.lease", seconds=5) as lease:
        (tmp_path / "x.lease").unlink()
        with pytest.raises(LostLeaseError, match="is gone"):
            lease.check()
