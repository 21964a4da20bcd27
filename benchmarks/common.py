"""What every benchmark prints and writes: a table, and one JSON file with command, hardware, versions and seeds."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from autodisc.reporting.records import environment, write_once
from autodisc.runtime import Runtime

RESULTS = Path(__file__).parent / "results"


def publish(name: str, rows: list[dict[str, Any]], runtime: Runtime, **settings: Any) -> Path:
    """Print ``rows`` as a table and write them, once, to ``benchmarks/results/<name>-<UTC time>.json``."""
    where = environment(device=str(runtime.device), precision=runtime.precision, threads=runtime.threads)
    table = Table(title=f"{name}: {where['hardware']}, {runtime.threads} thread(s), {runtime.precision}")
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
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
