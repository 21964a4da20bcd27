"""Nested candidates: how many units each layer keeps at a sparsity.

One global removal order for heads and one for neurons; sparsity s removes the first round(s * n) of each, or, where the
ranking says at which sparsity each head goes, as many heads as have gone by then, and of the neurons the rest.
So the units of every candidate are a prefix, per layer, of the units of every larger one.

A balance b other than 0 keeps 1 + b times as many heads, and as many neurons as leave the number of parameters what it
is at b = 0. Both orders are the same, so such a candidate is a slice of the same weights; it holds the student, and is
held by whatever keeps as many heads and as many neurons.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Unit = tuple[int, int]  # (layer, index within the unpruned layer)
NEURON_MULTIPLE = 8  # widths that matrix kernels like; the authors' choice too
STANDARD_RATIO = 0.5  # four square matrices beside two of four times the width


@dataclass(frozen=True)
class Ranking:
    """Removal orders over all units of the unpruned model, the most expendable first."""

    heads: tuple[Unit, ...]
    neurons: tuple[Unit, ...]
    layers: int
    ratio: float = STANDARD_RATIO  # parameters of all heads over those of all neurons
    head_sparsities: tuple[float, ...] = ()  # at which each head goes; none: heads and neurons go at the same rate

    def by_layer(self) -> tuple[list[list[int]], list[list[int]]]:
        """Per layer, the head and the neuron indices with the most important first."""
        return _by_layer(self.heads, self.layers), _by_layer(self.neurons, self.layers)


@dataclass(frozen=True)
class Candidate:
    """Kept heads and neurons per layer; no weights."""

    sparsity: float
    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    balance: float = 0.0  # between heads and neurons; more than 0: more heads

    @property
    def scale(self) -> float:
        return 1.0 - self.sparsity

    def fits_in(self, other: Candidate) -> bool:
        """True when every layer keeps no more than ``other``'s."""
        pairs = zip(self.heads + self.neurons, other.heads + other.neurons, strict=True)
        return all(mine <= theirs for mine, theirs in pairs)


def candidate(ranking: Ranking, sparsity: float, *, balance: float = 0.0, student: float = 1.0) -> Candidate:
    """The candidate at a sparsity in [0, 1); FFN widths are rounded to multiples of 8 (0 included).

    A ``balance`` in (-1, 1] goes as far as there are units, and as what a ``student`` of its sparsity keeps is left.
    """
    without_heads, without_neurons = _gone(ranking, sparsity, balance=balance, student=student)
    heads = _kept(ranking.heads, without_heads, ranking.layers)
    neurons = _kept(ranking.neurons, without_neurons, ranking.layers)
    totals = Counter(layer for layer, _ in ranking.neurons)
    rounded = tuple(_round(kept, totals[layer]) for layer, kept in enumerate(neurons))
    return Candidate(sparsity, heads, rounded, balance)


def nested_candidates(ranking: Ranking, sparsities: Iterable[float]) -> dict[float, Candidate]:
    """One candidate a sparsity, the largest first; each fits in all before it."""
    return {sparsity: candidate(ranking, sparsity) for sparsity in sorted(set(sparsities))}


def all_candidates(
    ranking: Ranking, sparsities: Iterable[float], balances: Iterable[float], *, student: float
) -> list[Candidate]:
    """One candidate a sparsity and balance: the least sparse first, and of these the one nearest to balance 0."""
    found: list[Candidate] = []
    for sparsity in sorted(set(sparsities)):
        alike: dict[tuple[tuple[int, ...], ...], Candidate] = {}  # where the units end, two balances keep the same
        for balance in sorted(set(balances), key=lambda b: (abs(b), b)):
            made = candidate(ranking, sparsity, balance=balance, student=student)
            alike.setdefault((made.heads, made.neurons), made)
        found += alike.values()
    return found


def chain_from(assistant: Candidate, others: Iterable[Candidate], student: Candidate) -> list[Candidate]:
    """The assistant, those of the others that lie between, of its balance, and the student; each fits in all before."""
    chain = [assistant]
    for each in sorted(others, key=lambda other: other.sparsity):
        if each.balance == assistant.balance and each.sparsity > assistant.sparsity and each.fits_in(chain[-1]):
            chain.append(each)
    return [*chain, student]


def envelope(candidates: Sequence[Candidate]) -> Candidate:
    """The smallest that all of ``candidates`` fit in, by the first one's name: the first, where they are nested."""
    first = candidates[0]
    heads, neurons = (
        tuple(map(max, *kept)) if len(kept) > 1 else kept[0]
        for kept in ([c.heads for c in candidates], [c.neurons for c in candidates])
    )
    return Candidate(first.sparsity, heads, neurons, first.balance)


def _gone(ranking: Ranking, sparsity: float, *, balance: float, student: float) -> tuple[float, float]:
    """The sparsities of heads and of neurons: together they keep as many parameters as ``sparsity`` of both."""
    ratio = ranking.ratio
    if not 0 < ratio < math.inf or not (balance or ranking.head_sparsities):
        return sparsity, sparsity
    whole = (1 - sparsity) * (1 + ratio)  # parameters, in those of all neurons
    heads = 1 - _heads_gone(ranking, sparsity)
    if not balance:
        return round(1 - heads, 9), round(1 - whole + ratio * heads, 9)
    without = _gone(ranking, student, balance=0.0, student=student)
    least_heads, least_neurons = (1 - gone for gone in without)
    heads = min(max(heads * (1 + balance), least_heads), (whole - least_neurons) / ratio, 1.0)
    heads = max(heads, (whole - 1) / ratio)  # where all neurons are there, the rest is heads
    gone = round(1 - heads, 9), round(1 - whole + ratio * heads, 9)
    return min(gone[0], without[0]), min(gone[1], without[1])  # exactly the student's, which rounds as it does


def _heads_gone(ranking: Ranking, sparsity: float) -> float:
    """Linear between the heads: where one goes, half of it is gone."""
    if not ranking.head_sparsities:
        return sparsity
    count = len(ranking.head_sparsities)
    at = [0.0, *ranking.head_sparsities, 1.0]
    gone = [0.0, *((number + 0.5) / count for number in range(count)), 1.0]
    after = min(max(bisect.bisect_right(at, sparsity), 1), count + 1)
    low, high = at[after - 1], at[after]
    share = (sparsity - low) / (high - low) if high > low else 1.0
    return gone[after - 1] + share * (gone[after] - gone[after - 1])


def _kept(order: Sequence[Unit], sparsity: float, layers: int) -> tuple[int, ...]:
    counts = Counter(layer for layer, _ in order[round(sparsity * len(order)) :])
    return tuple(counts[layer] for layer in range(layers))


def _round(kept: int, total: int) -> int:
    if kept == total:
        return total
    return min(total, (kept + NEURON_MULTIPLE // 2) // NEURON_MULTIPLE * NEURON_MULTIPLE)


def _by_layer(order: Sequence[Unit], layers: int) -> list[list[int]]:
    lists: list[list[int]] = [[] for _ in range(layers)]
    for layer, index in reversed(order):
        lists[layer].append(index)
    return lists
