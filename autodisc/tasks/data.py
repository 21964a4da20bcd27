"""A task as the stages see it: tokenised splits, their labels, and the metric.

Rows are tokenised once for a content, a tokenizer and a length, without padding, and stay memory-mapped; texts and
labels are read a thousand at a time. What is held of a sentence are its length, its label and where it lies: 50 bytes.
Where test has no labels, a part of train is set aside by the hash of its text before anything else, so it is
the same part for every seed and every limit; with rows of every class that train has two texts of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from autodisc.config import DOCSTRINGS, Kind, MetricName, TaskConfig
from autodisc.errors import ConfigError, DataError
from autodisc.progress import Progress, Silent
from autodisc.tasks import sources
from autodisc.tasks.blocks import Blocks
from autodisc.tasks.metrics import DEFAULTS, GLUE, METRICS, Metric
from autodisc.tasks.rows import Rows
from autodisc.tasks.sentences import Sentences
from autodisc.tasks.splits import Split, digest
from autodisc.tasks.words import Words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELD_OUT = "held-out train"
_ROWS: dict[Kind, type[Rows]] = {
    "classification": Sentences,
    "regression": Sentences,
    "tokens": Words,
    "causal-lm": Blocks,
}


@dataclass(frozen=True)
class Task:
    """What is learned, ready for batches."""

    name: str
    kind: Kind
    metric: Metric
    label_names: tuple[str, ...] | None  # none: a regression, or tokens of a vocabulary
    num_labels: int  # V; 1 for a regression
    train: Split
    validation: Split
    final: Split  # for the last figure only
    final_name: str  # "test", or what stands in for it
    extra: Mapping[str, Split]
    pad_token_id: int
    held_out: str | None = None  # a digest of the final split's texts, where it was taken from train
    texts: tuple[str, ...] = ()  # columns of the one or two texts of a row that has one label

    def split(self, name: str) -> Split:
        """A split by name; "final" is test, or the held-out part of train."""
        known = {"train": self.train, "validation": self.validation, "final": self.final, **self.extra}
        if self.final_name == "test":
            known["test"] = self.final
        if name not in known:
            why = "; test has no labels, 'final' is a held-out part of train" if name == "test" else ""
            raise DataError(f"task '{self.name}': no split '{name}'; it has {', '.join(known)}{why}")
        return known[name]


def load_task(
    config: TaskConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    cache_dir: Path,
    label_names: tuple[str, ...] | None = None,
    texts: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Task:
    """Read, check and tokenise a task; ``label_names`` are the teacher's classes in its order, if it has any, ``texts``
    the columns that it was trained on, if that is known.

    ``seed`` draws the rows of ``config.limit_train`` and nothing else.
    """
    progress = progress or Silent()
    metric = find_metric(config)
    pad = _padding(tokenizer, metric.kind)
    raw = sources.read_splits(config, metric.kind, cache_dir, progress)
    rows_of: type[Rows] = _ROWS[metric.kind]
    if "test" in raw and rows_of.unlabelled(raw["test"], config):
        del raw["test"]
    made = rows_of(
        config,
        tokenizer,
        raw,
        metric=metric,
        known=label_names,
        cache_dir=cache_dir,
        progress=progress,
        trained=texts,
    )
    splits: dict[str, Split] = {}
    final, final_name, digested = None, "test", None
    for name, rows in raw.items():
        if name == "train" and "test" not in raw:
            hashes = made.hashes(rows)
            held_out = _held_out(hashes, config.held_out, made.classes(rows))
            digested = digest([np.sort(hashes[held_out]).tobytes()])
            splits[name], final = made.apart(rows, held_out)
            final_name = HELD_OUT
            progress.say(
                f"{config.name}: test has no labels; {len(final)} rows of train are held out for the final figure"
            )
        else:
            splits[name] = made.split(rows, name)
    train, validation = splits.pop("train"), splits.pop("validation")
    if config.limit_train is not None and config.limit_train < len(train):
        drawn = np.random.default_rng(seed).permutation(len(train))[: config.limit_train]
        train = train.select(np.sort(drawn))
    return Task(
        name=config.name,
        kind=metric.kind,
        metric=metric,
        label_names=made.label_names,
        num_labels=made.num_labels,
        train=train,
        validation=validation,
        final=splits.pop("test") if final is None else final,
        final_name=final_name,
        extra=splits,
        pad_token_id=pad,
        held_out=digested,
        texts=made.texts,
    )


def load_file(
    config: TaskConfig,
    tokenizer: PreTrainedTokenizerBase,
    file: Path,
    *,
    cache_dir: Path,
    label_names: tuple[str, ...] | None,
    progress: Progress,
) -> Task:
    """A task whose splits are all one labelled file, for words and texts."""
    metric = find_metric(config)
    pad = _padding(tokenizer, metric.kind)
    with sources.quiet_datasets():
        rows, name = sources.read_file(file, file.name, cache_dir), str(file)
    made = _ROWS[metric.kind](
        config, tokenizer, {name: rows}, metric=metric, known=label_names, cache_dir=cache_dir, progress=progress
    )
    split = made.split(rows, name)
    names, number = made.label_names, made.num_labels
    return Task(config.name, metric.kind, metric, names, number, split, split, split, "test", {}, pad)


def find_kind(config: TaskConfig) -> Kind:
    """What is learned: what the configuration says, else its metric's kind, else what the files are for."""
    if config.kind is not None:
        return config.kind
    if config.metric is not None:
        return METRICS[config.metric].kind
    if config.name in GLUE:
        return GLUE[config.name].metric.kind
    if config.data is not None and config.data.is_dir():
        suffix = sources.find_files(config.data, config.name)["train"].suffix
        return sources.OF_KINDS.get(suffix, "classification")
    return "classification"


def find_metric(config: TaskConfig) -> Metric:
    """The metric asked for, else GLUE's own or the kind's; raises ConfigError where it is another kind's."""
    kind = find_kind(config)
    metric = _named(config, kind)
    if metric.kind != kind:
        own = ", ".join(name for name, other in METRICS.items() if other.kind == kind)
        raise ConfigError(f"task.metric: {metric.name} is for {metric.kind}, but the task's kind is {kind}; take {own}")
    return metric


def _named(config: TaskConfig, kind: Kind) -> Metric:
    if config.metric is not None:
        return METRICS[config.metric]
    if kind in DEFAULTS:
        return METRICS[DEFAULTS[kind]]
    if config.name in GLUE:
        return GLUE[config.name].metric
    if config.name == DOCSTRINGS:
        return METRICS["accuracy"]
    if config.data is None and config.hub is None:
        raise sources.unknown_task(config.name)
    raise ConfigError(
        f"task.metric: task '{config.name}' brings none of its own; it takes --metric, one of "
        f"{', '.join(get_args(MetricName))}"
    )


def _padding(tokenizer: PreTrainedTokenizerBase, kind: Kind) -> int:
    """The token that batches are padded with; blocks of text need none, but for the last."""
    padding = tokenizer.pad_token_id
    if padding is None and kind == "causal-lm":
        padding = tokenizer.eos_token_id
    if padding is None:
        raise DataError("tokenizer: it has no padding token, which batches need; set one and save it again")
    return int(padding)


def _held_out(hashes: np.ndarray, fraction: float, classes: np.ndarray | None) -> np.ndarray:
    """The rows with the lowest hashes, and where these leave one of the ``classes`` out, those of its own.

    Equal texts stay together, so that no text is on both sides; a class of one text stays in train.
    """
    threshold = np.sort(hashes)[math.ceil(fraction * len(hashes)) - 1]
    held_out = np.flatnonzero(hashes <= threshold)
    if classes is not None:
        of_classes = (np.unique(hashes[classes == c]) for c in np.setdiff1d(classes, classes[held_out]))
        drawn = [own[: math.ceil(fraction * len(own))] for own in of_classes if len(own) > 1]
        held_out = np.flatnonzero(np.isin(hashes, np.concatenate([hashes[held_out], *drawn])))
    if len(held_out) == len(hashes):
        raise DataError(
            f"train: its {len(hashes)} rows are too few or too alike to hold a part out; add a labelled test file"
        )
    return held_out
