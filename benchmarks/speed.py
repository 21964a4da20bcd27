"""How close each stage is to its own limit: a hand-written loop (plain.py) over the same batches, in the same run.

    python benchmarks/speed.py --teacher teachers/mrpc --task mrpc --data data/mrpc --threads 1
    python benchmarks/speed.py --random-base --device cuda       # BERT-base's size, random weights, no data

Ours and the limit alternate, so that a noisy machine slows both. ``overhead`` is the median over the repeats of
ours / limit. A sandwich's limit is the sum of its candidates' own training, each as a model cut out; a distillation
phase's also holds a bare evaluation. ``tokens/s`` counts real tokens of ours, once for all candidates of a sandwich.

The ledger counts FLOPs on the first batches of each kind of work. Training, evaluation and teacher cache keep one
ledger over the repeats, as a study does over hundreds of steps; importance and a trial, whose kinds of work are always
new, start a ledger each time. ``--profile`` prints, by operator, where ours takes longer than the limit.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plain
from common import Row, Stage, compare_with_last, explain, publish, timed
from datasets import Dataset
from torch.profiler import record_function
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from autodisc.config import (
    CacheConfig,
    DistillationConfig,
    ImportanceConfig,
    RecoveryConfig,
    RuntimeConfig,
    make_config,
)
from autodisc.costs import Cost, Ledger
from autodisc.distillation.schedule import Workshop, distill_phase, recover
from autodisc.distillation.teacher_cache import TeacherCache
from autodisc.models.inference import predict
from autodisc.models.layouts import base_shape
from autodisc.opening import label_names, open_workspace
from autodisc.pruning.candidates import Candidate, Ranking, candidate
from autodisc.pruning.importance import estimate_importance
from autodisc.pruning.supernet import Supernet, extract
from autodisc.pruning.surgery import own_memory
from autodisc.runtime import make_runtime, seeded
from autodisc.search.assistants import measure
from autodisc.tasks import columns, sources
from autodisc.tasks.batches import Batch, batches, number_of_batches
from autodisc.tasks.data import Split, Task, load_task
from autodisc.tasks.metrics import METRICS
from autodisc.workspace import Workspace

RANDOM_LENGTH = 128


class Spans(Ledger):
    """A ledger whose stages stand in the profile, with the time that they spend outside operators."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Cost]:
        with record_function(f"(python of) {name}"), super().stage(name) as cost:
            yield cost


class Bench:
    """A teacher, its candidates and a fixed part of train; each method makes one stage ready to be timed."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        ranking: Ranking,
        workshop: Workshop,
        options: argparse.Namespace,
        space: Workspace | None = None,
    ) -> None:
        self.teacher, self.ranking, self.runtime, self.space = teacher, ranking, workshop.runtime, space
        self.steps, self.batch_size, self.folder = options.steps, options.batch, workshop.cache
        self.candidates = [candidate(ranking, sparsity) for sparsity in sorted(options.sparsities)]
        size = len(self.candidates)  # every step trains them all: nothing is left to the draw
        self.config = DistillationConfig(batch_size=self.batch_size, sandwich_size=size)
        train = workshop.task.train
        rows = self.runtime.generator("speed").permutation(len(train))[: self.steps * self.batch_size]
        self.task = replace(workshop.task, train=train.select(np.sort(rows)))
        self.workshop = replace(workshop, task=self.task, ledger=Spans())

    def tokenise(self) -> Stage:
        assert self.space is not None
        config, tokenizer, own = self.space.config.task, self.space.tokenizer, self.workshop.progress
        raw = sources.read_splits(config, self.space.task.kind, self._new_folder(), own)
        names = columns.text_columns(config, raw["train"].column_names)
        texts = [
            [list(c) for c in zip(*columns.read_texts(rows, split, names), strict=True)] for split, rows in raw.items()
        ]
        longest = min(config.max_length, tokenizer.model_max_length)
        labels = label_names(self.teacher.config)
        whole = self.space.task
        splits = [whole.train, whole.validation, whole.final, *whole.extra.values()]
        return Stage(
            lambda: load_task(config, tokenizer, seed=0, cache_dir=self._new_folder(), label_names=labels),
            lambda: plain.tokenise(tokenizer, texts, longest),
            sum(split.tokens for split in splits),
        )

    def importance(self) -> Stage:
        settings, split = ImportanceConfig(), self.task.train
        passed = self._passed(split, settings.batch_size)
        return Stage(
            lambda: estimate_importance(
                self.teacher, split, settings, task=self.task, runtime=self.runtime, ledger=Spans()
            ),
            lambda: plain.weigh(self.teacher, passed, self.runtime),
            split.tokens,
        )

    def cache_fill(self) -> Stage:
        """Opened anew each time, the hash of the teacher's weights included."""
        passed = self._ordered("speed")
        return Stage(
            lambda: self._read(self._outputs(self.teacher, self._new_folder()), passed),
            lambda: plain.teach(self.teacher, passed, self.runtime),
            _tokens(passed),
        )

    def cache_read(self) -> Stage:
        """Opened anew too; below 1 is what the cache saves each time that it is used again."""
        folder, passed = self._new_folder(), self._ordered("speed")
        self._read(self._outputs(self.teacher, folder), passed)
        return Stage(
            lambda: self._read(self._outputs(self.teacher, folder), passed),
            lambda: plain.teach(self.teacher, passed, self.runtime),
            _tokens(passed),
        )

    def alone(self) -> Stage:
        return self._recovery(self.candidates[-1:])

    def recovery(self) -> Stage:
        return self._recovery(self.candidates)

    def trial(self) -> Stage:
        chosen = self.candidates[len(self.candidates) // 2]
        supernet = Supernet(extract(self.teacher, self.ranking, self.candidates[0]), self.ranking)
        model = supernet.extract(chosen)
        passed = self._evaluated(model)
        return Stage(
            lambda: measure(supernet.active, chosen, replace(self.workshop, ledger=Spans())),
            lambda: plain.evaluate(model, passed, self.runtime),
            self.task.validation.tokens,
        )

    def phase_1(self) -> Stage:
        return self._phase(self.teacher, self.candidates, self.candidates[0], "teacher to assistant")

    def phase_2(self) -> Stage:
        assistant = extract(self.teacher, self.ranking, self.candidates[0])
        return self._phase(assistant, self.candidates[1:], self.candidates[-1], "assistant to student")

    def evaluation(self) -> Stage:
        split, student = self.task.validation, extract(self.teacher, self.ranking, self.candidates[-1])
        passed = self._evaluated(student)
        return Stage(
            lambda: predict(student, split, task=self.task, runtime=self.runtime, ledger=self.workshop.ledger),
            lambda: plain.evaluate(student, passed, self.runtime),
            split.tokens,
        )

    def _recovery(self, drawn: Sequence[Candidate]) -> Stage:
        passed, outputs = self._ordered("recovery"), self._outputs(self.teacher, self.folder / "teacher")
        limit = self._training(self.teacher, drawn, outputs, passed)
        recovery = RecoveryConfig(sandwich_size=len(drawn))
        return Stage(
            lambda: recover(
                outputs,
                self.ranking,
                drawn,
                steps=self.steps,
                recovery=recovery,
                distillation=self.config,
                workshop=self.workshop,
            ),
            limit,
            _tokens(passed),
        )

    def _phase(self, teacher: PreTrainedModel, drawn: Sequence[Candidate], target: Candidate, stage: str) -> Stage:
        """A phase of ``steps`` steps; its start is the teacher cut to the largest candidate of the schedule."""
        start = extract(self.teacher, self.ranking, self.candidates[0])
        passed, outputs = self._ordered(stage), self._outputs(teacher, self._new_folder())
        train = self._training(teacher, drawn, outputs, passed)
        model = extract(self.teacher, self.ranking, target)
        validation = self._evaluated(model)
        evaluations = -(-self.steps // number_of_batches(self.task.train, self.batch_size))

        def limit() -> None:
            train()
            for _ in range(evaluations):
                plain.evaluate(model, validation, self.runtime)

        return Stage(
            lambda: distill_phase(
                start,
                [outputs],
                self.ranking,
                drawn,
                target=target,
                stage=stage,
                steps=self.steps,
                size=len(drawn),
                config=self.config,
                workshop=self.workshop,
            ),
            limit,
            _tokens(passed),
        )

    def _training(
        self, teacher: PreTrainedModel, drawn: Sequence[Candidate], outputs: TeacherCache, passed: list[Batch]
    ) -> Callable[[], None]:
        """Each candidate's own training, one after the other; the cache is filled here, before anything is timed."""
        self._read(outputs, passed)
        told = plain.tell(teacher, passed, outputs.depths, self.runtime)
        models = [extract(self.teacher, self.ranking, one) for one in drawn]
        for model in models:
            own_memory(model.parameters())

        def run() -> None:
            for model in models:
                plain.distil(model, told, self.config, self.runtime)

        return run

    def _ordered(self, stage: str) -> list[Batch]:
        """The batches of ``stage``, in the order in which the training loop takes them."""
        order, made = self.runtime.generator(stage, "order"), list[Batch]()
        while len(made) < self.steps:
            made += self._passed(self.task.train, self.batch_size, order)
        return made[: self.steps]

    def _passed(self, split: Split, batch_size: int, order: np.random.Generator | None = None) -> list[Batch]:
        made = batches(split, batch_size=batch_size, pad_token_id=self.task.pad_token_id, generator=order)
        return [batch.to(self.runtime.device) for batch in made]

    def _evaluated(self, model: PreTrainedModel) -> list[plain.Inputs]:
        """What ``predict`` gives a model, batch by batch."""
        seen: list[plain.Inputs] = []
        handle = model.register_forward_pre_hook(lambda _, args, inputs: seen.append(inputs), with_kwargs=True)
        predict(model, self.task.validation, task=self.task, runtime=self.runtime)
        handle.remove()
        return seen

    def _outputs(self, teacher: PreTrainedModel, folder: Path) -> TeacherCache:
        return self.workshop.teacher(teacher, self.config, folder)

    @staticmethod
    def _read(outputs: TeacherCache, passed: list[Batch]) -> None:
        with outputs:
            for batch in passed:
                outputs(batch)

    def _new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))


STAGES: dict[str, Callable[[Bench], Stage]] = {
    "tokenise": Bench.tokenise,
    "importance": Bench.importance,
    "teacher cache, filled": Bench.cache_fill,
    "teacher cache, read": Bench.cache_read,
    "plain distillation": Bench.alone,
    "recovery (sandwich)": Bench.recovery,
    "trial": Bench.trial,
    "phase 1": Bench.phase_1,
    "phase 2": Bench.phase_2,
    "evaluation": Bench.evaluation,
}
WITHOUT_DATA = ["plain distillation", "recovery (sandwich)"]


def random_base(options: argparse.Namespace, folder: Path) -> Bench:
    """A classifier of BERT-base's size with random weights and a random ranking, on random tokens."""
    runtime = make_runtime(RuntimeConfig(**runtime_settings(options)))
    rng, count = runtime.generator("random base"), options.steps * options.batch
    ids = rng.integers(1000, 30000, (count, RANDOM_LENGTH)).astype(np.int32)
    rows = Dataset.from_dict({"input_ids": list(ids)})
    split = Split("train", rows, np.full(count, RANDOM_LENGTH), rng.integers(0, 2, count), "random")
    names = ("0", "1")
    task = Task("random", "classification", METRICS["accuracy"], names, 2, split, split, split, "test", {}, 0)
    with seeded(runtime.seed):
        teacher = BertForSequenceClassification(BertConfig(num_labels=2)).to(runtime.device)
    L, H, N = base_shape(teacher.config)
    heads, neurons = (tuple(divmod(int(i), n) for i in rng.permutation(L * n)) for n in (H, N))
    return Bench(teacher, Ranking(heads, neurons, L), Workshop(task, runtime, folder, 64.0), options)


def given(options: argparse.Namespace, folder: Path) -> Bench:
    """A task and its teacher; the ranking is kept in the usual cache, what is timed in ``folder``."""
    config = make_config(
        {
            "task": {"name": options.task, "data": options.data},
            "teacher": {"model": options.teacher},
            "student_sparsity": max(options.sparsities),
            "runtime": runtime_settings(options),
        }
    )
    space = open_workspace(config)
    ranking = space.ranking()
    max_gib = CacheConfig().max_gib
    return Bench(space.teacher, ranking, Workshop(space.task, space.workshop.runtime, folder, max_gib), options, space)


def runtime_settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("device", "precision", "threads", "seed")}


def _tokens(passed: list[Batch]) -> int:
    return sum(batch.tokens for batch in passed)


def main() -> None:
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")  # as the commands have it
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="")
    parser.add_argument("--task", default="")
    parser.add_argument("--data", default="")
    parser.add_argument("--random-base", action="store_true", help="BERT-base's size, random weights; needs no data")
    parser.add_argument("--stages", nargs="+", choices=STAGES, metavar="STAGE", help="only these")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.7, 0.9], help="the last: the student's")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if len(set(options.sparsities)) < 2:
        parser.error("--sparsities: expected an assistant's and the student's at least")
    if not options.random_base and not (
        options.task and all(folder and Path(folder).is_dir() for folder in (options.teacher, options.data))
    ):
        print("speed.py skipped: it takes a --task with --teacher and --data that are here, or --random-base")
        return

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bench = (random_base if options.random_base else given)(options, Path(folder))
        peak = plain.matrix_peak(bench.runtime) if options.random_base else None
        rows: list[Row] = []
        for name in options.stages or (WITHOUT_DATA if options.random_base else STAGES):
            stage = STAGES[name](bench)
            row, flops = timed(name, stage, options.repeats, bench.runtime)
            if peak is not None:
                row |= {"TFLOP/s": flops / row["ours s"] / 1e12, "of peak": flops / row["ours s"] / peak}
                row |= {"limit of peak": flops / row["limit s"] / peak}
            rows.append(row)
            if options.profile:
                explain(name, stage, bench.runtime)
    settings = {name: getattr(options, name) for name in ("task", "sparsities", "steps", "batch", "repeats", "seed")}
    settings |= {"stages": [row["stage"] for row in rows], "teacher": bench.space and bench.space.teacher_fingerprint}
    path = publish("speed", rows, bench.runtime, **settings)
    compare_with_last(path, "stage", "overhead")


if __name__ == "__main__":
    main()
