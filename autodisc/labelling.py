"""Predict and evaluate on files: rows pass through a model some thousand at a time, and keep their order.

probability of class c = exp(logit_c) / Σ exp(logit), fp32; a regression's prediction is its one logit

What is held beside the model is some thousand rows; to evaluate, also a prediction and a label of each row: 16 bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from autodisc.config import Kind, RuntimeConfig, TaskConfig
from autodisc.errors import CheckpointError, ConfigError, DataError, ModelError
from autodisc.models.checkpoints import (
    FINE_TUNED,
    TRAINED_TEXTS,
    load_model,
    load_model_config,
    load_tokenizer,
    own_head,
    pad_alike,
    trained_texts,
)
from autodisc.models.inference import EVALUATION_BATCH, forward
from autodisc.models.modeling_autodisc import CONFIG, head_of
from autodisc.models.onnx import BESIDE, MODEL, OnnxModel
from autodisc.opening import label_names
from autodisc.progress import Progress, Silent
from autodisc.runtime import Runtime, make_runtime
from autodisc.tagging import evaluate_tokens, fitting_length, tag_file
from autodisc.tasks import columns, files, sources
from autodisc.tasks.answers import scores
from autodisc.tasks.batches import Batch, batches
from autodisc.tasks.data import find_metric
from autodisc.tasks.files import Row
from autodisc.tasks.metrics import GLUE, Metric, decode
from autodisc.tasks.sentences import filling, tell_cut, tokenised
from autodisc.tasks.splits import Split
from autodisc.tasks.surveys import surveyed

PREDICTION, PROBABILITY = "prediction", "probability_"
DISTINCT = 10_000  # labels of a file that are looked at before the model; a column of texts has as many as rows


@dataclass(frozen=True)
class Classifier:
    """A model, wherever it came from, as what gives texts their logits."""

    name: str
    classes: tuple[str, ...] | None  # none: a regression
    tokenizer: PreTrainedTokenizerBase
    longest: int  # tokens
    run: Callable[[Batch], np.ndarray]  # logits (B, V) of a batch

    def tokens(self, texts: Sequence[tuple[str, ...]]) -> Split:
        return tokenised(texts, self.tokenizer, self.longest)

    def logits(self, split: Split, batch_size: int) -> np.ndarray:
        """(N, V), in the order of its rows."""
        found = np.empty((len(split), self.width), np.float32)
        pad = int(self.tokenizer.pad_token_id)
        for batch in batches(split, batch_size=batch_size, pad_token_id=pad, generator=None):
            found[batch.rows] = self.run(batch)
        return found

    @property
    def width(self) -> int:
        """V: logits of a row."""
        return len(self.classes or (PREDICTION,))

    @property
    def columns(self) -> tuple[str, ...]:
        """What is added to each row."""
        return (PREDICTION, *(f"{PROBABILITY}{name}" for name in self.classes or ()))

    def label(self, logits: np.ndarray) -> list[tuple[str | float, ...]]:
        """The values of ``columns`` for each row of ``logits``."""
        chosen = decode(logits, "classification" if self.classes else "regression")
        if self.classes is None:
            return [(_short(value),) for value in chosen]
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = weights / weights.sum(axis=1, keepdims=True)  # (N, V)
        return [(self.classes[c], *map(_short, row)) for c, row in zip(chosen, shares, strict=True)]


def predict_file(
    model: str | Path,
    file: Path | None,
    out: Path | None = None,
    *,
    task: TaskConfig,
    runtime: RuntimeConfig | None = None,
    batch_size: int = EVALUATION_BATCH,
    format: files.Format | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write each row of ``file``, a prediction and the classes' probabilities (or the regression's value) to ``out``.

    ``file`` None is JSON Lines from standard input, ``out`` None is standard output. Of ``task`` the columns of the
    texts and ``max_length`` are used, where given, else the model's own. Raises DataError, and leaves no half-written
    file, where a row cannot be used.
    """
    progress, since = progress or Silent(), time.perf_counter()
    if onnx_file(model) is None and head_of(load_model_config(model)) not in (None, "sequence"):
        ready = make_runtime(runtime or RuntimeConfig())
        return tag_file(
            model, file, out, task=task, runtime=ready, batch_size=batch_size, format=format, progress=progress
        )
    where = files.name_of(file)
    texts = _Texts(task, where, _texts_of(model))
    kind = files.format_to_write(out, format)
    survey, read = surveyed(file, texts.check, to=kind, progress=progress)
    texts.tell_unread(survey.columns, progress)
    classifier = open_classifier(model, runtime or RuntimeConfig(), task)
    taken = next((name for name in classifier.columns if name in survey.columns), None)
    if taken is not None:
        raise DataError(f"{where}: it has a column '{taken}' already; rename or remove it")
    names, schema = (*survey.columns, *classifier.columns), survey.schema
    if schema is not None:  # a class is text, a number fp32
        (empty,) = classifier.label(np.zeros((1, classifier.width)))
        schema = files.with_columns(schema, dict(zip(classifier.columns, empty, strict=True)))
    done = full = 0
    with (
        files.writing(out, kind, names, schema) as writer,
        progress.stage(f"Predicting {where}", survey.rows) as bar,
    ):
        for rows in read:
            split = classifier.tokens(texts.of(rows, done))
            labels = classifier.label(classifier.logits(split, batch_size))
            writer.write(
                [
                    {**row, **dict(zip(classifier.columns, new, strict=True))}
                    for row, new in zip(rows, labels, strict=True)
                ]
            )
            done, full = done + len(rows), full + filling(split, classifier.longest)
            bar.advance(len(rows))
    tell_cut(progress, where, full, done, classifier.longest)
    return {
        "rows": done,
        "out": None if out is None else str(out),
        "columns": list(classifier.columns),
        "seconds": time.perf_counter() - since,
    }


def evaluate_file(
    model: str | Path,
    file: Path,
    *,
    task: TaskConfig,
    runtime: RuntimeConfig | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Metrics of a model on a labelled file, by the name of ``task`` or its metric, and their floor."""
    progress, runtime = progress or Silent(), runtime or RuntimeConfig()
    task = task.model_copy(update={"kind": task.kind or sources.OF_KINDS.get(file.suffix.lower())})
    metric = find_metric(task)
    if metric.kind in ("tokens", "causal-lm"):
        if onnx_file(model) is not None:
            raise ConfigError(f"--model: {model} is ONNX; on words and text the folder of the torch model is evaluated")
        return evaluate_tokens(model, file, task, runtime, progress)
    seen = _Labels(task.label, str(file), metric.kind)
    texts = _Texts(task, str(file), _texts_of(model), seen)
    survey, read = surveyed(file, texts.check, progress=progress)
    texts.tell_unread(survey.columns, progress)
    classifier = open_classifier(model, runtime, task)
    if (classifier.classes is None) != (metric.kind == "regression"):
        have = "a regression" if classifier.classes is None else f"for {len(classifier.classes)} classes"
        raise ModelError(f"model: {classifier.name} is {have}, but {metric.name} needs a {metric.kind}; give --metric")
    own = files.class_names(file, task.label) or (GLUE[task.name].label_names if task.name in GLUE else None)
    order = columns.order_of(own, classifier.classes)
    labels = seen.read_as(classifier.classes, metric, order)
    if labels.by_name and order is None:
        columns.tell_positive(metric, labels.names or (), progress, of_model=True)
    predicted, actual, done, full = [], [], 0, 0
    with progress.stage(f"Evaluating on {file.name}", survey.rows) as bar:
        for rows in read:
            numbers = [
                labels.number(row.get(task.label), str(file), i, task.label) for i, row in enumerate(rows, done + 1)
            ]
            split = classifier.tokens(texts.of(rows, done))
            predicted.append(decode(classifier.logits(split, EVALUATION_BATCH), metric.kind))
            actual.append(np.array(numbers, np.float32 if labels.names is None else np.int64))
            done, full = done + len(rows), full + filling(split, classifier.longest)
            bar.advance(len(rows))
    tell_cut(progress, str(file), full, done, classifier.longest)
    said, truth = np.concatenate(predicted), np.concatenate(actual)
    many = len(classifier.classes or ())
    return scores(said, truth, metric, split=str(file), seed=runtime.seed, classes=many)


def open_classifier(model: str | Path, runtime: RuntimeConfig, task: TaskConfig) -> Classifier:
    """A model's folder or hub name, or what ``export --format onnx`` wrote: its folder, or one of the files in it."""
    file, ready = onnx_file(model), make_runtime(runtime)
    if file is not None:
        opened = _open_onnx(file, ready, task)
    else:
        opened = _open_torch(model, ready, task, asked=runtime.precision != "auto")
    classes = opened.classes
    if classes is not None and len(set(classes)) < len(classes):
        raise ModelError(f"{model}: two of its classes have the same name (id2label); rename one")
    return opened


def onnx_file(model: str | Path) -> Path | None:
    """The ONNX file that ``model`` names, or the one in its folder; none of any other model."""
    path = Path(model)
    if path.suffix == ".onnx":
        return path
    beside_torch = (path / CONFIG).is_file()  # as other exporters write it
    return path / MODEL if (path / MODEL).is_file() and not beside_torch else None


def _texts_of(model: str | Path) -> tuple[str, ...]:
    """Columns of the texts that a model was trained on, if its folder says so; asked before the model is opened."""
    file = onnx_file(model)
    return trained_texts(load_model_config(model)) if file is None else tuple(_told(file).get(TRAINED_TEXTS) or ())


def _told(file: Path) -> dict[str, Any]:
    """What stands beside an ONNX file."""
    try:
        return dict(json.loads((file.parent / BESIDE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{file.parent}: {BESIDE} or tokenizer.json is missing or damaged ({error})")


def _open_torch(name: str | Path, runtime: Runtime, task: TaskConfig, *, asked: bool) -> Classifier:
    """``asked``: for the runtime's precision; else a regression's values are fp32, since bf16 makes 87.5 of 87.31."""
    tokenizer, model = load_tokenizer(name), load_model(name)
    if own_head(model) != "sequence":
        raise ModelError(f"--model: {name} is a {FINE_TUNED[own_head(model)]}; for it give a task of its --kind")
    pad_alike(model, tokenizer)
    longest = fitting_length(model, tokenizer, task, name=str(name))
    model.to(runtime.device)  # type: ignore[arg-type]
    classes = label_names(model.config)
    if classes is None and not asked:
        runtime = replace(runtime, precision="fp32")

    def run(batch: Batch) -> np.ndarray:
        logits = forward(model, batch.to(runtime.device), runtime=runtime, ledger=None, kind="forward")
        return logits.float().cpu().numpy()

    return Classifier(str(name), classes, tokenizer, longest, run)


def _open_onnx(file: Path, runtime: Runtime, task: TaskConfig) -> Classifier:
    model, told = OnnxModel(file, threads=runtime.threads), _told(file)
    try:
        names = tuple(told["id2label"][str(i)] for i in range(len(told["id2label"])))
        longest, inputs, head = int(told["max_length"]), list(told["inputs"]), told.get("head", "sequence")
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(file.parent / "tokenizer.json"), model_max_length=longest, model_input_names=inputs
        )
    except Exception as error:  # tokenizers' errors derive from Exception alone
        raise _damaged(file, error) from error
    if head != "sequence":
        raise ConfigError(
            f"--model: {file} is ONNX of a {FINE_TUNED[head]}; on words and text give the folder of the torch model"
        )
    if (set(inputs), len(names)) != (set(model.inputs), model.width):
        raise CheckpointError(
            f"{file.parent}: {BESIDE} is of another file: it has {len(names)} labels and gives {', '.join(inputs)};"
            f" {file.name} takes {', '.join(model.inputs)} and has {model.width}. Export it again."
        )

    def run(batch: Batch) -> np.ndarray:
        return model.logits({name: values.numpy() for name, values in batch.inputs.items()})

    classes = names if len(names) > 1 else None
    if "max_length" in task.model_fields_set:
        longest = min(task.max_length, longest)
    return Classifier(str(file), classes, tokenizer, longest, run)


class _Labels:
    """The labels of a file as it is first read: each that occurs, and where it first does."""

    def __init__(self, column: str, where: str, kind: Kind) -> None:
        self.column, self.where = column, where
        self._numbers = columns.Labels(None) if kind == "regression" else None
        self._rows: dict[str, tuple[object, int]] = {}

    def see(self, value: object, row: int) -> None:
        if self._numbers is not None:
            self._numbers.number(value, self.where, row, self.column)
        elif str(value) not in self._rows and len(self._rows) < DISTINCT:
            self._rows[str(value)] = value, row

    def read_as(self, classes: tuple[str, ...] | None, metric: Metric, order: tuple[int, ...] | None) -> columns.Labels:
        """How they are read as a model's ``classes``, integers by ``order``; DataError for the first that is none."""
        if classes is None:
            return columns.Labels(None)
        columns.check_positive(metric, classes, order, setting="--metric", whose="model has")
        labels = columns.Labels.of_values(
            {columns.class_text(value, classes) for value, _ in self._rows.values()}, classes, classes, order
        )
        for value, row in self._rows.values():
            labels.number(value, self.where, row, self.column)
        return labels


class _Texts:
    """The text columns of a file, found among its first rows' names; and what is checked of every row."""

    def __init__(self, task: TaskConfig, where: str, trained: tuple[str, ...], labels: _Labels | None = None) -> None:
        self._task, self._where, self._trained, self._labels = task, where, trained, labels
        self._names: tuple[str, ...] = ()

    def check(self, rows: Sequence[Row], names: Sequence[str], done: int) -> None:
        labels = self._labels
        if not self._names:
            self._names = columns.text_columns(self._task, names, self._where, self._trained)
            columns.check_columns(names, self._where, self._names, labels.column if labels else None)
        self.of(rows, done)
        if labels is not None:
            for i, row in enumerate(rows, done + 1):
                labels.see(columns.one_label(row.get(labels.column), self._where, i, labels.column), i)

    def tell_unread(self, names: Sequence[str], progress: Progress) -> None:
        columns.tell_unread(self._task, names, self._names, self._trained, progress)

    def of(self, rows: Sequence[Row], done: int) -> list[tuple[str, ...]]:
        """The texts of rows that ``done`` others came before."""
        return [
            tuple(columns.as_text(row.get(name), self._where, i, name) for name in self._names)
            for i, row in enumerate(rows, done + 1)
        ]


def _short(value: np.floating) -> float:
    """The shortest decimal that is this fp32 number: 0.1, and not 0.10000000149011612."""
    return float(str(np.float32(value)))
