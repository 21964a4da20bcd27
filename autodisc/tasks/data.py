"""A task as the stages see it: tokenised splits, their labels, and the metric.

Rows are tokenised once for a content, a tokenizer and a length, without padding, and stay memory-mapped; texts and
labels are read a thousand at a time. What is held of a row are its length, its label and where it lies: 50 bytes.
Where test has no labels, a part of train is set aside by the hash of its text before anything else, so it is
the same part for every seed and every limit.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from autodisc.config import DOCSTRINGS, MetricName, TaskConfig
from autodisc.errors import ConfigError, DataError
from autodisc.progress import Progress, Silent
from autodisc.tasks import columns, sources
from autodisc.tasks.metrics import GLUE, METRICS, Kind, Metric

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase

TOKENISING_VERSION = 2  # part of the cache key: raise it when `_tokenise` changes
HELD_OUT = "held-out train"


@dataclass(frozen=True)
class Split:
    """One part of a task's examples, tokenised, not padded."""

    name: str
    rows: Dataset  # input_ids and, where the tokenizer gives them, token_type_ids
    lengths: np.ndarray  # (N,) tokens
    labels: np.ndarray  # (N,) int64 class ids, or float32
    fingerprint: str  # of tokens and labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    def select(self, indices: Sequence[int] | np.ndarray) -> Split:
        """The rows at ``indices``, in that order."""
        index = np.asarray(indices, dtype=np.int64)
        fingerprint = _digest([self.fingerprint.encode(), index.tobytes()])
        rows = self.rows.select(index, new_fingerprint=fingerprint)
        return Split(self.name, rows, self.lengths[index], self.labels[index], fingerprint)


@dataclass(frozen=True)
class Task:
    """What is learned, ready for batches."""

    name: str
    kind: Kind
    metric: Metric
    label_names: tuple[str, ...] | None  # none: a regression
    num_labels: int  # V; 1 for a regression
    train: Split
    validation: Split
    final: Split  # for the last figure only
    final_name: str  # "test", or what stands in for it
    extra: Mapping[str, Split]
    pad_token_id: int

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
    progress: Progress | None = None,
) -> Task:
    """Read, check and tokenise a task; ``label_names`` are the teacher's classes in its order, if it has any.

    ``seed`` draws the rows of ``config.limit_train`` and nothing else.
    """
    progress = progress or Silent()
    metric = find_metric(config)
    if tokenizer.pad_token_id is None:
        raise DataError("tokenizer: it has no padding token, which batches need; set one and save it again")
    raw = sources.read_splits(config, cache_dir, progress)
    texts = columns.text_columns(config, raw["train"].column_names)
    if "test" in raw and columns.is_unlabelled(raw["test"], config.label):
        del raw["test"]
    for name, rows in raw.items():
        columns.check_columns(rows.column_names, name, texts, config.label)
    labels = columns.Labels.of(raw["train"], config, metric, label_names)

    splits, held_out = {}, np.empty(0, np.int64)
    for name, rows in raw.items():
        numbers = labels.read(rows, name, config.label)  # before the tokens: a bad label should not cost minutes
        if name == "train" and "test" not in raw:
            held_out = _held_out(columns.content_hashes(columns.read_texts(rows, name, texts)), config.held_out)
        tokens = _tokenise(rows, name, texts, tokenizer, config.max_length, cache_dir, progress)
        splits[name] = _split(name, tokens, numbers)

    train, validation = splits.pop("train"), splits.pop("validation")
    final, final_name = splits.pop("test", None), "test"
    if final is None:
        final, final_name = train.select(held_out), HELD_OUT
        train = train.select(np.setdiff1d(np.arange(len(train)), held_out))
        progress.say(f"{config.name}: test has no labels; {len(final)} rows of train are held out for the final figure")
    if config.limit_train is not None and config.limit_train < len(train):
        drawn = np.random.default_rng(seed).permutation(len(train))[: config.limit_train]
        train = train.select(np.sort(drawn))
    return Task(
        name=config.name,
        kind=metric.kind,
        metric=metric,
        label_names=labels.names,
        num_labels=len(labels.names or ("value",)),
        train=train,
        validation=validation,
        final=final,
        final_name=final_name,
        extra=splits,
        pad_token_id=int(tokenizer.pad_token_id),
    )


def find_metric(config: TaskConfig) -> Metric:
    """The metric asked for, else GLUE's own."""
    if config.metric is not None:
        return METRICS[config.metric]
    if config.name in GLUE:
        return GLUE[config.name].metric
    if config.name == DOCSTRINGS:
        return METRICS["accuracy"]
    if config.data is None:
        raise sources.unknown_task(config.name)
    raise ConfigError(
        f"task.metric: task '{config.name}' brings none of its own; it takes --metric, one of "
        f"{', '.join(get_args(MetricName))}"
    )


def _held_out(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """The rows with the lowest hashes; equal texts stay together, so that no text is on both sides."""
    threshold = np.sort(hashes)[math.ceil(fraction * len(hashes)) - 1]
    held_out = np.flatnonzero(hashes <= threshold)
    if len(held_out) == len(hashes):
        raise DataError(
            f"train: its {len(hashes)} rows are too few or too alike to hold a part out; add a labelled test file"
        )
    return held_out


def _split(name: str, tokens: Dataset, labels: np.ndarray) -> Split:
    lists = {column: tokens.data.column(column).chunks for column in tokens.column_names}
    lengths = np.concatenate([chunk.value_lengths().to_numpy() for chunk in lists["input_ids"]]).astype(np.int64)
    content = (chunk.flatten().to_numpy().data for chunks in lists.values() for chunk in chunks)  # views into the file
    fingerprint = _digest([lengths.data, labels.data, *content])
    return Split(name, tokens, lengths, labels, fingerprint)


def _tokenise(
    rows: Dataset,
    name: str,
    texts: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache_dir: Path,
    progress: Progress,
) -> Dataset:
    """Tokens of the text columns ``texts``, from the cache where the same texts were tokenised the same way."""
    import datasets

    longest = min(max_length, tokenizer.model_max_length)
    settings = [str((TOKENISING_VERSION, longest, len(texts))).encode(), _identity(tokenizer).encode()]
    strings = columns.read_texts(rows, name, texts)
    key = _digest(
        itertools.chain(settings, ("\0".join((*row, "")).encode("utf-8", "surrogatepass") for row in strings))
    )
    file = cache_dir / "tokenised" / f"{key}.arrow"
    if file.is_file():
        return datasets.Dataset.from_file(str(file))
    file.parent.mkdir(parents=True, exist_ok=True)

    with progress.stage(f"Tokenising {name}", len(rows)) as bar, sources.quiet_datasets():

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            strings = [[str(value) for value in batch[column]] for column in texts]
            encoded = _encode(strings, tokenizer, longest)
            bar.advance(len(strings[0]))
            return encoded

        return rows.select_columns(list(texts)).map(
            encode,
            batched=True,
            remove_columns=list(texts),
            features=_features(tokenizer),
            cache_file_name=str(file),  # written under a temporary name, then moved
            new_fingerprint=key,  # `datasets` would hash the tokenizer, whose truncation state changes as it works
        )


def tokenised(texts: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, longest: int) -> Split:
    """Rows of one or two texts as a split in memory, cut to ``longest`` tokens; its labels are all 0."""
    import datasets

    encoded = _encode([list(column) for column in zip(*texts, strict=True)], tokenizer, longest)
    tokens = datasets.Dataset.from_dict(encoded, features=_features(tokenizer))
    return _split("rows", tokens, np.zeros(len(texts), np.int64))


def _encode(strings: list[list[str]], tokenizer: PreTrainedTokenizerBase, longest: int) -> dict[str, Any]:
    """Tokens of one or two columns of texts."""
    encoded = tokenizer(
        *strings,
        truncation=True,
        max_length=longest,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids="token_type_ids" in tokenizer.model_input_names,
    )
    return {column: encoded[column] for column in _features(tokenizer)}


def _features(tokenizer: PreTrainedTokenizerBase) -> Features:
    import datasets

    features = {"input_ids": datasets.List(datasets.Value("int32"))}
    if "token_type_ids" in tokenizer.model_input_names:
        features["token_type_ids"] = datasets.List(datasets.Value("int8"))
    return datasets.Features(features)


def _identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """What decides a tokenizer's output, without the padding and truncation it was last called with."""
    parts: dict[str, Any] = {"class": type(tokenizer).__name__, "inputs": list(tokenizer.model_input_names)}
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        parts |= {k: v for k, v in state.items() if k not in ("truncation", "padding")}
    else:
        parts |= {"vocab": tokenizer.get_vocab(), "settings": repr(sorted(tokenizer.init_kwargs.items()))}
    parts["truncation_side"] = tokenizer.truncation_side
    return json.dumps(parts, sort_keys=True)


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
