"""What a sampler would have visited, had it searched values that are known already."""

from __future__ import annotations

from collections.abc import Mapping

import optuna

from autodisc.search.storage import quiet_optuna

RANDOM_FIRST = 2  # Optuna's default of 10 random trials is more than a grid of assistants has


def replay_tpe(values: Mapping[float, float], *, trials: int, seed: int) -> list[float]:
    """The first ``trials`` different points of ``values`` that TPE visits, each told its value; in that order.

    A point that is suggested again is told again, at no cost: a study would look it up.
    """
    points = sorted(values)
    sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=RANDOM_FIRST)
    visited: list[float] = []
    with quiet_optuna():
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for _ in range(50 * len(points)):
            if len(visited) >= min(trials, len(points)):
                break
            trial = study.ask()
            asked = trial.suggest_float("sparsity", points[0], points[-1]) if len(points) > 1 else points[0]
            point = min(points, key=lambda point: abs(point - asked))
            study.tell(trial, values[point])
            if point not in visited:
                visited.append(point)
    return visited
