"""Servers and clusters, started here on the loopback; a test whose server is not installed skips, and says so."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PASSWORD = "swordfish-4711"  # must turn up nowhere
SERVICES = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="write what was measured to benchmarks/results")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SERVICES in item.path.parents:
            item.add_marker(pytest.mark.services)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@dataclass
class PostgreSQL:
    """A server of its own in a temporary folder; it does not run as root."""

    binaries: Path
    folder: Path
    port: int
    password: str = PASSWORD

    @property
    def url(self) -> str:
        return f"postgresql+psycopg2://ann:{PASSWORD}@127.0.0.1:{self.port}/optuna"

    def call(self, program: str, *arguments: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        done = subprocess.run(
            [*user, str(self.binaries / program), *arguments], capture_output=True, text=True, cwd="/", timeout=120
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    def start(self) -> None:
        # No file is synced: what is restarted here is the server, not the machine.
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        log = str(self.folder / "log")
        self.call("pg_ctl", "start", "-w", "-D", str(self.folder / "data"), "-l", log, "-o", options)

    def stop(self, mode: str = "fast") -> None:
        self.call("pg_ctl", "stop", "-w", "-m", mode, "-D", str(self.folder / "data"))

    def create(self) -> None:
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        data = str(self.folder / "data")
        self.call("initdb", "-D", data, "-U", "ann", "-A", "scram-sha-256", "--pwfile", str(secret), "-N")
        self.start()
        import psycopg2

        connection = psycopg2.connect(
            host="127.0.0.1", port=self.port, user="ann", password=PASSWORD, dbname="postgres"
        )
        connection.autocommit = True
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute("create database optuna")


@pytest.fixture
def postgresql() -> Iterator[PostgreSQL]:
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed: pip install 'autodisc[postgresql]'")
    found = shutil.which("initdb")
    binaries = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries or not (binaries[-1] / "initdb").exists():
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="autodisc-postgresql-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
            folder.chmod(0o755)
        server = PostgreSQL(binaries[-1], folder, free_port())
        try:
            server.create()
            yield server
        finally:
            with contextlib.suppress(AssertionError):
                server.stop("immediate")


@pytest.fixture
def until() -> Callable[..., None]:
    """Wait for a condition; a minute or so is much more than any of them takes."""

    def wait(condition: Callable[[], object], *, seconds: float = 240.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited for in vain"
            time.sleep(0.1)

    return wait


@pytest.fixture(scope="session")
def dask_cluster() -> Iterator[str]:
    """A scheduler and two workers of a thread each, on the loopback: the ``--backend`` that names them."""
    pytest.importorskip("distributed", reason="Dask is not installed: pip install 'autodisc[dask]'")
    scheduler = f"127.0.0.1:{free_port()}"
    run = (
        [sys.executable, "-m", "distributed.cli.dask_scheduler"],
        [sys.executable, "-m", "distributed.cli.dask_worker"],
    )
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="autodisc-dask-") as folder, contextlib.ExitStack() as stack:
        for command in (
            [*run[0], "--host", scheduler, "--no-dashboard", "--no-show"],
            [*run[1], scheduler, "--nworkers", "2", "--nthreads", "1", "--no-dashboard", "--local-directory", folder],
        ):
            process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        from distributed import Client

        with Client(f"tcp://{scheduler}", timeout="60s") as client:
            client.wait_for_workers(2, timeout=120)
        yield f"dask://{scheduler}"


@pytest.fixture(params=["dask", "ray"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "ray":
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'autodisc[ray]'")
        return "ray"
    return request.getfixturevalue("dask_cluster")
