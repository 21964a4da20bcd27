"""A file of rows is read twice, first without the model: a mistake in its last row is found before hours have passed.

The first reading checks every row, counts them, and finds the columns and, for Parquet, their types. Standard input
passes by once: what is known of it is known of its first rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autodisc.errors import DataError
from autodisc.progress import Progress
from autodisc.tasks import files
from autodisc.tasks.files import Row

if TYPE_CHECKING:
    from pyarrow import Schema

# Raises DataError for a row that cannot be used; is given rows, all columns so far, and how many rows came before.
Check = Callable[[Sequence[Row], Sequence[str], int], None]


@dataclass(frozen=True)
class Survey:
    """What a first reading found."""

    columns: tuple[str, ...]
    rows: int | None  # none: not counted
    schema: Schema | None  # of Parquet, where that is written


def survey(read: Iterable[list[Row]], check: Check, *, typed: bool = False) -> Survey:
    """Read every row once; ``typed`` asks for the types of the columns."""
    names: dict[str, None] = {}
    schema, done = None, 0
    for rows in read:
        names.update(dict.fromkeys(name for row in rows for name in row))
        check(rows, list(names), done)
        if typed:
            new = files.schema_of(rows, list(names))
            schema = new if schema is None else files.joined([schema, new])
        done += len(rows)
    return Survey(tuple(names), done, schema)


def surveyed(
    file: Path | None,
    check: Check,
    *,
    to: str | None = None,
    progress: Progress,
    read: Callable[[Path | None], Iterable[list[Row]]] = files.read_rows,
) -> tuple[Survey, Iterator[list[Row]]]:
    """What is known of ``file``, and its rows again, for a writer of ``to``, if any; a file None is standard input."""
    if file is None:
        coming = iter(read(None))
        first = next(coming)
        found = replace(survey([first], check, typed=to == "parquet"), rows=None)
        rows: Iterator[list[Row]] = itertools.chain([first], coming)
    else:
        with progress.stage(f"Reading {file.name}", None):
            has_types = file.suffix.lower() == ".parquet"
            found = survey(read(file), check, typed=to == "parquet" and not has_types)
            if to == "parquet" and has_types:
                found = replace(found, schema=files.parquet_schema(file))
        rows = iter(read(file))
    return found, _known(rows, found.columns, files.name_of(file)) if to in ("csv", "parquet") else rows


def _known(read: Iterable[list[Row]], columns: Sequence[str], where: str) -> Iterator[list[Row]]:
    """Only standard input can bring a column late; a file was read to its end before."""
    known, done = frozenset(columns), 0
    for rows in read:
        for i, row in enumerate(rows, done + 1):
            new = next((name for name in row if name not in known), None)
            if new is not None:
                raise DataError(f"{where} row {i}: new column '{new}', which csv and parquet cannot add; write jsonl")
        done += len(rows)
        yield rows
