"""Workers on a PostgreSQL server, some killed, the server restarted: nothing is lost, and nothing done twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from autodisc.reporting.records import environment, write_once

NAME = "cluster-mine"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
RUN = "import sys; from autodisc.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Size:
    """How many work at how many trials; after how many of these a process is killed, and the server restarted."""

    workers: int
    trials: int
    kills: tuple[int, ...]
    restarts: tuple[int, ...]

    @property
    def grid(self) -> list[float]:
        return [round(0.1 + 0.8 / self.trials * i, 3) for i in range(self.trials)]


SMALL = Size(3, 50, (10, 30), (20, 35))
SIZES = [
    pytest.param(SMALL, id="three"),
    pytest.param(Size(8, 200, (20, 60, 100, 140, 170), (40, 120)), id="eight", marks=pytest.mark.slow),
]


@dataclass
class Crew:
    """Processes at one study, and their words."""

    size: Size
    out: Path
    url: str
    password: str
    processes: list[subprocess.Popen] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    killed: int = 0

    def start(self, *command: str) -> subprocess.Popen:
        log = self.out.parent / f"log-{len(self.logs)}"
        self.logs.append(log)
        environ = {**os.environ, "AUTODISC_STORAGE_PASSWORD": self.password, "OMP_NUM_THREADS": "1"}
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", RUN, *command, "--out", str(self.out), "--json"],
                stdout=file,
                stderr=file,
                env=environ,
            )
        self.processes.append(process)
        return process

    def worker(self) -> None:
        self.start("worker", "--study", NAME, "--storage", self.url)

    def kill(self, process: subprocess.Popen) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.processes.remove(process)
        self.killed += 1

    def running(self) -> list[subprocess.Popen]:
        return [process for process in self.processes if process.poll() is None]

    def said(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)

    def last(self) -> str:
        """What a failed test shows."""
        return "\n".join(log.read_text()[-1000:] for log in self.logs)

    def ends(self, stage: str) -> list[dict[str, Any]]:
        """The events of a stage that was done to its end, of any process."""
        events = [json.loads(line) for line in self.said().splitlines() if line.startswith('{"event": "end"')]
        return [event for event in events if event["name"] == stage and event["ok"]]


@pytest.fixture
def crew(postgresql, furnished, tmp_path, request) -> Iterator[Crew]:
    size = getattr(request, "param", SMALL)
    url = postgresql.url.replace(f":{postgresql.password}@", "@")
    settings = {
        "name": "cluster",
        "task": {"name": "mine", "metric": "accuracy", "data": str(furnished / "data")},
        "teacher": {"model": str(furnished / "teacher")},
        "search": {
            "sparsities": size.grid,
            "storage": url,
            "heartbeat_s": 2,
            "importance": {"examples": 32},
            "recovery": {"steps": 60, "lr": 3e-3},
        },
        "distillation": {"batch_size": 32},
        "runtime": {"threads": 1, "precision": "fp32"},
        "cache": {"dir": str(tmp_path / "cache")},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))
    crew = Crew(size, tmp_path / "study", url, postgresql.password)
    yield crew
    for process in crew.running():
        process.kill()
    for process in crew.processes:
        process.wait()


def trials(postgresql, query: str) -> list[tuple]:
    """What the database says, past our own code; an empty answer while it is away or has no tables yet."""
    import psycopg

    try:
        connection = psycopg.connect(postgresql.url.replace("+psycopg", ""), connect_timeout=2)
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall()
    except (psycopg.OperationalError, psycopg.ProgrammingError):
        return []


STATES = "select state, count(*) from trials join studies using (study_id) where study_name = '{}' group by state"
POINTS = (
    "select t.number, v.value_json from trials t join studies s using (study_id)"
    " join trial_system_attributes v on v.trial_id = t.trial_id and v.key = 'fixed_params'"
    " where s.study_name = '{}' and t.state = 'COMPLETE'"
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("crew", SIZES, indirect=True)
def test_workers_complete_every_trial_once_whatever_is_killed_or_restarted(postgresql, crew, until, request):
    grid, workers = crew.size.grid, crew.size.workers

    def complete() -> int:
        return dict(trials(postgresql, STATES.format(NAME))).get("COMPLETE", 0)

    begun = time.monotonic()
    search = crew.start("search", "--config", str(crew.out.parent / "study.yaml"))
    until(lambda: (crew.out / "recovery.lease").exists() or search.poll() is not None)
    assert search.poll() is None, crew.last()
    for _ in range(workers):
        crew.worker()
    time.sleep(1)
    crew.kill(search)  # in the middle of the recovery: a worker takes it over
    generator = random.Random(0)
    kills, restarts = list(crew.size.kills), list(crew.size.restarts)
    supernet = crew.out / "supernet" / "model.safetensors"
    made = None
    while (done := complete()) < len(grid):
        if made is None and supernet.exists():
            made = supernet.stat().st_mtime_ns
        if kills and done >= kills[0]:
            kills.pop(0)
            crew.kill(generator.choice(crew.running()))
            crew.worker()
        if restarts and done >= restarts[0]:
            restarts.pop(0)
            postgresql.stop("immediate" if len(restarts) else "fast")
            time.sleep(2)
            postgresql.start()
        assert crew.running(), crew.last()
        assert time.monotonic() - begun < 800, (done, crew.last())
        time.sleep(0.05)
    until(lambda: not crew.running(), seconds=60)
    assert [process.returncode for process in crew.processes] == [0] * workers, crew.last()
    assert (kills, restarts) == ([], [])

    again = crew.start("search", "--config", str(crew.out.parent / "study.yaml"))
    until(lambda: again.poll() is not None)
    assert again.returncode == 0, crew.last()
    result = json.loads(crew.logs[-1].read_text().splitlines()[-1])
    elapsed = time.monotonic() - begun

    states = dict(trials(postgresql, STATES.format(NAME)))
    points = [json.loads(value)["sparsity"] for _, value in trials(postgresql, POINTS.format(NAME))]
    assert states["COMPLETE"] == len(grid)
    assert states.keys() <= {"COMPLETE", "FAIL"}
    assert sorted(points) == grid
    assert [row["sparsity"] for row in result["trials"]] == grid
    assert [event["done"] for event in crew.ends("recovery")] == [60], crew.last()
    assert supernet.stat().st_mtime_ns == made
    ledgers = [json.loads(path.read_text()) for path in (crew.out / "workers").glob("*.json")]
    assert sum("recovery" in ledger["stages"] for ledger in ledgers) >= 1
    kept = [path.read_bytes() for path in crew.out.rglob("*") if path.is_file()]
    assert not any(crew.password.encode() in content for content in kept)
    assert crew.password not in crew.said()
    by_worker = Counter(
        value
        for (value,) in trials(
            postgresql,
            "select v.value_json from trials t join trial_user_attributes v on v.trial_id = t.trial_id"
            " where v.key = 'worker' and t.state = 'COMPLETE'",
        )
    )
    assert sum(by_worker.values()) == len(grid)  # how many of them took part depends on the machine's load
    if request.config.getoption("--record") and crew.size is not SMALL:
        record(
            {
                "workers": workers,
                "trials": states["COMPLETE"],
                "distinct_points": len(set(points)),
                "failed_and_done_again": states.get("FAIL", 0),
                "processes_killed": crew.killed,
                "server_restarts": len(crew.size.restarts),
                "recoveries": len(crew.ends("recovery")),
                "elapsed_s": round(elapsed, 1),
                "trials_by_worker": sorted(by_worker.values(), reverse=True),
            },
            trials(postgresql, "select version()")[0][0],
        )


def record(row: dict[str, object], server: str) -> None:
    created = datetime.now(timezone.utc)
    document = {
        "benchmark": "workers",
        "created": created.isoformat(timespec="seconds"),
        "command": "pytest tests/services/test_database.py -m services -k eight --record",
        "environment": {
            **environment(device="cpu", precision="fp32", threads=1),
            "server": server,
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        },
        "settings": {"seed": 0, "heartbeat_s": 2},
        "rows": [row],
    }
    write_once(RESULTS / f"workers-{created:%Y%m%dT%H%M%SZ}.json", json.dumps(document, indent=1) + "\n")


def test_a_wrong_password_is_one_line_without_it(postgresql, crew, capsys):
    from autodisc.cli import main

    url = postgresql.url.replace(postgresql.password, "not-it-at-all")
    assert main(["doctor", "--storage", url]) == 1
    assert (
        main(["search", "--config", str(crew.out.parent / "study.yaml"), "--storage", url, "--out", str(crew.out)]) == 2
    )
    said = "".join(capsys.readouterr())
    assert "authentication failed" in said
    assert "not-it-at-all" not in said
