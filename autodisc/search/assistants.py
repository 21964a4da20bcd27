"""The study of teacher assistants: a trial runs as a candidate, evaluates it on validation,
and returns the λ-tradeoff. No trial trains anything.

Trials are asked for together, evaluated in one pass over the data (several processes share the candidates out), and
told one by one: a grid at once; of a sampled range the random start at once, then each as the sampler learns.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from autodisc.config import SearchConfig
from autodisc.distillation.schedule import Workshop
from autodisc.errors import TrainingError
from autodisc.models.inference import evaluation_batch
from autodisc.progress import Bar, Tracker
from autodisc.pruning.candidates import Candidate
from autodisc.search.backends import LOCAL
from autodisc.search.evaluation import Measured, Opened, Outcome, evaluate
from autodisc.search.scorers import beside, let_go, one_at_a_time
from autodisc.search.sharing import SharedStudy
from autodisc.search.stopping import Judge, Standing, values_of
from autodisc.search.storage import (
    ERROR,
    ask,
    completed,
    enqueue_failed,
    enqueue_missing,
    of_record,
    point_of,
    quiet_optuna,
    reseed,
    startup_trials,
    tell,
    waiting,
)
from autodisc.search.students import Latency
from autodisc.search.tradeoff import Score, best, infeasibility, tradeoff
from autodisc.search.watching import Unwatched, Watch
from autodisc.search.workers import apart, processes, spread

STAGE = "trials"
FLOOR_CONSTRAINT = "leaves the floor"
LATENCY = "latency_ms"
SCORE = ("sparsity", "metric", "floor", "standard_error")


def measure(opened: Opened, candidate: Candidate, workshop: Workshop) -> Measured:
    """Evaluate one candidate on validation; raises TrainingError when its outputs are not finite."""
    (found,) = evaluate(opened, [candidate], workshop)
    if isinstance(found, TrainingError):
        raise found
    return found


def run_study(
    study: optuna.Study,
    opened: Opened,
    candidates: Sequence[Candidate],
    config: SearchConfig,
    workshop: Workshop,
    *,
    latency: Latency | None = None,
    watch: Watch | None = None,
) -> None:
    """Run the study's outstanding trials: every candidate once, or ``config.trials`` in total.

    Where none is sampled they are visited in their order. With ``latency`` a trial records what is predicted of its
    candidate; ``watch`` looks on.
    """
    watch = watch or Unwatched()
    points = _Points.of(candidates)
    total, sample = _extent(config, candidates)
    if not sample:
        enqueue_missing(study, points.queued[:total])
    jobs, startup = processes(config.jobs, workshop, backend=config.backend), startup_trials(total)
    failures = 0
    with workshop.progress.stage(STAGE, total * _batches(workshop)) as bar:
        bar.advance(min(completed(study), total) * _batches(workshop))
        while (done := completed(study)) < total and (waiting(study) or (sample and failures < total)):
            at_once = max(startup - done, 1) if sample else total  # whatever the jobs: they change no choice
            trials: list[optuna.Trial] = []
            asked: dict[int, Candidate] = {}
            for _ in range(min(at_once, total - done)):
                with workshop.ledger.stage(STAGE):
                    reseed(study, seed=workshop.runtime.seed, sampler=config.sampler, startup=startup)
                    for trial in ask(study, 1, sample=sample):
                        trials.append(trial)
                        asked[trial.number] = points.suggest(trial, config, _taken(study) if sample else ())
            judge = Judge(config.lam, config.margin, list(_standings(study))) if config.prune else None
            try:
                found = _measure(
                    opened, list(dict.fromkeys(asked.values())), judge, jobs, config.backend, workshop, bar
                )
            except Exception as error:
                for trial in trials:
                    tell(study, trial, error)
                raise
            workshop.book()  # before the trials that it paid for are told
            for trial in trials:
                if latency is not None:
                    trial.set_user_attr(LATENCY, latency(asked[trial.number]))
                with workshop.ledger.stage(STAGE):  # pictures are paid for too
                    _settle(study, trial, found[asked[trial.number]], config, watch, workshop.tracker)
            failures += sum(isinstance(found[candidate], TrainingError) for candidate in asked.values())
            enqueue_failed(study, config.retries)


def join_study(
    shared: SharedStudy,
    opened: Opened,
    candidates: Sequence[Candidate],
    config: SearchConfig,
    workshop: Workshop,
    *,
    latency: Latency | None = None,
    watch: Watch | None = None,
) -> int:
    """Take trials of a study that others take trials of, one at a time, until all are done; returns how many."""
    watch = watch or Unwatched()
    points = _Points.of(candidates)
    total, sample = _extent(config, candidates)
    taken = 0
    queued = [{}] * total if sample else points.queued[:total]
    with (
        workshop.progress.stage(STAGE, total * _batches(workshop)) as bar,
        contextlib.closing(shared.trials(queued)) as trials,
        quiet_optuna(),
    ):
        bar.advance(min(completed(shared.study), total) * _batches(workshop))
        for trial in trials:
            try:
                with workshop.ledger.stage(STAGE):
                    candidate = points.suggest(trial, config, _taken(shared.study) if sample else ())
                judge = Judge(config.lam, config.margin, list(_standings(shared.study))) if config.prune else None
                with workshop.ledger.stage(STAGE):
                    (found,) = evaluate(opened, [candidate], workshop, judge=judge, bar=bar)
                let_go(opened)
                workshop.book()  # before the trial that it paid for is told
                if latency is not None:
                    trial.set_user_attr(LATENCY, latency(candidate))
                _settle(shared.study, trial, found, config, watch, workshop.tracker)
                taken += 1
            except Exception as error:
                if shared.is_ours(trial):
                    tell(shared.study, trial, error)
                    raise
                if not isinstance(error, (UpdateFinishedTrialError, ValueError)):
                    raise
                # ValueError is what Optuna says of a trial that has been told.
                workshop.progress.say(f"trial {trial.number}: no sign of this process for too long; another takes it")
    return taken


@dataclass(frozen=True)
class _Points:
    """Candidates by what a trial suggests: the sparsity, and the balance where there is more than one."""

    candidates: Sequence[Candidate]
    sparsities: tuple[float, ...]
    balances: tuple[float, ...]

    @classmethod
    def of(cls, candidates: Sequence[Candidate]) -> _Points:
        sparsities, balances = {c.sparsity for c in candidates}, {c.balance for c in candidates}
        return cls(candidates, tuple(sorted(sparsities)), tuple(sorted(balances)))

    @property
    def queued(self) -> list[dict[str, float]]:
        """A trial's parameters for each candidate."""
        names = ("sparsity", "balance") if len(self.balances) > 1 else ("sparsity",)
        return [{name: getattr(candidate, name) for name in names} for candidate in self.candidates]

    def suggest(self, trial: optuna.Trial, config: SearchConfig, taken: Collection[tuple[float, float]]) -> Candidate:
        """The candidate nearest to what the sampler, or the queue, suggests, of those that are not ``taken``."""
        step = None if config.low is None else config.step
        sparsity = _suggest(trial, "sparsity", self.sparsities, step=step)
        balance = _suggest(trial, "balance", self.balances) if len(self.balances) > 1 else self.balances[0]
        spans = [points[-1] - points[0] or 1.0 for points in (self.sparsities, self.balances)]

        def distance(candidate: Candidate) -> float:
            return abs(candidate.sparsity - sparsity) / spans[0] + abs(candidate.balance - balance) / spans[1]

        left = [c for c in self.candidates if (c.sparsity, c.balance) not in taken]
        candidate = min(left or self.candidates, key=distance)  # none is left where two processes ask at once
        trial.set_user_attr("sparsity", candidate.sparsity)
        trial.set_user_attr("balance", candidate.balance)
        return candidate


def _extent(config: SearchConfig, candidates: Sequence[Candidate]) -> tuple[int, bool]:
    """How many trials there are to be in all, and whether the sampler chooses their points."""
    total = min(config.trials or len(candidates), len(candidates))
    return total, config.sampled and total < len(candidates)


def _measure(
    opened: Opened,
    candidates: Sequence[Candidate],
    judge: Judge | None,
    jobs: int,
    backend: str,
    workshop: Workshop,
    bar: Bar,
) -> dict[Candidate, Outcome]:
    """Every candidate in one pass, or, with several processes, in one pass of each process; or one after the other."""
    found: dict[Candidate, Outcome] = {}
    if (jobs == 1 and backend == LOCAL) or len(candidates) == 1:
        with workshop.ledger.stage(STAGE):
            rounds = [[each] for each in candidates] if judge is None and one_at_a_time(opened) else [candidates]
            for together in rounds:
                outcomes = evaluate(opened, together, workshop, judge=judge, bar=bar)
                found |= dict(zip(together, outcomes, strict=True))
                let_go(opened)
        return found
    parts = [tuple(candidates[number::jobs]) for number in range(min(jobs, len(candidates)))]
    for part, outcome in spread(_Part(beside(opened, apart(workshop)), judge), parts, jobs, workshop, backend=backend):
        if isinstance(outcome, Exception) and not isinstance(outcome, TrainingError):
            raise outcome
        each = [outcome] * len(part) if isinstance(outcome, TrainingError) else outcome
        found |= dict(zip(part, each, strict=True))
        bar.advance(len(part) * _batches(workshop))
    return found


@dataclass(frozen=True)
class _Part:
    """What one of several processes does."""

    opened: Opened
    judge: Judge | None

    def __call__(self, workshop: Workshop, candidates: tuple[Candidate, ...]) -> list[Outcome]:
        with workshop.ledger.stage(STAGE):
            return evaluate(beside(self.opened, workshop), candidates, workshop, judge=self.judge)


def _batches(workshop: Workshop) -> int:
    task = workshop.task
    return -(-len(task.validation) // evaluation_batch(task.validation, task))


def _settle(
    study: optuna.Study,
    trial: optuna.Trial,
    outcome: Outcome,
    config: SearchConfig,
    watch: Watch,
    tracker: Tracker,
) -> None:
    """Record what a trial measured, or why it could not, and end it."""
    if isinstance(outcome, TrainingError):
        tell(study, trial, outcome)
        return watch.told()
    for step, value in enumerate(outcome.values):
        trial.report(value, step)
    lacks = infeasibility(outcome.score, config.margin)
    # Optuna calls a constraint of exactly 0 met; ours must be clear of the floor.
    trial.set_constraint(FLOOR_CONSTRAINT, lacks if lacks != 0.0 else math.ulp(0.0))
    for name, attribute in _attributes(outcome).items():
        trial.set_user_attr(name, attribute)
    value = tradeoff(outcome.score.metric, outcome.score.sparsity, config.lam)
    point = {"sparsity": outcome.score.sparsity, "balance": outcome.candidate.balance}
    figures = {**point, "metric": outcome.score.metric, "tradeoff": value}
    tracker.log(STAGE, figures, step=trial.number)
    watch.measured(trial, outcome.confusion)
    tell(study, trial, None if outcome.stopped else value)
    watch.told()


def _standings(study: optuna.Study) -> Iterator[Standing]:
    """Where the complete trials ended, step by step."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        score = Score(*(trial.user_attrs[name] for name in SCORE))
        yield Standing(score, values_of(trial.intermediate_values))


def search_result(study: optuna.Study, config: SearchConfig, *, storage: str) -> dict[str, Any]:
    """The study as plain numbers: the chosen trial (None when none is feasible) and every trial, by sparsity.

    A trial that failed or was cut short is left out where its point was tried again.
    """
    rows = [_row(trial, config) for trial in of_record(study)]
    rows.sort(key=lambda row: (row["sparsity"] or 0.0, abs(row["balance"]), row["balance"], row["number"]))
    done = [row for row in rows if row["state"] == "COMPLETE"]
    chosen = best([Score(*(row[name] for name in SCORE)) for row in done], config.lam, config.margin)
    keys = (*SCORE, "balance", "tradeoff", "feasible", "scale", "params", "macs", "number")
    return {
        "best": None if chosen is None else {key: done[chosen][key] for key in keys},
        "trials": rows,
        "storage": storage,
        "study": study.study_name,
    }


def _taken(study: optuna.Study) -> set[tuple[float, float]]:
    """The candidates that a trial has measured, or is at."""
    trials = [t.user_attrs for t in study.get_trials(deepcopy=False) if t.state is not TrialState.FAIL]
    return {(known["sparsity"], known["balance"]) for known in trials if "balance" in known}


def _suggest(trial: optuna.Trial, name: str, points: Sequence[float], *, step: float | None = None) -> float:
    if len(points) > 1:
        return trial.suggest_float(name, points[0], points[-1], step=step)
    return float(trial.suggest_categorical(name, points))


def _attributes(measured: Measured) -> dict[str, Any]:
    heads, neurons = measured.candidate.heads, measured.candidate.neurons
    return {
        "sparsity": measured.candidate.sparsity,
        "balance": measured.candidate.balance,
        "metric": measured.score.metric,
        "floor": measured.score.floor,
        "standard_error": measured.score.standard_error,
        "examples": measured.examples,
        "scale": measured.candidate.scale,
        "params": measured.params,
        "macs": measured.macs,
        "seconds": measured.seconds,
        "candidate": {"heads": list(heads), "neurons": list(neurons)},
    }


def _row(trial: FrozenTrial, config: SearchConfig) -> dict[str, Any]:
    # The point itself: what Optuna counts up from the range's low differs in the last digit.
    asked = {**point_of(trial), **trial.user_attrs}
    row: dict[str, Any] = {"number": trial.number, "state": trial.state.name, "sparsity": asked.get("sparsity")}
    row["balance"] = asked.get("balance", 0.0)
    names = ("metric", "floor", "standard_error", "scale", "params", "macs", "seconds", "candidate")
    row |= {name: trial.user_attrs.get(name) for name in names}
    if LATENCY in trial.user_attrs:
        row[LATENCY] = trial.user_attrs[LATENCY]
    if trial.state is TrialState.PRUNED:
        # A metric of some examples is not to be ranked with those of all, under whatever λ.
        row["stopped"] = {name: trial.user_attrs[name] for name in (*SCORE[1:], "examples")}
        row |= dict.fromkeys(SCORE[1:])
    if trial.state is TrialState.COMPLETE:
        score = Score(*(row[name] for name in SCORE))
        return row | {
            "tradeoff": tradeoff(score.metric, score.sparsity, config.lam),
            "feasible": score.feasible(config.margin),
        }
    row |= {"tradeoff": None, "feasible": None}
    if trial.state is TrialState.FAIL:
        row["error"] = trial.user_attrs.get(ERROR, "interrupted")
    return row
