from __future__ import annotations

import math
import random

import pytest

from autodisc.reporting.objectives import (
    Candidate,
    Cell,
    Objective,
    choose,
    chord,
    chord_slope,
    evaluate,
    loss_tradeoff_at,
    nearest_scale,
    normalised_at,
    objectives,
    one_standard_error,
    smallest,
    tradeoff_at,
    uniform,
)
from autodisc.search.tradeoff import best


def cell(*candidates: Candidate, teacher: float = 0.9, student: float = 0.9) -> Cell:
    return Cell("mrpc", 0, student, "recovered", teacher, candidates)


def candidate(
    sparsity: float, metric: float = 0.8, *, floor: float = 0.5, error: float = 0.01, loss: float | None = None
) -> Candidate:
    return Candidate(sparsity, metric, floor, error, loss)


def chosen(objective: Objective, of: Cell, **settings: float) -> float | None:
    index = choose(objective, of, **settings)
    return None if index is None else of.candidates[index].sparsity


@pytest.mark.parametrize("lam", [0.0, 0.2, 0.5])
def test_the_tradeoff_chooses_what_the_search_would(lam):
    generator = random.Random(1)
    for _ in range(100):
        grid = [candidate(generator.choice([0.25, 0.5, 0.75]), generator.choice([0.5, 0.625, 0.75])) for _ in range(5)]
        ours, theirs = choose(tradeoff_at(lam), cell(*grid)), best(grid, lam)
        assert (ours is None) == (theirs is None)
        assert ours is None or grid[ours] == grid[theirs]


def test_a_tie_goes_to_the_sparser_under_every_objective():
    flat = cell(*(candidate(s, 0.8, loss=1.0 - s) for s in (0.4, 0.8, 0.6)))
    assert {chosen(o, flat) for o in (tradeoff_at(0.0), normalised_at(0.0), chord, one_standard_error)} == {0.8}
    assert chosen(nearest_scale(2.5), cell(candidate(0.5), candidate(0.75), student=0.75)) == 0.5
    assert chosen(nearest_scale(2.0), cell(candidate(0.25), candidate(0.75), student=0.75)) == 0.75  # equally far


def test_normalising_removes_a_metrics_range_and_floor():
    narrow = [candidate(s, m, floor=0.70) for s, m in ((0.3, 0.80), (0.5, 0.79), (0.8, 0.74))]
    wide = [candidate(c.sparsity, (c.metric - 0.70) * 4, floor=0.0) for c in narrow]
    one, other = cell(*narrow, teacher=0.82), cell(*wide, teacher=0.48)
    assert evaluate(normalised_at(0.3), one) == pytest.approx(evaluate(normalised_at(0.3), other))
    assert choose(tradeoff_at(0.1), one) != choose(tradeoff_at(0.1), other)


def test_a_teacher_at_the_floor_leaves_nothing_to_normalise():
    assert choose(normalised_at(0.2), cell(candidate(0.5), teacher=0.5)) is None


def test_the_chord_chooses_the_point_farthest_above_it():
    grid = [candidate(s, m) for s, m in ((0.3, 0.82), (0.5, 0.815), (0.7, 0.80), (0.8, 0.76), (0.9, 0.70))]
    first, last = grid[0], grid[-1]

    def distance(c: Candidate) -> float:  # of a point to a line, the other way to say it
        run, rise = last.sparsity - first.sparsity, last.metric - first.metric
        return (run * (c.metric - first.metric) - rise * (c.sparsity - first.sparsity)) / math.hypot(run, rise)

    assert chord_slope(grid) == pytest.approx(0.2)
    assert grid[choose(chord, cell(*grid))] == max(grid, key=distance) == grid[2]


def test_the_chord_ends_at_the_last_feasible_candidate():
    collapsed = [candidate(s, m) for s, m in ((0.3, 0.82), (0.5, 0.81), (0.7, 0.75), (0.9, 0.5))]
    assert evaluate(chord, cell(*collapsed))[:3] == pytest.approx(evaluate(chord, cell(*collapsed[:3])))
    assert evaluate(chord, cell(*collapsed))[3] == -math.inf


def test_a_curve_without_a_knee_takes_the_sparser_end():
    sagging = cell(candidate(0.25, 0.875), candidate(0.5, 0.625), candidate(0.75, 0.625))
    assert chosen(chord, sagging) == 0.75


def test_one_candidate_has_no_slope_and_is_chosen():
    assert chord_slope([candidate(0.5)]) == chord_slope([]) == 0.0
    assert chosen(chord, cell(candidate(0.5))) == 0.5


def test_the_chord_to_the_floor_is_the_normalised_tradeoff_at_one():
    grid = [candidate(s, 0.5 + 0.4 * (1 - s**3)) for s in (0.3, 0.5, 0.7, 0.9)]
    lam = 0.9 - 0.5  # from the teacher at sparsity 0 to the floor at 1
    assert choose(normalised_at(1.0), cell(*grid)) == choose(tradeoff_at(lam), cell(*grid))


def test_one_standard_error_takes_the_sparsest_of_the_best():
    grid = cell(*(candidate(s, m) for s, m in ((0.3, 0.80), (0.5, 0.795), (0.7, 0.792), (0.8, 0.785))))
    assert chosen(one_standard_error, grid) == 0.7
    values = evaluate(one_standard_error, grid)
    assert sorted(range(4), key=values.__getitem__) == [3, 0, 1, 2]


def test_the_loss_tradeoff_needs_every_loss_and_a_difference():
    grid = [candidate(s, loss=loss) for s, loss in ((0.3, 0.1), (0.6, 0.2), (0.9, 0.9))]
    assert evaluate(loss_tradeoff_at(0.5), cell(*grid)) == pytest.approx((1.15, 0.875 + 0.3, 0.45))
    assert choose(loss_tradeoff_at(0.5), cell(*grid, candidate(0.95))) is None
    assert choose(loss_tradeoff_at(0.5), cell(candidate(0.3, loss=0.1), candidate(0.6, loss=0.1))) is None


def test_the_rules_without_a_search_see_no_metric():
    broken = cell(candidate(0.5, 0.5), candidate(0.75, 0.5), candidate(0.85, 0.5))
    assert chosen(nearest_scale(2.5), broken) == 0.75
    assert chosen(smallest, broken) == 0.85
    assert chosen(tradeoff_at(0.2), broken) is None
    assert evaluate(uniform, broken) == (0.0, 0.0, 0.0)


def test_the_margin_decides_what_is_feasible():
    grid = cell(candidate(0.3, 0.8), candidate(0.8, 0.52))
    assert (chosen(tradeoff_at(1.0), grid), chosen(tradeoff_at(1.0), grid, margin=3.0)) == (0.8, 0.3)


def test_chance_has_no_choice_to_give():
    with pytest.raises(ValueError, match="by chance"):
        choose(uniform, cell(candidate(0.5)))


def test_every_objective_has_a_name_of_its_own_and_bears_an_empty_cell():
    names = [objective.name for objective in objectives()]
    assert len(set(names)) == len(names)
    assert {"metric", "smallest", "random", "rule-2.5x", "tradeoff λ=0.2", "normalised λ=1"} <= set(names)
    assert {evaluate(objective, cell()) for objective in objectives()} == {()}
