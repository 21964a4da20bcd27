"""Tell which candidates are surely worse than the best one: Optuna's WilcoxonPruner, on parts of validation.

value of step k = lam * sparsity + n m(steps 1..n) - (n - 1) m(all of them but k)        (jackknife; Quenouille, 1956)

Validation is visited in up to 20 steps. A step's value is its pseudo-value: for accuracy the step's own accuracy, and
for F1 or a correlation, which are means of nothing, what the step adds to them. Steps and not examples, since two
candidates agree on most examples: the difference is then lam * (s - s') for nearly all, and a signed-rank test would
weigh that, the median, and not the mean.

A leader must stand CLEAR standard errors further from the floor than ``margin`` asks, on what it has seen: a collapsed
candidate has the highest tradeoff of all, and must not stop those that work.
"""

from __future__ import annotations

import itertools
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from autodisc.search.storage import quiet_optuna
from autodisc.search.tradeoff import Score
from autodisc.tasks.metrics import Metric

STEPS = 20
FIRST = 8  # steps before anything is stopped: so few examples as 7 batches hold (mrpc's 408 pairs) stop nothing
THRESHOLD = 0.005  # of one look; over all of them equals are stopped in some 2 % of cases
CLEAR = 3.0
UNTIE = 1e-9


@dataclass(frozen=True)
class Standing:
    """A candidate part of the way: its score on the examples that it has seen, and its steps' values."""

    score: Score
    values: tuple[float, ...]


class Judge:
    """Tells hopeless candidates; ``leaders`` are those of trials that are complete."""

    def __init__(self, lam: float, margin: float, leaders: Sequence[Standing] = ()) -> None:
        self.lam, self._clear = lam, margin + CLEAR
        self._leaders = [leader for leader in leaders if leader.score.feasible(self._clear) and leader.values]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._pruner = optuna.pruners.WilcoxonPruner(p_threshold=THRESHOLD, n_startup_steps=FIRST)

    def hopeless(self, standings: Sequence[Standing]) -> list[bool]:
        """Of each, whether it is surely worse than the best of them and of the leaders."""
        if not standings or len(standings[0].values) < FIRST:
            return [False] * len(standings)
        clear = [one for one in standings if one.score.feasible(self._clear)]
        leader = max((*self._leaders, *clear), key=lambda one: statistics.fmean(one.values), default=None)
        return [leader is not None and one is not leader and self._worse(one, leader) for one in standings]

    def _worse(self, one: Standing, leader: Standing) -> bool:
        # Differences in steps of 1/64 tie, and for a tie among up to 13 the test tries all 2^13 signs: .7 s a look.
        values = {step: value + UNTIE * (step + 1) for step, value in enumerate(one.values)}
        with quiet_optuna():
            study = optuna.create_study(direction="maximize")
            value = statistics.fmean(leader.values)
            study.add_trial(create_trial(value=value, intermediate_values=dict(enumerate(leader.values))))
            trial = create_trial(state=TrialState.RUNNING, intermediate_values=values)
            return self._pruner.prune(study, trial)


def step_ends(batches: int) -> list[int]:
    """After how many of the batches each step ends."""
    parts = np.array_split(np.arange(batches), min(STEPS, batches))
    return list(itertools.accumulate(len(part) for part in parts))


def step_values(metric: Metric, steps: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """What each step, (predictions, labels), adds to the metric of all of them."""
    whole, n = _score(metric, steps), len(steps)
    if n == 1:
        return [whole]
    return [n * whole - (n - 1) * _score(metric, [*steps[:k], *steps[k + 1 :]]) for k in range(n)]


def values_of(intermediate: Mapping[int, float]) -> tuple[float, ...]:
    """The values that a trial reported, by step."""
    return tuple(intermediate[step] for step in sorted(intermediate))


def _score(metric: Metric, steps: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    predictions, labels = (np.concatenate(column) for column in zip(*steps, strict=True))
    return metric.score(predictions, labels)
