"""The distillations that a strategy is made of: the shared recovery, one phase, and the fixed schedule.

Schedule: teacher -> assistant -> student, in two sandwich phases of the same number of passes. Phase 1 trains
the assistant with the student and the candidates between inside it; phase 2 takes the assistant as teacher and
as the student's initialisation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel

from autodisc.config import DistillationConfig, RecoveryConfig
from autodisc.costs import Ledger
from autodisc.distillation.losses import hidden_depths
from autodisc.distillation.sandwich import Sandwich
from autodisc.distillation.teacher_cache import TeacherCache
from autodisc.distillation.training import TrainingSettings, TrainingState, steps_for, train
from autodisc.models.inference import predict
from autodisc.models.layouts import base_shape
from autodisc.progress import Progress, Silent
from autodisc.pruning.candidates import Candidate, Ranking
from autodisc.pruning.refit import refit
from autodisc.pruning.supernet import Supernet, extract
from autodisc.runtime import Runtime
from autodisc.tasks.data import Split, Task
from autodisc.tasks.metrics import decode

VALIDATION = "validation"
Curves = dict[str, list[dict[str, float | int | None]]]


@dataclass(frozen=True)
class Workshop:
    """What every distillation of a run shares: the task, how to run, where to cache, what to book and tell."""

    task: Task
    runtime: Runtime
    cache: Path
    max_gib: float
    refit: Split | None = None  # training rows to refit a cut on where nothing trains it; none: it stays as it was cut
    ledger: Ledger = field(default_factory=Ledger)
    progress: Progress = field(default_factory=Silent)
    curves: Curves = field(default_factory=dict)

    def metric(self, model: PreTrainedModel, candidate: Candidate) -> float:
        """The metric of ``model`` (active as, or cut to, ``candidate``) on validation."""
        task = self.task
        with self.ledger.stage(VALIDATION):
            kind = (candidate.heads, candidate.neurons)
            logits = predict(model, task.validation, task=task, runtime=self.runtime, ledger=self.ledger, kind=kind)
            return task.metric.score(decode(logits, task.kind), task.validation.labels)

    def cut(self, teacher: PreTrainedModel, ranking: Ranking, candidate: Candidate) -> PreTrainedModel:
        """``candidate`` as the ``pruned`` scorer sees it: cut out, and refitted, where asked, on this run's rows."""
        model = extract(teacher, ranking, candidate)
        if self.refit is not None:
            refit(model, teacher, self.refit, task=self.task, runtime=self.runtime, ledger=self.ledger)
        return model

    def teacher(self, model: PreTrainedModel, config: DistillationConfig, folder: Path | None = None) -> TeacherCache:
        """The outputs of ``model`` on train; cached in ``folder``, by default the shared one."""
        layers = base_shape(model.config)[0]
        depths = hidden_depths(layers, config.hidden_depths, embeddings_differ=config.train_embeddings)
        return TeacherCache(
            model,
            self.task.train,
            depths,
            folder=folder or self.cache / "teacher",
            max_gib=self.max_gib,
            runtime=self.runtime,
            ledger=self.ledger,
            progress=self.progress,
        )


@dataclass(frozen=True)
class Distilled:
    """A model cut to its candidate, and its best metric on validation."""

    model: PreTrainedModel
    candidate: Candidate
    metric: float


def recover(
    teacher: TeacherCache,
    ranking: Ranking,
    candidates: Sequence[Candidate],
    *,
    steps: int,
    recovery: RecoveryConfig,
    distillation: DistillationConfig,
    workshop: Workshop,
) -> Supernet:
    """One short sandwich of all candidates, shared: a supernet whose candidates have recovered from pruning alike."""
    supernet = Supernet(extract(teacher.teacher, ranking, candidates[0]), ranking)
    always = [candidates[0], candidates[-1]]
    settings = training_settings(distillation, steps=steps, lr=recovery.lr)
    _run(supernet, teacher, candidates, always, recovery.sandwich_size, "recovery", settings, distillation, workshop)
    return supernet


def recovery_steps(recovery: RecoveryConfig, distillation: DistillationConfig, task: Task) -> int:
    """Explicit steps, or the configured fraction of the steps that the two distillation phases take."""
    if recovery.steps is not None:
        return recovery.steps
    return max(1, round(recovery.fraction * 2 * steps_for(task.train, distillation.batch_size, distillation.epochs)))


def distill_phase(
    start: PreTrainedModel,
    teacher: TeacherCache,
    ranking: Ranking,
    candidates: Sequence[Candidate],
    *,
    target: Candidate,
    stage: str,
    steps: int,
    config: DistillationConfig,
    workshop: Workshop,
) -> Distilled:
    """Train ``start`` as a sandwich of ``candidates``, keep the weights that are best for ``target``, cut it out.

    Every step trains the target; a sandwich of two or more also the smallest candidate, then random others.
    """
    supernet = Supernet(start, ranking)
    always = list(dict.fromkeys([target, candidates[-1]]))
    settings = training_settings(config, steps=steps, lr=config.lr)

    def evaluate() -> float:
        with supernet.active(target) as model:
            return workshop.metric(model, target)

    state = _run(
        supernet, teacher, candidates, always, config.sandwich_size, stage, settings, config, workshop, evaluate
    )
    assert state.best_metric is not None
    return Distilled(supernet.extract(target), target, state.best_metric)


def distill_sandwich(
    teacher: PreTrainedModel,
    assistant: PreTrainedModel,
    ranking: Ranking,
    candidates: Sequence[Candidate],
    config: DistillationConfig,
    workshop: Workshop,
) -> tuple[Distilled, Distilled]:
    """The fixed schedule: (assistant, student), both trained and cut out.

    ``assistant`` is the untrained cut; ``candidates`` are the assistant's, those between, and the student's, the
    largest first.
    """
    steps = steps_for(workshop.task.train, config.batch_size, config.epochs)
    with workshop.teacher(teacher, config) as outputs:
        trained = distill_phase(
            assistant,
            outputs,
            ranking,
            candidates,
            target=candidates[0],
            stage="teacher to assistant",
            steps=steps,
            config=config,
            workshop=workshop,
        )
    return trained, distill_student(trained, ranking, candidates[1:], config, workshop)


def distill_student(
    assistant: Distilled,
    ranking: Ranking,
    candidates: Sequence[Candidate],
    config: DistillationConfig,
    workshop: Workshop,
) -> Distilled:
    """Phase 2: the last of ``candidates``, which lie below the trained ``assistant``, from its weights and outputs."""
    workshop.cache.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=workshop.cache, prefix="assistant-") as folder,
        workshop.teacher(assistant.model, config, Path(folder)) as outputs,
    ):
        return distill_phase(
            assistant.model,
            outputs,
            ranking,
            candidates,
            target=candidates[-1],
            stage="assistant to student",
            steps=steps_for(workshop.task.train, config.batch_size, config.epochs),
            config=config,
            workshop=workshop,
        )


def passes_by_scale(candidates: Sequence[Candidate], size: int) -> float:
    """What one step of both phases costs, in steps of the full model: a candidate costs its scale."""

    def phase(always: list[Candidate], others: Sequence[Candidate]) -> float:
        always = list(dict.fromkeys(always))[:size]
        rest = [c.scale for c in others if c not in always]
        extra = min(size - len(always), len(rest))
        return sum(c.scale for c in always) + (extra * sum(rest) / len(rest) if rest else 0.0)

    last = candidates[-1]
    return phase([candidates[0], last], candidates) + phase([last], candidates[1:])


def training_settings(config: DistillationConfig, *, steps: int, lr: float) -> TrainingSettings:
    """What the training loop is told of ``config``."""
    return TrainingSettings(
        steps=steps,
        batch_size=config.batch_size,
        lr=lr,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        clip=config.clip,
        accumulation=config.accumulation,
    )


def _run(
    supernet: Supernet,
    teacher: TeacherCache,
    candidates: Sequence[Candidate],
    always: Sequence[Candidate],
    size: int,
    stage: str,
    settings: TrainingSettings,
    config: DistillationConfig,
    workshop: Workshop,
    evaluate: Callable[[], float] | None = None,
) -> TrainingState:
    sandwich = Sandwich(
        supernet, teacher, candidates, always=always, size=size, config=config, runtime=workshop.runtime
    )
    state = train(
        supernet.model,
        sandwich,
        workshop.task.train,
        settings,
        task=workshop.task,
        runtime=workshop.runtime,
        stage=stage,
        ledger=workshop.ledger,
        progress=workshop.progress,
        evaluate=evaluate,
    )
    workshop.curves[stage] = state.curve
    return state
