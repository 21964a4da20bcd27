"""How much of a teacher's metric survives pruning without any training, by how importance is estimated.

    python benchmarks/pruning.py --teacher teachers/mrpc --task mrpc --data data/mrpc --seeds 0 1 2

Criteria, rounds, normalisation and refitting are compared on the same training examples; metrics are of validation and
of the final split, each with its standard error over examples, and how often the cut agrees with its teacher there.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from common import inputs, missing, publish
from transformers import PreTrainedModel

from autodisc.config import CacheConfig, ImportanceConfig, RuntimeConfig, StudyConfig, TaskConfig, TeacherConfig
from autodisc.costs import Ledger
from autodisc.models.inference import predict
from autodisc.opening import open_workspace
from autodisc.pruning.candidates import candidate
from autodisc.pruning.importance import calibration, rank_units, rounds
from autodisc.pruning.refit import refit
from autodisc.pruning.supernet import extract
from autodisc.tasks.data import Split
from autodisc.workspace import Workspace

METHODS: tuple[tuple[dict[str, Any], bool], ...] = (  # importance, and whether the cut is refitted to the teacher
    ({"criterion": "first-order", "rounds": 1, "normalise": True}, False),  # the paper
    ({"criterion": "first-order", "rounds": 8}, False),
    ({"criterion": "first-order", "rounds": 8}, True),
    ({"criterion": "fisher"}, False),
    ({"criterion": "fisher"}, True),
    ({"criterion": "magnitude"}, False),
    ({"criterion": "magnitude"}, True),
)
CRITERIA = tuple(dict.fromkeys(importance["criterion"] for importance, _ in METHODS))


def predictions(space: Workspace, model: PreTrainedModel, split: Split) -> np.ndarray:
    task = space.task
    return predict(model, split, task=task, runtime=space.workshop.runtime)


def main() -> None:
    parser = inputs(__doc__)
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=CRITERIA)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.8])
    options = parser.parse_args()
    if missing(options.data, options.teacher):
        return

    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        config = StudyConfig(
            task=TaskConfig(name=options.task, data=options.data, limit_train=options.limit_train),
            teacher=TeacherConfig(model=options.teacher),
            cache=CacheConfig(),
            runtime=RuntimeConfig(seed=seed, threads=options.threads),
        )
        space = open_workspace(config)
        task, runtime = space.task, space.workshop.runtime
        splits = {"validation": task.validation, task.final_name: task.final}
        teachers = {name: predictions(space, space.teacher, split) for name, split in splits.items()}
        for importance, refitted in METHODS:
            if importance["criterion"] not in options.criteria:
                continue
            settings = ImportanceConfig(examples=options.examples, **importance)
            since = time.perf_counter()
            ranking = rank_units(space.teacher, task, settings, runtime=runtime)
            ranked_s = time.perf_counter() - since
            for sparsity in options.sparsities:
                small = extract(space.teacher, ranking, candidate(ranking, sparsity))
                since = time.perf_counter()
                if refitted:
                    sample = calibration(task, settings, runtime)
                    refit(small, space.teacher, sample, task=task, runtime=runtime, ledger=Ledger())
                row: dict[str, Any] = {
                    "seed": seed,
                    "criterion": settings.criterion,
                    "rounds": rounds(settings),
                    "normalised": "per layer" if settings.normalise else "no",
                    "refitted": "yes" if refitted else "no",
                    "sparsity": sparsity,
                }
                refitted_s = time.perf_counter() - since
                for name, split in splits.items():
                    found = predictions(space, small, split)
                    row[name] = task.metric.score(found, split.labels)
                    row[f"{name} ±"] = task.metric.standard_error(found, split.labels, seed)
                    if task.kind == "classification":
                        row[f"{name} agrees"] = float((found == teachers[name]).mean())
                rows.append({**row, "ranking s": ranked_s, "refit s": refitted_s})
    publish(f"pruning-{options.task}", rows, runtime, examples=options.examples, metric=task.metric.name)


if __name__ == "__main__":
    main()
