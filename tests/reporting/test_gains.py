from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from autodisc.reporting.gains import Comparison, FrontierPoint, Standing, compare, frontier, share_best, verdict
from autodisc.reporting.statistics import Interval, Results, Spread, resolvable


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def plain(seed: int, **metrics: float) -> Results:
    return Results(seed, tuple(metrics), tuple(metrics.values()))


def answered(seed: int, *, gain: float, examples: int = 1000) -> Results:
    """Answers of which ``autodisc`` has ``gain`` more right than ``direct``, with a tenth discordant on top."""
    base = np.arange(examples) % 10 < 8
    theirs, ours = base.copy(), base.copy()
    wrong = rng(seed).permutation(np.flatnonzero(~base))
    right = rng(seed).permutation(np.flatnonzero(base))
    more, churn = round(gain * examples), examples // 40
    ours[wrong[: churn + max(more, 0)]] = True
    ours[right[: churn + max(-more, 0)]] = False
    answers = np.stack([ours, theirs]).astype(np.int8)
    return Results(seed, ("autodisc", "direct"), tuple(answers.mean(axis=1).tolist()), answers)


def over_direct(results, **settings) -> Comparison:
    return compare(results, ours="autodisc", theirs="direct", rng=rng(), **settings)


# Comparisons


def test_without_answers_a_comparison_is_the_paired_t_test_over_seeds():
    results = [plain(s, autodisc=a, direct=d) for s, (a, d) in enumerate([(0.81, 0.8), (0.83, 0.8), (0.8, 0.79)])]
    found = over_direct(results)
    theirs = stats.ttest_rel([0.81, 0.83, 0.8], [0.8, 0.8, 0.79])
    assert found.p == pytest.approx(theirs.pvalue)
    bounds = theirs.confidence_interval()
    assert (found.interval.low, found.interval.high) == pytest.approx((bounds.low, bounds.high))
    assert found.difference == pytest.approx(0.05 / 3)
    assert (found.p_sign_flip, found.p_mcnemar, found.examples) == (0.25, None, 0)
    error = np.std([0.01, 0.03, 0.01], ddof=1) / math.sqrt(3)
    assert found.resolvable == pytest.approx(resolvable(Spread(error**2, 0.0, 2)))


def test_examples_widen_what_seeds_alone_would_say():
    results = [answered(seed, gain=0.03) for seed in range(3)]
    without = [plain(r.seed, autodisc=r.metrics[0], direct=r.metrics[1]) for r in results]
    assert over_direct(results).interval.high > 0.03
    assert math.isinf(over_direct(without).interval.high)  # the seeds agree
    assert over_direct(results).difference == pytest.approx(0.03)


def test_one_seed_has_mcnemar_and_the_normal_interval_over_examples():
    found = over_direct([answered(0, gain=0.04)])
    assert found.p == pytest.approx(found.p_mcnemar, abs=2e-5)
    assert found.p_mcnemar == pytest.approx(stats.binomtest(65, 90, 0.5).pvalue)
    error = math.sqrt((0.09 - 0.04**2) / 1000)  # of a mean of -1, 0, 1
    assert (found.interval.high - found.interval.low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    assert (found.bootstrap.low, found.bootstrap.high) == pytest.approx(
        (found.interval.low, found.interval.high), abs=0.003
    )
    assert found.resolvable == pytest.approx(2.8016 * error, rel=0.05)


def test_one_seed_without_answers_sets_no_bounds():
    found = over_direct([plain(0, autodisc=0.8, direct=0.7)])
    assert found.interval == Interval(pytest.approx(0.1), -math.inf, math.inf)
    assert (found.bootstrap, found.resolvable, found.p, found.p_mcnemar) == (None,) * 4
    assert found.p_sign_flip == 1.0


def test_a_strategy_against_itself_differs_by_nothing():
    results = [replace(answered(seed, gain=0.02), names=("autodisc", "other")) for seed in range(3)]
    twice = [
        Results(r.seed, ("autodisc", "direct"), (r.metrics[0],) * 2, np.stack([r.answers[0]] * 2)) for r in results
    ]
    found = over_direct(twice)
    assert found.interval == Interval(0.0, -math.inf, math.inf)  # the same students: nothing says how far they may lie
    assert (found.p_wilcoxon, found.p_sign_flip, found.p) == (1.0, 1.0, None)


def test_the_other_way_round_a_comparison_changes_its_sign():
    results = [answered(seed, gain=0.01 * seed) for seed in range(3)]
    one, other = over_direct(results), compare(results, ours="direct", theirs="autodisc", rng=rng())
    assert (one.interval.low, one.interval.high) == pytest.approx((-other.interval.high, -other.interval.low))
    assert one.p == pytest.approx(other.p)


def test_seeds_are_counted_once():
    with pytest.raises(ValueError, match="one result a seed"):
        over_direct([plain(0, autodisc=0.8, direct=0.7)] * 2)
    with pytest.raises(ValueError, match="at least one"):
        over_direct([])


# Which is best


def test_shares_of_being_best_add_up_and_follow_the_gap():
    answers = (rng(3).random((3, 400)) < np.array([0.7, 0.71, 0.9])[:, None]).astype(int)
    results = [Results(0, ("a", "b", "c"), tuple(answers.mean(axis=1).tolist()), answers)]
    shares = share_best(results, among=("a", "b", "c"), rng=rng())
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["c"] == 1.0
    assert 0.0 < share_best(results, among=("a", "b"), rng=rng())["a"] < 1.0


def test_equal_students_share_being_best():
    assert share_best([plain(0, a=0.7, b=0.7, c=0.6)], among=("a", "b", "c"), rng=rng()) == {"a": 0.5, "b": 0.5, "c": 0}
    seeds = [plain(0, a=0.7, b=0.6), plain(1, a=0.6, b=0.7)]
    shares = share_best(seeds, among=("a", "b"), rng=rng(), resamples=4000)
    assert shares["a"] == pytest.approx(0.5, abs=0.03)  # 1/4 alone, 1/4 not, 1/2 shared


# Words


def standing(gain: float, **changes) -> Standing:
    results = [answered(seed, gain=gain, examples=2000) for seed in range(3)]
    values = {"task": "mrpc", "student_sparsity": 0.9, "chosen": (0.7,) * 3, "over_direct": over_direct(results)}
    return Standing(**values | changes)


def test_a_gain_that_is_clear_recommends_the_assistant():
    text = verdict(standing(0.05, best_share=0.64, search_share=0.03, schedule_share=0.17))
    assert text.startswith(
        "mrpc, student sparsity 0.9: take the assistant of sparsity 0.7; over no assistant it gains +5.0"
    )
    assert "3 seeds, 2,000 test examples" in text
    assert "it is the best assistant in 64 % of the bootstrap's draws" in text
    assert "Of the exhaustive search's cost the search 3.0 % and the whole schedule 17.0 %." in text


def test_a_loss_that_is_clear_recommends_no_assistant():
    text = verdict(standing(-0.05))
    assert "take no teacher assistant; with the assistant of sparsity 0.7 the student changes by −5.0 points" in text


def test_nothing_feasible_recommends_no_assistant():
    text = verdict(standing(0.0, chosen=(None, None), over_direct=None))
    assert "take no teacher assistant; none of the candidates left the floor" in text


def test_noise_is_called_noise_with_what_could_be_resolved():
    found = standing(0.005)
    text = verdict(found)
    assert "cannot tell the assistant of sparsity 0.7 and no assistant apart: +0.5 points" in text
    assert f"differences below {100 * found.over_direct.resolvable:.1f} points are not resolvable" in text
    assert "with this test set and these seeds" in text
    assert "this seed" in verdict(standing(0.0, over_direct=over_direct([answered(0, gain=0.001)])))


def test_what_is_told_apart_is_what_the_interval_excludes():
    for gain in (-0.06, -0.02, 0.0, 0.01, 0.02, 0.04):
        found = standing(gain)
        assert ("cannot tell" in verdict(found)) == (found.over_direct.interval.sign == 0)
        assert found.over_direct.resolvable > (found.over_direct.interval.high - found.over_direct.interval.low) / 2


def test_a_corrected_p_stands_beside_the_interval_and_doubts_are_said():
    text = verdict(standing(0.05, p_direct=0.0004, over_rule=standing(0.05).over_direct, p_rule=0.021))
    assert ", p < 0.001 corrected, 3 seeds" in text
    assert "p 0.021 corrected), better." in text
    assert "But" not in text
    assert "But among as many comparisons as this report makes, chance alone" in verdict(standing(0.05, p_direct=0.09))
    one = standing(0.05, over_direct=over_direct([answered(0, gain=0.05)]), chosen=(0.7,))
    assert "But this is one seed, and another may decide otherwise." in verdict(one)
    assert "But" not in verdict(standing(0.0, p_direct=1.0))
    rule = verdict(standing(0.0, over_rule=standing(0.05).over_direct, p_rule=0.3))
    assert "p 0.300 corrected), better. But among as many comparisons" in rule
    assert verdict(standing(0.05, p_direct=0.3, over_rule=standing(0.05).over_direct, p_rule=0.3)).count("But") == 1


def test_the_rule_is_compared_in_words():
    clear, unclear = standing(0.05).over_direct, standing(0.0).over_direct
    assert "Against the 2.5 × rule: +5.0 points" in verdict(standing(0.05, over_rule=clear))
    assert verdict(standing(0.05, over_rule=clear)).endswith("better.")
    assert verdict(standing(0.05, over_rule=standing(-0.05).over_direct)).endswith("worse.")
    assert "cannot tell apart: below" in verdict(standing(0.05, over_rule=unclear))


def test_seeds_that_chose_differently_are_said():
    text = verdict(standing(0.05, chosen=(0.7, 0.6, 0.7, None)))
    assert "sparsity 0.7 (chosen with 2 of 4 seeds; 0.6 in 1, none feasible in 1)" in text
    text = verdict(standing(0.05, chosen=(0.7, None, None)))
    assert "take the search's choice (sparsity 0.7 with 1 of 3 seeds; none feasible in 2); over no assistant" in text
    assert "the assistant of sparsity 0.8 (chosen with 1 of 2 seeds; 0.3 in 1)" in verdict(
        standing(0.05, chosen=(0.8, 0.3))
    )


def test_what_was_not_run_is_not_claimed():
    assert "nothing says whether it helps" in verdict(standing(0.0, over_direct=None))
    alone = over_direct([plain(0, autodisc=0.8, direct=0.7)])
    text = verdict(standing(0.0, over_direct=alone, over_rule=alone))
    assert "cannot tell whether the assistant of sparsity 0.7 helps" in text
    assert "no interval" in text
    assert "resolvable" not in text
    assert "inf" not in text.replace("interval", "")


# Frontier


def test_the_frontier_keeps_what_no_other_setting_beats():
    points = [
        FrontierPoint("0 steps", 0.01, 0.03),
        FrontierPoint("60 steps", 0.03, 0.01),
        FrontierPoint("one epoch", 0.2, 0.01),  # no better, dearer
        FrontierPoint("30 steps", 0.02, 0.04),  # worse and dearer
        FrontierPoint("60 steps again", 0.03, 0.01),  # equal points stay
        FrontierPoint("exhaustive", 1.0, 0.0),
    ]
    assert [point.setting for point in frontier(points)] == ["0 steps", "60 steps", "60 steps again", "exhaustive"]
    assert frontier([]) == ()
