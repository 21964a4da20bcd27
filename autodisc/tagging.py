"""Files of words and of text: a tag for every word, read at its first token; and what a model is worth on them.

A row holds its words as a list, or as a text that spaces part; a CoNLL file a word a line. A list of tags is added to
each row, in a cell of CSV with spaces between; to a CoNLL file they are its second column. Words beyond the model's
length have the tag O, or where there is none of that name the first.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autodisc.config import RuntimeConfig, TaskConfig
from autodisc.errors import ConfigError, DataError, ModelError
from autodisc.models.checkpoints import FINE_TUNED, load_model, load_tokenizer, own_head
from autodisc.models.inference import EVALUATION_BATCH, predict
from autodisc.progress import Progress
from autodisc.runtime import Runtime, make_runtime
from autodisc.tasks import files, sources
from autodisc.tasks.batches import batches, number_of_batches
from autodisc.tasks.data import find_kind, load_file
from autodisc.tasks.files import Row
from autodisc.tasks.formats import read_conll
from autodisc.tasks.sources import CONLL
from autodisc.tasks.splits import IGNORED, Split
from autodisc.tasks.words import OUTSIDE, as_words, columns_of
from autodisc.workspace import HEADS, label_names

PREDICTION = "prediction"


def tag_file(
    name: str | Path,
    file: Path | None,
    out: Path | None,
    *,
    task: TaskConfig,
    runtime: Runtime,
    batch_size: int,
    format: files.Format | None,
    progress: Progress,
) -> dict[str, Any]:
    """Write the rows of ``file`` with the tags of their words to ``out``; None is standard input, or output."""
    since = time.perf_counter()
    tokenizer, model = load_tokenizer(name), load_model(name)
    names, head = label_names(model.config) or (), own_head(model)
    if head != "token":
        raise ModelError(
            f"--model: {name} is a {FINE_TUNED[head]}, which has no tag to predict; what it makes of a text:"
            " autodisc evaluate --file TEXT.txt"
        )
    model.to(runtime.device)  # type: ignore[arg-type]
    longest = min(task.max_length, tokenizer.model_max_length)
    as_conll = out is not None and out.suffix == CONLL
    kind = None if as_conll else _format(out, format)
    where = files.name_of(file)
    done, column, known = 0, "", list[str]()
    written: list[Row] = []

    def tagged() -> Iterator[list[Row]]:
        nonlocal done, column
        for rows in _read(file):
            if not done:
                known.extend(dict.fromkeys(name for row in rows for name in row))
                column, _ = columns_of(task, known, where)
                if PREDICTION in known:
                    raise DataError(f"{where}: it has a column '{PREDICTION}' already; rename or remove it")
            words = [as_words(row.get(column), f"{where} row {i}") for i, row in enumerate(rows, done + 1)]
            split = tokenised_words(words, tokenizer, longest)
            tags = _tags(model, split, words, names, tokenizer, runtime, batch_size)
            done += len(rows)
            yield [{**row, PREDICTION: own} for row, own in zip(rows, tags, strict=True)]

    with progress.stage(f"Tagging {where}", None):
        made = tagged()
        if as_conll:
            assert out is not None, "it ends in .conll"
            _write_conll(out, ((row[column], row[PREDICTION]) for rows in made for row in rows))
        else:
            written = next(made)
            columns = (*known, PREDICTION)
            schema = files.schema_of(written, columns) if kind == "parquet" else None
            assert kind is not None, "it is no CoNLL file"
            with files.writing(out, kind, columns, schema) as writer:
                while written:
                    writer.write([_flat(row) for row in written] if kind == "csv" else written)
                    written = next(made, [])
    return {
        "rows": done,
        "out": None if out is None else str(out),
        "columns": [PREDICTION],
        "seconds": time.perf_counter() - since,
    }


def evaluate_tokens(
    name: str | Path, file: Path, task: TaskConfig, runtime: RuntimeConfig, progress: Progress
) -> dict[str, Any]:
    """Words or text: the file is read whole, as a split is."""
    if file.suffix not in sources.OF_KINDS:
        files.format_of(file, "--file")
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    ready, model, tokenizer = make_runtime(runtime), load_model(name), load_tokenizer(name)
    head, needed = own_head(model), HEADS[find_kind(task)]
    if head != needed:
        raise ModelError(f"--model: {name} is a {FINE_TUNED[head]}, but kind {task.kind} takes a {FINE_TUNED[needed]}")
    known = label_names(model.config) if head == "token" else None
    with tempfile.TemporaryDirectory(prefix="autodisc-") as folder:
        read = load_file(task, tokenizer, file, cache_dir=Path(folder), label_names=known, progress=progress)
        model.to(ready.device)  # type: ignore[arg-type]
        split, metric = read.validation, read.metric
        with progress.stage(f"Evaluating on {file.name}", number_of_batches(split, EVALUATION_BATCH)) as bar:
            said = predict(model, split, task=read, runtime=ready, bar=bar)
    return {
        "metric": metric.score(said, split.labels),
        "metrics": metric.components(said, split.labels),
        "floor": metric.floor(split.labels),
        "standard_error": metric.standard_error(said, split.labels, runtime.seed),
        "examples": len(split),
        "split": str(file),
    }


def _read(file: Path | None) -> Iterable[list[Row]]:
    if file is None or file.suffix != CONLL:
        return files.read_rows(file)
    sentences = read_conll(file, tagged=False)["tokens"]
    rows: list[Row] = [{"tokens": words} for words in sentences]
    return (rows[start : start + files.AT_ONCE] for start in range(0, len(rows), files.AT_ONCE))


def _format(out: Path | None, asked: files.Format | None) -> files.Format:
    if out is None and asked == "parquet":
        raise ConfigError("--format parquet: not for standard output; give --out FILE.parquet")
    return asked or ("jsonl" if out is None else files.format_of(out, "--out"))


def _tags(
    model: PreTrainedModel,
    split: Split,
    words: Sequence[list[str]],
    names: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase,
    runtime: Runtime,
    batch_size: int,
) -> list[list[str]]:
    missed = OUTSIDE if OUTSIDE in names else names[0]
    found = [[missed] * len(own) for own in words]
    pad = int(tokenizer.pad_token_id)
    for batch in batches(split, batch_size=batch_size, pad_token_id=pad, generator=None):
        moved = batch.to(runtime.device)
        with torch.inference_mode(), runtime.autocast():
            likeliest = model(**moved.inputs).logits.argmax(-1).cpu().numpy()  # (B, T)
        for row, own, labels in zip(batch.rows.tolist(), likeliest, batch.labels.numpy(), strict=True):
            begin = own[labels != IGNORED]
            found[row][: len(begin)] = [names[tag] for tag in begin]
    return found


def _flat(row: Row) -> Row:
    return {name: " ".join(value) if isinstance(value, list) else value for name, value in row.items()}


def _write_conll(out: Path, sentences: Iterable[tuple[Any, list[str]]]) -> None:
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", newline="") as file:
            for words, tags in sentences:
                lines = (f"{word}\t{tag}\n" for word, tag in zip(as_words(words, str(out)), tags, strict=True))
                file.write("".join([*lines, "\n"]))
        os.replace(partial, out)
    except OSError as error:
        raise DataError(f"--out {out}: cannot be written ({error.strerror}); give another file") from None
    finally:
        partial.unlink(missing_ok=True)
