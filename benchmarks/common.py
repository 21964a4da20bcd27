"""What every benchmark prints and writes: a table, and one JSON file with command, hardware, versions and seeds."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from autodisc.costs import flop_counter
from autodisc.reporting.records import environment, write_once
from autodisc.runtime import Runtime

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]  # value by column; the same columns in every row of a table
Work = Callable[[], Any]
# For a process whose memory is measured: a block of 64 KiB or more goes back to the system when it is freed. By itself
# glibc keeps those that lie between others: where torch's blocks had a peak of 57 MiB the process's was 400.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}


class Stage(NamedTuple):
    """Work of ours beside a limit that it is timed against."""

    ours: Work
    limit: Work
    tokens: int  # real ones that pass through ours


def inputs(description: str | None) -> argparse.ArgumentParser:
    """Options of a benchmark on a teacher and its task, given by path."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit-train", type=int, default=None)
    parser.add_argument("--threads", type=int, default=None)
    return parser


def missing(*folders: str | Path) -> bool:
    """Whether an input is not here; says so."""
    gone = [str(folder) for folder in folders if not Path(folder).is_dir()]
    if gone:
        print(f"skipped: {', '.join(gone)} is not here")
    return bool(gone)


def show(title: str, rows: list[Row]) -> None:
    """Print ``rows`` as a table, whole also where the output is no terminal."""
    table = Table(title=title, title_justify="left")
    for column, value in rows[0].items():
        table.add_column(column, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def publish(name: str, rows: list[Row], runtime: Runtime, **settings: Any) -> Path:
    """Print ``rows`` as a table and write them, once, to ``benchmarks/results/<name>-<UTC time>.json``."""
    where = environment(device=str(runtime.device), precision=runtime.precision, threads=runtime.threads)
    if runtime.device.type == "cuda":
        where["accelerator"] = torch.cuda.get_device_name(runtime.device)
    hardware = where.get("accelerator", where["hardware"])
    show(f"{name}: {hardware}, {runtime.threads} thread(s), {runtime.precision}", rows)
    created = datetime.now(timezone.utc)
    document = {
        "benchmark": name,
        "created": created.isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "environment": where,
        "settings": settings,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{created:%Y%m%dT%H%M%SZ}.json"
    write_once(path, json.dumps(document, indent=1) + "\n")
    print(path)
    return path


def compare_with_last(path: Path, key: str, value: str) -> None:
    """Print how column ``value`` of each row, named by column ``key``, changed since the last record like ``path``.

    Like it is a record of the same benchmark, machine, device, precision, threads and settings.
    """
    now = json.loads(path.read_text())
    earlier = [json.loads(other.read_text()) for other in RESULTS.glob("*.json") if other != path]
    alike = [record for record in earlier if _like(record) == _like(now)]
    if not alike:
        print("no earlier record of this benchmark with these settings on this machine: nothing to compare with")
        return
    last = max(alike, key=lambda record: record["created"])
    before = {row[key]: row[value] for row in last["rows"]}
    changes = [
        {key: row[key], "then": before[row[key]], "now": row[value], "change": row[value] / before[row[key]] - 1}
        for row in now["rows"]
        if row[key] in before
    ]
    revision = (last["environment"]["revision"] or "unknown")[:8]
    show(f"{value} since {last['created']}, revision {revision}", changes)


def in_a_fresh_process(script: str, arguments: Sequence[object], *, environment: Mapping[str, str]) -> Row:
    """The last line that a script prints, a JSON object; of ``environment`` a variable that is set stays as it is."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, env={**environment, **os.environ}, stdout=subprocess.PIPE, text=True, check=True)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def seconds(work: Work, runtime: Runtime) -> float:
    _settle(runtime)
    since = time.perf_counter()
    work()
    _settle(runtime)
    return time.perf_counter() - since


def timed(name: str, stage: Stage, repeats: int, runtime: Runtime) -> tuple[Row, int]:
    """The row of a stage, and the FLOPs of its limit."""
    stage.ours()  # the first pass over a shape compiles its kernels
    with flop_counter() as counter:
        stage.limit()
    pairs = [(seconds(stage.ours, runtime), seconds(stage.limit, runtime)) for _ in range(repeats)]
    ratios = [ours / limit for ours, limit in pairs]
    ours, limit = (statistics.median(column) for column in zip(*pairs, strict=True))
    row: Row = {
        "stage": name,
        "ours s": ours,
        "limit s": limit,
        "overhead": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
        "tokens/s": round(stage.tokens / ours),
    }
    return row, counter.get_total_flops()


def explain(name: str, stage: Stage, runtime: Runtime, count: int = 12) -> None:
    """Print the operators whose own time in ours differs most from the limit's; on a GPU, time of the GPU."""
    cuda = runtime.device.type == "cuda"
    found: list[dict[str, float]] = []
    for work in (stage.ours, stage.limit):
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
            wall = seconds(work, runtime)
        took = {
            event.key: (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
            for event in seen.key_averages()
            if event.device_type == DeviceType.CPU  # a kernel's time is its operator's already
        }
        found.append({**took, "GPU idle" if cuda else "outside operators": wall - sum(took.values())})
    ours, limit = found
    rows: list[Row] = [
        {"operator": key, "ours s": a, "limit s": b, "more s": a - b}
        for key in ours.keys() | limit.keys()
        for a, b in [(ours.get(key, 0.0), limit.get(key, 0.0))]
    ]
    show(f"profile of {name}", sorted(rows, key=lambda row: -abs(row["more s"]))[:count])


def _settle(runtime: Runtime) -> None:
    """Wait until the device has done what it was given."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)


def _like(record: Row) -> list[Any]:
    where = [record["environment"].get(name) for name in ("hardware", "accelerator", "device", "precision", "threads")]
    return [record["benchmark"], where, record.get("settings")]
