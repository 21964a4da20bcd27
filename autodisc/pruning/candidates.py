"""Nested candidates: how many units each layer keeps at a sparsity.

One global removal order for heads and one for neurons; sparsity s removes the first round(s * n) of each.
So the units of every candidate are a prefix, per layer, of the units of every larger one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Unit = tuple[int, int]  # (layer, index within the unpruned layer)
NEURON_MULTIPLE = 8  # widths that matrix kernels like; the authors' choice too


@dataclass(frozen=True)
class Ranking:
    """Removal orders over all units of the unpruned model, the most expendable first."""

    heads: tuple[Unit, ...]
    neurons: tuple[Unit, ...]
    layers: int

    def by_layer(self) -> tuple[list[list[int]], list[list[int]]]:
        """Per layer, the head and the neuron indices with the most important first."""
        return _by_layer(self.heads, self.layers), _by_layer(self.neurons, self.layers)


@dataclass(frozen=True)
class Candidate:
    """Kept heads and neurons per layer; no weights."""

    sparsity: float
    heads: tuple[int, ...]
    neurons: tuple[int, ...]

    @property
    def scale(self) -> float:
        return 1.0 - self.sparsity

    def fits_in(self, other: Candidate) -> bool:
        """True when every layer keeps no more than ``other``'s."""
        pairs = zip(self.heads + self.neurons, other.heads + other.neurons, strict=True)
        return all(mine <= theirs for mine, theirs in pairs)


def candidate(ranking: Ranking, sparsity: float) -> Candidate:
    """The candidate at a sparsity in [0, 1); FFN widths are rounded to multiples of 8 (0 included)."""
    heads = _kept(ranking.heads, sparsity, ranking.layers)
    neurons = _kept(ranking.neurons, sparsity, ranking.layers)
    totals = Counter(layer for layer, _ in ranking.neurons)
    rounded = tuple(_round(kept, totals[layer]) for layer, kept in enumerate(neurons))
    return Candidate(sparsity, heads, rounded)


def nested_candidates(ranking: Ranking, sparsities: Iterable[float]) -> dict[float, Candidate]:
    """One candidate a sparsity, the largest first; each fits in all before it."""
    return {sparsity: candidate(ranking, sparsity) for sparsity in sorted(set(sparsities))}


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
