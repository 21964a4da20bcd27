"""The student that a budget leads to: an Optuna study whose trials count, and run no model.

A trial suggests a sparsity and returns the scale; each part of the budget is one of its constraints. Encoder
parameters and MACs are exact; a latency is predicted from the timings of the layers, which are taken once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import joblib
import optuna
from transformers import PreTrainedModel

from autodisc.config import BudgetConfig
from autodisc.errors import ConfigError
from autodisc.models.inference import forward_macs, saved_macs
from autodisc.models.layouts import encoder_parameters
from autodisc.pruning.candidates import Candidate, Ranking, candidate
from autodisc.search.budgets import STEP, Use, allowed, grid, least_sparse, meets, over, say
from autodisc.search.journals import open_storage
from autodisc.search.storage import (
    FINGERPRINT,
    ask,
    completed,
    enqueue_missing,
    open_study,
    quiet_optuna,
    tell,
    waiting,
)

Latency = Callable[[Candidate], float]  # predicted ms of a forward
POINTS = grid(STEP, 1 - STEP)


def uses_of(teacher: PreTrainedModel, candidates: Iterable[Candidate], latency: Latency | None) -> list[Use]:
    """What each candidate of ``teacher`` uses."""
    macs = forward_macs(teacher)
    return [
        Use(
            each.sparsity,
            encoder_parameters(teacher, each.heads, each.neurons),
            macs - saved_macs(teacher, each.heads, each.neurons),
            None if latency is None else latency(each),
        )
        for each in candidates
    ]


def students(
    teacher: PreTrainedModel, ranking: Ranking, budget: BudgetConfig, latency: Latency | None
) -> tuple[list[Use], Use]:
    """Every student that may be, and the one that the budget leads to.

    Raises ConfigError where none meets the budget, or the teacher itself does.
    """
    first, *uses = uses_of(teacher, [candidate(ranking, sparsity) for sparsity in (0.0, *POINTS)], latency)
    limits = allowed(budget)
    if meets(first, limits):
        raise ConfigError(f"budget: the teacher itself meets it ({say(first, limits)}); give less")
    return uses, least_sparse(uses, limits, of="student")


def fingerprint(teacher: str, ranking: Ranking, budget: BudgetConfig) -> dict[str, Any]:
    """What decides the student: the same budget of the same units leads to the same one."""
    return {
        "teacher": teacher,
        "ranking": joblib.hash([ranking.heads, ranking.neurons]),
        "budget": budget.model_dump(mode="json"),
    }


def known_student(name: str, storage: str, made_of: Mapping[str, Any]) -> Use | None:
    """The student of a finished study; none where there is none yet, or ``run_students`` has to go on with it."""
    if storage.endswith(".log") and not Path(storage).exists():
        return None
    with quiet_optuna(), contextlib.suppress(KeyError):
        study = optuna.load_study(study_name=name, storage=open_storage(storage))
        if study.user_attrs.get(FINGERPRINT) == made_of and completed(study) == len(POINTS):
            return _best(study)
    return None


def run_students(name: str, storage: str, made_of: dict[str, Any], uses: Sequence[Use], budget: BudgetConfig) -> Use:
    """Record every student in a study of its own, or go on with it, and return the best: the least sparse allowed."""
    study = open_study(name, storage, fingerprint=made_of, metric_name="scale")
    points, limits = {use.sparsity: use for use in uses}, allowed(budget)
    enqueue_missing(study, [{"sparsity": sparsity} for sparsity in points])
    for trial in ask(study, waiting(study)):
        value = trial.suggest_float("sparsity", STEP, 1 - STEP, step=STEP)
        use = points[min(points, key=lambda point: abs(point - value))]
        for part, used in asdict(use).items():
            if used is not None:
                trial.set_user_attr(part, used)
        for part, excess in over(use, limits).items():
            trial.set_constraint(part, excess)
        tell(study, trial, 1.0 - use.sparsity)
    return _best(study)


def _best(study: optuna.Study) -> Use:
    found = study.best_trial.user_attrs
    return Use(found["sparsity"], found["params"], found["macs"], found.get("latency_ms"))
