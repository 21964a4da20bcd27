"""How the raw rows of a task become splits: one class a kind, all with what stands here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autodisc.config import TaskConfig
from autodisc.progress import Progress
from autodisc.tasks.metrics import Metric
from autodisc.tasks.splits import Split

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class Rows(ABC):
    """The rows of a task, checked: ``raw`` holds each split, ``known`` the teacher's classes in its order, if any, and
    ``trained`` the columns of the texts that it was trained on, if that is known."""

    texts: tuple[str, ...] = ()  # the columns of the one or two texts, where a row of them has one label

    def __init__(
        self,
        config: TaskConfig,
        tokenizer: PreTrainedTokenizerBase,
        raw: Mapping[str, Dataset],
        *,
        metric: Metric,
        known: tuple[str, ...] | None,
        cache_dir: Path,
        progress: Progress,
        trained: tuple[str, ...] = (),
    ) -> None:
        self.config, self.tokenizer, self.metric, self.trained = config, tokenizer, metric, trained
        self.cache_dir, self.progress = cache_dir, progress
        self.label_names = self.check(raw, known)

    @staticmethod
    @abstractmethod
    def unlabelled(rows: Dataset, config: TaskConfig) -> bool:
        """Whether a split says nothing of the truth, as many a test set."""

    @abstractmethod
    def check(self, raw: Mapping[str, Dataset], known: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """The names of the classes, if they have names; raises DataError for columns that are not there."""

    @property
    @abstractmethod
    def num_labels(self) -> int:
        """V."""

    @abstractmethod
    def hashes(self, rows: Dataset) -> np.ndarray:
        """(rows,) of the texts of train, the same wherever a row stands."""

    def classes(self, rows: Dataset) -> np.ndarray | None:
        """(rows,) of train: the class of each, where a row has one."""
        return None

    @abstractmethod
    def split(self, rows: Dataset, name: str) -> Split:
        """Tokens and labels, of train first; raises DataError for a row that cannot be used."""

    def apart(self, rows: Dataset, held_out: np.ndarray) -> tuple[Split, Split]:
        """Train without the rows ``held_out``, and these."""
        train = self.split(rows, "train")
        return train.select(np.setdiff1d(np.arange(len(train)), held_out)), train.select(held_out)

    @property
    def longest(self) -> int:
        """Tokens of a row."""
        return min(self.config.max_length, self.tokenizer.model_max_length)
