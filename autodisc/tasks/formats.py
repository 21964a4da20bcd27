"""Files of lines: CSV, CoNLL, a word and its tag a line, and plain text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from autodisc.errors import DataError

LONGEST_CELL = 2**31 - 1  # characters of a CSV cell; Python's limit of 131,072 is for the whole process


def csv_rows(file: BinaryIO, name: str) -> Iterator[dict[str, Any]]:
    """Rows one by one, a cell the text that it is; DataError where one has not as many cells as there are columns."""
    csv.field_size_limit(LONGEST_CELL)
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.reader(lines, strict=True)  # else the rest of a file that ends inside quotes would be one cell
    ended = 0  # the line on which the last row ended
    try:
        names = csv_names(next(reader))
        check_names(names, name)
        ended = reader.line_num
        for cells in reader:
            if len(cells) == len(names):
                yield dict(zip(names, cells, strict=True))
            elif cells:  # an empty line is no row
                raise DataError(f"{name} line {ended + 1}: {len(cells)} cells, but {len(names)} columns")
            ended = reader.line_num
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{name} line {ended + 1}: cannot be read as csv ({error})") from None
    finally:
        lines.detach()  # the file is its opener's to close


def csv_names(header: list[str]) -> list[str]:
    """The columns that a CSV file's first line names."""
    return [name or f"Unnamed: {i}" for i, name in enumerate(header)]


def check_names(names: Sequence[str], where: str) -> None:
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise DataError(f"{where}: column '{twice}' stands twice; rename one of them")


def read_conll(path: Path, *, tagged: bool = True) -> dict[str, list[list[str]]]:
    """Sentences of a CoNLL file as columns: a word and its tag a line, the first and the last of its columns.

    Columns are parted by tabs, else by spaces; a blank line ends a sentence, -DOCSTART- lines are left out. Without
    ``tagged`` a line may hold a word alone.
    """
    sentences: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                parts = line.rstrip("\r\n").split("\t") if line.strip() and "\t" in line else line.split()
                if not parts:
                    if sentences[-1]:
                        sentences.append([])
                        tags.append([])
                    continue
                word, tag = parts[0].strip(), parts[-1].strip()
                if word == "-DOCSTART-":
                    continue
                if not word or (tagged and (len(parts) < 2 or not tag)):
                    raise DataError(f"{path} line {number}: got {line.strip()[:60]!r}; expected a word and its tag")
                sentences[-1].append(word)
                tags[-1].append(tag)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as conll ({error})") from None
    if not sentences[-1]:
        del sentences[-1], tags[-1]
    if not sentences:
        raise DataError(f"{path}: no sentence; expected a word and its tag a line, blank lines between sentences")
    return {"tokens": sentences, **({"tags": tags} if tagged else {})}


def read_text(path: Path) -> dict[str, list[str]]:
    """The documents of a text file as a column: what blank lines part."""
    documents: list[list[str]] = [[]]
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                if line.strip():
                    documents[-1].append(line)
                elif documents[-1]:
                    documents.append([])
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from None
    texts = ["".join(lines).rstrip("\n") for lines in documents if lines]
    if not texts:
        raise DataError(f"{path}: the file is empty; expected text, with blank lines between documents")
    return {"text": texts}
