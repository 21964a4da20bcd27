"""How a command ends: tables, or one JSON object as the last line of standard output."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autodisc.commands.options import Request


def example(*lines: str) -> str:
    return "\n".join(["Example:", *lines])


def finish(request: Request, result: dict[str, Any], show: Callable[[dict[str, Any]], None]) -> None:
    if request.json:
        print_json(result)
    else:
        show(result)


def print_json(values: dict[str, Any]) -> None:
    from autodisc.reporting.records import plain

    print(json.dumps(plain(values), allow_nan=False))


def print_scores(result: dict[str, Any]) -> None:
    """What `finetune` and `evaluate` measured."""
    from autodisc.reporting import units

    for name, value in result["metrics"].items():
        print(f"{name}: {value:.4f}")
    spread = units.plus_minus(result["metric"], result["standard_error"])
    print(f"metric {spread} on {result['split']} ({result['examples']} examples), floor {result['floor']:.4f}")
    if "path" in result:
        print(f"model: {result['path']}")


def with_teachers(folders: Sequence[Path]) -> list[Path]:
    """The folders, and what `run` wrote of the teachers that it made in them."""
    made = [folder / "teacher" for folder in folders]
    return [*folders, *(folder for folder in made if (folder / "records").is_dir())]
