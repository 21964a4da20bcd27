"""Files of words and of text: a tag for every word, read at its first token; and what a model is worth on them.

A row holds its words as a list, or as a text that spaces part; a CoNLL file a word a line. A list of tags is added to
each row, in a cell of CSV with spaces between; to a CoNLL file they are its second column. Words beyond the model's
length have the tag O, or where there is none of that name the first.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autodisc.config import RuntimeConfig, TaskConfig
from autodisc.errors import ConfigError, DataError, ModelError
from autodisc.models.checkpoints import FINE_TUNED, load_model, load_tokenizer, own_head
from autodisc.models.inference import evaluation_batch, forward, predict
from autodisc.progress import Progress
from autodisc.runtime import Runtime, make_runtime
from autodisc.tasks import files, sources
from autodisc.tasks.answers import scores
from autodisc.tasks.batches import batches, number_of_batches
from autodisc.tasks.data import find_kind, load_file
from autodisc.tasks.files import Row
from autodisc.tasks.formats import read_conll
from autodisc.tasks.sources import CONLL
from autodisc.tasks.splits import IGNORED
from autodisc.tasks.words import OUTSIDE, as_words, columns_of, tokenised_words
from autodisc.workspace import HEADS, label_names

PREDICTION = "prediction"


@dataclass(frozen=True)
class Tagger:
    """A token classifier, as what gives words their tags."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    names: tuple[str, ...]
    longest: int  # tokens
    runtime: Runtime
    batch_size: int

    def tags(self, sentences: Sequence[list[str]]) -> list[list[str]]:
        """The tag of each word, in the order of ``sentences``."""
        missed = OUTSIDE if OUTSIDE in self.names else self.names[0]
        found = [[missed] * len(words) for words in sentences]
        split, pad = tokenised_words(sentences, self.tokenizer, self.longest), int(self.tokenizer.pad_token_id)
        for batch in batches(split, batch_size=self.batch_size, pad_token_id=pad, generator=None):
            batch = batch.to(self.runtime.device)
            logits = forward(self.model, batch, runtime=self.runtime, ledger=None, kind="forward")
            likeliest, begins = logits.argmax(-1).cpu().numpy(), batch.labels.cpu().numpy() != IGNORED  # (B, T)
            for row, own, places in zip(batch.rows.tolist(), likeliest, begins, strict=True):
                seen = [self.names[tag] for tag in own[places]]
                found[row][: len(seen)] = seen
        return found


def open_tagger(name: str | Path, runtime: Runtime, max_length: int, batch_size: int) -> Tagger:
    """A model's folder or hub name; raises ModelError for one that gives words no tags."""
    tokenizer, model = load_tokenizer(name), load_model(name)
    names, head = label_names(model.config), own_head(model)
    if head != "token" or names is None:
        raise ModelError(
            f"--model: {name} is a {FINE_TUNED[head]}, which gives words no tags; what it makes of a text:"
            " autodisc evaluate --file TEXT.txt"
        )
    model.to(runtime.device)  # type: ignore[arg-type]
    return Tagger(model, tokenizer, names, min(max_length, tokenizer.model_max_length), runtime, batch_size)


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
    since, done, where = time.perf_counter(), 0, files.name_of(file)
    tagger = open_tagger(name, runtime, task.max_length, batch_size)
    chunks = iter(_read(file))
    first = next(chunks)
    columns = tuple(dict.fromkeys(name for row in first for name in row))
    words, _ = columns_of(task, columns, where)
    if PREDICTION in columns:
        raise DataError(f"{where}: it has a column '{PREDICTION}' already; rename or remove it")
    with _writing(out, format, first, columns, words) as write, progress.stage(f"Tagging {where}", None) as bar:
        for rows in itertools.chain([first], chunks):
            sentences = [as_words(row.get(words), f"{where} row {i}") for i, row in enumerate(rows, done + 1)]
            tags = tagger.tags(sentences)
            write([{**row, PREDICTION: own} for row, own in zip(rows, tags, strict=True)])
            done += len(rows)
            bar.advance(len(rows))
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
        with progress.stage(
            f"Evaluating on {file.name}", number_of_batches(split, evaluation_batch(split, read))
        ) as bar:
            said = predict(model, split, task=read, runtime=ready, bar=bar)
    return scores(said, split.labels, metric, split=str(file), seed=runtime.seed, classes=read.num_labels)


def _read(file: Path | None) -> Iterable[list[Row]]:
    if file is None or file.suffix != CONLL:
        return files.read_rows(file)
    rows: list[Row] = [{"tokens": words} for words in read_conll(file, tagged=False)["tokens"]]
    return (rows[start : start + files.AT_ONCE] for start in range(0, len(rows), files.AT_ONCE))


@contextlib.contextmanager
def _writing(
    out: Path | None, asked: files.Format | None, first: Sequence[Row], columns: tuple[str, ...], words: str
) -> Iterator[Callable[[Sequence[Row]], None]]:
    """Takes rows with their tags; a file has its name when all are written."""
    if out is not None and out.suffix == CONLL and asked is None:
        with _writing_conll(out, words) as write:
            yield write
        return
    if out is None and asked == "parquet":
        raise ConfigError("--format parquet: not for standard output; give --out FILE.parquet")
    kind = asked or ("jsonl" if out is None else files.format_of(out, "--out"))
    columns = (*columns, PREDICTION)
    tagged = [{**row, PREDICTION: [OUTSIDE]} for row in first]
    schema = files.schema_of(tagged, columns) if kind == "parquet" else None
    with files.writing(out, kind, columns, schema) as writer:
        yield lambda rows: writer.write([_flat(row) for row in rows] if kind == "csv" else rows)


def _flat(row: Row) -> Row:
    return {name: " ".join(value) if isinstance(value, list) else value for name, value in row.items()}


@contextlib.contextmanager
def _writing_conll(out: Path, words: str) -> Iterator[Callable[[Sequence[Row]], None]]:
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", newline="") as file:

            def write(rows: Sequence[Row]) -> None:
                for row in rows:
                    pairs = zip(as_words(row[words], str(out)), row[PREDICTION], strict=True)
                    file.write("".join(f"{word}\t{tag}\n" for word, tag in pairs) + "\n")

            yield write
        os.replace(partial, out)
    except OSError as error:
        raise DataError(f"--out {out}: cannot be written ({error.strerror}); give another file") from None
    finally:
        partial.unlink(missing_ok=True)
