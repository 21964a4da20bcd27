"""Causal language modelling: texts, one after the other, cut into blocks of ``max_length`` tokens.

    stream = tokens of a text, the end-of-sequence token, tokens of the next text, …
    block i = stream[i·T : (i + 1)·T],  its labels = stream[i·T + 1 : (i + 1)·T + 1]

So every token but the stream's first is predicted, once, a block's last from what stands in it; only the last block may
be shorter, and nothing else is padded. A text file's documents are parted by blank lines; a column has one a row.

Where the tokenizer begins texts with a token (BOS), every block begins with it, and predicts what stands in it alone:

    block i = BOS, stream[i·(T − 1) : (i + 1)·(T − 1)],  its labels = the same of the stream, none at the last token

gemma, which was trained on nothing else, is at a loss without it.

The floor is what the unigram distribution of the training tokens (of a file alone: its own), add-one smoothed over V,
says of each token.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from autodisc.config import TaskConfig
from autodisc.errors import DataError
from autodisc.tasks import columns
from autodisc.tasks.rows import Rows
from autodisc.tasks.splits import IGNORED, LABELS, Split, make_split
from autodisc.tasks.tokenising import Columns, tokenise

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

TEXTS = ("text", "sentence")  # columns by their usual names


class Blocks(Rows):
    @staticmethod
    def unlabelled(rows: Dataset, config: TaskConfig) -> bool:
        return False  # a text is its own truth

    def check(self, raw: Mapping[str, Dataset], known: tuple[str, ...] | None) -> None:
        config, (first, rows) = self.config, next(iter(raw.items()))
        have = rows.column_names
        if config.text_pair is not None:
            raise DataError(f"--text-pair: got '{config.text_pair}'; kind causal-lm takes one text a row, leave it out")
        found = config.text or next((name for name in TEXTS if name in have), None)
        if found is None:
            raise DataError(
                f"{first}: no column {' or '.join(TEXTS)}; it has {', '.join(have)}; name the text's column with --text"
            )
        self.text = found
        for name, rows in raw.items():
            columns.check_columns(rows.column_names, name, [found], None)
        if self.tokenizer.eos_token_id is None:
            raise DataError("tokenizer: it has no end-of-sequence token to part texts with; set one and save it again")
        self.unigram_nll: np.ndarray | None = None  # of the first split

    @property
    def num_labels(self) -> int:
        return len(self.tokenizer)

    def hashes(self, rows: Dataset) -> np.ndarray:
        return columns.content_hashes(columns.read_texts(rows, "train", [self.text]))

    def split(self, rows: Dataset, name: str) -> Split:
        documents = self._documents(rows, name)
        return self._packed(documents, name)

    def apart(self, rows: Dataset, held_out: np.ndarray) -> tuple[Split, Split]:
        """Whole documents, before they are cut."""
        documents = self._documents(rows, "train")
        out = set(held_out.tolist())
        train = [own for i, own in enumerate(documents) if i not in out]
        return self._packed(train, "train"), self._packed([documents[i] for i in held_out], "train")

    def _documents(self, rows: Dataset, name: str) -> list[np.ndarray]:
        """The tokens of each text, with the token that ends it."""
        eos = int(self.tokenizer.eos_token_id)

        def encode(batch: Columns) -> Columns:
            texts = [str(value) for value in batch[self.text]]
            # verbose: a text that is longer than the model reads is cut into blocks, which needs no warning.
            encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
            return {"input_ids": [[*ids, eos] for ids in encoded["input_ids"]]}

        tokens = tokenise(
            rows,
            name=name,
            columns=[self.text],
            content=columns.read_texts(rows, name, [self.text]),
            settings=("causal-lm",),
            encode=encode,
            types=False,
            tokenizer=self.tokenizer,
            cache_dir=self.cache_dir,
            progress=self.progress,
        )
        return [own for chunk in tokens.data.column("input_ids").chunks for own in _lists(chunk)]

    def _packed(self, documents: list[np.ndarray], name: str) -> Split:
        import datasets

        if self.unigram_nll is None:
            self.unigram_nll = unigram_nll(documents, self.num_labels)
        blocks, labels = pack(documents, self.longest, begin=beginning(self.tokenizer))
        if not blocks:
            raise DataError(f"{name}: one token is all it has; expected text to predict")
        feature = datasets.List(datasets.Value("int32"))
        rows = datasets.Dataset.from_dict(
            {"input_ids": blocks, LABELS: labels}, features=datasets.Features({"input_ids": feature, LABELS: feature})
        )
        return make_split(name, rows, truth(labels, self.unigram_nll))


def _lists(chunk: object) -> Iterator[np.ndarray]:
    values, offsets = chunk.values.to_numpy(), chunk.offsets.to_numpy()  # type: ignore[attr-defined]
    return (values[start:end] for start, end in itertools.pairwise(offsets.tolist()))


def beginning(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that a tokenizer begins every text with, where there is one."""
    bos: int | None = tokenizer.bos_token_id
    return bos if tokenizer("x")["input_ids"][:1] == [bos] else None


def pack(
    documents: list[np.ndarray], length: int, *, begin: int | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Blocks of ``length`` tokens, of which the first is ``begin``, and their labels; the last may be shorter.

    The last token of the stream has no label, nor, after ``begin``, that of any block.
    """
    stream = np.concatenate(documents)
    if begin is not None:
        parts = [stream[i : i + length - 1] for i in range(0, len(stream), length - 1)]
        first, none = np.array([begin], stream.dtype), np.array([IGNORED], stream.dtype)
        return [np.concatenate([first, own]) for own in parts], [np.concatenate([own, none]) for own in parts]
    starts = range(0, len(stream) - 1, length)  # a block of the last token alone would predict nothing
    labels = np.append(stream[1:], np.int32(IGNORED))
    return [stream[i : i + length] for i in starts], [labels[i : i + length] for i in starts]


def unigram_nll(documents: list[np.ndarray], classes: int) -> np.ndarray:
    """−ln p (V,) of each token, p add-one smoothed over ``classes``."""
    counts = np.bincount(np.concatenate(documents), minlength=classes) + 1.0
    return -np.log(counts / counts.sum())


def truth(labels: list[np.ndarray], nll: np.ndarray) -> np.ndarray:
    """What the metrics of ``sums`` count of the blocks' true tokens; returns (N, 3)."""
    uniform = math.log(len(nll))
    real = [own[own != IGNORED] for own in labels]
    return np.array([(len(own), len(own) * uniform, nll[own].sum()) for own in real])
