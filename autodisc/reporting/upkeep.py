"""What doctor and clean print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

MARKS = {"good": Text("ok", style="green"), "note": Text("note", style="yellow"), "broken": Text("broken", style="red")}
SHOWN = 40  # entries of a cache; --json has all


def print_examination(result: dict[str, Any]) -> None:
    findings = result["findings"]
    rows = [
        (MARKS[found["state"]], found["name"], found["said"] + (f": {found['way_out']}" if found["way_out"] else ""))
        for found in findings
    ]
    _print(("", "what", "found"), rows)
    broken = sum(found["state"] == "broken" for found in findings)
    print(f"{broken} broken" if broken else "nothing is broken")


def print_cache(result: dict[str, Any]) -> None:
    """The largest entries, and what goes."""
    entries = sorted(result["entries"], key=lambda entry: -entry["bytes"])
    rows = [
        (
            Text(f"{entry['bytes'] / 2**20:.1f}"),
            Text(f"{entry['age_days']:.1f}"),
            entry["kind"] + (f" ({entry['damage']})" if entry["damage"] else ""),
            entry["path"].removeprefix(result["folder"]).lstrip("/"),
            "goes" if entry["goes"] else "",
        )
        for entry in entries[:SHOWN]
    ]
    _print(("MiB", "days unused", "what", "where", ""), rows)
    if len(entries) > SHOWN:
        print(f"and {len(entries) - SHOWN} smaller ones")
    total, going = sum(entry["bytes"] for entry in entries), sum(entry["goes"] for entry in entries)
    print(f"{result['folder']}: {len(entries)} entries, {total / 2**30:.2f} GiB")
    if going:
        what = f"{going} entries, {result['bytes_to_free'] / 2**30:.2f} GiB"
        print(f"removed: {what}" if result["removed"] else f"to be removed with --yes: {what}")


def _print(columns: Sequence[str], rows: Sequence[Sequence[Text | str]]) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in ("MiB", "days unused") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    console.print(table)
