"""Which candidate a budget leads to: the least sparse that meets every part of it.

over(part) = used - allowed        (0 or less is met, as Optuna's constraints have it)

Numbers in, numbers out: nothing here has a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autodisc.config import BudgetConfig
from autodisc.errors import ConfigError

STEP = 0.01  # between the sparsities that are considered
UNITS = {"params": "encoder parameters", "macs": "MACs", "latency_ms": "ms"}


@dataclass(frozen=True)
class Use:
    """What a candidate uses: encoder parameters, MACs of 128 tokens, predicted milliseconds (none: not asked)."""

    sparsity: float
    params: int
    macs: int
    latency_ms: float | None = None

    def of(self, part: str) -> float:
        value = getattr(self, part)
        assert value is not None, f"{part} was not measured"
        return float(value)


def allowed(budget: BudgetConfig) -> dict[str, float]:
    """The parts of a budget that are given."""
    values = {part: getattr(budget, part) for part in UNITS}
    return {part: float(value) for part, value in values.items() if value is not None}


def over(use: Use, limits: Mapping[str, float]) -> dict[str, float]:
    """By how much each part is exceeded; 0 or less is met."""
    return {part: use.of(part) - limit for part, limit in limits.items()}


def meets(use: Use, limits: Mapping[str, float]) -> bool:
    return all(excess <= 0.0 for excess in over(use, limits).values())


def grid(low: float, high: float) -> tuple[float, ...]:
    """Both ends, and the multiples of ``STEP`` between them."""
    first, last = math.ceil(low / STEP - 1e-9), math.floor(high / STEP + 1e-9)
    return tuple(sorted({low, high, *(round(number * STEP, 6) for number in range(first, last + 1))}))


def least_sparse(uses: Sequence[Use], limits: Mapping[str, float], *, of: str) -> Use:
    """The least sparse that meets every limit; ConfigError says what the nearest of them uses. ``of`` names them."""
    within = [use for use in uses if meets(use, limits)]
    if within:
        return min(within, key=lambda use: use.sparsity)
    near = min(uses, key=lambda use: (max(use.of(part) / limit for part, limit in limits.items()), use.sparsity))
    raise ConfigError(f"budget: no {of} meets it; the nearest, of sparsity {near.sparsity:g}, uses {say(near, limits)}")


def said(found: Mapping[str, Any]) -> str:
    """``say`` of the student in a search's result."""
    budget = BudgetConfig(**found["budget"])
    text = say(Use(*(found[name] for name in ("sparsity", *UNITS))), allowed(budget))
    return text if budget.latency_ms is None else f"{text} (batch {budget.batch}, length {budget.length})"


def say(use: Use, limits: Mapping[str, float]) -> str:
    """What is used of what is allowed, such as ``105,000 of 200,000 encoder parameters``."""
    return ", ".join(f"{_number(use.of(part))} of {_number(limit)} {UNITS[part]}" for part, limit in limits.items())


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) and value >= 100 else f"{value:.4g}"
