from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from autodisc.reporting.fidelity import Truth, assess, ceiling, correlations, judge, students_of
from autodisc.reporting.gains import compare
from autodisc.reporting.objectives import Candidate, Cell, Objective, normalised_at, smallest, tradeoff_at, uniform
from autodisc.reporting.statistics import Results

# MiniDisc's figure (arXiv:2205.14570), digitised: assistants of scale .7 to .2 and their 10 % students.
PAPER = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
MRPC = (0.9151, 0.9132, 0.9126, 0.8993, 0.8889, 0.8704), (0.8629, 0.8636, 0.8635, 0.8681, 0.8743, 0.8707)
QQP = (0.8874, 0.8858, 0.8826, 0.8811, 0.8771, 0.8696), (0.8428, 0.8430, 0.8442, 0.8442, 0.8454, 0.8468)
METRIC = tradeoff_at(0.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def grid(count: int) -> tuple[float, ...]:
    return PAPER[:count]


def cell(metrics, *, seed: int = 0, floor: float = 0.5, teacher: float = 0.92, scorer: str = "recovered") -> Cell:
    candidates = tuple(Candidate(s, m, floor, 0.01) for s, m in zip(grid(len(metrics)), metrics, strict=True))
    return Cell("mrpc", seed, 0.9, scorer, teacher, candidates)


def truth(students, *, seed: int = 0, direct: float | None = None) -> Truth:
    names = [f"{s:g}" for s in grid(len(students))]
    if direct is not None:
        names, students = [*names, "direct"], [*students, direct]
    return Truth("mrpc", 0.9, PAPER[: len(students) - (direct is not None)], Results(seed, tuple(names), (*students,)))


def answered(accuracies, examples: int, seed: int) -> Truth:
    answers = (rng(seed).random((len(accuracies), examples)) < np.array(accuracies)[:, None]).astype(float)
    names = tuple(f"{s:g}" for s in grid(len(accuracies)))
    return Truth("mrpc", 0.9, grid(len(names)), Results(seed, names, tuple(answers.mean(axis=1).tolist()), answers))


# One cell


def test_on_the_papers_figure_the_tradeoff_ranks_hardly_better_than_taking_the_smallest():
    assistants, students = MRPC
    by_size, by_tradeoff = (judge(cell(assistants), truth(students), o) for o in (smallest, tradeoff_at(0.15)))
    assert by_size.spearman == pytest.approx(0.886, abs=5e-4)
    assert by_tradeoff.spearman == pytest.approx(0.943, abs=5e-4)
    assert (by_size.chosen, by_size.regret) == (0.8, pytest.approx(0.0036))
    assert (by_tradeoff.chosen, by_tradeoff.regret, by_tradeoff.top1) == (0.7, 0.0, 1.0)
    assert judge(cell(QQP[0]), truth(QQP[1]), smallest).regret == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_correlations_are_scipys_ties_included(seed):
    generator = rng(seed)
    values, students = generator.integers(4, size=6) / 4, generator.integers(5, size=(3, 6)) / 8
    ours = correlations(values, students)
    for row, (spearman, kendall) in zip(students, ours, strict=True):
        if np.ptp(values) and np.ptp(row):
            assert spearman == pytest.approx(stats.spearmanr(values, row).statistic)
            assert kendall == pytest.approx(stats.kendalltau(values, row).statistic)
        else:
            assert math.isnan(spearman)
            assert math.isnan(kendall)


def test_a_perfect_and_a_reversed_ranking():
    perfect = judge(cell((0.6, 0.7, 0.8)), truth((0.5, 0.6, 0.7)), METRIC)
    assert (perfect.spearman, perfect.kendall, perfect.regret, perfect.top1) == pytest.approx((1, 1, 0, 1))
    worst = judge(cell((0.8, 0.7, 0.6)), truth((0.5, 0.6, 0.7)), METRIC)
    assert (worst.spearman, worst.kendall, worst.regret) == pytest.approx((-1, -1, 0.2))
    assert (worst.top1, worst.top2) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("metrics", "students"), [((0.7, 0.7, 0.7), (0.1, 0.2, 0.3)), ((0.6, 0.7, 0.8), (0.5, 0.5, 0.5)), ((0.7,), (0.5,))]
)
def test_a_correlation_with_a_constant_is_undefined_not_zero(metrics, students):
    found = judge(cell(metrics), truth(students), METRIC)
    assert found.spearman is None
    assert found.kendall is None
    assert found.regret == 0.0  # the tie goes to the sparser, here the best


def test_equal_students_at_the_edge_all_count_as_hits():
    assert judge(cell((0.8, 0.7, 0.6)), truth((0.6, 0.6, 0.5)), METRIC).top1 == 1.0
    second = judge(cell((0.8, 0.7, 0.6)), truth((0.5, 0.6, 0.5)), METRIC)
    assert (second.top1, second.top2) == (0.0, 1.0)


def test_uniform_choice_has_its_exact_expectation():
    found = judge(cell((0.8, 0.7, 0.6, 0.55)), truth((0.5, 0.6, 0.7, 0.6)), uniform)
    assert found.regret == pytest.approx(0.7 - 0.6)
    assert (found.top1, found.top2) == (0.25, 0.75)  # two tie for the second place
    assert (found.spearman, found.kendall, found.chosen) == (0.0, 0.0, None)


def test_an_infeasible_candidate_ranks_below_every_feasible_one():
    steep = tradeoff_at(10.0)  # would rank the collapsed ones first
    found = judge(cell((0.7, 0.8, 0.5, 0.5)), truth((0.3, 0.4, 0.1, 0.1)), steep)
    assert found.spearman == pytest.approx(1.0)
    assert found.chosen == 0.4


def test_with_nothing_feasible_regret_is_that_of_no_assistant_or_undefined():
    broken = cell((0.5, 0.5))
    alone = judge(broken, truth((0.6, 0.7)), METRIC)
    assert (alone.chosen, alone.regret, alone.spearman, alone.top1, alone.top2) == (None, None, None, 0.0, 0.0)
    assert judge(broken, truth((0.6, 0.7), direct=0.65), METRIC).regret == pytest.approx(0.05)
    assert judge(broken, truth((0.6, 0.7), direct=0.75), METRIC).regret == pytest.approx(-0.05)


@pytest.mark.parametrize(
    "other", [truth((0.5, 0.6), seed=1), truth((0.5, 0.6, 0.7)), Truth("sst2", 0.9, PAPER[:2], truth((1, 1)).results)]
)
def test_a_truth_of_another_cell_is_refused(other):
    with pytest.raises(ValueError, match="expected the same task, student, seed and candidates"):
        judge(cell((0.7, 0.8)), other, METRIC)


def test_a_truth_has_a_student_for_each_assistant():
    with pytest.raises(ValueError, match="one for each"):
        Truth("mrpc", 0.9, PAPER[:3], Results(0, ("a", "b"), (0.1, 0.2)))
    with pytest.raises(ValueError, match="one for each"):
        Truth("mrpc", 0.9, PAPER[:1], Results(0, ("a", "b"), (0.1, 0.2)))


# Over seeds


def test_an_assessment_is_the_mean_of_its_cells():
    cells = [cell((0.8, 0.7, 0.6), seed=0), cell((0.6, 0.7, 0.8), seed=1)]
    truths = [truth((0.5, 0.6, 0.7), seed=0), truth((0.5, 0.6, 0.7), seed=1)]
    (found,) = assess(cells, truths, [METRIC], rng=rng())
    assert (found.spearman, found.regret, found.top1, found.top2) == pytest.approx((0.0, 0.1, 0.5, 0.5))
    assert [part.chosen for part in found.cells] == [0.3, 0.5]
    assert found.over == "seeds"
    assert (found.intervals["regret"].low, found.intervals["regret"].high) == pytest.approx((0.0, 0.2))


def test_an_undefined_seed_is_left_out_of_a_correlation_and_counted_in_regret():
    cells = [cell((0.7, 0.8), seed=0), cell((0.5, 0.5), seed=1)]
    (found,) = assess(cells, [truth((0.5, 0.6), seed=0), truth((0.5, 0.6), seed=1)], [METRIC], rng=rng())
    assert (found.spearman, found.regret, found.top1) == pytest.approx((1.0, 0.0, 0.5))
    assert found.undecided == 1
    with_direct = [truth((0.5, 0.6), seed=seed, direct=0.4) for seed in (0, 1)]
    (charged,) = assess(cells, with_direct, [METRIC], rng=rng())
    assert (charged.regret, charged.undecided) == (pytest.approx(0.1), 0)


def test_when_nothing_is_feasible_anywhere_all_but_the_hits_is_undefined():
    (found,) = assess([cell((0.5, 0.5))], [truth((0.5, 0.6))], [METRIC], rng=rng())
    assert (found.spearman, found.kendall, found.regret, found.excess) == (None,) * 4
    assert (found.top1, found.undecided, found.over) == (0.0, 1, "nothing")
    assert set(found.intervals.values()) == {None}


def test_one_seed_with_answers_has_intervals_over_examples():
    (found,) = assess([cell((0.7, 0.8))], [answered((0.6, 0.9), 200, 0)], [METRIC], rng=rng())
    assert found.over == "examples"
    assert found.excess is None
    assert found.intervals["regret"].low == 0.0
    assert found.intervals["spearman"].low == 1.0  # 30 points apart: never the other way round


def test_an_objective_has_the_same_figures_alone_and_among_others():
    cells = [cell((0.8, 0.7, 0.6), seed=seed) for seed in range(3)]
    truths = [answered((0.6, 0.62, 0.64), 100, seed) for seed in range(3)]
    (alone,) = assess(cells, truths, [METRIC], rng=rng(), resamples=200)
    both = assess(cells, truths, [METRIC, uniform], rng=rng(), resamples=200)
    assert both[0] == alone
    assert both[1].objective == "random"
    assert both[1].over == "seeds and examples"


def test_excess_is_regret_over_what_the_other_seeds_would_have_chosen():
    truths = [truth((0.6, 0.7, 0.5), seed=0), truth((0.6, 0.8, 0.5), seed=1), truth((0.9, 0.6, 0.5), seed=2)]
    cells = [cell((0.6, 0.7, 0.8), seed=seed) for seed in range(3)]  # always takes the last
    (found,) = assess(cells, truths, [METRIC], rng=rng())
    top = ceiling(truths, rng=rng())
    assert [part.chosen for part in top.cells] == [0.3, 0.3, 0.4]  # the others' means: .75 .7, .75 .65, .6 .75
    assert found.excess == pytest.approx((0.1 + 0.1 + 0.1) / 3)
    assert found.excess == pytest.approx(found.regret - top.regret)
    assert top.excess == 0.0


def test_luck_alone_makes_regret_and_not_excess():
    """Equally good assistants, so the truth is 0: 500 experiments of 4 seeds, students .8 ± .02."""
    generator, found = rng(1), []
    cells = [cell((0.7, 0.71, 0.8, 0.72, 0.73, 0.74), seed=seed) for seed in range(4)]
    for _ in range(500):
        truths = [truth(generator.normal(0.8, 0.02, size=6).tolist(), seed=seed) for seed in range(4)]
        found += assess(cells, truths, [METRIC], rng=generator, resamples=1)
    # The greatest of 6 normals is on average 1.267 standard deviations above the mean.
    assert np.mean([one.regret for one in found]) == pytest.approx(1.267 * 0.02, rel=0.05)
    excess = [one.excess for one in found]
    assert abs(np.mean(excess)) < 3 * np.std(excess) / math.sqrt(500)


def test_the_ceiling_takes_two_seeds_of_the_same_candidates():
    with pytest.raises(ValueError, match="two seeds or more"):
        ceiling([truth((0.5, 0.6))], rng=rng())
    with pytest.raises(ValueError, match="same candidates"):
        ceiling([truth((0.5, 0.6)), truth((0.5, 0.6, 0.7), seed=1)], rng=rng())


def test_mixed_scorers_tasks_and_seeds_are_refused():
    two = [truth((0.5, 0.6), seed=0), truth((0.5, 0.6), seed=1)]
    with pytest.raises(ValueError, match="scorers"):
        assess([cell((0.7, 0.8)), cell((0.7, 0.8), seed=1, scorer="pruned")], two, [METRIC], rng=rng())
    with pytest.raises(ValueError, match="each seed once"):
        assess([cell((0.7, 0.8))] * 2, [two[0]] * 2, [METRIC], rng=rng())
    with pytest.raises(ValueError, match="at least one cell"):
        assess([], [], [METRIC], rng=rng())


# One objective against another


def test_objectives_are_compared_by_the_students_that_they_chose():
    cells = [cell((0.8, 0.78, 0.6), seed=seed) for seed in range(3)]
    truths = [truth((0.6, 0.7, 0.65), seed=0), truth((0.6, 0.62, 0.7), seed=1), truth((0.7, 0.72, 0.6), seed=2)]
    chosen = [students_of(c, t, [METRIC, normalised_at(1.0)]) for c, t in zip(cells, truths, strict=True)]
    found = compare(chosen, ours="normalised λ=1", theirs="metric", rng=rng())
    regret = [assess(cells, truths, [objective], rng=rng())[0].regret for objective in (METRIC, normalised_at(1.0))]
    assert found.difference == pytest.approx(regret[0] - regret[1])
    assert found.by_seed == pytest.approx((0.1, 0.02, 0.02))


def test_where_an_objective_chooses_nothing_its_student_is_the_one_without_an_assistant():
    everything_out = Objective("nothing", lambda candidates, _: [math.nan] * len(candidates))
    kept = students_of(cell((0.7, 0.8)), truth((0.5, 0.6), direct=0.55), [METRIC, everything_out])
    assert kept.metrics == (0.6, 0.55)
    assert students_of(cell((0.7, 0.8)), truth((0.5, 0.6)), [METRIC, everything_out]) is None
