"""Rehearse a search: run a few real batches of each kind of its work, and predict from them what it will cost.

Batches and draws follow the study's own generators, so every pass is known beforehand: its candidate, rows and
padded length. Only the ranking is not, and an arbitrary one stands in for it: heads and neurons are as many, their
layers are others. What a cache holds already is charged as if made, as the ledger does.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import PreTrainedModel

from autodisc.config import StudyConfig
from autodisc.costs import Cost, Ledger
from autodisc.distillation.losses import Totals, hidden_depths
from autodisc.distillation.sandwich import Sandwich
from autodisc.distillation.schedule import recovery_steps
from autodisc.distillation.teacher_cache import STAGE as TEACHER_OUTPUTS
from autodisc.distillation.teacher_cache import TeacherCache
from autodisc.distillation.training import Term, TrainingSettings, train
from autodisc.models.checkpoints import Kept
from autodisc.models.inference import counted, evaluation_batch, forward_macs, predict, width
from autodisc.models.layouts import base_shape, blocks, unit_ratio
from autodisc.models.spreading import is_spread
from autodisc.prediction import Kernels, Pass, Rate, Rates, Sample, multiply_out
from autodisc.preparing import scored
from autodisc.progress import Silent
from autodisc.pruning.candidates import Candidate, Ranking, candidate, envelope
from autodisc.pruning.fisher import Moments, removal_order, second_moments
from autodisc.pruning.importance import LAST_ROUND, calibration, estimate_importance, rounds
from autodisc.pruning.magnitude import unit_norms
from autodisc.pruning.refit import BATCH as REFIT_BATCH
from autodisc.pruning.refit import STAGE as REFIT
from autodisc.pruning.refit import refit
from autodisc.pruning.supernet import Supernet, extract
from autodisc.runtime import Runtime
from autodisc.search.assistants import STAGE as TRIALS
from autodisc.search.students import students
from autodisc.tasks.batches import Batch, batches, shapes
from autodisc.tasks.data import Split
from autodisc.workspace import SET_UP, TEACHER_METRIC, Workspace, assistants_of

IMPORTANCE, RECOVERY = "importance", "recovery"
KERNEL_SHAPES, KERNEL_WIDTH = 32, 256  # of the linear whose kernels' memory is measured
LEAST_KERNEL_MIB = 0.1  # so that noise, where a library keeps nothing, is not taken for a lack of room
SHORT = 0.3  # where in the order by length the shorter of the two measured batches starts
REFIT_ROWS = 64
MIB, GIB = 2**20, 2**30


def predict_search(space: Workspace) -> dict[str, Any]:
    """Seconds, tokens, FLOPs, peak memory and disk of a search that starts from nothing, whole and by stage."""
    since = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="autodisc-") as folder, _settled_heap():
        bench = _Bench(space, Path(folder))
        passes = list(bench.passes())
        capacity = int(os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1024")) * bench.kernel_mib()
    stages = {**space.ledger.stages, **multiply_out(passes, Kernels(capacity))}  # of a budget, its timings too
    stages |= {name: Cost() for name in bench.more_s if name not in stages}  # which look at no row
    total = Cost()
    for name, cost in stages.items():
        cost.seconds += bench.more_s[name]
        cost.flops += bench.more_flops[name]
        cost.peak_mib += bench.more_mib[name]
        total.add(cost)
    return {
        **vars(total),
        "disk_gib": sum(bench.disk.values()) / GIB,
        "stages": {name: {**vars(cost), "disk_gib": bench.disk[name] / GIB} for name, cost in stages.items()},
        "measuring_s": time.perf_counter() - since,
    }


Thrice = Callable[[Split, Ledger], list[float]]  # runs one batch three times, two of them counted; seconds of each


class _Bench:
    """The study's own work on single batches, and the passes that the study will make of it.

    ``more_s``, ``more_mib`` and ``disk`` (bytes) hold by stage what its passes do not: optimizer steps, models.
    """

    def __init__(self, space: Workspace, folder: Path) -> None:
        self.space, self.folder = space, folder
        self.task, self.teacher, self.runtime = space.task, space.teacher, space.workshop.runtime
        self.scored = scored(space).task.validation
        self.opened_mib = _resident_mib()
        self.more_s, self.more_flops, self.more_mib, self.disk = (defaultdict[str, float](float) for _ in range(4))
        self.ranking = _arbitrary_ranking(space.teacher, self.runtime.generator("prediction"))
        self.config = _with_student(space, self.ranking)
        self.candidates = assistants_of(self.config, self.ranking)
        student = candidate(self.ranking, self.config.student)
        self.nested = list(dict.fromkeys([envelope(self.candidates), *self.candidates, student]))
        self.disk[SET_UP] = _tokens_on_disk(space)

    def passes(self) -> Iterator[Pass]:
        yield from self.importance()
        if self.config.search.scorer == "recovered":
            yield from self.recovery()
        yield from self.teacher_metric()
        yield from self.trials()

    def kernel_mib(self) -> float:
        """Memory of a kernel that the matrix library compiles for a shape: the mean of a linear's three, forward and
        backward. A processor with AMX takes .8 MiB, one with AVX-512 half of it."""
        weight = torch.ones(KERNEL_WIDTH, KERNEL_WIDTH, device=self.runtime.device, requires_grad=True)

        def step(rows: int) -> None:
            entering = torch.ones(rows, KERNEL_WIDTH, device=self.runtime.device, requires_grad=True)
            with self.runtime.autocast():
                left = torch.nn.functional.linear(entering, weight)
            left.float().sum().backward()

        step(1)
        before_mib = _resident_mib()
        for rows in range(2, 2 + KERNEL_SHAPES):
            step(rows)
        return max(LEAST_KERNEL_MIB, (_resident_mib() - before_mib) / (3 * KERNEL_SHAPES))

    def importance(self) -> Iterator[Pass]:
        settings = self.config.search.importance
        if rounds(settings) == 0:
            since = time.perf_counter()
            unit_norms(self.teacher)
            self.more_s[IMPORTANCE] = time.perf_counter() - since
            return
        sample = calibration(self.task, settings, self.runtime)
        fisher = settings.criterion == "fisher"
        spread = is_spread(self.teacher)  # what is removed is masked then, and costs as before
        last = 0.0 if spread else LAST_ROUND
        scales = [1 - last * number / rounds(settings) for number in range(rounds(settings))]
        rank = self.fisher if fisher else self.first_order
        runs = [rank(self.teacher)]
        if not fisher and not spread:
            runs.append(rank(extract(self.teacher, self.ranking, candidate(self.ranking, 1 - scales[-1]))))
        rates = self.rates(IMPORTANCE, sample, settings.batch_size, runs, (1.0, scales[-1]))
        for number, scale in enumerate(scales):
            for rows, T in shapes(sample, settings.batch_size):
                yield Pass(IMPORTANCE, (IMPORTANCE, number), rates, scale, (len(rows), T))

    def first_order(self, model: PreTrainedModel) -> Thrice:
        settings = self.config.search.importance
        return _thrice(
            lambda split, ledger: estimate_importance(
                model, split, settings, task=self.task, runtime=self.runtime, ledger=ledger
            )
        )

    def fisher(self, model: PreTrainedModel) -> Thrice:
        """The moments of a batch; the removal order, which no batch changes, goes to ``more``."""

        def once(split: Split, ledger: Ledger) -> Moments:
            with Silent().stage(IMPORTANCE, 1) as bar:
                return second_moments(
                    model, split, batch_size=len(split), task=self.task, runtime=self.runtime, ledger=ledger, bar=bar
                )

        moments, ledger = once(self.task.train.select([0]), Ledger()), Ledger()
        widest = max(range(len(layers := blocks(model))), key=lambda i: layers[i].neurons)
        with ledger.stage(IMPORTANCE), ledger.count("removal order", 0):
            removal_order(model, moments, [widest])
        times = sum(block.neurons for block in layers) / layers[widest].neurons
        self.more_s[IMPORTANCE] = ledger.total.seconds * times
        self.more_flops[IMPORTANCE] = ledger.total.flops * times
        return _thrice(once)

    def recovery(self) -> Iterator[Pass]:
        config, settings, train_split = self.config.distillation, self.config.search.recovery, self.task.train
        steps = recovery_steps(settings, config, self.task)
        before_mib = _resident_mib()
        start = extract(self.teacher, self.ranking, self.nested[0])
        supernet = Supernet(start, self.ranking, checkpointing=self.runtime.checkpointing)
        outputs = self.cache(train_split.select([0]), Ledger())
        always = [self.nested[0], self.nested[-1]]
        sandwich = Sandwich(
            supernet,
            [outputs],
            self.nested,
            always=always,
            size=settings.sandwich_size,
            config=config,
            runtime=self.runtime,
        )
        part_size = -(-config.batch_size // config.accumulation)
        teacher = self.rates(TEACHER_OUTPUTS, train_split, part_size, [self.teach], (1.0, 1.0))
        trains = [self.train(supernet, each) for each in always]
        scales = (always[0].scale, always[1].scale)
        rates = self.rates(RECOVERY, train_split, part_size, trains, scales, before_mib)
        self.more_s[RECOVERY] *= steps
        order, draws = self.runtime.generator(RECOVERY, "order"), self.runtime.generator(RECOVERY, "draws")
        kept = train_split.tokens * outputs.token_bytes <= self.config.cache.max_gib * GIB
        seen = np.zeros(len(train_split), dtype=bool)
        left = steps
        while left > 0:
            for rows, T in shapes(train_split, config.batch_size, order)[:left]:
                drawn = sandwich.draw(draws)
                for part in np.array_split(rows, min(config.accumulation, len(rows))):
                    if not seen[part].all():
                        yield Pass(TEACHER_OUTPUTS, TEACHER_OUTPUTS, teacher, 1.0, (len(part), T))
                        seen[part] = kept
                    yield from (Pass(RECOVERY, (RECOVERY, c), rates, c.scale, (len(part), T)) for c in drawn)
                left -= 1
        read = int(train_split.lengths[seen].sum()) * outputs.token_bytes
        self.disk[TEACHER_OUTPUTS] = kept * train_split.tokens * outputs.token_bytes  # allotted whole
        self.disk[RECOVERY] = 4 * sum(p.numel() for p in supernet.model.parameters())
        for stage in (RECOVERY, TEACHER_OUTPUTS):  # its pages stay in memory
            self.more_mib[stage] += read / MIB
        self.more_mib[TEACHER_OUTPUTS] = self.more_mib[RECOVERY]  # the teacher runs while all of a step is in memory

    def teacher_metric(self) -> Iterator[Pass]:
        at_once = evaluation_batch(self.scored, self.task)
        run = _thrice(
            lambda split, ledger: predict(self.teacher, split, task=self.task, runtime=self.runtime, ledger=ledger)
        )
        rates = self.rates(TEACHER_METRIC, self.scored, at_once, [run], (1.0, 1.0))
        for rows, T in shapes(self.scored, at_once):
            yield Pass(TEACHER_METRIC, TEACHER_METRIC, rates, 1.0, (len(rows), T))

    def trials(self) -> Iterator[Pass]:
        search, validation = self.config.search, self.scored
        at_once = evaluation_batch(validation, self.task)
        points = self.candidates
        total = search.trials or len(points)
        if not search.sampled or total >= len(points):
            visited = points[:total]
        else:  # the sampler's choice is not known: evenly spread
            visited = [points[i * len(points) // total] for i in range(total)]
        ends = (points[0], points[-1])
        before_mib = _resident_mib()
        models = [extract(self.teacher, self.ranking, each) for each in ends]

        def run(model: PreTrainedModel) -> Thrice:
            predict_thrice = _thrice(
                lambda split, ledger: predict(model, split, task=self.task, runtime=self.runtime, ledger=ledger)
            )

            def thrice(split: Split, ledger: Ledger) -> list[float]:
                (batch,) = batches(split, batch_size=len(split), pad_token_id=self.task.pad_token_id, generator=None)
                counted(model, batch.to(self.runtime.device), ledger, "forward")  # once a trial: see scoring_s
                return predict_thrice(split, ledger)

            return thrice

        rates = self.rates(
            TRIALS, validation, at_once, [run(m) for m in models], (ends[0].scale, ends[1].scale), before_mib
        )
        self.more_s[TRIALS] = len(visited) * self.scoring_s(models[-1])
        if search.scorer == "pruned" and self.space.workshop.refit is not None:
            yield from self.refits(self.space.workshop.refit, models, visited)
        for each in visited:
            for rows, T in shapes(validation, at_once):
                yield Pass(TRIALS, (TRIALS, each), rates, each.scale, (len(rows), T))

    def refits(self, rows: Split, ends: Sequence[PreTrainedModel], visited: Sequence[Candidate]) -> Iterator[Pass]:
        """One pass each, over all rows at once."""

        def run(model: PreTrainedModel) -> Thrice:
            return _thrice(
                lambda split, ledger: refit(
                    model, self.teacher, split, task=self.task, runtime=self.runtime, ledger=ledger
                )
            )

        scales = (self.candidates[0].scale, self.candidates[-1].scale)
        rates = self.rates(REFIT, rows, REFIT_ROWS, [run(model) for model in ends], scales)
        padded = sum(len(batch) * T for batch, T in shapes(rows, REFIT_BATCH))
        shape = (len(rows), round(padded / len(rows)))
        yield from (Pass(REFIT, (REFIT, each), rates, each.scale, shape) for each in visited)

    def scoring_s(self, model: PreTrainedModel) -> float:
        """Seconds of a trial beside its batches: counting its FLOPs, and the metric's standard error."""
        since = time.perf_counter()
        forward_macs(model)
        labels, metric = self.scored.labels, self.task.metric
        metric.standard_error(metric.constant(labels), labels, self.runtime.seed)
        return time.perf_counter() - since

    def teach(self, split: Split, ledger: Ledger) -> list[float]:
        """The teacher's outputs on a batch: made, kept and read back."""
        batch = next(batches(split, batch_size=len(split), pad_token_id=self.task.pad_token_id, generator=None))
        taken = []
        for _ in range(3):
            with self.cache(split, ledger) as outputs:
                since = time.perf_counter()
                outputs(batch.to(self.runtime.device))
                taken.append(time.perf_counter() - since)
        return taken

    def train(self, supernet: Supernet, candidate: Candidate) -> Thrice:
        """Forward and backward of one candidate in the training loop; an optimizer's step goes to ``more_s``."""
        config = self.config.distillation

        def run(split: Split, ledger: Ledger) -> list[float]:
            with self.cache(split, ledger) as outputs:
                sandwich = Sandwich(
                    supernet, [outputs], [candidate], always=[candidate], size=1, config=config, runtime=self.runtime
                )
                timed = _Timed(sandwich, self.runtime)
                settings = TrainingSettings(
                    3, len(split), lr=0.0, warmup=0.0, weight_decay=config.weight_decay, clip=config.clip
                )
                train(
                    supernet.model,
                    timed,
                    split,
                    settings,
                    task=self.task,
                    runtime=self.runtime,
                    stage=RECOVERY,
                    ledger=ledger,
                    progress=Silent(),
                )
            _, second, third = timed.drawn
            self.more_s[RECOVERY] = max(self.more_s[RECOVERY], third - second - timed.taken[1])
            return timed.taken

        return run

    def cache(self, split: Split, ledger: Ledger) -> TeacherCache:
        """The teacher's outputs on ``split``, nothing of them made yet."""
        layers = base_shape(self.teacher.config)[0]
        config = self.config.distillation
        return TeacherCache(
            self.teacher,
            split,
            hidden_depths(layers, config.hidden_depths, embeddings_differ=config.train_embeddings),
            classes=width(self.teacher, self.task),
            config=config,
            folder=Path(tempfile.mkdtemp(dir=self.folder)),
            max_gib=1.0,
            runtime=self.runtime,
            ledger=ledger,
        )

    def rates(
        self,
        stage: str,
        split: Split,
        batch_size: int,
        runs: Sequence[Thrice],
        scales: tuple[float, float],
        before_mib: float | None = None,
    ) -> Rates:
        """Those of ``stage`` at two scales (or one), on a long and a short batch of ``split``."""
        before_mib = _resident_mib() if before_mib is None else before_mib
        order = np.argsort(split.lengths, kind="stable")
        start = round(SHORT * max(0, len(order) - batch_size))
        long, short = (split.select(rows) for rows in (order[-batch_size:], order[start : start + batch_size]))
        found = []
        for run in runs:
            first, peak_mib = self.sample(stage, run, long)
            compiled_mib = _resident_mib()
            second, _ = self.sample(stage, run, short)
            compiled_mib = max(0.0, _resident_mib() - compiled_mib)
            found.append(Rate(first, second, compiled_mib))
            transient_mib = peak_mib - before_mib - len(found) * compiled_mib
            self.more_mib[stage] = max(self.more_mib[stage], self.opened_mib + transient_mib)
        return Rates(found[0], found[-1], scales)

    def sample(self, stage: str, run: Thrice, split: Split) -> tuple[Sample, float]:
        """One batch, and the process's peak MiB meanwhile."""
        ledger = Ledger()
        with ledger.stage(stage):
            cold, counted, plain = run(split, ledger)
        cost = ledger.stages[stage]
        ((rows, T),) = shapes(split, len(split))
        return Sample((len(rows), T), plain, cold - counted, counted - plain, cost.flops / 3), cost.peak_mib


class _Timed:
    """An objective of one term, and when it was drawn and how long its term took in each step."""

    def __init__(self, inner: Sandwich, runtime: Runtime) -> None:
        self.inner, self.runtime = inner, runtime
        self.drawn: list[float] = []
        self.taken: list[float] = []

    def draw(self, generator: np.random.Generator) -> Any:
        self.drawn.append(time.perf_counter())
        return self.inner.draw(generator)

    def terms(self, batch: Batch, totals: Totals, drawn: Any) -> Iterator[Term]:
        for term in self.inner.terms(batch, totals, drawn):
            since = time.perf_counter()
            yield term
            if self.runtime.device.type == "cuda":
                torch.cuda.synchronize()
            self.taken.append(time.perf_counter() - since)


def _thrice(once: Callable[[Split, Ledger], object]) -> Thrice:
    def run(split: Split, ledger: Ledger) -> list[float]:
        taken = []
        for _ in range(3):
            since = time.perf_counter()
            once(split, ledger)
            taken.append(time.perf_counter() - since)
        return taken

    return run


def _arbitrary_ranking(model: PreTrainedModel, generator: np.random.Generator) -> Ranking:
    kept = Kept.of(model.config)
    heads, neurons = (
        [(layer, i) for layer, own in enumerate(layers) for i in own] for layers in (kept.heads, kept.neurons)
    )
    heads, neurons = ([units[i] for i in generator.permutation(len(units))] for units in (heads, neurons))
    return Ranking(tuple(heads), tuple(neurons), len(kept.heads), unit_ratio(blocks(model)))


def _with_student(space: Workspace, ranking: Ranking) -> StudyConfig:
    """With the student that the budget, where there is one, leads to among candidates of an arbitrary ``ranking``."""
    config = space.config
    if config.budget is None:
        return config
    _, best = students(space.teacher, ranking, config.budget, space.budgeted_latency)
    return config.with_student(best.sparsity)


def _tokens_on_disk(space: Workspace) -> int:
    task = space.task
    splits = (task.train, task.validation, task.final, *task.extra.values())
    files = {file["filename"] for split in splits for file in split.rows.cache_files}
    return sum(Path(name).stat().st_size for name in files)


@contextlib.contextmanager
def _settled_heap() -> Iterator[None]:
    """What is there already is not looked through again by each collection: of torch's modules that takes .3 s."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _resident_mib() -> float:
    """This process's memory in use: what is free but kept by the allocator would hide what kernels take."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss / MIB
