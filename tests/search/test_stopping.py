from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from optuna.trial import TrialState

from autodisc.search import evaluation
from autodisc.search.stopping import FIRST, Judge, Standing, step_ends, step_values
from autodisc.search.tradeoff import Score
from autodisc.tasks.metrics import METRICS

ROWS = 64 * 14
FLOOR = 0.5


def standing(accuracy: float, sparsity: float = 0.5, *, lam: float = 0.0, steps: int = 12, seed: int = 0) -> Standing:
    noise = np.random.default_rng(seed).normal(scale=0.03, size=steps)
    values = tuple(float(value) for value in accuracy + lam * sparsity + noise - noise.mean())
    return Standing(Score(sparsity, accuracy, FLOOR, 0.02), values)


def test_what_is_surely_worse_than_the_best_is_hopeless_and_nothing_else():
    standings = [standing(0.9, seed=1), standing(0.7, seed=2), standing(0.895, seed=3)]
    assert Judge(0.2, 1.0).hopeless(standings) == [False, True, False]


def test_a_few_steps_are_too_few():
    short = [standing(0.95, steps=FIRST - 1), standing(0.6, steps=FIRST - 1, seed=1)]
    assert Judge(0.2, 1.0).hopeless(short) == [False, False]
    assert Judge(0.2, 1.0).hopeless([]) == []


def test_a_candidate_at_the_floor_stops_nothing_however_sparse_it_is():
    collapsed, good = standing(0.52, 0.9, lam=2.0), standing(0.8, 0.3, lam=2.0, seed=1)
    assert np.mean(collapsed.values) > np.mean(good.values) + 0.5
    assert Judge(2.0, 1.0).hopeless([collapsed, good]) == [False, False]
    barely = replace(collapsed, score=replace(collapsed.score, metric=FLOOR + 3.9 * 0.02))  # feasible, but not clear
    assert Judge(2.0, 1.0).hopeless([barely, good]) == [False, False]
    clear = replace(collapsed, score=replace(collapsed.score, metric=FLOOR + 4.1 * 0.02))
    assert Judge(2.0, 1.0).hopeless([clear, good]) == [False, True]


def test_a_finished_trial_leads_too():
    bad = standing(0.7)
    assert Judge(0.2, 1.0).hopeless([bad]) == [False]
    assert Judge(0.2, 1.0, [standing(0.9, steps=14, seed=1)]).hopeless([bad]) == [True]
    assert Judge(0.2, 1.0, [Standing(Score(0.5, 0.9, FLOOR, 0.02), ())]).hopeless([bad]) == [False]


def test_a_steps_value_is_its_own_accuracy_and_for_other_metrics_they_average_to_the_metric():
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 2, 50) for _ in range(9)]
    steps = [(np.where(rng.random(50) < 0.8, own, 1 - own), own) for own in labels]
    accuracies = [float(np.mean(predictions == own)) for predictions, own in steps]
    assert step_values(METRICS["accuracy"], steps) == pytest.approx(accuracies)
    predictions, own = (np.concatenate(column) for column in zip(*steps, strict=True))
    for name in ("accuracy_f1", "f1_macro", "matthews", "pearson", "spearman"):
        found = step_values(METRICS[name], steps)
        assert np.mean(found) == pytest.approx(METRICS[name].score(predictions, own), abs=0.01)
        assert np.corrcoef(found, accuracies)[0, 1] > 0.5


def test_steps_hold_every_batch_once():
    assert step_ends(7) == [1, 2, 3, 4, 5, 6, 7]
    assert step_ends(632)[-1] == 632
    assert len(step_ends(632)) == 20


@pytest.fixture
def graded(bench, make_task, monkeypatch):
    """A study whose candidates answer right with a given probability, by sparsity: 896 rows, 14 steps."""
    task = make_task(validation=ROWS)
    bench.workshop = replace(bench.workshop, task=task)
    luck = np.random.default_rng(5).random(ROWS)

    def grade(accuracies):
        kinds = {(c.heads, c.neurons): accuracies[c.sparsity] for c in bench.candidates().values()}

        def forward(model, batch, *, runtime, ledger, kind):
            answers = np.where(luck[batch.rows] < kinds[kind], batch.labels.numpy(), 1 - batch.labels.numpy())
            return torch.eye(2)[torch.from_numpy(answers)]

        monkeypatch.setattr(evaluation, "forward", forward)
        return bench

    return grade


GOOD = {0.1: 0.6, 0.3: 0.94, 0.5: 0.93, 0.7: 0.85, 0.85: 0.6}


def test_a_hopeless_candidate_is_stopped_and_the_choice_is_that_of_a_whole_evaluation(graded, parts):
    bench = graded(GOOD)
    whole = bench.run(bench.open("whole"), margin=1.0)
    study = bench.open()
    found = bench.run(study, margin=1.0, prune=True)
    assert parts(found).best == parts(whole).best
    stopped = {row["sparsity"]: row for row in found["trials"] if row["state"] == "PRUNED"}
    assert 0.1 in stopped
    assert found["best"]["sparsity"] not in stopped
    row = stopped[0.1]
    assert (row["metric"], row["tradeoff"], row["feasible"]) == (None, None, None)
    assert 64 * FIRST <= row["stopped"]["examples"] < ROWS
    assert row["stopped"]["metric"] == pytest.approx(0.6, abs=0.1)
    assert row["params"] > 0
    assert row["seconds"] > 0
    kept = [r for r in parts(whole).done if r["sparsity"] not in stopped]
    assert parts(found).done == kept
    assert bench.run(bench.open(), margin=1.0, prune=True) == found  # what was stopped is not run again


def test_a_collapsed_candidate_with_the_highest_tradeoff_stops_nothing(graded, parts):
    bench = graded({**GOOD, 0.85: 0.45, 0.1: 0.9})
    found = bench.run(bench.open(), margin=1.0, lam=5.0, prune=True, points=(0.1, 0.85))
    assert [row["state"] for row in found["trials"]] == ["COMPLETE", "COMPLETE"]
    assert found["best"]["sparsity"] == 0.1


def test_an_earlier_runs_trials_stop_those_of_a_later_one(graded):
    bench = graded({**GOOD, 0.1: 0.94, 0.85: 0.55})
    bench.run(bench.open(), margin=1.0, lam=0.0, prune=True, points=(0.1, 0.85), trials=1)
    study = bench.open()
    bench.run(study, margin=1.0, lam=0.0, prune=True, points=(0.1, 0.85))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]


def test_a_whole_evaluation_in_another_order_measures_the_same(bench, make_task, parts):
    bench.workshop = replace(bench.workshop, task=make_task(validation=200))
    assert parts(bench.run(bench.open(), prune=True)).done == parts(bench.run(bench.open("off"))).done
