"""What a dry run predicts of a search, beside what the search then takes.

    python benchmarks/prediction.py --teacher teachers/mrpc --task mrpc --data data/mrpc --threads 1

Each in a fresh process, as the commands are: kernels that prediction compiles would be the search's otherwise. The
cache is empty before both. Peak memory is the process's, in MiB; disk is the search's folder, and its cache.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import Row, in_a_fresh_process, inputs, missing, publish

from autodisc import api
from autodisc.config import RuntimeConfig, StudyConfig, make_config
from autodisc.runtime import make_runtime

COMPARED = ("seconds", "flops", "tokens", "peak_mib")


def main() -> None:
    parser = inputs(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=("predicted", "taken"), help=argparse.SUPPRESS)  # in this process
    options = parser.parse_args()
    if missing(options.data, options.teacher):
        return
    with tempfile.TemporaryDirectory() as folder:
        config = _study(options, Path(folder))
        if options.part:
            print(json.dumps(_part(options.part, config, Path(folder) / "study")))
            return
    predicted, taken = (
        in_a_fresh_process(__file__, _arguments(options, part), environment={"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "4096"})
        for part in ("predicted", "taken")
    )
    rows: list[Row] = []
    for name in ("whole", *taken["stages"]):
        ours, theirs = (each if name == "whole" else each["stages"][name] for each in (predicted, taken))
        rows += [_row(name, what, ours[what], theirs[what]) for what in COMPARED if theirs[what]]
    rows.append(_row("whole", "disk_mib", predicted["disk_gib"] * 1024, taken["disk_mib"]))
    publish(
        f"prediction-{options.task}",
        rows,
        make_runtime(config.runtime),
        seed=options.seed,
        limit_train=options.limit_train,
        measuring_s=predicted["measuring_s"],
    )


def _arguments(options: argparse.Namespace, part: str) -> list[object]:
    given = {name: value for name, value in vars(options).items() if value is not None and name != "part"}
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", value)] + ["--part", part]


def _study(options: argparse.Namespace, folder: Path) -> StudyConfig:
    return make_config(
        {
            "task": {"name": options.task, "data": options.data, "limit_train": options.limit_train},
            "teacher": {"model": options.teacher},
            "cache": {"dir": folder / "cache"},
            "runtime": RuntimeConfig(seed=options.seed, threads=options.threads).model_dump(),
        }
    )


def _part(part: str, config: StudyConfig, out: Path) -> dict[str, Any]:
    if part == "predicted":
        predicted: dict[str, Any] = api.predict_search(config)["predicted"]
        return predicted
    cost = api.search(config, out)["cost"]
    blocks = [path.stat().st_blocks for path in out.parent.rglob("*") if path.is_file()]  # of 512 bytes
    return {**cost, "disk_mib": sum(blocks) / 2**11}


def _row(stage: str, what: str, predicted: float, taken: float) -> Row:
    return {"stage": stage, "what": what, "predicted": predicted, "taken": taken, "ratio": predicted / taken}


if __name__ == "__main__":
    main()
