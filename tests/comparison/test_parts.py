"""A search on a part of validation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autodisc.comparison.cells import Cell
from autodisc.comparison.parts import SEARCH, on_a_part
from autodisc.comparison.plan import all_cells, recorded
from autodisc.comparison.strategies import Group
from autodisc.comparison.truth import truth_of


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
