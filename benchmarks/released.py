"""Our whole schedule against what the authors' released code costs for the same number of epochs.

    python benchmarks/released.py --teacher teachers/mrpc --task mrpc --data data/mrpc --epochs 2 --threads 1

As released: every sentence padded to 128 tokens, fp32, the teacher run again in every step, every candidate trained in
every step, one step a batch of 16, an evaluation of all candidates every half epoch, both sandwiches. Its steps are all
alike, so ``--steps`` of each kind are timed, by turns, and multiplied out; ours is run whole: search and distillation,
with as many epochs in each phase as theirs. What a distillation takes beside its phases, for metrics on the test split
and for model cards, stands apart: theirs has none of it, and the ratio is given without and with it.
The assistant of its second sandwich is the one that our search chose.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from common import inputs, missing, publish
from torch.nn import functional as F
from transformers import PreTrainedModel

from autodisc import api
from autodisc.comparison.work import FINAL
from autodisc.config import make_config
from autodisc.opening import open_workspace
from autodisc.pruning.candidates import Candidate
from autodisc.pruning.supernet import Supernet, extract
from autodisc.tasks.batches import batches, number_of_batches
from autodisc.tasks.data import Split
from autodisc.workspace import Workspace

BATCH, LENGTH = 16, 128
EVALUATIONS = 2  # an epoch
REPORTED = "test metrics, model cards"  # of teacher, assistant and student: what the released code has none of


def padded(space: Workspace, split: Split, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches for ever, every row ``LENGTH`` tokens."""
    for number in itertools.count():
        order = space.workshop.runtime.generator("released", number)
        for batch in batches(split, batch_size=batch_size, pad_token_id=space.task.pad_token_id, generator=order):
            pad = LENGTH - batch.inputs["input_ids"].shape[1]
            inputs = {name: F.pad(x[:batch_size], (0, pad)) for name, x in batch.inputs.items()}
            inputs["input_ids"][:, LENGTH - pad :] = space.task.pad_token_id
            if len(inputs["input_ids"]) == batch_size:
                yield {name: x.to(space.workshop.runtime.device) for name, x in inputs.items()}


class Sandwich:
    """One phase as released: a teacher, and candidates that share a supernet's weights."""

    def __init__(self, space: Workspace, teacher: PreTrainedModel, candidates: Sequence[Candidate]) -> None:
        self.teacher, self.candidates = teacher.eval(), list(candidates)
        self.supernet = Supernet(extract(space.teacher, space.ranking(), candidates[0]), space.ranking())
        self.optimizer = torch.optim.AdamW(self.supernet.model.parameters(), lr=3e-5)
        self.told = padded(space, space.task.train, BATCH)
        self.asked = padded(space, space.task.validation, BATCH)

    def step(self) -> None:
        inputs = next(self.told)
        real = inputs["attention_mask"].bool()
        with torch.no_grad():
            target = self.teacher(**inputs, output_hidden_states=True)
        for candidate in self.candidates:
            with self.supernet.active(candidate) as model:
                out = model(**inputs, output_hidden_states=True)
            hidden = [
                F.mse_loss(a[real], b[real]) for a, b in zip(out.hidden_states, target.hidden_states, strict=True)
            ]
            soft = F.cross_entropy(out.logits, target.logits.softmax(-1))
            ((torch.stack(hidden).mean() + soft) / 2 / len(self.candidates)).backward()
        torch.nn.utils.clip_grad_norm_(self.supernet.model.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def evaluate(self) -> None:
        """One validation batch, every candidate."""
        inputs = next(self.asked)
        with torch.inference_mode():
            for candidate in self.candidates:
                with self.supernet.active(candidate) as model:
                    model(**inputs)


def timed(work: Any) -> float:
    since = time.perf_counter()
    work()
    return time.perf_counter() - since


def told_s(distilled: dict[str, Any], seconds: float) -> float:
    """Of a distillation's seconds those that its phases did not take: what the report and the model cards say."""
    stages = distilled["cost"]["stages"]
    return seconds - sum(cost["seconds"] for name, cost in stages.items() if name != FINAL)


def as_released(space: Workspace, chosen: float, epochs: int, steps: int) -> dict[str, float]:
    """Seconds of both sandwiches by kind of work, multiplied out from ``steps`` of each."""
    nested = [*space.candidates.values(), space.student]
    between = [c for c in nested if c.sparsity >= chosen]
    assistant = extract(space.teacher, space.ranking(), between[0])
    phases = {
        "first sandwich": Sandwich(space, space.teacher, nested),
        "second sandwich": Sandwich(space, assistant, between[1:]),
    }
    training = number_of_batches(space.task.train, BATCH) * epochs
    validation = number_of_batches(space.task.validation, BATCH) * epochs * EVALUATIONS
    found = {}
    for name, phase in phases.items():
        phase.step(), phase.evaluate()
        a_step = statistics.median(timed(phase.step) for _ in range(steps))
        a_batch = statistics.median(timed(phase.evaluate) for _ in range(steps))
        found[f"{name}, training"] = a_step * training
        found[f"{name}, evaluation"] = a_batch * validation
    return found


def main() -> None:
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")  # as the commands have it
    parser = inputs(__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="of each kind that are timed, as released")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if missing(options.data, options.teacher):
        return

    with tempfile.TemporaryDirectory() as folder:
        config = make_config(
            {
                "task": {"name": options.task, "data": options.data, "limit_train": options.limit_train},
                "teacher": {"model": options.teacher},
                "distillation": {"epochs": options.epochs, "student_epochs": options.epochs},
                "cache": {"dir": f"{folder}/cache"},
                "runtime": {"seed": options.seed, "threads": options.threads},
            }
        )
        out = Path(folder) / "study"
        ours = {"search": timed(lambda: api.search(config, out)), "distillation": timed(lambda: api.distill(out))}
        told = told_s(api.distill(out), ours["distillation"])
        ours |= {"distillation": ours["distillation"] - told, REPORTED: told}
        result = api.search(config, out)
        space = open_workspace(
            config.model_copy(update={"runtime": config.runtime.model_copy(update={"precision": "fp32"})})
        )
        theirs = as_released(space, result["best"]["sparsity"], options.epochs, options.steps)
    total, spent = sum(theirs.values()), sum(ours.values())
    rows: list[dict[str, Any]] = [
        {"what": f"{who}: {name}", "seconds": value, "of released": value / total}
        for who, parts in (("released", theirs), ("ours", ours))
        for name, value in parts.items()
    ]
    rows.append({"what": "released / ours", "seconds": total / (spent - told), "of released": 1.0})
    rows.append({"what": f"released / ours, with {REPORTED}", "seconds": total / spent, "of released": 1.0})
    publish(
        f"released-{options.task}",
        rows,
        space.workshop.runtime,
        epochs=options.epochs,
        train=len(space.task.train),
        seed=options.seed,
        timed_steps=options.steps,
        chosen=result["best"]["sparsity"],
        ours_precision="auto",
    )


if __name__ == "__main__":
    main()
