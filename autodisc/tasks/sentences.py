"""Classification and regression: a row is one sentence, or two, and has one label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autodisc.config import TaskConfig
from autodisc.progress import Progress
from autodisc.tasks import columns
from autodisc.tasks.rows import Rows
from autodisc.tasks.splits import Split, make_split
from autodisc.tasks.tokenising import encode_texts, features, tokenise

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


FAR = 10.0  # from 0, in standard deviations, or a standard deviation from 1: labels that an output hardly reaches


class Sentences(Rows):
    @staticmethod
    def unlabelled(rows: Dataset, config: TaskConfig) -> bool:
        return columns.is_unlabelled(rows, config.label)

    def check(self, raw: Mapping[str, Dataset], known: tuple[str, ...] | None) -> tuple[str, ...] | None:
        have = raw["train"].column_names
        self.texts = columns.text_columns(self.config, have, trained=self.trained)
        for name, rows in raw.items():
            columns.check_columns(rows.column_names, name, self.texts, self.config.label)
        columns.tell_unread(self.config, have, self.texts, self.trained, self.progress)
        self.labels = columns.Labels.of(raw["train"], self.config, self.metric, known, self.progress)
        return self.labels.names

    @property
    def num_labels(self) -> int:
        return len(self.labels.names or ("value",))

    def hashes(self, rows: Dataset) -> np.ndarray:
        return columns.content_hashes(columns.read_texts(rows, "train", self.texts))

    def classes(self, rows: Dataset) -> np.ndarray | None:
        return None if self.labels.names is None else self.labels.read(rows, "train", self.config.label)

    def split(self, rows: Dataset, name: str) -> Split:
        labels = self.labels.read(rows, name, self.config.label)  # before the tokens: a bad label must not cost minutes

        def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            strings = [[str(value) for value in batch[column]] for column in self.texts]
            return encode_texts(strings, self.tokenizer, self.longest)

        tokens = tokenise(
            rows,
            name=name,
            columns=self.texts,
            content=columns.read_texts(rows, name, self.texts),
            settings=(self.longest, len(self.texts)),
            encode=encode,
            tokenizer=self.tokenizer,
            cache_dir=self.cache_dir,
            progress=self.progress,
        )
        if self.labels.names is None and name == "train":
            self._tell_scale(labels)
        split = make_split(name, tokens, labels)
        tell_cut(self.progress, name, filling(split, self.longest), len(split), self.longest)
        return split

    def _tell_scale(self, labels: np.ndarray) -> None:
        mean, deviation = float(labels.mean(dtype=np.float64)), float(labels.std(dtype=np.float64))
        if abs(mean) > FAR * max(deviation, 1.0) or deviation > FAR:
            self.progress.say(
                f"labels: mean {mean:.4g}, standard deviation {deviation:.4g}; a model learns values around 0 and 1 far"
                " better. Write (label - mean) / deviation in all files: no correlation changes"
            )


def filling(split: Split, longest: int) -> int:
    """How many rows have all the tokens that are read of one: those that may have been cut."""
    return int((split.lengths >= longest).sum())


def tell_cut(progress: Progress, name: str, full: int, count: int, longest: int) -> None:
    if full:
        progress.say(
            f"{name}: {full} of {count} rows have {longest} tokens or more, of which so many are read; --max-length"
            " is more"
        )


def tokenised(texts: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, longest: int) -> Split:
    """Rows of one or two texts as a split in memory, cut to ``longest`` tokens; its labels are all 0."""
    import datasets

    encoded = encode_texts([list(column) for column in zip(*texts, strict=True)], tokenizer, longest)
    tokens = datasets.Dataset.from_dict(encoded, features=features(tokenizer))
    return make_split("rows", tokens, np.zeros(len(texts), np.int64))
