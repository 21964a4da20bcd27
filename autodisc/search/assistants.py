"""The study of teacher assistants: a trial runs as a candidate, evaluates it on validation,
and returns the λ-tradeoff. No trial trains anything.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from transformers import PreTrainedModel

from autodisc.config import SearchConfig
from autodisc.distillation.schedule import Workshop
from autodisc.models.inference import forward_macs, predict
from autodisc.models.layouts import encoder_parameters
from autodisc.pruning.candidates import Candidate
from autodisc.search.storage import ERROR, completed, enqueue_missing, run_trials
from autodisc.search.tradeoff import Score, best, infeasibility, tradeoff
from autodisc.tasks.metrics import decode

STAGE = "trials"
Opened = Callable[[Candidate], AbstractContextManager[PreTrainedModel]]  # a model that runs as a candidate
FLOOR_CONSTRAINT = "leaves the floor"


@dataclass(frozen=True)
class Measured:
    """What a trial measures. ``params`` counts the encoder's parameters, ``macs`` one sequence of 128 tokens."""

    score: Score
    scale: float
    params: int
    macs: int
    seconds: float
    candidate: Candidate


def measure(opened: Opened, candidate: Candidate, workshop: Workshop) -> Measured:
    """Evaluate one candidate on validation; raises TrainingError when its outputs are not finite."""
    task, seed = workshop.task, workshop.runtime.seed
    since = time.perf_counter()
    with opened(candidate) as model:
        kind = (candidate.heads, candidate.neurons)
        logits = predict(model, task.validation, task=task, runtime=workshop.runtime, ledger=workshop.ledger, kind=kind)
        params, macs = encoder_parameters(model, candidate.heads, candidate.neurons), forward_macs(model)
    labels, predictions = task.validation.labels, decode(logits, task.kind)
    score = Score(
        sparsity=candidate.sparsity,
        metric=task.metric.score(predictions, labels),
        floor=task.metric.floor(labels),
        standard_error=task.metric.standard_error(predictions, labels, seed),
    )
    return Measured(score, candidate.scale, params, macs, time.perf_counter() - since, candidate)


def run_study(
    study: optuna.Study,
    opened: Opened,
    candidates: Mapping[float, Candidate],
    config: SearchConfig,
    workshop: Workshop,
) -> None:
    """Run the study's outstanding trials: every candidate once, or ``config.trials`` in total."""
    points = sorted(candidates)
    total = config.trials or len(points)
    sample = config.low is not None and total < len(points)
    if not sample:
        total = min(total, len(points))
        enqueue_missing(study, [{"sparsity": s} for s in points[:total]])

    def objective(trial: optuna.Trial) -> float:
        sparsity = _suggest(trial, config, points)
        measured = measure(opened, candidates[sparsity], workshop)
        value = tradeoff(measured.score.metric, sparsity, config.lam)
        lacks = infeasibility(measured.score, config.margin)
        # Optuna calls a constraint of exactly 0 met; ours must be clear of the floor.
        trial.set_constraint(FLOOR_CONSTRAINT, lacks if lacks != 0.0 else math.ulp(0.0))
        for name, attribute in _attributes(measured).items():
            trial.set_user_attr(name, attribute)
        return value

    with workshop.ledger.stage(STAGE), workshop.progress.stage(STAGE, total) as bar:
        bar.advance(min(completed(study), total))
        for succeeded in run_trials(study, objective, total, sample=sample):
            bar.advance(int(succeeded))


def search_result(study: optuna.Study, config: SearchConfig, *, storage: str) -> dict[str, Any]:
    """The study as plain numbers: the chosen trial (None when none is feasible) and every trial, by sparsity."""
    trials = [t for t in study.get_trials(deepcopy=False) if t.state in (TrialState.COMPLETE, TrialState.FAIL)]
    rows = sorted((_row(t, config) for t in trials), key=lambda row: (row["sparsity"] or 0.0, row["number"]))
    done = [row for row in rows if row["state"] == "COMPLETE"]
    fields = ("sparsity", "metric", "floor", "standard_error")
    chosen = best([Score(*(row[f] for f in fields)) for row in done], config.lam, config.margin)
    keys = (*fields, "tradeoff", "feasible", "scale", "params", "macs", "number")
    return {
        "best": None if chosen is None else {key: done[chosen][key] for key in keys},
        "trials": rows,
        "storage": storage,
        "study": study.study_name,
    }


def _suggest(trial: optuna.Trial, config: SearchConfig, points: list[float]) -> float:
    if config.low is not None and len(points) > 1:
        value = trial.suggest_float("sparsity", points[0], points[-1], step=config.step)
    elif len(points) > 1:
        value = trial.suggest_float("sparsity", points[0], points[-1])
    else:
        value = trial.suggest_categorical("sparsity", points)
    return min(points, key=lambda point: abs(point - value))


def _attributes(measured: Measured) -> dict[str, Any]:
    heads, neurons = measured.candidate.heads, measured.candidate.neurons
    return {
        "sparsity": measured.candidate.sparsity,
        "metric": measured.score.metric,
        "floor": measured.score.floor,
        "standard_error": measured.score.standard_error,
        "scale": measured.scale,
        "params": measured.params,
        "macs": measured.macs,
        "seconds": measured.seconds,
        "candidate": {"heads": list(heads), "neurons": list(neurons)},
    }


def _row(trial: FrozenTrial, config: SearchConfig) -> dict[str, Any]:
    # The point that was measured: what Optuna counts up from the range's low differs in the last digit.
    sparsity = trial.user_attrs.get("sparsity", trial.params.get("sparsity"))
    row: dict[str, Any] = {"number": trial.number, "state": trial.state.name, "sparsity": sparsity}
    names = ("metric", "floor", "standard_error", "scale", "params", "macs", "seconds", "candidate")
    row |= {name: trial.user_attrs.get(name) for name in names}
    if trial.state is TrialState.COMPLETE:
        score = Score(*(row[name] for name in ("sparsity", "metric", "floor", "standard_error")))
        row |= {
            "tradeoff": tradeoff(score.metric, score.sparsity, config.lam),
            "feasible": score.feasible(config.margin),
        }
    else:
        row |= {"tradeoff": None, "feasible": None, "error": trial.user_attrs.get(ERROR, "interrupted")}
    return row
