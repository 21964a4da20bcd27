"""Views agree with the cells that they are of, in student and cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autodisc.comparison.cells import SHARED, Spent, assistant
from autodisc.comparison.plan import all_cells, recorded
from autodisc.comparison.strategies import STRATEGIES, Group, MissingCell, View, nearest, results
from autodisc.search.replay import replay_tpe
from autodisc.tasks.metrics import METRICS, ExampleMetric

GRID = (0.25, 0.5, 0.75)


@pytest.fixture
def group(whole, computed) -> Group:
    done = recorded(whole, all_cells(whole, computed), computed)
    own = {cell.kind: record for cell, record in done.items() if cell.seed == 0}
    return Group("mine", 0, 0.9, GRID, own)


def without(group: Group, *kinds: str) -> Group:
    return replace(group, cells={kind: record for kind, record in group.cells.items() if kind not in kinds})


def total(*spent: Spent) -> tuple[float, float]:
    return pytest.approx((sum(one.seconds for one in spent), sum(one.flops for one in spent)))


def test_maxidisc_is_the_best_on_validation_and_pays_for_every_assistant_and_once_for_what_they_share(group):
    view = STRATEGIES["maxidisc"](group, None)
    spent = [group[assistant(s)].spent for s in GRID]
    best = max(GRID, key=lambda s: (group.validation(s), s))
    assert view.students == ((assistant(best), 1.0),)
    assert (view.spent.seconds, view.spent.flops) == total(group[SHARED].spent, *spent)
    assert view.search == view.spent


@pytest.mark.parametrize(("name", "sparsity"), [("smallest", 0.75), ("largest", 0.25), ("rule-2.5x", 0.75)])
def test_a_rule_is_the_cell_of_its_assistant_and_searches_for_nothing(group, name, sparsity):
    view = STRATEGIES[name](group, None)
    assert (view.students, view.assistant) == (((assistant(sparsity), 1.0),), sparsity)
    assert (view.spent.seconds, view.spent.flops) == total(group[SHARED].spent, group[assistant(sparsity)].spent)
    assert view.search == Spent()


def test_the_rule_takes_the_scale_nearest_to_two_and_a_half_times_the_students():
    assert nearest((0.3, 0.5, 0.7, 0.8), 0.9) == 0.8  # .25 lies between .3 and .2; a tie goes to the sparser
    assert nearest((0.3, 0.5, 0.7, 0.8), 0.8) == 0.5


def test_chance_is_the_mean_of_all_in_metric_and_cost(group):
    view = STRATEGIES["random"](group, None)
    found = results(group, {"random": view, **{f"{s}": through(s) for s in GRID}})
    assert found.metrics[0] == pytest.approx(np.mean(found.metrics[1:]))
    means = [np.mean([getattr(group[assistant(s)].spent, unit) for s in GRID]) for unit in ("seconds", "flops")]
    shared = group[SHARED].spent
    assert (view.spent.seconds, view.spent.flops) == pytest.approx((shared.seconds + means[0], shared.flops + means[1]))


def through(sparsity: float) -> View:
    return View(((assistant(sparsity), 1.0),), Spent())


def test_autodisc_pays_for_its_search_and_its_schedule(group):
    view = STRATEGIES["autodisc"](group, None)
    assert view.assistant == group["search-recovered"].result["best"]["sparsity"]
    assert view.search == group["search-recovered"].spent
    assert (view.spent.seconds, view.spent.flops) == total(group["search-recovered"].spent, group["autodisc"].spent)
    stages = group["search-recovered"].values["cost"]["stages"]
    assert view.search.flops == sum(
        cost["flops"] for name, cost in stages.items() if name not in ("set-up", "teacher metric")
    )


def test_where_nothing_is_feasible_the_student_is_the_one_without_an_assistant(group):
    search = group["search-recovered"]
    nothing = replace(search, values={**search.values, "result": {**search.result, "best": None}})
    view = STRATEGIES["autodisc"](replace(group, cells={**group.cells, "search-recovered": nothing}), None)
    direct = STRATEGIES["direct"](group, None)
    assert (view.students, view.assistant) == (direct.students, None)
    stages = [search.stage(name) for name in ("importance", "teacher outputs")]
    for unit in ("seconds", "flops"):  # which direct has in its sum: each is paid once
        twice = sum(getattr(stage, unit) for stage in stages)
        assert twice > 0
        expected = getattr(search.spent, unit) + getattr(direct.spent, unit) - twice
        assert getattr(view.spent, unit) == pytest.approx(expected)
    assert view.search == search.spent


def test_the_released_searchs_cost_is_a_part_of_its_own(group):
    view = STRATEGIES["released"](group, None)
    assert 0 < view.search.flops < view.spent.flops
    assert view.assistant in GRID


def test_a_view_without_its_cells_says_which_is_missing(group):
    with pytest.raises(MissingCell, match=r"assistant-0\.5"):
        STRATEGIES["maxidisc"](without(group, "assistant-0.5"), None)
    assert STRATEGIES["smallest"](without(group, "assistant-0.5"), None).assistant == 0.75


def test_fewer_trials_visit_fewer_cells_and_as_many_find_the_best(group):
    few, all_ = (STRATEGIES["maxidisc-tpe"](group, trials) for trials in (1, 3))
    exhaustive = STRATEGIES["maxidisc"](group, None)
    assert few.spent.flops < all_.spent.flops == pytest.approx(exhaustive.spent.flops)
    assert all_.students == exhaustive.students


def test_the_replay_is_the_same_for_a_seed_and_visits_what_there_is_once():
    values = {s / 10: 1 - (s / 10 - 0.6) ** 2 for s in range(1, 9)}
    visits = [replay_tpe(values, trials=5, seed=seed) for seed in (0, 2**32, 1)]  # numpy has seeds of 32 bits
    assert visits[0] == visits[1]
    assert all(len(set(found)) == len(found) == 5 and set(found) <= set(values) for found in visits)
    assert sorted(replay_tpe(values, trials=99, seed=3)) == sorted(values)
    assert replay_tpe({0.5: 1.0}, trials=1, seed=0) == [0.5]


@pytest.mark.parametrize("name", sorted(name for name, metric in METRICS.items() if isinstance(metric, ExampleMetric)))
def test_a_metric_of_each_row_is_the_metric_of_that_row(name):
    metric, generator = METRICS[name], np.random.default_rng(0)
    if metric.kind == "regression":
        predictions, labels = generator.normal(size=(2, 5, 40)).astype(np.float32)
        predictions[0] = 1.0  # a constant has no correlation
    else:
        predictions, labels = generator.integers(0, 2 if name in ("f1", "accuracy_f1") else 4, (2, 5, 40))
        predictions[0] = 0
        predictions = predictions.astype(np.uint8)
    expected = [metric.score(*row) for row in zip(predictions, labels, strict=True)]
    assert metric.each(predictions, labels) == pytest.approx(expected, abs=1e-6)


def test_the_same_draws_give_all_strategies_their_own_students_metric(group):
    views = {name: STRATEGIES[name](group, None) for name in ("autodisc", "direct", "random")}
    found = results(group, views)
    rows = np.random.default_rng(0).integers(found.examples, size=(7, found.examples))
    drawn = found.resampled(rows)
    metric = METRICS["accuracy_f1"]
    for column, kinds in enumerate((["autodisc"], ["direct"], [assistant(s) for s in GRID])):
        labels = group["direct"].labels[rows]
        expected = np.mean([metric.each(group[kind].predictions[rows], labels) for kind in kinds], axis=0)
        assert drawn[:, column] == pytest.approx(expected)
    assert found.correct() is None  # what is no mean over examples has no right and wrong to count
