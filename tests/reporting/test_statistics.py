from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from autodisc.reporting.statistics import (
    Interval,
    Results,
    Spread,
    bootstrap,
    comparisons,
    examples_of,
    holm,
    mcnemar,
    ranks,
    resolvable,
    resolvable_difference,
    sign_flip_test,
    spread,
    t_interval,
    t_test,
    wilcoxon_test,
)

FIVE = (0.012, -0.004, 0.009, 0.021, 0.003)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def over_seeds(values, **settings):
    """The bootstrap of the mean of one number a seed."""
    by_seed = np.asarray(values)[None, :, None]
    return bootstrap(lambda rows: by_seed, examples=0, rng=rng(), **settings)


def right(*rows) -> np.ndarray:
    return np.array(rows, dtype=np.int8)


def results(answers: np.ndarray, seed: int = 0, **settings) -> Results:
    names = tuple("abcdefg"[: len(answers)])
    return Results(seed, names, tuple(answers.mean(axis=1).tolist()), answers, **settings)


# Results


def test_without_answers_a_metric_stays_what_was_recorded():
    kept = Results(0, ("a", "b"), (0.7, 0.8))
    assert kept.examples == 0
    assert kept.resampled(np.zeros((4, 10), int)).tolist() == [[0.7, 0.8]]
    assert kept.correct() is None


def test_all_students_meet_the_same_drawn_examples():
    drawn = results(right([1, 0, 1, 1], [0, 1, 0, 0])).resampled(rng().integers(4, size=(50, 4)))
    assert drawn.shape == (50, 2)
    assert np.allclose(drawn.sum(axis=1), 1.0)  # complements stay complements


def test_a_metric_of_its_own_sees_answers_and_labels():
    labels, answers = np.array([1, 0, 1, 1]), np.array([[1, 1, 1, 0], [1, 0, 1, 1]])

    def agreement(answers, labels):
        return (answers == labels).mean(axis=1)

    kept = Results(0, ("a", "b"), (0.5, 1.0), answers, labels, agreement)
    assert kept.resampled(np.array([[0, 0, 1, 3]])).tolist() == [[0.5, 1.0]]
    assert kept.correct().tolist() == [[True, False, True, False], [True] * 4]
    assert kept.only(["b"]).metrics == (1.0,)


def test_a_regression_is_neither_right_nor_wrong():
    labels = np.array([0.5, 1.5])
    kept = Results(0, ("a",), (0.0,), np.array([[0.5, 1.5]]), labels, lambda answers, labels: np.zeros(len(answers)))
    assert kept.correct() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": (0.7, 0.5)}, "the answers give"),
        ({"names": ("a", "a")}, "different ones"),
        ({"names": ("a", "b", "c")}, "different ones"),
        ({"answers": right([1, 0])}, "expected \\(K, N\\)"),
        ({"answers": np.empty((2, 0))}, "N > 0"),
        ({"labels": np.array([1, 0])}, "belong together"),
    ],
)
def test_results_that_contradict_themselves_are_refused(changes, message):
    settings = {"seed": 0, "names": ("a", "b"), "metrics": (0.5, 0.5), "answers": right([1, 0], [0, 1])} | changes
    with pytest.raises(ValueError, match=message):
        Results(**settings)


def test_seeds_of_different_test_sets_are_refused_and_missing_answers_stop_the_drawing_of_examples():
    three, four = results(right([1, 0, 1])), results(right([1, 0, 1, 1]), 1)
    with pytest.raises(ValueError, match="same test set"):
        examples_of([three, four])
    assert examples_of([three, three]) == 3
    assert examples_of([three, Results(1, ("a",), (0.5,))]) == 0


# Intervals


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_the_bootstrap_over_seeds_is_scipys(method):
    values = rng(3).exponential(size=12)  # skewed, so that BCa differs from percentile
    ours = over_seeds(values, resamples=40_000).interval(method=method)
    name = "BCa" if method == "bca" else method
    theirs = stats.bootstrap((values,), np.mean, n_resamples=40_000, method=name, rng=rng(1)).confidence_interval
    assert ours.estimate == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.02 * values.std())


def test_bca_moves_towards_the_long_tail():
    found = over_seeds(rng(3).exponential(size=12))
    assert found.interval(method="bca").high > found.interval().high


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_one_seed_is_a_bootstrap_over_its_examples(method):
    right_ones = (rng(1).random(80) < 0.85).astype(float)
    kept = results(right_ones[None])
    ours = bootstrap(lambda rows: kept.resampled(rows)[:, None], examples=80, rng=rng(), resamples=20_000)
    name = "BCa" if method == "bca" else method
    theirs = stats.bootstrap((right_ones,), np.mean, n_resamples=20_000, method=name, rng=rng(1)).confidence_interval
    interval = ours.interval(method=method)
    assert (interval.low, interval.high) == pytest.approx(tuple(theirs), abs=1 / 80 + 1e-9)  # the mean's own step
    p = right_ones.mean()
    assert ours.example_error[0] == pytest.approx(math.sqrt(p * (1 - p) / 80), rel=0.03)


def test_examples_are_drawn_once_for_all_seeds():
    """Three seeds with the same answers have the error of one, not of three times as many examples."""
    same = right(rng(2).random(100) < 0.7)
    found = bootstrap(
        lambda rows: np.stack([results(same).resampled(rows)] * 3, axis=1), examples=100, rng=rng(), resamples=5000
    )
    p = same.mean()
    assert found.draws[:, 0].std() == pytest.approx(math.sqrt(p * (1 - p) / 100), rel=0.05)


def test_the_acceleration_is_the_skewness_over_six_root_n():
    values = rng(4).exponential(size=9)
    central = values - values.mean()
    skewness = (central**3).mean() / (central**2).mean() ** 1.5
    assert over_seeds(values).acceleration[0] == pytest.approx(skewness / 6 / 3)


def test_grouping_examples_keeps_the_acceleration_of_many():
    values = rng(5).exponential(size=(1, 20_000))
    kept = results(values)
    found = bootstrap(lambda rows: kept.resampled(rows)[:, None], examples=20_000, rng=rng(), resamples=1)
    assert abs(found.acceleration[0] - 2 / 6 / math.sqrt(20_000)) < 0.005  # an exponential's skewness is 2


def test_an_undefined_figure_has_no_interval_and_leaves_the_others_alone():
    values = np.array([[[math.nan, 1.0], [math.nan, 2.0], [math.nan, math.nan]]])
    found = bootstrap(lambda rows: values, examples=0, rng=rng())
    assert found.interval(0) is None
    assert found.interval(1, method="bca").estimate == 1.5  # of the seeds where it is defined


def test_one_seed_without_answers_has_nothing_to_draw():
    assert over_seeds([0.3]).interval() is None


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_a_constant_has_an_interval_without_width(method):
    assert over_seeds([0.25, 0.25, 0.25]).interval(method=method) == Interval(0.25, 0.25, 0.25)


def test_the_same_generator_gives_the_same_interval():
    assert over_seeds(FIVE).interval() == over_seeds(FIVE).interval()


def test_of_three_seeds_the_percentile_interval_is_no_more_than_their_range():
    """Its end draws have probability 1/27 > .025: so it holds a normal's mean in 1 − 2/8 of all cases."""
    found = over_seeds([0.1, 0.2, 0.6]).interval()
    assert (found.low, found.high) == pytest.approx((0.1, 0.6))


def test_the_t_interval_over_seeds_is_scipys():
    ours = t_interval(FIVE, confidence=0.9)
    theirs = stats.ttest_1samp(FIVE, 0).confidence_interval(0.9)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert ours.sign == 0
    assert (t_interval([0.1, 0.11, 0.12]).sign, t_interval([-0.1, -0.11, -0.12]).sign) == (1, -1)


def test_the_t_interval_of_one_seed_is_the_examples_or_boundless():
    assert t_interval([0.01]) == Interval(0.01, -math.inf, math.inf)
    alone = t_interval([0.01], example_error=0.005)
    assert (alone.low, alone.high) == pytest.approx((0.01 - 1.959964 * 0.005, 0.01 + 1.959964 * 0.005))


def test_seeds_that_agree_to_the_last_digit_leave_no_interval_over_seeds_alone():
    assert t_interval([0.1, 0.1, 0.1]) == Interval(pytest.approx(0.1), -math.inf, math.inf)
    shared = t_interval([0.1, 0.1, 0.1], example_error=0.01)
    assert shared.high == pytest.approx(0.1 + 1.959964 * 0.01)


def test_seeds_and_examples_add_their_variances():
    seeds = np.std(FIVE, ddof=1) ** 2 / 5
    found = spread(FIVE, example_error=0.003)
    assert (found.seeds, found.examples, found.df) == (pytest.approx(seeds), pytest.approx(9e-6), 4)
    assert found.error == pytest.approx(math.sqrt(seeds + 9e-6))


@pytest.mark.parametrize("df", [1, 2, 4])
@pytest.mark.parametrize("level", [0.025, 0.8, 0.975, 0.9999])
def test_a_spread_is_students_without_examples_and_normal_without_seeds(df, level):
    error = 0.01
    assert Spread(error**2, 0.0, df).quantile(level) == pytest.approx(error * stats.t.ppf(level, df))
    assert Spread(0.0, error**2, df).quantile(level) == pytest.approx(error * stats.norm.ppf(level))
    for almost in (Spread(error**2, 1e-16, df), Spread(1e-16, error**2, df)):  # by the integral
        alone = stats.t(df) if almost.seeds > almost.examples else stats.norm
        assert almost.quantile(level) == pytest.approx(error * alone.ppf(level), rel=2e-3)


@pytest.mark.parametrize(("df", "ratio"), [(1, 0.1), (2, 1.0), (4, 3.0)])
def test_a_spread_of_both_is_what_its_definition_draws(df, ratio):
    draw = rng(12)
    sigma = ratio * np.sqrt(df / draw.chisquare(df, 400_000))
    errors = np.hypot(sigma, 1.0) * draw.normal(size=400_000)
    found = Spread(ratio**2, 1.0, df)
    for level in (0.8, 0.975):
        assert found.probability(float(np.quantile(errors, level))) == pytest.approx(level, abs=0.003)
        assert found.probability(found.quantile(level)) == pytest.approx(level)
        assert found.quantile(1 - level) == pytest.approx(-found.quantile(level))


def test_two_seeds_that_agree_by_chance_do_not_make_a_difference_certain():
    """Autodisc − random on MRPC, whose seeds agreed to .06 points where others' differed by .6 to 1.9."""
    p = t_test([0.01276, 0.01217], example_error=0.0033)
    assert 0.004 < p < 0.02  # Satterthwaite's: .0001


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("between", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_the_module_s_table_of_what_comes_in_where_there_is_no_difference(seeds, between):
    """20,000 cases, whose shares have standard errors of .0015 and .0002; the test set's error is 1."""
    draw = rng(14)
    values = draw.normal(0, between, (20_000, seeds)) + draw.normal(size=(20_000, 1))
    p = np.array([t_test(row.tolist(), example_error=1.0) for row in values if abs(row.mean()) > 1.95])
    assert (p < 0.05).sum() / 20_000 < 0.056
    assert (p < 0.001).sum() / 20_000 < 0.0019


@pytest.mark.parametrize("seeds", [2, 3])
def test_where_there_is_no_difference_small_p_are_as_rare_as_they_say(seeds):
    """Seeds that differ twice as much as the test set errs; Satterthwaite's comes 13 and 4.5 times too often."""
    draw = rng(13)
    values = draw.normal(0, 2.0, (8000, seeds)) + draw.normal(size=(8000, 1))
    far = [row.tolist() for row in values if abs(row.mean()) > 3.29]  # others cannot have p < .001
    found = [t_test(row, example_error=1.0) for row in far]
    assert sum(p < 0.001 for p in found) <= 16  # of 8,000 expected 8, in 99 % of cases at most 16


def test_intervals_hold_the_truth_as_often_as_the_docstring_says():
    """600 cases, so a share's standard error is at most .018. Normal differences of 3 seeds, mean 0."""
    generator = rng(7)
    samples = generator.normal(size=(600, 3))
    held = np.mean([t_interval(values).sign == 0 for values in samples])
    assert abs(held - 0.95) < 0.03
    inside = np.mean([over_seeds(values, resamples=400).interval().sign == 0 for values in samples])
    assert abs(inside - 0.75) < 0.06


def test_the_interval_over_seeds_and_examples_holds_where_that_over_seeds_alone_fails():
    """Three seeds that share their test set's luck: the difference between examples dominates."""
    generator = rng(8)
    with_examples = alone = 0
    for _ in range(200):
        differences = generator.normal(size=(1, 60)) + 0.5 * generator.normal(size=(3, 60))
        kept = [results(row[None], seed) for seed, row in enumerate(differences)]
        found = bootstrap(
            lambda rows, kept=kept: np.stack([seed.resampled(rows) for seed in kept], axis=1),
            examples=60,
            rng=generator,
            resamples=200,
        )
        by_seed = found.by_seed[:, 0].tolist()
        with_examples += t_interval(by_seed, example_error=float(found.example_error[0])).sign == 0
        alone += t_interval(by_seed).sign == 0
    assert with_examples / 200 > 0.9
    assert alone / 200 < 0.85


# Tests


def test_the_t_test_is_scipys_and_undefined_without_spread():
    assert t_test(FIVE) == pytest.approx(stats.ttest_1samp(FIVE, 0).pvalue)
    assert t_test([0.01]) is None
    assert t_test([0.01, 0.01, 0.01]) is None
    assert t_test([0.0, 0.0]) is None
    assert t_test([0.01], example_error=0.005) == pytest.approx(2 * stats.norm.sf(2))


@pytest.mark.parametrize("example_error", [0.0, 0.001, 0.01])
def test_a_p_is_below_five_hundredths_exactly_where_the_interval_excludes_zero(example_error):
    draw = np.random.default_rng(0)
    for S in (2, 3, 5):
        for _ in range(50):
            values = draw.normal(0.008, 0.008, S).tolist()
            interval = t_interval(values, example_error=example_error)
            assert (t_test(values, example_error=example_error) < 0.05) == (interval.sign != 0)


def test_where_the_seeds_share_their_examples_a_p_over_seeds_alone_finds_what_is_not_there():
    draw, alone, both = np.random.default_rng(1), 0, 0
    for _ in range(600):  # no difference at all: what seeds share is a test set's luck, of standard error 1
        values = (draw.normal() + draw.normal(0, 1, 3)).tolist()
        alone += t_test(values) < 0.05
        both += t_test(values, example_error=1.0) < 0.05
    assert alone / 600 > 0.12
    assert both / 600 < 0.07


def test_the_sign_flip_test_is_scipys_exact_permutation_test():
    theirs = stats.permutation_test((np.array(FIVE),), np.mean, permutation_type="samples", n_resamples=1000)
    assert sign_flip_test(FIVE) == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("seeds", [1, 3, 5, 8])
def test_exact_tests_cannot_go_below_their_least_p(seeds):
    same_sign = [0.01 * (i + 1) for i in range(seeds)]
    assert sign_flip_test(same_sign) == wilcoxon_test(same_sign) == 2.0 ** (1 - seeds)


def test_the_wilcoxon_test_is_scipys_exact_one():
    values = rng(9).normal(0.5, size=9)
    assert wilcoxon_test(values) == pytest.approx(stats.wilcoxon(values, method="exact").pvalue)
    assert wilcoxon_test([0.0, *values]) == wilcoxon_test(values)  # zeros are dropped


def test_ties_in_the_wilcoxon_test_are_averaged():
    # ranks 1.5, 1.5, 3: sums of signed ranks ±6, ±3 (twice each) and 0; |Σ| ≥ 3 has 6 of 8
    assert wilcoxon_test([0.1, -0.1, 0.2]) == 0.75


def test_no_difference_has_p_one():
    assert sign_flip_test([0.0, 0.0]) == wilcoxon_test([0.0, 0.0]) == mcnemar(0, 0) == 1.0


def test_more_seeds_than_can_be_flipped_are_refused():
    with pytest.raises(ValueError, match="at most 20"):
        sign_flip_test([0.1] * 21)


@pytest.mark.parametrize(("b", "c"), [(10, 2), (3, 3), (0, 7), (40, 61)])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    assert mcnemar(b, c) == pytest.approx(stats.binomtest(b, b + c, 0.5).pvalue)
    assert mcnemar(b, c) == mcnemar(c, b)


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 by 4 3 2 1: .04 .06 .06 .04, never falling: .04 .06 .06 .06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx((0.06, 0.04, 0.06, 0.06))
    assert holm([0.5, 0.9]) == (1.0, 1.0)
    assert holm([0.03]) == (0.03,)
    assert holm([]) == ()


def test_holm_leaves_an_undefined_p_out_of_the_count():
    assert holm([None, 0.02, 0.03]) == (None, 0.04, 0.04)


# What can be resolved


def test_the_resolvable_difference_by_hand():
    # (1.959964 + .841621) · sqrt(.1 / 8000) = .009905: a test set of 8,000 and one seed in ten examples discordant
    settings = {"examples": 8000, "discordance": 0.1, "seeds": 3}
    assert resolvable_difference(**settings, seed_sd=0.0) == pytest.approx(0.009905, abs=1e-6)
    assert resolvable_difference(**settings, seed_sd=0.005) == pytest.approx(
        2.801585 * math.sqrt(0.005**2 / 3 + 0.1 / 8000), abs=1e-6
    )
    assert resolvable_difference(**settings, seed_sd=0.005, shared=0.0) == pytest.approx(
        2.801585 * 0.005 / math.sqrt(3), abs=1e-6
    )
    assert resolvable(Spread(1.0, 0.0, 2)) == pytest.approx(stats.t.ppf(0.975, 2) + stats.t.ppf(0.8, 2))


def test_the_resolvable_difference_is_found_with_the_power_it_promises():
    """4,000 experiments of paired answers; the test knows the variance, as the formula does."""
    S, N, d, seed_sd, generator = 3, 2000, 0.12, 0.004, rng(10)
    delta = resolvable_difference(examples=N, discordance=d, seeds=S, seed_sd=seed_sd)
    error = math.sqrt(seed_sd**2 / S + d / N)
    found = {}
    for true in (0.0, delta):
        wins = generator.multinomial(N, [(d + true) / 2, (d - true) / 2, 1 - d], size=4000)  # shared by the seeds
        seeds = generator.normal(0, seed_sd, size=(4000, S)).mean(axis=1)
        difference = (wins[:, 0] - wins[:, 1]) / N + seeds
        found[true] = np.mean(np.abs(difference) > 1.959964 * error)
    assert abs(found[0.0] - 0.05) < 0.015
    assert abs(found[delta] - 0.8) < 0.025


# Ranks


def test_ranks_average_ties_and_order_infinities():
    values = np.array([[0.3, 0.1, 0.3, -math.inf, -math.inf], [1.0, 2.0, 3.0, 4.0, math.inf]])
    assert ranks(values).tolist() == stats.rankdata(values, axis=1).tolist()
    assert (comparisons(values) == -comparisons(values).swapaxes(1, 2)).all()
