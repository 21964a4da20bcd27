"""How numbers are written for people: one place, so that page, Markdown and terminal agree.

Values stay floats in base units everywhere else; ``None`` is a number that does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NONE = "–"


def fixed(value: float | None, digits: int = 3) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def plus_minus(value: float | None, error: float | None) -> str:
    if value is None or error is None:
        return fixed(value)
    return f"{value:.3f} ± {error:.3f}"


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def point(sparsity: float | None, balance: float | None) -> str:
    """A candidate by its sparsity, and by its balance where that is not the paper's."""
    return f"{plain(sparsity)}, balance {plain(balance)}" if balance else plain(sparsity)


def point_of(found: Mapping[str, Any]) -> str:
    """The same of a recorded trial, model or choice, which did not always have a balance."""
    return point(found.get("sparsity"), found.get("balance", 0.0))


def plain(value: float | None) -> str:
    """A setting such as a sparsity or λ, without trailing zeros."""
    return NONE if value is None else f"{value:g}"


def share(value: float | None) -> str:
    """A fraction as the reader's percent."""
    if value is None:
        return NONE
    return f"{100 * value:.1f} %" if value < 0.995 else f"{100 * value:.0f} %"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def scaled(value: float | None, unit: str = "") -> str:
    """Three digits and a decimal prefix: 1.23 T, for FLOPs, tokens, parameters and MACs."""
    if value is None:
        return NONE
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:  # three digits of what is just below would be 1e+03
            return f"{value / factor:.3g} {prefix}{unit}".rstrip()
    return f"{value:.3g} {unit}".rstrip()


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
