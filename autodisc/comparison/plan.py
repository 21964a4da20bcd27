"""Which cells a comparison has, and which of them are there. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from autodisc.comparison.cells import SHARED, Cell, Recorded, assistant, read_all
from autodisc.comparison.config import ComparedTask, ComparisonConfig

CHAINS = {
    "search-recovered": ("autodisc", "plain", "chain"),
    "search-pruned": ("pruned",),
    "search-balanced-tpe": ("balanced-tpe",),
    "search-balanced-gp": ("balanced-gp",),
}  # what needs a search's weights

SEARCHED = {kind: search for search, kinds in CHAINS.items() for kind in kinds}


def kinds(config: ComparisonConfig, entry: ComparedTask, grid: Iterable[float], number: int) -> list[str]:
    """Every kind of cell that the strategies and searches need with the task's seed of that number, the dearest chains
    first."""
    needed = config.needed_with(entry, number)
    searches = [f"search-{name}" for name in config.searches_with(entry, number)]
    chained = [kind for search in searches for kind in CHAINS.get(search, ()) if kind in needed]
    every = [assistant(sparsity) for sparsity in grid] if "*" in needed else []
    return [*searches, *chained, *(kind for kind in ("released", "direct") if kind in needed), *every]


def all_cells(config: ComparisonConfig, out: Path) -> list[Cell]:
    """Every cell of the comparison, shared ones included: each task's first seed, then each one's second, and so on, so
    that what is there at any time says something of every task."""
    groups = [
        (number, entry, student, seed)
        for entry in config.compare.tasks
        for student in config.students_of(entry)
        for number, seed in enumerate(config.seeds_of(entry))
    ]
    found: dict[Cell, None] = {}
    for number, entry, student, seed in sorted(groups, key=lambda group: group[0]):
        found[Cell(entry.label, seed, None, SHARED)] = None
        grid = config.study(Cell(entry.label, seed, student, ""), teachers(out)).assistant_sparsities
        needed = kinds(config, entry, grid, number)
        found |= dict.fromkeys(Cell(entry.label, seed, student, kind) for kind in needed)
    return list(found)


def recorded(config: ComparisonConfig, cells: Iterable[Cell], out: Path) -> dict[Cell, Recorded]:
    """The cells that are there, checked against the comparison's settings."""
    return read_all(out, cells, lambda cell: config.study(cell, teachers(out)).model_dump(mode="json"))


def teachers(out: Path) -> Path:
    """Where the teachers that a comparison makes itself lie."""
    return out / "teachers"
