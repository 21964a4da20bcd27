"""Tokens of rows, once for a content, a tokenizer and its settings: found again in a memory-mapped file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodisc.progress import Progress
from autodisc.tasks.sources import quiet_datasets
from autodisc.tasks.splits import LABELS, digest

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase

VERSION = 2  # part of the cache key: raise it when what is made of a text changes
SPACED = "space_before_words"  # in a tokenizer's settings: words that come one by one are given one each, as in a text
Columns = dict[str, list[Any]]


def tokenise(
    rows: Dataset,
    *,
    name: str,
    columns: Sequence[str],
    content: Iterable[tuple[str, ...]],
    settings: tuple[object, ...],
    encode: Callable[[Columns], Columns],
    labelled: bool = False,
    types: bool = True,
    tokenizer: PreTrainedTokenizerBase,
    cache_dir: Path,
    progress: Progress,
) -> Dataset:
    """``encode`` of ``columns``, some rows at a time, or what it once made of the same ``content`` and ``settings``."""

    head = [str((VERSION, *settings)).encode(), identity(tokenizer).encode()]
    key = digest(itertools.chain(head, ("\0".join((*row, "")).encode("utf-8", "surrogatepass") for row in content)))
    file = cache_dir / "tokenised" / f"{key}.arrow"
    if (kept := _kept(file)) is not None:
        return kept
    file.parent.mkdir(parents=True, exist_ok=True)

    with progress.stage(f"Tokenising {name}", len(rows)) as bar, quiet_datasets():

        def some(batch: Columns) -> Columns:
            encoded = encode(batch)
            bar.advance(len(batch[columns[0]]))
            return encoded

        return rows.select_columns(list(columns)).map(
            some,
            batched=True,
            remove_columns=list(columns),
            features=features(tokenizer, labelled=labelled, types=types),
            cache_file_name=str(file),  # written under a temporary name, then moved
            new_fingerprint=key,  # `datasets` would hash the tokenizer, whose truncation state changes as it works
        )


def _kept(file: Path) -> Dataset | None:
    """The tokens in a file of the cache; none, and no file, where it was cut off."""
    import datasets

    if not file.is_file():
        return None
    try:
        return datasets.Dataset.from_file(str(file))
    except (OSError, ValueError):  # pyarrow's, of a file that is too short
        file.unlink(missing_ok=True)
        return None


def encode_texts(strings: list[list[str]], tokenizer: PreTrainedTokenizerBase, longest: int) -> Columns:
    """Tokens of one or two columns of texts."""
    encoded = tokenizer(
        *strings,
        truncation=True,
        max_length=longest,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids="token_type_ids" in tokenizer.model_input_names,
    )
    return {column: encoded[column] for column in features(tokenizer)}


def features(tokenizer: PreTrainedTokenizerBase, *, labelled: bool = False, types: bool = True) -> Features:
    import datasets

    found = {"input_ids": datasets.List(datasets.Value("int32"))}
    if types and "token_type_ids" in tokenizer.model_input_names:
        found["token_type_ids"] = datasets.List(datasets.Value("int8"))
    if labelled:
        found[LABELS] = datasets.List(datasets.Value("int32"))
    return datasets.Features(found)


def identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """What decides a tokenizer's output, without the padding and truncation it was last called with."""
    parts: dict[str, Any] = {"class": type(tokenizer).__name__, "inputs": list(tokenizer.model_input_names)}
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        parts |= {k: v for k, v in state.items() if k not in ("truncation", "padding")}
    else:
        parts |= {"vocab": tokenizer.get_vocab(), "settings": repr(sorted(tokenizer.init_kwargs.items()))}
    parts["truncation_side"] = tokenizer.truncation_side
    if tokenizer.init_kwargs.get(SPACED):
        parts[SPACED] = True
    return json.dumps(parts, sort_keys=True)
