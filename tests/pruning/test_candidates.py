from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from autodisc.pruning.candidates import (
    NEURON_MULTIPLE,
    Candidate,
    Ranking,
    all_candidates,
    candidate,
    chain_from,
    envelope,
    nested_candidates,
)

SHAPES = [(3, 4, 32), (6, 12, 1536), (4, 2, 30), (1, 1, 8), (5, 3, 7)]  # layers, heads, neurons


def shuffled(layers: int, heads: int, neurons: int, seed: int, skew: float = 0.0) -> Ranking:
    """A removal order by chance; with ``skew`` the upper layers go first, which empties whole layers."""
    generator = random.Random(seed)

    def order(units: int) -> tuple[tuple[int, int], ...]:
        pairs = [(layer, i) for layer in range(layers) for i in range(units)]
        return tuple(sorted(pairs, key=lambda unit: generator.random() - skew * unit[0]))

    return Ranking(order(heads), order(neurons), layers)


RANKINGS = [
    pytest.param(shuffled(*shape, seed, skew), shape, id=f"{shape}-{seed}-{skew}")
    for shape in SHAPES
    for seed, skew in ((0, 0.0), (1, 0.3), (2, 2.0))
]


@pytest.mark.parametrize(("ranking", "shape"), RANKINGS)
def test_candidates_are_nested(ranking, shape):
    generator = random.Random(7)
    sparsities = [0.0, 0.999, *(generator.random() for _ in range(40))]
    found = list(nested_candidates(ranking, sparsities).values())
    assert [c.sparsity for c in found] == sorted(sparsities)
    for larger, smaller in itertools.combinations(found, 2):
        assert smaller.fits_in(larger)
    heads, neurons = ranking.by_layer()
    for c in found:  # what a layer keeps is a prefix of its order, so fitting in means being a subset
        assert all(kept <= len(order) for kept, order in zip(c.heads, heads, strict=True))
        assert all(kept <= len(order) for kept, order in zip(c.neurons, neurons, strict=True))


@pytest.mark.parametrize(("ranking", "shape"), RANKINGS)
def test_widths_are_multiples_of_eight_or_a_whole_layer(ranking, shape):
    for step in range(20):
        for width in candidate(ranking, step / 20).neurons:
            assert width % NEURON_MULTIPLE == 0 or width == shape[2]


@pytest.mark.parametrize(("ranking", "shape"), RANKINGS)
def test_the_removed_fraction_is_the_sparsity_up_to_rounding(ranking, shape):
    layers, heads, neurons = shape
    for step in range(20):
        sparsity = step / 20
        c = candidate(ranking, sparsity)
        assert abs(sum(c.heads) - (1 - sparsity) * layers * heads) <= 0.5
        # Each width moves by at most half a multiple.
        assert abs(sum(c.neurons) - (1 - sparsity) * layers * neurons) <= 0.5 + layers * NEURON_MULTIPLE / 2


@pytest.mark.parametrize(("ranking", "shape"), RANKINGS)
@pytest.mark.parametrize("ratio", [0.2, 0.5, 2.0])
def test_a_balance_moves_parameters_and_keeps_their_number(ranking, shape, ratio):
    layers, heads, neurons = shape
    ranking = replace(ranking, ratio=ratio)
    slack = ratio * 0.5 / (layers * heads) + (0.5 + layers * NEURON_MULTIPLE / 2) / (layers * neurons)  # rounding
    for sparsity in (0.3, 0.5, 0.7, 0.85):
        found = [
            candidate(ranking, sparsity, balance=balance, student=0.9) for balance in (-0.5, -0.25, 0.0, 0.25, 0.5)
        ]
        kept = [sum(c.heads) for c in found]
        assert kept == sorted(kept)
        for c in found:
            parameters = ratio * sum(c.heads) / (layers * heads) + sum(c.neurons) / (layers * neurons)
            assert abs(parameters - (1 - sparsity) * (1 + ratio)) <= slack + 1e-6


@pytest.mark.parametrize(("ranking", "shape"), RANKINGS)
@pytest.mark.parametrize("balance", [-0.9, -0.5, 0.5, 1.0])
def test_a_balance_leaves_what_the_student_needs_and_nests_in_itself(ranking, shape, balance):
    student = candidate(ranking, 0.9)
    found = [
        candidate(ranking, sparsity, balance=balance, student=student.sparsity)
        for sparsity in (0.05, 0.3, 0.5, 0.7, 0.85, 0.89)
    ]
    for larger, smaller in itertools.pairwise([*found, student]):
        assert smaller.fits_in(larger)


@pytest.mark.parametrize("ratio", [0.0, float("inf")])
def test_without_parameters_on_one_side_there_is_nothing_to_balance(ratio):
    ranking = replace(shuffled(3, 4, 32, 0), ratio=ratio)
    assert candidate(ranking, 0.5, balance=0.5) == replace(candidate(ranking, 0.5), balance=0.5)


def test_a_student_whose_units_round_up_fits_in_an_assistant_of_its_least():
    ranking = shuffled(1, 18, 1536, 0)
    student = candidate(ranking, 11 / 12)
    assert student.fits_in(candidate(ranking, 0.85, balance=-0.58, student=student.sparsity))


def test_balances_that_keep_the_same_units_are_one_candidate():
    found = all_candidates(shuffled(3, 4, 32, 0), (0.05, 0.5), (-0.5, -0.25, 0.0, 0.25, 0.5), student=0.9)
    units = [(c.sparsity, c.heads, c.neurons) for c in found]
    assert len(set(units)) == len(units)
    assert len([c for c in found if c.sparsity == 0.05]) < 5


def test_a_chain_is_of_the_assistants_balance_down_to_the_student():
    ranking = shuffled(6, 12, 1536, 0)
    student = candidate(ranking, 0.9)
    found = all_candidates(ranking, (0.3, 0.5, 0.7), (-0.5, 0.0, 0.5), student=student.sparsity)
    assistant = next(c for c in found if (c.sparsity, c.balance) == (0.5, -0.5))
    chain = chain_from(assistant, found, student)
    assert [(c.sparsity, c.balance) for c in chain] == [(0.5, -0.5), (0.7, -0.5), (0.9, 0.0)]
    assert all(smaller.fits_in(larger) for larger, smaller in itertools.pairwise(chain))


def test_all_fit_in_their_envelope_and_nested_ones_in_the_largest():
    ranking = shuffled(3, 4, 32, 0)
    found = all_candidates(ranking, (0.5, 0.3), (0.5, 0.0, -0.5), student=0.9)
    assert [(c.sparsity, c.balance) for c in found] == [(s, b) for s in (0.3, 0.5) for b in (0.0, -0.5, 0.5)]
    assert all(c.fits_in(envelope(found)) for c in found)
    assert not any(envelope(found).fits_in(c) for c in found)
    nested = list(nested_candidates(ranking, (0.3, 0.5, 0.9)).values())
    assert envelope(nested) == nested[0] == envelope(nested[:1])


def at_the_same_rate(ranking: Ranking) -> tuple[float, ...]:
    return tuple((number + 0.5) / len(ranking.heads) for number in range(len(ranking.heads)))


@pytest.mark.parametrize(("ranking", "shape"), RANKINGS)
def test_heads_that_go_at_the_neurons_rate_are_the_plain_candidates(ranking, shape):
    alike = replace(ranking, head_sparsities=at_the_same_rate(ranking))
    for step in range(1, 40):
        assert candidate(alike, step / 40) == candidate(ranking, step / 40)


@pytest.mark.parametrize(("ranking", "shape"), RANKINGS)
@pytest.mark.parametrize("seed", range(5))
def test_where_heads_have_their_own_sparsities_candidates_nest_and_keep_as_many_parameters(ranking, shape, seed):
    layers, heads, neurons = shape
    H, N, ratio = layers * heads, layers * neurons, 0.5
    events = [0] * H + [1] * N
    random.Random(seed).shuffle(events)
    if seed == 0:  # all heads last, one after the other
        events.sort(reverse=True)
    gone, at = 0.0, []
    for event in events:
        share = 1 / N if event else ratio / H
        at += [] if event else [(gone + share / 2) / (1 + ratio)]
        gone += share
    ranking = replace(ranking, ratio=ratio, head_sparsities=tuple(at))
    generator = random.Random(seed)
    found = list(nested_candidates(ranking, [0.0, 0.999, *(generator.random() for _ in range(30))]).values())
    for larger, smaller in itertools.pairwise(found):
        assert smaller.fits_in(larger)
    slack = ratio * 0.5 / H + (0.5 + layers * NEURON_MULTIPLE / 2) / N  # rounding
    for c in found:
        parameters = ratio * sum(c.heads) / H + sum(c.neurons) / N
        assert abs(parameters - c.scale * (1 + ratio)) <= slack + 1e-6
    for sparsity, number in zip(at, range(H), strict=True):
        if 0.001 < sparsity < 0.99:
            assert sum(candidate(ranking, sparsity - 1e-6).heads) == H - number
            assert sum(candidate(ranking, sparsity + 1e-6).heads) == H - number - 1


def test_the_most_expendable_units_go_first():
    ranking = Ranking(((1, 0), (0, 1), (0, 0), (1, 1)), tuple((0, i) for i in range(16)), layers=2)
    assert candidate(ranking, 0.25).heads == (2, 1)
    assert candidate(ranking, 0.5).heads == (1, 1)
    assert ranking.by_layer()[0] == [[0, 1], [1, 0]]
    assert ranking.by_layer()[1] == [list(range(15, -1, -1)), []]


def test_sparsity_zero_keeps_everything():
    assert candidate(shuffled(4, 2, 30, 0), 0.0) == Candidate(0.0, (2,) * 4, (30,) * 4)


def test_one_larger_layer_does_not_fit():
    assert not Candidate(0.5, (2, 0), (8, 8)).fits_in(Candidate(0.4, (1, 4), (16, 16)))
    assert not Candidate(0.5, (1, 1), (8, 24)).fits_in(Candidate(0.4, (1, 4), (16, 16)))


def test_a_sparsity_given_twice_is_one_candidate():
    assert list(nested_candidates(shuffled(3, 4, 32, 0), [0.5, 0.2, 0.5])) == [0.2, 0.5]
