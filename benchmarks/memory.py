"""Peak memory by size of model: what the stages are predicted to need, and what they did.

    python benchmarks/memory.py --threads 1
    python benchmarks/memory.py --sizes 1B 3B 8B --precisions bf16 --batch 8 --length 512

Llama-like models with random weights (llamas.py); at bf16 the teacher's weights are in bf16, and what is trained keeps
fp32. All figures are MiB above the loaded teacher: of first-order importance over one batch; of a sandwich step (.3, .6
and .9; a step from the second on, with the optimizer's moments) and one of the .9 student alone, the teacher running
along and embeddings frozen; of cutting the student out. "again" is with activation checkpoints.

Predicted: the bytes of all tensors at once (footprint.py) while the same modules run on fake tensors, of which there is
the shape alone, and for each trained parameter 8 bytes of moments and 4 of the start that a training goes back to:

    sandwich = 4 P + 4 P + 8 P + 4 P + what the backward pass needs,  P = trained parameters of the widest candidate

Measured: by how much a fresh process's peak rises above what it held before, the largest sizes left out.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import GIVEN_BACK, Row, in_a_fresh_process, publish
from llamas import SIZES, at_random, llama, text
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from transformers import PreTrainedModel

from autodisc.config import DistillationConfig, ImportanceConfig, RecoveryConfig, RuntimeConfig
from autodisc.costs import Ledger
from autodisc.distillation.losses import Likeliest, TeacherOutput, Totals, hidden_depths
from autodisc.distillation.sandwich import Sandwich
from autodisc.distillation.schedule import Workshop, recover
from autodisc.footprint import Live
from autodisc.models.layouts import base_shape, blocks, uncached
from autodisc.models.losses import label_loss
from autodisc.pruning.candidates import Candidate, candidate
from autodisc.pruning.importance import estimate_importance
from autodisc.pruning.masks import masked
from autodisc.pruning.slicing import own_forwards, running
from autodisc.pruning.supernet import Supernet, extract
from autodisc.pruning.surgery import own_memory
from autodisc.runtime import Runtime, make_runtime, seeded
from autodisc.tasks.batches import Batch, batches
from autodisc.tasks.data import Task

SANDWICH, STUDENT = (0.3, 0.6, 0.9), 0.9
MIB = 2**20
CONFIG = DistillationConfig()
Work = Callable[[PreTrainedModel, Task, Runtime], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--measured", nargs="*", choices=SIZES, default=["4M", "20M", "100M", "300M"])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=2, help="rows")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # SIZE PRECISION STAGE AGAIN, measured in this process
    options = parser.parse_args()
    if options.one:
        size, precision, stage, again = options.one.split()
        place = _runtime(options, precision, again == "again")
        print(json.dumps({"mib": measured(size, MEASURED[stage], place, options)}))
        return
    rows: list[Row] = []
    for size, precision in itertools.product(options.sizes, options.precisions):
        row: Row = {"size": size, "weights": precision}
        for stage, again in itertools.product(PREDICTED, ("", "again")):
            if (stage, again) == ("extraction", "again"):
                continue
            name = f"{stage} {again}".strip()
            row[name] = row[f"{name}, predicted"] = None
            if size in options.measured:
                given = ["--one", f"{size} {precision} {stage} {again or 'kept'}", "--batch", options.batch]
                given += ["--length", options.length, "--seed", options.seed, "--threads", options.threads]
                row[name] = in_a_fresh_process(__file__, given, environment=GIVEN_BACK)["mib"]
            place = _runtime(options, precision, bool(again))
            row["teacher"], row[f"{name}, predicted"] = predicted(size, PREDICTED[stage], place, options)
        print(row, file=sys.stderr)
        rows.append(row)
    publish("memory", rows, _runtime(options, "fp32", False), batch=options.batch, length=options.length)


def _runtime(options: argparse.Namespace, precision: str, checkpointing: bool) -> Runtime:
    settings: dict[str, Any] = {"seed": options.seed, "threads": options.threads, "device": "cpu"}
    return make_runtime(RuntimeConfig(**settings, precision=precision, checkpointing=checkpointing))


def _teacher(size: str, runtime: Runtime) -> PreTrainedModel:
    with seeded(runtime.seed):
        return llama(size, runtime.device, torch.bfloat16 if runtime.precision == "bf16" else torch.float32)


def measured(size: str, work: Work, runtime: Runtime, options: argparse.Namespace) -> int:
    small = _teacher("4M", runtime)
    work(small, text(small, 1, 16, seed=runtime.seed), runtime)  # what is imported and set up once
    teacher = _teacher(size, runtime)
    task, ledger = text(teacher, options.batch, options.length, seed=runtime.seed), Ledger()
    del small
    gc.collect()
    for name, each in (("before", lambda: None), ("work", lambda: work(teacher, task, runtime))):
        with ledger.stage(name):
            each()
    return round(ledger.stages["work"].peak_mib - ledger.stages["before"].peak_mib)


def predicted(size: str, work: Work, runtime: Runtime, options: argparse.Namespace) -> tuple[int, int]:
    """Of the teacher itself, and of ``work`` above it."""
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True) as fake:
        fake.allow_scalar_outputs = True
        with Live() as live:
            teacher = llama(size, runtime.device, torch.bfloat16 if runtime.precision == "bf16" else torch.float32)
        own, task = live.now, text(teacher, options.batch, options.length, seed=runtime.seed)
        with Live() as live:
            more = work(teacher, task, runtime)
    return round(own / MIB), round((live.peak + (more if isinstance(more, int) else 0)) / MIB)


def importance(model: PreTrainedModel, task: Task, runtime: Runtime) -> None:
    config = ImportanceConfig(criterion="first-order", batch_size=len(task.train))
    estimate_importance(model, task.train, config, task=task, runtime=runtime, ledger=Ledger())


def _train(model: PreTrainedModel, task: Task, runtime: Runtime, sparsities: tuple[float, ...]) -> None:
    ranking = at_random(model, runtime.seed)
    chain = [candidate(ranking, sparsity) for sparsity in sparsities]
    config = CONFIG.model_copy(update={"batch_size": len(task.train)})
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(task, runtime, Path(folder), 0.0)
        with workshop.teacher(model, config) as outputs:
            size = RecoveryConfig(sandwich_size=len(chain))
            recover(outputs, ranking, chain, steps=2, recovery=size, distillation=config, workshop=workshop)


def _cut(model: PreTrainedModel, runtime: Runtime) -> PreTrainedModel:
    ranking = at_random(model, runtime.seed)
    return extract(model, ranking, candidate(ranking, STUDENT))


MEASURED: dict[str, Work] = {
    "importance": importance,
    "sandwich": lambda model, task, runtime: _train(model, task, runtime, SANDWICH),
    "student": lambda model, task, runtime: _train(model, task, runtime, (STUDENT,)),
    "extraction": lambda model, task, runtime: _cut(model, runtime),
}


def predicted_importance(model: PreTrainedModel, task: Task, runtime: Runtime) -> None:
    """One batch of ``estimate_importance``, without its checks of values."""
    batch, layers = _batch(task), blocks(model)
    heads = [torch.ones(block.heads, requires_grad=True) for block in layers]
    neurons = [torch.ones(block.neurons, requires_grad=True) for block in layers]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with masked(model, heads, neurons), running(model, own_forwards(model), checkpointing=runtime.checkpointing):
        with runtime.autocast():
            logits = model(**batch.inputs).logits.float()
        label_loss(logits, batch.labels, task.train.labelled).backward()


class _FakeTeacher:
    """A TeacherCache that keeps nothing, and takes no fingerprint of weights that are nowhere."""

    def __init__(self, model: PreTrainedModel, runtime: Runtime) -> None:
        self.model, self.runtime = model, runtime
        self.depths = hidden_depths(base_shape(model.config)[0], CONFIG.hidden_depths, embeddings_differ=False)

    def __call__(self, batch: Batch) -> TeacherOutput:
        with torch.no_grad(), uncached(self.model), self.runtime.autocast():
            out = self.model(**batch.inputs, output_hidden_states=True)
            states = [out.hidden_states[depth].half().float() for depth in self.depths]
            hidden = torch.stack(states, dim=2)
            return TeacherOutput(Likeliest.of(out.logits, CONFIG.top_k, CONFIG.temperature), hidden)


def _predicted_training(model: PreTrainedModel, task: Task, runtime: Runtime, sparsities: tuple[float, ...]) -> int:
    """One step of the training loop; returns the bytes of moments and start."""
    ranking, batch = at_random(model, runtime.seed), _batch(task)
    chain: list[Candidate] = [candidate(ranking, sparsity) for sparsity in sparsities]
    net = Supernet(extract(model, ranking, chain[0]), ranking, checkpointing=runtime.checkpointing)
    teacher: Any = _FakeTeacher(model, runtime)
    objective = Sandwich(net, [teacher], chain, always=chain, size=len(chain), config=CONFIG, runtime=runtime)
    trained = [parameter for parameter in net.model.parameters() if parameter.requires_grad]
    own_memory(trained)
    for _, compute in objective.terms(batch, Totals(task.train.labelled, task.train.tokens), chain):
        compute().backward()
    return 12 * sum(parameter.numel() for parameter in trained)


def _batch(task: Task) -> Batch:
    (batch,) = batches(task.train, batch_size=len(task.train), pad_token_id=0, generator=None)
    return batch


PREDICTED: dict[str, Work] = {
    "importance": predicted_importance,
    "sandwich": lambda model, task, runtime: _predicted_training(model, task, runtime, SANDWICH),
    "student": lambda model, task, runtime: _predicted_training(model, task, runtime, (STUDENT,)),
    "extraction": lambda model, task, runtime: _cut(model, runtime),
}


if __name__ == "__main__":
    main()
