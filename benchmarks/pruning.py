"""How much of a teacher's metric survives pruning without any training, by how importance is estimated.

    python benchmarks/pruning.py --teacher teachers/mrpc --task mrpc --data data/mrpc --seeds 0 1 2

Rounds and normalisation are compared on the same training examples; metrics are of validation and of the final
split, which nothing here chooses by.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

from common import publish

from autodisc.config import CacheConfig, ImportanceConfig, RuntimeConfig, StudyConfig, TaskConfig, TeacherConfig
from autodisc.models.inference import predict
from autodisc.pruning.candidates import candidate
from autodisc.pruning.importance import rank_units
from autodisc.pruning.supernet import extract
from autodisc.tasks.metrics import decode
from autodisc.workspace import open_workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.8])
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if not options.data.is_dir() or not Path(options.teacher).is_dir():
        print(f"skipped: {options.data} or {options.teacher} is not here")
        return

    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        config = StudyConfig(
            task=TaskConfig(name=options.task, data=options.data),
            teacher=TeacherConfig(model=options.teacher),
            cache=CacheConfig(),
            runtime=RuntimeConfig(seed=seed, threads=options.threads),
        )
        space = open_workspace(config)
        task, runtime = space.task, space.workshop.runtime
        for rounds, normalise in itertools.product((1, 8), (True, False)):
            settings = ImportanceConfig(examples=options.examples, rounds=rounds, normalise=normalise)
            since = time.perf_counter()
            ranking = rank_units(space.teacher, task, settings, runtime=runtime)
            seconds = time.perf_counter() - since
            for sparsity in options.sparsities:
                small = extract(space.teacher, ranking, candidate(ranking, sparsity))
                row: dict[str, Any] = {
                    "seed": seed,
                    "rounds": rounds,
                    "normalised": "per layer" if normalise else "no",
                    "sparsity": sparsity,
                }
                for split in (task.validation, task.final):
                    predictions = decode(predict(small, split, task=task, runtime=runtime), task.kind)
                    row[split.name if split is task.validation else task.final_name] = task.metric.score(
                        predictions, split.labels
                    )
                rows.append({**row, "ranking s": seconds})
    publish(f"pruning-{options.task}", rows, runtime, examples=options.examples, metric=task.metric.name)


if __name__ == "__main__":
    main()
