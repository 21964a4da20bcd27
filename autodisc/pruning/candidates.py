"""Nested candidates: how many units each layer keeps at a sparsity.

One global removal order for heads and one for neurons; sparsity s removes the first round(s * n) of each.
So the units of every candidate are a prefix, per layer, of the units of every larger one.

A balance b other than 0 keeps (1 - s)(1 + b) of the heads, and as many neurons as leave the number of parameters what
it is at b = 0. Both orders are the same, so such a candidate is a slice of the same weights; it holds the student, and
is held by whatever keeps as many heads and as many neurons.
"""

from __future__ import annotations

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


def candidate(ranking: Ranking, sparsity: float, balance: float = 0.0, *, least: float = 0.0) -> Candidate:
    """The candidate at a sparsity in [0, 1); FFN widths are rounded to multiples of 8 (0 included).

    A ``balance`` in [-1, 1] goes as far as there are units, and as ``least`` of both, the student's scale, is left.
    """
    without_heads, without_neurons = _balanced(sparsity, balance, ranking.ratio, least)
    heads = _kept(ranking.heads, without_heads, ranking.layers)
    neurons = _kept(ranking.neurons, without_neurons, ranking.layers)
    totals = Counter(layer for layer, _ in ranking.neurons)
    rounded = tuple(_round(kept, totals[layer]) for layer, kept in enumerate(neurons))
    return Candidate(sparsity, heads, rounded, balance)


def nested_candidates(ranking: Ranking, sparsities: Iterable[float]) -> dict[float, Candidate]:
    """One candidate a sparsity, the largest first; each fits in all before it."""
    return {sparsity: candidate(ranking, sparsity) for sparsity in sorted(set(sparsities))}


def all_candidates(
    ranking: Ranking, sparsities: Iterable[float], balances: Iterable[float], *, least: float
) -> list[Candidate]:
    """One candidate a sparsity and balance: the least sparse first, and of these the one nearest to balance 0."""
    return [
        candidate(ranking, sparsity, balance, least=least)
        for sparsity in sorted(set(sparsities))
        for balance in sorted(set(balances), key=lambda b: (abs(b), b))
    ]


def envelope(candidates: Sequence[Candidate]) -> Candidate:
    """The smallest that all of ``candidates`` fit in; where they are nested, the largest of them."""
    first = candidates[0]
    heads, neurons = (
        tuple(map(max, *kept)) if len(kept) > 1 else kept[0]
        for kept in ([c.heads for c in candidates], [c.neurons for c in candidates])
    )
    return Candidate(first.sparsity, heads, neurons, first.balance)


def _balanced(sparsity: float, balance: float, ratio: float, least: float) -> tuple[float, float]:
    """The sparsities of heads and of neurons: together they keep as many parameters as ``sparsity`` of both."""
    if not balance:
        return sparsity, sparsity
    scale = 1 - sparsity
    most = (scale * (1 + ratio) - least) / ratio  # that leaves the least of the neurons
    heads = min(max(scale * (1 + balance), least), most, 1.0)
    neurons = scale * (1 + ratio) - ratio * heads
    if neurons > 1.0:  # then more heads have to stay
        neurons = 1.0
        heads = (scale * (1 + ratio) - neurons) / ratio
    return round(1 - heads, 9), round(1 - neurons, 9)


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
