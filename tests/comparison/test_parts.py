"""A search on a part of validation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autodisc.comparison.cells import Cell, assistant
from autodisc.comparison.parts import SEARCH, on_a_part, shares_of
from autodisc.comparison.plan import all_cells, recorded
from autodisc.comparison.strategies import Group, View
from autodisc.comparison.truth import frontier_of, truth_of


@pytest.fixture
def group(whole, computed):
    cells = recorded(whole, all_cells(whole, computed), computed)
    own = {cell.kind: found for cell, found in cells.items() if cell.seed == 0}
    return Group("mine", 0, 0.9, whole.study(Cell("mine", 0, 0.9, ""), computed).assistant_sparsities, own)


def test_all_of_validation_is_what_the_study_chose_and_paid(whole, group):
    truth = truth_of(group)
    part = on_a_part(whole, group, truth, 1.0, np.random.default_rng(0))
    chosen = group[SEARCH].result["best"]
    student = "direct" if chosen is None else f"assistant-{chosen['sparsity']:g}"
    assert part.regret == pytest.approx(max(truth.students) - group[student].result["metric"])
    assert part.spent.flops == pytest.approx(group[SEARCH].spent.flops)


def test_a_part_pays_its_share_of_the_trials_alone(whole, group):
    half = on_a_part(whole, group, truth_of(group), 0.5, np.random.default_rng(0))
    search = group[SEARCH]
    assert half.spent.flops == pytest.approx(search.spent.flops - search.stage("trials").flops / 2)
    assert 0.0 <= half.regret <= max(truth_of(group).students) - min(truth_of(group).results.metrics)


def test_without_the_candidates_predictions_nothing_is_said(whole, group, tmp_path):
    bare = replace(group[SEARCH], path=tmp_path / "moved.json")
    without = replace(group, cells={**group.cells, SEARCH: bare})
    assert on_a_part(whole, without, truth_of(group), 0.3, np.random.default_rng(0)) is None


def test_a_search_of_a_part_pays_more_for_all(whole, group):
    search = group[SEARCH]
    values = {**search.values, "result": {**search.result, "examples": 40}}  # of 80
    of_half = replace(group, cells={**group.cells, SEARCH: replace(search, values=values)})
    half, whole_ = (on_a_part(whole, of_half, truth_of(group), share, np.random.default_rng(0)) for share in (0.5, 1.0))
    assert half.spent.flops == pytest.approx(search.spent.flops)
    assert whole_.spent.flops == pytest.approx(search.spent.flops + search.stage("trials").flops)
    assert list(shares_of(whole, of_half).values()) == [
        "10% of validation",
        "30% of validation",
        "100% of validation (default)",
    ]


def test_the_frontier_has_the_part_that_the_budget_allows(whole, group, monkeypatch):
    assert list(shares_of(whole, group)) == [0.1, 0.3]  # 80 rows: the budget allows all
    monkeypatch.setattr("autodisc.config.searching.LEAST_SCORED", 40)
    monkeypatch.setattr("autodisc.tasks.drawing.RAREST", 10)
    assert list(shares_of(whole, group).values())[-1] == "50% of validation (default)"
    lines = frontier_of(whole, [group], [], {"maxidisc": {0: View(((assistant(0.25), 1.0),), group[SEARCH].spent)}})
    assert {"recovered, 10% of validation", "recovered, 50% of validation (default)"} <= {
        line.setting for line in lines
    }


def test_a_search_of_a_part_keeps_what_was_predicted_on_all(whole, computed):
    cells = recorded(whole, all_cells(whole, computed), computed)
    half, all_ = (cells[Cell("mine", 0, 0.9, f"search-{name}")] for name in ("half", "recovered"))
    assert (half.result["examples"], half.predictions.shape) == (40, all_.predictions.shape)
    assert half.stage("trials").flops == pytest.approx(all_.stage("trials").flops / 2, rel=0.15)  # by sentence lengths
    assert np.array_equal(half.predictions, all_.predictions)
    losses = np.array([list(cell.result["losses"].values()) for cell in (half, all_)])
    assert not np.allclose(*losses)
    assert np.allclose(*losses, rtol=0.5)  # means over rows, of fewer and of all
