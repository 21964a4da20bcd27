"""What autodisc is compared with, through the same training loop, teacher cache and ledger.

``maxidisc``  multi-trial search: a trial runs the fixed schedule with its assistant and returns the student's metric
``direct``    no assistant: the student is distilled straight from the teacher, at the mean compute of a maxidisc trial
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.trial import TrialState
from transformers import PreTrainedModel

from autodisc.config import DistillationConfig
from autodisc.costs import Cost, resume_ledger
from autodisc.distillation.schedule import (
    ASSISTANT_PHASE,
    Curves,
    Distilled,
    Workshop,
    distill_into,
    distill_phase,
    distill_sandwich,
    full_passes,
    phases,
)
from autodisc.distillation.training import steps_for
from autodisc.errors import TrainingError
from autodisc.files import write_json
from autodisc.models.checkpoints import own_head
from autodisc.models.inference import forward_macs, in_halves, saved_macs
from autodisc.pruning.candidates import Candidate, Ranking, chain_from
from autodisc.pruning.supernet import extract
from autodisc.search.backends import LOCAL
from autodisc.search.storage import (
    ERROR,
    ask,
    completed,
    enqueue_failed,
    enqueue_missing,
    of_record,
    point_of,
    tell,
    waiting,
)
from autodisc.search.watching import Unwatched, Watch
from autodisc.search.workers import Sendable, processes, spread
from autodisc.tasks.batches import batches
from autodisc.tasks.data import Split


@dataclass(frozen=True)
class MultiTrial(Sendable):
    """A trial of maxidisc: distil an assistant of a sparsity, and a student from it."""

    teacher: PreTrainedModel
    ranking: Ranking
    candidates: Mapping[float, Candidate]
    student: Candidate
    config: DistillationConfig
    into: PreTrainedModel | None = None  # a student of another architecture, for which ``student`` stands

    def __call__(self, workshop: Workshop, sparsity: float) -> Pair:
        workshop = replace(workshop.within(_name(sparsity)), curves={})
        before = _began(workshop, _name(sparsity))
        chain = chain_from(self.candidates[sparsity], self.candidates.values(), self.student)
        start = extract(self.teacher, self.ranking, chain[0])
        made = distill_sandwich(self.teacher, start, self.ranking, chain, self.config, workshop, self.into)
        after = workshop.ledger.total
        spent = after.since(before)
        return Pair(made.assistant, made.student, spent.seconds, spent.flops, workshop.curves)


def _name(sparsity: float) -> str:
    return f"trial-{sparsity:g}"


def _began(workshop: Workshop, name: str) -> Cost:
    """What had been spent when the trial began; where it was stopped, this is kept beside its states.

    In a process of its own a trial has a ledger of its own, kept there too until the parent has taken it over, which
    ``paid`` says.
    """
    keeping, ledger = workshop.keeping, workshop.ledger
    if keeping is None:
        return ledger.total
    parents, apart = keeping.ledger, keeping.folder / keeping.ledger.name
    if keeping.booked != parents:
        if name not in ledger.paid:
            resume_ledger(ledger, apart)
        return Cost()
    began = keeping.folder / "began.json"
    if apart.exists():  # of a run with more processes
        before = ledger.total
        if name not in ledger.paid:
            resume_ledger(ledger, apart)
            ledger.pay(name)
        workshop.book()
        write_json(began, vars(before))
        apart.unlink()
    elif not began.exists():
        workshop.book()
        write_json(began, vars(ledger.total))
    return Cost(**json.loads(began.read_text()))


@dataclass(frozen=True)
class Pair(Sendable):
    """What a trial of maxidisc made, and what that took."""

    assistant: Distilled
    student: Distilled
    seconds: float
    flops: float
    curves: Curves


def run_maxidisc(
    study: optuna.Study,
    work: MultiTrial,
    workshop: Workshop,
    keep: Callable[[Distilled, Distilled], None],
    *,
    jobs: int = 1,
    backend: str = LOCAL,
    retries: int = 0,
    watch: Watch | None = None,
) -> None:
    """Distil an assistant and a student for every candidate, ``jobs`` trials at a time.

    ``watch`` looks on; ``keep`` gets each pair that beats those before it. What fails is tried ``retries`` times again.
    """
    watch = watch or Unwatched()
    points = sorted(work.candidates)
    enqueue_missing(study, [{"sparsity": s} for s in points])
    trials: dict[float, optuna.Trial] = {}

    def asked() -> Iterator[float]:
        while found := ask(study, 1):
            sparsity = found[0].suggest_categorical("sparsity", points)
            trials[sparsity] = found[0]
            yield sparsity

    jobs = processes(jobs, workshop, backend=backend)
    with workshop.progress.stage("maxidisc trials", len(points)) as bar:
        bar.advance(completed(study))
        if jobs > 1 or backend != LOCAL:
            fill_cache(work, workshop)
        while waiting(study):
            if jobs > 1 or backend != LOCAL:
                outcomes = spread(work, asked(), jobs, workshop, backend=backend)
            else:
                outcomes = _one_by_one(work, asked(), workshop)
            for sparsity, outcome in outcomes:
                trial, name = trials[sparsity], _name(sparsity)
                if isinstance(outcome, Pair):
                    trial.set_user_attr("assistant_metric", outcome.assistant.metric)
                    trial.set_user_attr("seconds", outcome.seconds)
                    trial.set_user_attr("flops", outcome.flops)
                    kept = outcome.assistant.candidate
                    trial.set_user_attr("sparsity", kept.sparsity)
                    trial.set_user_attr("candidate", {"heads": list(kept.heads), "neurons": list(kept.neurons)})
                    others = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
                    own = (outcome.student.metric, sparsity)
                    if all(own > (t.value, t.params["sparsity"]) for t in others):  # as the result's best
                        keep(outcome.assistant, outcome.student)
                        workshop.curves.update(outcome.curves)
                    figures = {
                        "sparsity": sparsity,
                        "assistant metric": outcome.assistant.metric,
                        "metric": outcome.student.metric,
                    }
                    workshop.tracker.log("trials", figures, step=trial.number)
                    watch.measured(trial, None)
                workshop.ledger.pay(name)
                workshop.book()  # before it is told: what a trial that is told has spent has been booked
                if not isinstance(outcome, (Pair, TrainingError)):
                    tell(study, trial, outcome)
                    raise outcome
                tell(study, trial, outcome.student.metric if isinstance(outcome, Pair) else outcome)
                workshop.forget(name)
                watch.told()
                bar.advance(int(isinstance(outcome, Pair)))
            enqueue_failed(study, retries)


def _one_by_one(
    work: MultiTrial, sparsities: Iterable[float], workshop: Workshop
) -> Iterator[tuple[float, Pair | Exception]]:
    for sparsity in sparsities:
        try:
            yield sparsity, work(workshop, sparsity)
        except Exception as error:
            yield sparsity, error


def fill_cache(work: MultiTrial, workshop: Workshop) -> None:
    """The teacher's outputs for every row, in the batches of a trial's first pass: else each process would make them,
    and charge for them."""
    config, task = work.config, workshop.task
    order = workshop.runtime.generator(ASSISTANT_PHASE, "order")
    with workshop.teacher(work.teacher, config) as outputs:
        for batch in batches(task.train, batch_size=config.batch_size, pad_token_id=task.pad_token_id, generator=order):
            for part in batch.split(config.accumulation):
                in_halves(part.to(workshop.runtime.device), outputs)
            if any(why.startswith("recompute") for why in workshop.ledger.decisions.values()):
                return  # every process will


def distill_direct(
    teacher: PreTrainedModel,
    ranking: Ranking,
    candidates: Mapping[float, Candidate],
    student: Candidate,
    config: DistillationConfig,
    workshop: Workshop,
    into: PreTrainedModel | None = None,
) -> Distilled:
    """Plain distillation, teacher to student, for as many steps as a mean maxidisc trial's compute pays for.

    ``into`` is a student of another architecture, for which ``student`` stands.
    """
    cost = _pass_cost(teacher, workshop.task.train)
    passes = _passes(ranking, candidates, student, config, cost, alone=into is not None)
    ratio = sum(passes) / len(passes) / cost(student)
    steps = steps_for(workshop.task.train, config.batch_size, ratio)
    stage = "teacher to student"
    with workshop.teacher(teacher, config, student=into) as outputs:
        if into is not None:
            return distill_into(into, [outputs], student, stage=stage, steps=steps, config=config, workshop=workshop)
        return distill_phase(
            extract(teacher, ranking, student),
            [outputs],
            ranking,
            [student],
            target=student,
            stage=stage,
            steps=steps,
            size=1,
            config=config,
            workshop=workshop,
        )


def projected_flops(
    teacher: PreTrainedModel,
    ranking: Ranking,
    candidates: Mapping[float, Candidate],
    student: Candidate,
    config: DistillationConfig,
    train: Split,
    *,
    alone: bool = False,
) -> float:
    """What ``run_maxidisc`` will cost, before any of it is run: by sizes alone, without padding and evaluation.

    Two recorded runs booked more: it was .85 (MRPC) and .81 (SST-2) of theirs, so shares of it err on the careful side.

    A training pass is three forwards; the teacher answers each row once, since its outputs are kept. ``alone``: the
    student is of another architecture.
    """
    forward = 2 * forward_macs(teacher, _mean_tokens(train))  # of a row
    passes = sum(_passes(ranking, candidates, student, config, _pass_cost(teacher, train), alone=alone))
    return float(forward * len(train) * (1 + 3 * passes))


def _mean_tokens(split: Split) -> int:
    """Of a row."""
    return max(1, round(split.tokens / len(split)))


def _pass_cost(teacher: PreTrainedModel, train: Split) -> Callable[[Candidate], float]:
    """A candidate's training pass in those of the full model: its scale, but for a vocabulary's head, which does not
    shrink: of SmolLM2-135M at .95 it is five sixths of what is left."""
    if own_head(teacher) != "causal":
        return lambda candidate: candidate.scale
    tokens = _mean_tokens(train)
    whole = forward_macs(teacher, tokens)
    return lambda candidate: 1 - saved_macs(teacher, candidate.heads, candidate.neurons, tokens) / whole


def _passes(
    ranking: Ranking,
    candidates: Mapping[float, Candidate],
    student: Candidate,
    config: DistillationConfig,
    cost: Callable[[Candidate], float],
    *,
    alone: bool,
) -> list[float]:
    """What each trial of maxidisc costs, in training passes of the full model; a student that is ``alone``, of
    another architecture, is in no sandwich in its phase."""
    found = []
    for sparsity in candidates:
        *before, last = phases(ranking, chain_from(candidates[sparsity], candidates.values(), student), config)
        last = replace(last, candidates=(student,)) if alone else last
        found.append(full_passes([*before, last], cost))
    return found


def baseline_result(study: optuna.Study, *, storage: str) -> dict[str, Any]:
    """The study as plain numbers: the best trial by the student's validation metric, and every trial."""
    rows = [
        {
            "number": trial.number,
            "state": trial.state.name,
            "sparsity": point_of(trial).get("sparsity"),
            "assistant_metric": trial.user_attrs.get("assistant_metric"),
            "student_metric": trial.value,
            "seconds": trial.user_attrs.get("seconds"),
            "flops": trial.user_attrs.get("flops"),
            **({"error": trial.user_attrs.get(ERROR, "interrupted")} if trial.state is TrialState.FAIL else {}),
        }
        for trial in of_record(study)
    ]
    rows.sort(key=lambda row: (row["sparsity"] or 0.0, row["number"]))
    done = [row for row in rows if row["state"] == "COMPLETE"]
    winner = max(done, key=lambda row: (row["student_metric"], row["sparsity"]), default=None)
    return {"best": winner, "trials": rows, "storage": storage, "study": study.study_name}
