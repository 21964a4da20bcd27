from __future__ import annotations

import itertools
import random

import pytest

from autodisc.search.tradeoff import Score, best, infeasibility, tradeoff, winners


def score(sparsity: float, metric: float, *, floor: float = 0.5, error: float = 0.02) -> Score:
    return Score(sparsity, metric, floor, error)


def test_the_tradeoff_adds_lambda_times_sparsity():
    assert tradeoff(0.8, 0.5, 0.2) == pytest.approx(0.9)
    assert tradeoff(0.8, 0.5, 0.0) == 0.8


def test_a_tie_goes_to_the_sparser_wherever_it_stands():
    tied = [score(0.25, 0.875), score(0.75, 0.75), score(0.5, 0.8125)]  # all 0.9375 at λ = 1/4, exactly
    assert {tradeoff(s.metric, s.sparsity, 0.25) for s in tied} == {0.9375}
    assert best(tied, 0.25) == 1
    assert best(tied[::-1], 0.25) == 1


def test_an_infeasible_score_is_never_chosen():
    assert best([score(0.3, 0.6), score(0.99, 0.51)], lam=100.0) == 0


def test_a_metric_must_be_clear_of_the_floor_by_the_margin():
    assert not score(0.5, 0.52).feasible(1.0)  # exactly one standard error
    assert score(0.5, 0.521).feasible(1.0)
    assert not score(0.5, 0.521).feasible(2.0)
    assert not score(0.5, 0.5, error=0.0).feasible(0.0)
    assert infeasibility(score(0.5, 0.6), 1.0) == pytest.approx(-0.08)


@pytest.mark.parametrize("scores", [[], [score(0.3, 0.5)], [score(0.3, 0.4), score(0.9, 0.51)]], ids=len)
def test_nothing_is_chosen_when_nothing_is_feasible(scores):
    assert best(scores, 0.2) is None


def test_a_metric_that_is_not_a_number_is_never_chosen():
    assert best([score(0.3, float("nan")), score(0.4, 0.7)], 0.2) == 1
    assert best([score(0.3, float("nan"))], 0.2) is None


def test_the_choice_can_be_replayed_under_another_lambda():
    scores = [score(0.3, 0.85), score(0.5, 0.82), score(0.7, 0.77), score(0.85, 0.51)]
    assert [best(scores, lam) for lam in (0.0, 0.2, 0.5, 10.0)] == [0, 1, 2, 2]


def test_a_larger_lambda_never_chooses_a_larger_assistant():
    generator = random.Random(0)
    for _ in range(200):
        scores = [score(generator.random(), generator.random()) for _ in range(6)]
        chosen = [best(scores, lam / 4) for lam in range(12)]
        if chosen[0] is not None:
            sparsities = [scores[i].sparsity for i in chosen]
            assert sparsities == sorted(sparsities)


def test_winners_are_whom_best_chooses_for_every_lambda():
    generator = random.Random(3)
    for _ in range(50):
        count = generator.randrange(1, 12)
        scores = [
            Score(round(generator.uniform(0, 0.95), 2), round(generator.uniform(0.5, 1), 2), 0.6, 0.02)
            for _ in range(count)
        ]
        found = winners(scores, 1.0, highest=2.0)
        if best(scores, 0.0) is None:
            assert found == []
            continue
        assert found[0][0] == 0.0
        assert found[-1][1] == 2.0
        assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
        for low, high, index in found:
            if high - low > 1e-9:
                chosen = best(scores, (low + high) / 2)
                assert scores[chosen] == scores[index]
