"""Multiply out what a few batches took to what a whole study will take; numbers in, numbers out.

seconds of a pass = a + b·tokens, and more where its kernels are compiled or its FLOPs are counted
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

from autodisc.costs import COUNTED_BATCHES, Cost

Shape = tuple[int, int]  # (B, T) of a batch


@dataclass(frozen=True)
class Sample:
    """One kind of work at one shape: seconds of a pass, how many more for compiling and for counting, its FLOPs."""

    shape: Shape
    seconds: float
    compiling: float
    counting: float
    flops: float

    @property
    def tokens(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Rate:
    """What a pass of one kind of work costs at any shape: lines through two samples."""

    long: Sample
    short: Sample
    kernels_mib: float = 0.0  # compiled for every new shape

    def seconds(self, shape: Shape) -> float:
        tokens = shape[0] * shape[1]
        found = _line((self.short.tokens, self.short.seconds), (self.long.tokens, self.long.seconds), tokens)
        # Where noise lets the line fall, or start below zero, seconds are in proportion to the tokens.
        rising = self.short.seconds <= self.long.seconds <= self.short.seconds * self.long.tokens / self.short.tokens
        return found if rising else self.long.seconds / self.long.tokens * tokens

    def flops(self, shape: Shape) -> float:
        """A token's are linear in the length: attention looks at all others."""
        short, long = ((sample.shape[1], sample.flops / sample.tokens) for sample in (self.short, self.long))
        return _line(short, long, shape[1]) * shape[0] * shape[1]

    @property
    def compiling(self) -> float:
        return max(0.0, (self.long.compiling + self.short.compiling) / 2)

    @property
    def counting(self) -> float:
        return max(0.0, (self.long.counting + self.short.counting) / 2)


@dataclass(frozen=True)
class Rates:
    """The rates at two scales, those of other candidates on the line between them."""

    large: Rate
    small: Rate
    scales: tuple[float, float]

    def at(self, scale: float, value: Callable[[Rate], float]) -> float:
        large, small = zip(self.scales, (value(self.large), value(self.small)), strict=True)
        return max(0.0, _line(small, large, scale))


@dataclass(frozen=True)
class Pass:
    """One model over one batch, in one stage. ``kind`` names what shares kernels and FLOP counts."""

    stage: str
    kind: Hashable
    rates: Rates
    scale: float
    shape: Shape

    def cost(self, *, compiled: bool, counted: bool) -> Cost:
        seconds = self.value(lambda rate: rate.seconds(self.shape))
        seconds += compiled * self.value(lambda rate: rate.compiling) + counted * self.value(lambda rate: rate.counting)
        return Cost(seconds, self.shape[0] * self.shape[1], self.value(lambda rate: rate.flops(self.shape)))

    def value(self, of: Callable[[Rate], float]) -> float:
        return self.rates.at(self.scale, of)


@dataclass
class Kernels:
    """The kernels that the CPU's matrix library keeps: the one used longest ago goes first."""

    capacity_mib: float
    mib: float = 0.0
    held: OrderedDict[Hashable, float] = field(default_factory=OrderedDict)

    def missing(self, key: Hashable, mib: float) -> bool:
        """Whether ``key`` must be compiled; afterwards it is held."""
        held = self.held.pop(key, None)
        self.held[key] = mib if held is None else held
        self.mib += mib if held is None else 0.0
        while self.mib > self.capacity_mib and len(self.held) > 1:
            self.mib -= self.held.popitem(last=False)[1]
        return held is None


def multiply_out(passes: Iterable[Pass], kernels: Kernels) -> dict[str, Cost]:
    """Seconds, tokens, FLOPs of each stage, and as its memory the MiB of the kernels held by its last pass."""
    costs: dict[str, Cost] = {}
    counted = Counter[Hashable]()
    for each in passes:
        compiled = kernels.missing((each.kind, each.shape), each.value(lambda rate: rate.kernels_mib))
        cost = each.cost(compiled=compiled, counted=counted[each.kind] < COUNTED_BATCHES)
        cost.peak_mib = kernels.mib
        counted[each.kind] += 1
        costs.setdefault(each.stage, Cost()).add(cost)
    return costs


def _line(one: tuple[float, float], other: tuple[float, float], x: float) -> float:
    """y at ``x`` on the line through two points; the second's where they stand above each other."""
    (x0, y0), (x1, y1) = one, other
    return y1 if x1 == x0 else y1 + (y1 - y0) / (x1 - x0) * (x - x1)
