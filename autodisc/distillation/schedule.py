"""The distillations that a strategy is made of: the shared recovery, one phase, and the fixed schedule.

Schedule: teacher -> assistant -> student. Phase 1 is a sandwich, which trains the assistant with the student and the
candidates between inside it; phase 2 takes the assistant as the student's initialisation and as its teacher, beside
the first one. A chain of assistants has a phase for each, and shares out the passes of one.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import joblib
from transformers import PreTrainedModel

from autodisc.config import DistillationConfig, RecoveryConfig, flatten
from autodisc.costs import Ledger, save_ledger
from autodisc.distillation.checkpointing import Keeping, Made, States, states
from autodisc.distillation.heterogeneous import Heterogeneous, depth_pairs, projected
from autodisc.distillation.losses import hidden_depths
from autodisc.distillation.sandwich import Sandwich
from autodisc.distillation.teacher_cache import TeacherCache
from autodisc.distillation.training import Objective, TrainingSettings, TrainingState, steps_for, train
from autodisc.files import write_json
from autodisc.models.checkpoints import identity
from autodisc.models.inference import predict, width
from autodisc.models.layouts import base_shape
from autodisc.progress import Progress, Silent, Tracker, Untracked
from autodisc.pruning.candidates import Candidate, Ranking, candidate, envelope
from autodisc.pruning.refit import refit
from autodisc.pruning.supernet import Supernet, extract
from autodisc.runtime import Runtime
from autodisc.tasks.data import Split, Task

VALIDATION = "validation"
ASSISTANT_PHASE, STUDENT_PHASE = "teacher to assistant", "assistant to student"
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
    keeping: Keeping | None = None  # what is unfinished; none: a training that is stopped starts again
    tracker: Tracker = field(default_factory=Untracked)

    def states(self, stage: str, made_of: Callable[[], Made]) -> States:
        """Those of a training of this run."""
        return states(self.keeping, stage, made_of, runtime=self.runtime, ledger=self.ledger)

    def within(self, name: str) -> Workshop:
        """The workshop of a part of this work: what it leaves unfinished has a folder of its own."""
        keeping = None if self.keeping is None else self.keeping.within(name)
        return replace(self, keeping=keeping, tracker=self.tracker.within(name))

    def forget(self, name: str) -> None:
        """Remove what a part has left, which is done."""
        if self.keeping is not None:
            self.keeping.within(name).remove()

    def book(self) -> None:
        """Write down what was spent up to now, and the curves: before anything that it was spent on counts as done."""
        if self.keeping is not None:
            save_ledger(self.ledger, self.keeping.booked)
            if self.curves:
                write_json(self.keeping.curves, self.curves)

    def metric(self, model: PreTrainedModel, candidate: Candidate) -> float:
        """The metric of ``model`` (active as, or cut to, ``candidate``) on validation."""
        task = self.task
        with self.ledger.stage(VALIDATION):
            kind = (candidate.heads, candidate.neurons)
            said = predict(model, task.validation, task=task, runtime=self.runtime, ledger=self.ledger, kind=kind)
            return task.metric.score(said, task.validation.labels)

    def cut(self, teacher: PreTrainedModel, ranking: Ranking, candidate: Candidate) -> PreTrainedModel:
        """``candidate`` as the ``pruned`` scorer sees it: cut out, and refitted, where asked, on this run's rows."""
        model = extract(teacher, ranking, candidate)
        if self.refit is not None:
            refit(model, teacher, self.refit, task=self.task, runtime=self.runtime, ledger=self.ledger)
        return model

    def teacher(
        self,
        model: PreTrainedModel,
        config: DistillationConfig,
        folder: Path | None = None,
        *,
        student: PreTrainedModel | None = None,
    ) -> TeacherCache:
        """The outputs of ``model`` on train; cached in ``folder``, by default the shared one.

        Hidden states are of the depths that a candidate of the model learns from, or ``student``, another architecture.
        """
        if student is None:
            layers = base_shape(model.config)[0]
            depths = hidden_depths(layers, config.hidden_depths, embeddings_differ=config.train_embeddings)
        else:
            pairs = depth_pairs(student, model, config.hidden_depths)
            depths = tuple(sorted({pair.teacher for pair in pairs}))
        return TeacherCache(
            model,
            self.task.train,
            depths,
            classes=width(model, self.task),
            config=config,
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


@dataclass(frozen=True)
class Phase:
    """One sandwich of the schedule: the target's best weights are kept; ``candidates`` hold it, the largest first.

    ``size`` of them are trained a step. ``taught``: the first teacher is a guide beside the assistant before.
    """

    stage: str
    target: Candidate
    candidates: tuple[Candidate, ...]
    epochs: float
    size: int
    taught: bool = False


@dataclass(frozen=True)
class Schedule:
    """What the fixed distillation ends with; ``between`` holds the further assistants of a chain."""

    assistant: Distilled
    student: Distilled
    between: tuple[Distilled, ...] = ()


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
    """One short sandwich of all candidates, shared: a supernet whose candidates have recovered from pruning alike.

    Every step trains all units, which one candidate has where they are nested, and the last candidate, the student's.
    """
    whole = envelope(candidates)
    candidates = list(dict.fromkeys([whole, *candidates]))
    checkpointing = workshop.runtime.checkpointing
    supernet = Supernet(extract(teacher.teacher, ranking, whole), ranking, checkpointing=checkpointing)
    always = [whole, candidates[-1]]
    settings = training_settings(distillation, steps=steps, lr=recovery.lr)
    _run(supernet, [teacher], candidates, always, recovery.sandwich_size, "recovery", settings, distillation, workshop)
    return supernet


def recovery_steps(recovery: RecoveryConfig, distillation: DistillationConfig, task: Task) -> int:
    """Explicit steps, or the configured fraction of the steps that the assistant's phase takes."""
    if recovery.steps is not None:
        return recovery.steps
    return max(1, round(recovery.fraction * steps_for(task.train, distillation.batch_size, distillation.epochs)))


def distill_phase(
    start: PreTrainedModel,
    guides: Sequence[TeacherCache],
    ranking: Ranking,
    candidates: Sequence[Candidate],
    *,
    target: Candidate,
    stage: str,
    steps: int,
    size: int,
    config: DistillationConfig,
    workshop: Workshop,
) -> Distilled:
    """Train ``start`` as a sandwich of ``size`` of the candidates, keep what is best for ``target``, cut it out.

    Every step trains the target; a sandwich of two or more also the smallest candidate, then random others.
    """
    supernet = Supernet(start, ranking, checkpointing=workshop.runtime.checkpointing)
    always = list(dict.fromkeys([target, candidates[-1]]))
    settings = training_settings(config, steps=steps, lr=config.lr)

    def evaluate() -> float:
        with supernet.active(target) as model:
            return workshop.metric(model, target)

    state = _run(supernet, guides, candidates, always, size, stage, settings, config, workshop, evaluate)
    assert state.best_metric is not None
    return Distilled(supernet.extract(target), target, state.best_metric)


def distill_sandwich(
    teacher: PreTrainedModel,
    assistant: PreTrainedModel,
    ranking: Ranking,
    candidates: Sequence[Candidate],
    config: DistillationConfig,
    workshop: Workshop,
    student: PreTrainedModel | None = None,
) -> Schedule:
    """The fixed schedule: assistant and student, trained and cut out.

    ``assistant`` is the untrained cut; ``candidates`` are the assistant's, those between, and the student's, the
    largest first. A ``student`` of another architecture takes the place of the last in the last phase.
    """
    first, *others = phases(ranking, candidates, config)
    with workshop.teacher(teacher, config) as outputs:
        chain = [_distil(assistant, [outputs], ranking, first, config, workshop)]
    for phase in others:
        last = student if phase is others[-1] else None
        chain.append(distill_from(chain[-1], teacher, ranking, phase, config, workshop, student=last))
    return Schedule(chain[0], chain[-1], tuple(chain[1:-1]))


def distill_from(
    assistant: Distilled,
    teacher: PreTrainedModel,
    ranking: Ranking,
    phase: Phase,
    config: DistillationConfig,
    workshop: Workshop,
    *,
    student: PreTrainedModel | None = None,
) -> Distilled:
    """A later phase, from the outputs of a trained ``assistant``, of ``teacher`` where the phase has it as a guide
    too, and from the assistant's weights, or ``student``'s."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_outputs_folder(workshop, phase.stage))
        guides = [stack.enter_context(workshop.teacher(assistant.model, config, folder, student=student))]
        if phase.taught:
            guides.append(stack.enter_context(workshop.teacher(teacher, config, student=student)))
        if student is None:
            return _distil(assistant.model, guides, ranking, phase, config, workshop)
        steps = _steps(phase, config, workshop)
        return distill_into(
            student, guides, phase.target, stage=phase.stage, steps=steps, config=config, workshop=workshop
        )


@contextlib.contextmanager
def _outputs_folder(workshop: Workshop, stage: str) -> Iterator[Path]:
    """Where an assistant's outputs lie until its student is trained. A resumed phase finds them again: made anew, in
    other batches, they would differ in the last bits."""
    if workshop.keeping is None:
        workshop.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=workshop.cache, prefix="assistant-") as folder:
            yield Path(folder)
        return
    kept = workshop.keeping.within(f"outputs-{stage.replace(' ', '-')}")
    yield kept.folder
    kept.remove()


def _distil(
    start: PreTrainedModel,
    guides: Sequence[TeacherCache],
    ranking: Ranking,
    phase: Phase,
    config: DistillationConfig,
    workshop: Workshop,
) -> Distilled:
    return distill_phase(
        start,
        guides,
        ranking,
        phase.candidates,
        target=phase.target,
        stage=phase.stage,
        steps=_steps(phase, config, workshop),
        size=phase.size,
        config=config,
        workshop=workshop,
    )


def _steps(phase: Phase, config: DistillationConfig, workshop: Workshop) -> int:
    return steps_for(workshop.task.train, config.batch_size, phase.epochs)


def distill_into(
    student: PreTrainedModel,
    guides: Sequence[TeacherCache],
    stands_for: Candidate,
    *,
    stage: str,
    steps: int,
    config: DistillationConfig,
    workshop: Workshop,
) -> Distilled:
    """Plain distillation into a copy of ``student``, of another architecture; its best weights on validation are kept.

    ``stands_for`` is the teacher's candidate of its scale.
    """
    model, task, teacher = copy.deepcopy(student), workshop.task, guides[0].teacher
    pairs = depth_pairs(model, teacher, config.hidden_depths)

    def evaluate() -> float:
        with workshop.ledger.stage(VALIDATION):
            kind = ("heterogeneous", model.config.model_type)
            said = predict(
                model, task.validation, task=task, runtime=workshop.runtime, ledger=workshop.ledger, kind=kind
            )
            return task.metric.score(said, task.validation.labels)

    with projected(model, teacher, pairs, workshop.runtime) as projections:
        objective = Heterogeneous(model, guides, pairs, projections, config=config, runtime=workshop.runtime)
        settings = training_settings(config, steps=steps, lr=config.lr)
        made_of = {"depths": joblib.hash(pairs)}
        state = _train(model, objective, guides, stage, settings, config, workshop, evaluate, made_of)
    assert state.best_metric is not None
    return Distilled(model, stands_for, state.best_metric)


def phases(ranking: Ranking, candidates: Sequence[Candidate], config: DistillationConfig) -> list[Phase]:
    """The schedule's phases: ``candidates`` from the chosen assistant's down to the student's, the largest first.

    Further assistants stand at equal ratios of scale between these two, on the grid or not.
    """
    first, last = candidates[0], candidates[-1]
    count, size = config.assistants, config.student_sandwich_size
    ratio = (last.scale / first.scale) ** (1 / count)
    between = [
        candidate(ranking, 1 - first.scale * ratio**number, balance=first.balance, student=last.sparsity)
        for number in range(1, count)
    ]
    nested = sorted({c.sparsity: c for c in (*between, *candidates)}.values(), key=lambda c: c.sparsity)
    found = [
        Phase(
            stage,
            target,
            tuple(c for c in nested if c.sparsity >= target.sparsity),
            config.epochs / count,
            config.sandwich_size,
        )
        for stage, target in zip(_stages(count), (first, *between), strict=True)
    ]
    taught = config.student_guides == "both"
    return [*found, Phase(STUDENT_PHASE, last, found[-1].candidates[1:], config.last_epochs, size, taught)]


def _stages(assistants: int) -> list[str]:
    return [ASSISTANT_PHASE, *(f"assistant to assistant {number}" for number in range(2, assistants + 1))]


def full_passes(phases: Sequence[Phase], cost: Callable[[Candidate], float]) -> float:
    """What phases cost, in training passes of the full model, where a candidate's is ``cost``."""

    def step(phase: Phase) -> float:
        always = list(dict.fromkeys([phase.target, phase.candidates[-1]]))[: phase.size]
        rest = [cost(c) for c in phase.candidates if c not in always]
        extra = min(phase.size - len(always), len(rest))
        return sum(map(cost, always)) + (extra * sum(rest) / len(rest) if rest else 0.0)

    return sum(phase.epochs * step(phase) for phase in phases)


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
    guides: Sequence[TeacherCache],
    candidates: Sequence[Candidate],
    always: Sequence[Candidate],
    size: int,
    stage: str,
    settings: TrainingSettings,
    config: DistillationConfig,
    workshop: Workshop,
    evaluate: Callable[[], float] | None = None,
) -> TrainingState:
    sandwich = Sandwich(supernet, guides, candidates, always=always, size=size, config=config, runtime=workshop.runtime)
    made_of = {"candidates": joblib.hash([list(candidates), list(always), size])}
    return _train(supernet.model, sandwich, guides, stage, settings, config, workshop, evaluate, made_of)


def _train(
    model: PreTrainedModel,
    objective: Objective,
    guides: Sequence[TeacherCache],
    stage: str,
    settings: TrainingSettings,
    config: DistillationConfig,
    workshop: Workshop,
    evaluate: Callable[[], float] | None,
    also: Made,
) -> TrainingState:
    """The training loop; what it was stopped at is gone on with where all is as it was, ``also`` too."""

    def made_of() -> Made:
        return {
            **flatten({"settings": asdict(settings), "distillation": config.model_dump(mode="json")}),
            **also,
            "start": identity(model),
            "teacher": [identity(guide.teacher) for guide in guides],
            "train": workshop.task.train.fingerprint,
        }

    state = train(
        model,
        objective,
        workshop.task.train,
        settings,
        task=workshop.task,
        runtime=workshop.runtime,
        stage=stage,
        ledger=workshop.ledger,
        progress=workshop.progress,
        evaluate=evaluate,
        states=workshop.states(stage, made_of),
        tracker=workshop.tracker,
    )
    workshop.curves[stage] = state.curve
    return state
