"""Which columns are text and label, and what a label means as a number.

A label that is one of the known names is that class; otherwise an integer is a class id: the data set's own, where it
names its classes and the teacher has the same names, else the teacher's. Every complaint names the split, the row (the
first is 1, a header not counted), the value and the way out.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autodisc.config import BINARY, TaskConfig
from autodisc.errors import ConfigError, DataError
from autodisc.progress import Progress
from autodisc.tasks.metrics import GLUE, Metric

if TYPE_CHECKING:
    from datasets import Dataset

_INTEGER = re.compile(r"[+-]?\d+")
_NO_NAME = re.compile(r"(label[ _-]?)?\d+", re.IGNORECASE)  # what a model calls classes that nobody has named
_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+[eE][+-]?\d+)([eE][+-]?\d+)?")
SHOWN = 12  # known labels in a message
LARGEST = float(np.finfo(np.float32).max)
AT_ONCE = 1000  # rows that are Python objects at a time


def text_columns(
    config: TaskConfig, have: Sequence[str], where: str = "train", trained: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """The one or two text columns: the options', else the model's, else the GLUE task's, else GLUE's usual ones.

    ``trained`` are those that the model was trained on, if that is known: then there are as many.
    """
    usual: list[tuple[str, ...]] = [("sentence",), ("sentence1", "sentence2")]
    if config.name in GLUE:
        usual.insert(0, GLUE[config.name].columns)
    if trained:
        usual = [trained, *(names for names in usual if len(names) == len(trained))]
    found = next((names for names in usual if set(names) <= set(have)), None)
    if config.text is not None:
        found = (config.text,)
    if found is None:
        expected = " or ".join(" + ".join(names) for names in dict.fromkeys(usual))
        raise DataError(
            f"{where}: no text column {expected}; it has {', '.join(have)}; name yours with --text and --text-pair"
        )
    if config.text_pair is not None:
        found = (found[0], config.text_pair)
    if trained and len(found) != len(trained):
        way_out = "leave --text-pair out" if len(trained) == 1 else "name both, with --text and --text-pair"
        raise ConfigError(
            f"--text: got {' + '.join(found)}; of each row the model was trained on {' + '.join(trained)}, so {way_out}"
        )
    return found


def tell_unread(
    config: TaskConfig, have: Sequence[str], texts: tuple[str, ...], trained: tuple[str, ...], progress: Progress
) -> None:
    """Say which columns are not read, where those of the texts are only taken by their usual names."""
    unread = [name for name in have if name not in (*texts, config.label)]
    told = config.text is not None or config.name in GLUE or texts == trained
    if unread and not told:
        progress.say(
            f"texts: of column {' and '.join(texts)}, not of {', '.join(unread[:SHOWN])}; name others with --text and"
            " --text-pair"
        )


def check_columns(have: Sequence[str], where: str, texts: Sequence[str], label: str | None) -> None:
    options = dict(zip(texts, ("--text", "--text-pair"), strict=False))
    for name in (*texts, *([label] if label is not None else [])):
        if name not in have:
            option = options.get(name, "--label")
            raise DataError(f"{where}: no column '{name}'; it has {', '.join(have)}; name yours with {option}")


def read_texts(rows: Dataset, split: str, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Each row's text columns as strings, none missing."""
    columns = ((as_text(value, split, i, name) for i, value in enumerate(cells(rows, name), 1)) for name in names)
    return zip(*columns, strict=True)


def is_unlabelled(rows: Dataset, label: str) -> bool:
    """GLUE's test sets hold -1; others leave the column out, or empty."""
    if label not in rows.column_names:
        return True
    return all(_missing(value) or str(value) in ("-1", "-1.0") for value in cells(rows, label))


def content_hashes(texts: Iterable[Sequence[str]]) -> np.ndarray:
    """A hash of each row's text (N,), the same wherever the row stands."""
    digests = (hashlib.blake2b("\0".join(row).encode(), digest_size=8).digest() for row in texts)
    return np.fromiter((int.from_bytes(digest, "big") for digest in digests), dtype=np.uint64)


class Labels:
    """The numbers that a task's labels stand for: class ids, or the values of a regression.

    ``order`` holds for each integer the class that it is; without it an integer is itself.
    """

    def __init__(
        self, names: tuple[str, ...] | None, by_name: bool = True, order: tuple[int, ...] | None = None
    ) -> None:
        self.names = names
        self._ids = {name: i for i, name in enumerate(names or ())} if by_name else {}
        self._order = tuple(range(len(names or ()))) if order is None else order

    @classmethod
    def of(
        cls, train: Dataset, config: TaskConfig, metric: Metric, known: tuple[str, ...] | None, progress: Progress
    ) -> Labels:
        """The labels of a task from its train split; ``known`` are the teacher's classes, in its order."""
        if metric.kind == "regression":
            return cls(None)
        values = set()
        for i, value in enumerate(cells(train, config.label), 1):
            one_label(value, "train", i, config.label)
            text = class_text(value, known or ())
            if text not in (known or ()) and _DECIMAL.fullmatch(text):
                raise DataError(
                    f"train row {i}: label {value!r} is a decimal, but {metric.name} needs classes; "
                    "for a regression take --metric pearson_spearman"
                )
            values.add(text)
        own = class_names(train, config)
        order = order_of(own, known)
        labels = cls.of_values(values, known or own, known, order)
        if own is not None and known is not None and not labels.by_name:
            said = ", ".join(f"{i} is {own[i]}" for i in range(min(len(own), SHOWN)))
            if order is not None and order != tuple(range(len(order))):
                progress.say(f"labels: the data set's {said}; the teacher has them in another order, which is heeded")
            elif order is None and not all(map(_NO_NAME.fullmatch, known)):
                progress.say(
                    f"labels: the data set's {said}; the teacher has other names ({', '.join(known[:SHOWN])}), and"
                    " its classes are taken to be in the same order"
                )
        check_positive(metric, labels.names or (), order, setting="task.metric", whose="labels have")
        if labels.by_name and (own if known is None else order) is None:
            tell_positive(metric, labels.names or (), progress, of_model=known is not None)
        return labels

    @classmethod
    def of_values(
        cls,
        values: set[str],
        names: tuple[str, ...] | None,
        known: tuple[str, ...] | None,
        order: tuple[int, ...] | None = None,
    ) -> Labels:
        """``values`` are all that occur, ``names`` what they may be called, ``known`` the teacher's classes, if any."""
        integers = all(_INTEGER.fullmatch(value) for value in values)
        if names is not None and values <= set(names):
            return cls(names)
        if names is not None and integers and (known or all(0 <= int(v) < len(names) for v in values)):
            return cls(names, by_name=False, order=order)
        if known is not None:
            return cls(known)  # and the first row that is none of them is reported
        if integers:
            return cls(tuple(sorted(values, key=int)))
        return cls(tuple(sorted(values)))

    @property
    def by_name(self) -> bool:
        return bool(self._ids)

    def read(self, rows: Dataset, split: str, column: str) -> np.ndarray:
        """The labels of a split (N,): int64 class ids, or float32."""
        numbers = (self.number(value, split, i, column) for i, value in enumerate(cells(rows, column), 1))
        return np.fromiter(numbers, np.float32 if self.names is None else np.int64, count=len(rows))

    def number(self, value: Any, where: str, row: int, column: str) -> float:
        """One label as a class id, or as the value of a regression."""
        one_label(value, where, row, column)
        return _number(value, where, row) if self.names is None else self._id(value, where, row)

    def _id(self, value: Any, split: str, row: int) -> int:
        names = self.names or ()
        text = class_text(value, self._ids)
        if self._ids:
            if text in self._ids:
                return self._ids[text]
        elif _INTEGER.fullmatch(text) and 0 <= int(text) < len(self._order):
            return self._order[int(text)]
        known = [f"{names[c]} (or {i})" for i, c in enumerate(self._order)] if not self._ids else list(names)
        shown = ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
        raise DataError(f"{split} row {row}: unknown label '{text}'; known: {shown}")


def class_names(rows: Dataset, config: TaskConfig) -> tuple[str, ...] | None:
    """What the data set itself calls the classes that it holds as numbers: GLUE's, or a hub's ``ClassLabel``."""
    named = tuple(getattr(rows.features[config.label], "names", None) or ())
    return named or (GLUE[config.name].label_names if config.name in GLUE else None)


def order_of(own: tuple[str, ...] | None, known: tuple[str, ...] | None) -> tuple[int, ...] | None:
    """For each of a data set's classes the teacher's of that name, whatever its case; None where names do not tell."""
    if own is None or known is None:
        return None
    theirs = [_bare(name) for name in known]
    mine = [_bare(name) for name in own]
    if sorted(mine) != sorted(theirs) or len(set(mine)) < len(mine):
        return None
    return tuple(theirs.index(name) for name in mine)


def check_positive(
    metric: Metric, classes: Sequence[str], order: tuple[int, ...] | None, *, setting: str, whose: str
) -> None:
    """Raise ConfigError where a metric of class 1 has no such class, or the model has the data set's as another."""
    if metric.name not in BINARY:
        return
    if len(classes) != 2:
        raise ConfigError(f"{setting}: {metric.name} is for 2 classes, the {whose} {len(classes)}; take f1_macro")
    if order is not None and order[1] != 1:
        raise ConfigError(
            f"{setting}: {metric.name} is of the data set's class 1, {classes[order[1]]}, which the model has as class"
            f" {order[1]}; take accuracy, f1_macro or matthews, or a model with the data set's order"
        )


def tell_positive(metric: Metric, names: Sequence[str], progress: Progress, *, of_model: bool) -> None:
    """Which class a metric of class 1 is of, where labels are names: a model's class 1, else the second by name."""
    if metric.name not in BINARY or tuple(names) == ("0", "1"):
        return
    progress.say(
        f"{metric.name}: of class '{names[1]}', "
        + (
            "the model's class 1; where the other is meant, take f1_macro or matthews, or a model that has it as 1"
            if of_model
            else "the second; where the other is meant, write labels as 0 and 1, with 1 for it"
        )
    )


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def class_text(value: Any, names: Container[str]) -> str:
    """A cell as the name of a class, or, where it is none of ``names``, of a file of floats the integer that it is."""
    if isinstance(value, float) and value.is_integer() and str(value) not in names:
        return str(int(value))
    return str(value)


def cells(rows: Dataset, column: str) -> Iterator[Any]:
    """One after the other out of the memory-mapped file, never all of a column at once."""
    for chunk in rows.data.column(column).chunks:
        for start in range(0, len(chunk), AT_ONCE):
            yield from chunk.slice(start, AT_ONCE).to_pylist()


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def one_label(value: Any, where: str, row: int, column: str) -> Any:
    """``value``, which a cell must have, and no other beside it."""
    if _missing(value):
        raise _missing_error(column, where, row)
    if isinstance(value, list | dict):
        raise DataError(
            f"{where} row {row}: label is a {type(value).__name__}; a row has one label, several are not supported."
            " Write one a row, or for a tag a word take --kind tokens"
        )
    return value


def _missing_error(column: str, split: str, row: int) -> DataError:
    return DataError(f"{split} row {row}: column '{column}' is empty; fill it or remove the row")


def as_text(value: Any, split: str, row: int, column: str) -> str:
    """A cell as a string; DataError where it is empty, or no text."""
    if _missing(value) or (isinstance(value, str) and not value.strip()):
        raise _missing_error(column, split, row)
    if not isinstance(value, str | int | float):
        raise DataError(f"{split} row {row}: column '{column}' holds a {type(value).__name__}; expected text")
    return str(value)


def _number(value: Any, split: str, row: int) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not abs(number) <= LARGEST:
        raise DataError(f"{split} row {row}: label {value!r} is no finite number; a regression needs one in every row")
    return number
