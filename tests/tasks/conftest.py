"""A tokenizer in memory and data in temporary folders: no network, no downloads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from autodisc.config import TaskConfig
from autodisc.progress import Progress
from autodisc.tasks.data import Task, load_task

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(100))]
Load = Callable[..., Task]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Word w7 is token 11; the rest as in BERT."""
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=64,
    )


@pytest.fixture
def load(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Load:
    """Load a task from ``tmp_path/data``, as accuracy unless told otherwise."""

    def call(
        name: str = "mine",
        *,
        seed: int = 0,
        label_names: tuple[str, ...] | None = None,
        texts: tuple[str, ...] = (),
        progress: Progress | None = None,
        **settings,
    ) -> Task:
        settings = {"data": tmp_path / "data", "metric": "accuracy"} | settings
        return load_task(
            TaskConfig(name=name, **settings),
            tokenizer,
            seed=seed,
            cache_dir=tmp_path / "cache",
            label_names=label_names,
            texts=texts,
            progress=progress,
        )

    return call


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write splits as files: ``write(train=rows, validation=rows)``, rows being dicts, or the text itself."""

    def call(suffix: str = ".jsonl", **splits) -> Path:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        for name, rows in splits.items():
            text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}{suffix}").write_text(text, encoding="utf-8")
        return folder

    return call
