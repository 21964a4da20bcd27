"""How well a task is solved: metrics, their floors and their uncertainty.

floor          = max over constants c of metric(c, labels)
standard error = sqrt(p (1 - p) / n) for accuracy, else the bootstrap over examples (Efron, 1979)

Here are those of one label an example; ``sums.py`` has those of many. GLUE's metrics are those of arXiv:1804.07461.
Scores come from scikit-learn and scipy. The bootstrap resamples the confusion matrix's cells that are not 0 instead of
the examples (the same distribution, since these metrics see nothing else), so it takes milliseconds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autodisc.config import Kind, MetricName
from autodisc.errors import DivergedError
from autodisc.tasks.sums import RESAMPLES, SUMS, draws, ratio

CORRELATIONS: tuple[MetricName, ...] = ("pearson", "spearman", "pearson_spearman")
_PARTS: dict[str, tuple[MetricName, ...]] = {
    "accuracy_f1": ("accuracy", "f1"),
    "pearson_spearman": ("pearson", "spearman"),
}


class Metric(Protocol):
    """A task's metric: larger is better, 1 is perfect. Predictions and labels have one row an example."""

    @property
    def name(self) -> MetricName: ...

    @property
    def kind(self) -> Kind: ...

    def score(self, predictions: np.ndarray, labels: np.ndarray) -> float: ...

    def components(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The metric by its name, and others that belong to it."""

    def each(self, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The metric of each of R draws of N examples, (R, N) or (R, N, columns); returns (R,)."""

    def constant(self, labels: np.ndarray) -> np.ndarray:
        """What the best constant prediction says of each example; the floor is its metric."""

    def floor(self, labels: np.ndarray) -> float: ...

    def standard_error(self, predictions: np.ndarray, labels: np.ndarray, seed: int) -> float:
        """The metric's standard deviation over samples of examples like these."""


@dataclass(frozen=True)
class ExampleMetric:
    """Of one label an example: a class, or a value."""

    name: MetricName
    kind: Kind

    def score(self, predictions: np.ndarray, labels: np.ndarray) -> float:
        """The metric of ``predictions``, class ids or floats (N,); a constant has no correlation: 0.0."""
        return self.components(predictions, labels)[self.name]

    def components(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The metric by its name, after the metrics that it is the mean of."""
        predictions, labels = _checked(predictions, labels)
        parts: dict[str, float] = {}
        for name in _PARTS.get(self.name, (self.name,)):
            parts[name] = _score(name, predictions, labels)
        return {**parts, self.name: math.fsum(parts.values()) / len(parts)}

    def each(self, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Of each row of two (R, N)."""
        if self.name == "accuracy":
            return (predictions == labels).mean(axis=1)
        if self.kind == "regression":
            return _correlations(self.name, predictions, labels)
        V = 1 + max(int(labels.max()), int(predictions.max()))
        counts = [_counts(own, said, None, V) for own, said in zip(labels, predictions, strict=True)]
        return _from_counts(self.name, np.stack(counts), np.arange(V))

    def constant(self, labels: np.ndarray) -> np.ndarray:
        if self.kind == "regression" or self.name == "matthews":  # any will do
            return np.full_like(labels, labels[0])
        # A class that no label has scores below one that some label has, so the labels' own suffice.
        constants = (np.full_like(labels, c) for c in np.unique(labels))
        return max(constants, key=lambda same: self.each(same[None], labels[None])[0])

    def floor(self, labels: np.ndarray) -> float:
        return self.score(self.constant(labels), labels)

    def standard_error(self, predictions: np.ndarray, labels: np.ndarray, seed: int) -> float:
        predictions, labels = _checked(predictions, labels)
        n = len(labels)
        if self.name == "accuracy":
            p = float(np.mean(predictions == labels))
            return math.sqrt(p * (1 - p) / n)
        rng = np.random.default_rng(seed)
        if self.kind == "regression":
            values = [_correlations(self.name, predictions[drawn], labels[drawn]) for drawn in draws(n, rng)]
            return float(np.std(np.concatenate(values), ddof=1))
        classes, codes = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
        V = len(classes)
        cells, times = np.unique(codes[:n] * V + codes[n:], return_counts=True)  # label by prediction, those there are
        drawn = rng.multinomial(n, times / n, size=RESAMPLES)  # (R, cells)
        counts = np.stack([_counts(cells // V, cells % V, weights, V) for weights in drawn])
        return float(np.std(_from_counts(self.name, counts, classes), ddof=1))


_CLASSES: tuple[MetricName, ...] = ("accuracy", "f1", "f1_macro", "accuracy_f1", "matthews")
METRICS: dict[str, Metric] = {
    **{name: ExampleMetric(name, "classification") for name in _CLASSES},
    **{name: ExampleMetric(name, "regression") for name in CORRELATIONS},
    **SUMS,
}
DEFAULTS: dict[Kind, MetricName] = {"tokens": "entity_f1", "causal-lm": "bits_saved"}  # other kinds are told theirs


@dataclass(frozen=True)
class GlueTask:
    """One of GLUE's nine: its metric, text columns and classes (none: a regression)."""

    metric: Metric
    columns: tuple[str, ...]
    label_names: tuple[str, ...] | None

    @property
    def num_labels(self) -> int:
        return len(self.label_names or ("value",))


def _glue(metric: MetricName, columns: str, labels: str = "") -> GlueTask:
    return GlueTask(METRICS[metric], tuple(columns.split()), tuple(labels.split()) or None)


GLUE: dict[str, GlueTask] = {
    "cola": _glue("matthews", "sentence", "unacceptable acceptable"),
    "sst2": _glue("accuracy", "sentence", "negative positive"),
    "mrpc": _glue("accuracy_f1", "sentence1 sentence2", "not_equivalent equivalent"),
    "qqp": _glue("accuracy_f1", "question1 question2", "not_duplicate duplicate"),
    "stsb": _glue("pearson_spearman", "sentence1 sentence2"),
    "mnli": _glue("accuracy", "premise hypothesis", "entailment neutral contradiction"),
    "qnli": _glue("accuracy", "question sentence", "entailment not_entailment"),
    "rte": _glue("accuracy", "sentence1 sentence2", "entailment not_entailment"),
    "wnli": _glue("accuracy", "sentence1 sentence2", "not_entailment entailment"),
}


def decode(logits: np.ndarray, kind: Kind) -> np.ndarray:
    """Predictions (N,) from logits (N, V): the likeliest class, or the one value of a regression."""
    check_finite(logits, "logits")  # before the argmax, which would hide them
    return logits[:, 0] if kind == "regression" else logits.argmax(axis=1)


def _checked(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape}: expected both (N,), N > 0")
    check_finite(predictions, "predictions")
    return predictions, labels


def check_finite(values: np.ndarray, what: str) -> None:
    bad = int(np.size(values) - np.count_nonzero(np.isfinite(values)))
    if bad:
        raise DivergedError(
            f"{what}: {bad} of {np.size(values)} are not finite; the model has diverged, try a lower learning rate"
        )


def _score(name: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn import metrics

    if name == "accuracy":
        return float(metrics.accuracy_score(labels, predictions))
    if name == "f1":
        return float(metrics.f1_score(labels, predictions, labels=[1], average="macro", zero_division=0))
    if name == "f1_macro":
        return float(metrics.f1_score(labels, predictions, average="macro", zero_division=0))
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    if name == "matthews":
        return float(metrics.matthews_corrcoef(labels, predictions))
    from scipy import stats

    correlation = stats.pearsonr if name == "pearson" else stats.spearmanr
    with warnings.catch_warnings():  # a nearly constant prediction is a bad candidate, not a fault
        warnings.simplefilter("ignore")
        value = float(correlation(predictions.astype(np.float64), labels.astype(np.float64)).statistic)
    return value if math.isfinite(value) else 0.0


def _counts(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray | None, classes: int) -> np.ndarray:
    """(3, V): how often each class is right, is there, and is said; without ``weights`` each pair counts once."""
    right = labels == predictions
    return np.stack(
        [
            np.bincount(labels[right], None if weights is None else weights[right], classes),
            np.bincount(labels, weights, classes),
            np.bincount(predictions, weights, classes),
        ]
    )


def _from_counts(name: str, counts: np.ndarray, classes: Sequence[int] | np.ndarray) -> np.ndarray:
    """A classification metric of each of R counts (R, 3, V); returns (R,)."""
    hits, actual, predicted = np.moveaxis(counts.astype(np.float64), 1, 0)  # n⁴ of 55,109 examples overflows int64
    n = actual.sum(axis=1)
    if name == "matthews":  # Gorodkin's form for V classes
        covariance = hits.sum(axis=1) * n - (actual * predicted).sum(axis=1)
        spread = (n**2 - (actual**2).sum(axis=1)) * (n**2 - (predicted**2).sum(axis=1))
        return ratio(covariance, np.sqrt(spread))
    f1 = ratio(2 * hits, actual + predicted)  # (R, V)
    if name == "f1_macro":  # over the classes that occur, as in scikit-learn
        return f1.sum(axis=1) / np.maximum((actual + predicted > 0).sum(axis=1), 1)
    positive = f1[:, np.asarray(classes) == 1].sum(axis=1)  # 0 where class 1 never occurs
    return positive if name == "f1" else (hits.sum(axis=1) / n + positive) / 2


def _correlations(name: str, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A correlation of each row of two (R, N); returns (R,)."""
    from scipy.stats import rankdata

    if name == "pearson_spearman":
        return (_correlations("pearson", predictions, labels) + _correlations("spearman", predictions, labels)) / 2
    if name == "spearman":
        predictions, labels = rankdata(predictions, axis=1), rankdata(labels, axis=1)
    x = predictions - predictions.mean(axis=1, keepdims=True, dtype=np.float64)
    y = labels - labels.mean(axis=1, keepdims=True, dtype=np.float64)
    return ratio((x * y).sum(axis=1), np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1)))
