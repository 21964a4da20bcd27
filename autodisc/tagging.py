"""Files of words and of text: a tag for every word, read at its first token; and what a model is worth on them.

A row holds its words as a list, or as a text that spaces part; a CoNLL file a word a line. A list of tags is added to
each row, in a cell of CSV with spaces between; to a CoNLL file they are its second column. Words beyond the model's
length have the tag O, or where there is none of that name the first.
"""

from __future__ import annotations

import contextlib
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
from autodisc.models.checkpoints import FINE_TUNED, load_model, load_model_config, load_tokenizer, own_head
from autodisc.models.inference import evaluation_batch, forward, predict
from autodisc.models.latency import longest_input
from autodisc.models.modeling_autodisc import head_of
from autodisc.opening import HEADS, as_trained, check_positions, label_names
from autodisc.progress import Progress
from autodisc.runtime import Runtime, make_runtime
from autodisc.tasks import files, sources
from autodisc.tasks.answers import scores
from autodisc.tasks.batches import batches, number_of_batches
from autodisc.tasks.data import find_kind, load_file
from autodisc.tasks.files import Row
from autodisc.tasks.formats import read_conll
from autodisc.tasks.metrics import check_finite
from autodisc.tasks.sentences import filling, tell_cut
from autodisc.tasks.sources import CONLL
from autodisc.tasks.splits import IGNORED, Split
from autodisc.tasks.surveys import Survey, surveyed
from autodisc.tasks.words import OUTSIDE, as_words, columns_of, cut_at_the_end, tokenised_words

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

    def tokens(self, sentences: Sequence[list[str]]) -> Split:
        return tokenised_words(sentences, self.tokenizer, self.longest)

    def tags(self, sentences: Sequence[list[str]], split: Split) -> list[list[str]]:
        """The tag of each word, in the order of ``sentences``, whose tokens ``split`` holds."""
        missed = OUTSIDE if OUTSIDE in self.names else self.names[0]
        found = [[missed] * len(words) for words in sentences]
        pad = int(self.tokenizer.pad_token_id)
        for batch in batches(split, batch_size=self.batch_size, pad_token_id=pad, generator=None):
            batch = batch.to(self.runtime.device)
            logits = forward(self.model, batch, runtime=self.runtime, ledger=None, kind="forward")
            said, begins = logits.float().cpu().numpy(), batch.labels.cpu().numpy() != IGNORED  # (B, T, V), (B, T)
            check_finite(said, "logits")  # before the argmax, which would hide them
            for row, own, places in zip(batch.rows.tolist(), said.argmax(-1), begins, strict=True):
                seen = [self.names[tag] for tag in own[places]]
                found[row][: len(seen)] = seen
        return found


def open_tagger(name: str | Path, runtime: Runtime, task: TaskConfig, batch_size: int) -> Tagger:
    """A token classifier's folder or hub name."""
    tokenizer, model = load_tokenizer(name), load_model(name)
    cut_at_the_end(tokenizer)
    names = label_names(model.config)
    if names is None:
        raise ModelError(f"--model: {name} has one class, which tells no words apart; give another")
    longest = fitting_length(model, tokenizer, task, name=str(name))
    model.to(runtime.device)  # type: ignore[arg-type]
    return Tagger(model, tokenizer, names, longest, runtime, batch_size)


def fitting_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: TaskConfig, *, name: str) -> int:
    """Tokens that a row is cut to; raises ConfigError where the model has fewer positions."""
    max_length = as_trained(task, model.config).max_length
    if tokenizer.pad_token_id is None:
        raise DataError(f"{name}: its tokenizer has no padding token, which batches need; set one and save it again")
    longest, most = min(max_length, tokenizer.model_max_length), longest_input(model)
    if most is not None and longest > most:
        raise ConfigError(f"--max-length: got {max_length}; {name} has positions for {most} tokens, give no more")
    return longest


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
    head = head_of(load_model_config(name))
    if head is not None and head != "token":
        raise ModelError(
            f"--model: {name} is a {FINE_TUNED[head]}, which gives words no tags; what it makes of a text:"
            " autodisc evaluate --file TEXT.txt"
        )
    since, where, column = time.perf_counter(), files.name_of(file), ""
    to = None if is_conll(out) and format is None else files.format_to_write(out, format)  # none: CoNLL

    def sentences(rows: Sequence[Row], done: int) -> list[list[str]]:
        return [as_words(row.get(column), f"{where} row {i}") for i, row in enumerate(rows, done + 1)]

    def check(rows: Sequence[Row], names: Sequence[str], done: int) -> None:
        nonlocal column
        column = column or columns_of(task, names, where)[0]
        sentences(rows, done)

    survey, read = surveyed(file, check, to=to, progress=progress, read=_read)
    if PREDICTION in survey.columns:
        raise DataError(f"{where}: it has a column '{PREDICTION}' already; rename or remove it")
    tagger = open_tagger(name, runtime, task, batch_size)
    done = full = 0
    with _writing(out, to, survey, column) as write, progress.stage(f"Tagging {where}", survey.rows) as bar:
        for rows in read:
            own = sentences(rows, done)
            split = tagger.tokens(own)
            tags, full = tagger.tags(own, split), full + filling(split, tagger.longest)
            write([{**row, PREDICTION: said} for row, said in zip(rows, tags, strict=True)])
            done += len(rows)
            bar.advance(len(rows))
    tell_cut(progress, where, full, done, tagger.longest)
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
    if file.suffix.lower() not in sources.OF_KINDS:
        files.format_of(file, "--file")
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    ready, model, tokenizer = make_runtime(runtime), load_model(name), load_tokenizer(name)
    head, needed = own_head(model), HEADS[find_kind(task)]
    if head != needed:
        raise ModelError(f"--model: {name} is a {FINE_TUNED[head]}, but kind {task.kind} takes a {FINE_TUNED[needed]}")
    task, known = as_trained(task, model.config), label_names(model.config) if head == "token" else None
    with tempfile.TemporaryDirectory(prefix="autodisc-") as folder:
        read = load_file(task, tokenizer, file, cache_dir=Path(folder), label_names=known, progress=progress)
        check_positions(model, str(name), read)
        model.to(ready.device)  # type: ignore[arg-type]
        split, metric = read.validation, read.metric
        passes = number_of_batches(split, evaluation_batch(split, read))
        with progress.stage(f"Evaluating on {file.name}", passes) as bar:
            said = predict(model, split, task=read, runtime=ready, bar=bar)
    return scores(said, split.labels, metric, split=str(file), seed=runtime.seed, classes=read.num_labels)


def is_conll(path: Path | None) -> bool:
    return path is not None and path.suffix.lower() == CONLL


def _read(file: Path | None) -> Iterable[list[Row]]:
    if file is None or not is_conll(file):
        return files.read_rows(file)
    rows: list[Row] = [{"tokens": words} for words in read_conll(file, tagged=False)["tokens"]]
    return (rows[start : start + files.AT_ONCE] for start in range(0, len(rows), files.AT_ONCE))


@contextlib.contextmanager
def _writing(
    out: Path | None, to: files.Format | None, survey: Survey, words: str
) -> Iterator[Callable[[Sequence[Row]], None]]:
    """Takes rows with their tags; a file has its name when all are written."""
    if to is None:
        assert out is not None, "CoNLL goes to a file of that name"
        with _writing_conll(out, words) as write:
            yield write
        return
    schema = None if survey.schema is None else files.with_columns(survey.schema, {PREDICTION: [OUTSIDE]})
    with files.writing(out, to, (*survey.columns, PREDICTION), schema) as writer:
        yield lambda rows: writer.write([_flat(row, (words, PREDICTION)) for row in rows] if to == "csv" else rows)


def _flat(row: Row, lists: Sequence[str]) -> Row:
    joined = {name: " ".join(row[name]) for name in lists if isinstance(row[name], list)}
    return {**row, **joined}


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
