"""Metrics of examples with many labels each: functions of what is counted of an example, summed over examples.

entity_f1      2 hits / (predicted + entities)            an entity is a span and its type (seqeval, CoNLL-2003)
word_accuracy  words right / words
bits_saved     1 − nll / (tokens · ln V)                  0: as guessing uniformly, 1: certain and right

The last maps the negative log-likelihood, in nats, to [0, 1] for the tradeoff: the share of a uniform code's bits that
the model saves. Perplexity, exp(nll / tokens), is reported with it. What is counted of an example is a row of
``predictions`` (of what a model says) and one of ``labels`` (of the truth, and of the best constant prediction): sums
of rows drawn again are a bootstrap over sentences or blocks, and nothing else is kept.

Floors: the constant tag that does best, and with the unigram distribution of the training tokens, add-one smoothed. Of
entity F1 it is not 0: every word its own entity of the commonest type finds the names of one word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from autodisc.config import Kind, MetricName
from autodisc.errors import TrainingError

RESAMPLES = 200  # the standard error itself is then known to about 5 %
DRAWN = 1_000_000  # examples of a bootstrap in memory; all of 200,000 rows' would be 40 million

# Columns of a row of predictions, then of labels.
HITS, PREDICTED, WORDS_RIGHT = range(3)
ENTITIES, WORDS, ONE_WORD_NAMES, COMMONEST_TAG = range(4)  # the names of the type that has most of one word
(NLL,) = range(1)
TOKENS, UNIFORM_NLL, UNIGRAM_NLL = range(3)

Sums = np.ndarray  # (R, columns), fp64


def _entity_f1(said: Sums, true: Sums) -> np.ndarray:
    return ratio(2 * said[:, HITS], said[:, PREDICTED] + true[:, ENTITIES])


def _word_accuracy(said: Sums, true: Sums) -> np.ndarray:
    return ratio(said[:, WORDS_RIGHT], true[:, WORDS])


def _bits_saved(said: Sums, true: Sums) -> np.ndarray:
    return 1 - ratio(said[:, NLL], true[:, UNIFORM_NLL])


def _perplexity(said: Sums, true: Sums) -> np.ndarray:
    return np.exp(ratio(said[:, NLL], true[:, TOKENS]))


def _one_tag(labels: np.ndarray) -> np.ndarray:
    """Every word B- of one type, or, where that finds nothing, none an entity; and the commonest tag."""
    names = labels[:, ONE_WORD_NAMES]
    predicted = labels[:, WORDS] if names.any() else np.zeros_like(names)
    return np.stack([names, predicted, labels[:, COMMONEST_TAG]], axis=1)


def _unigrams(labels: np.ndarray) -> np.ndarray:
    return labels[:, [UNIGRAM_NLL]]


@dataclass(frozen=True)
class SumMetric:
    """``parts`` by name, each of sums over examples; the metric is the one of its own name."""

    name: MetricName
    kind: Kind
    parts: Mapping[str, Callable[[Sums, Sums], np.ndarray]]
    constant: Callable[[np.ndarray], np.ndarray]

    def score(self, predictions: np.ndarray, labels: np.ndarray) -> float:
        return self.components(predictions, labels)[self.name]

    def components(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        predictions, labels = _checked(predictions, labels)
        said, true = predictions.sum(axis=0)[None], labels.sum(axis=0)[None]
        return {name: float(part(said, true)[0]) for name, part in self.parts.items()}

    def each(self, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return self.parts[self.name](predictions.sum(axis=1), labels.sum(axis=1))

    def floor(self, labels: np.ndarray) -> float:
        return max(0.0, self.score(self.constant(labels), labels))

    def standard_error(self, predictions: np.ndarray, labels: np.ndarray, seed: int) -> float:
        predictions, labels = _checked(predictions, labels)
        rng = np.random.default_rng(seed)
        values = [self.each(predictions[drawn], labels[drawn]) for drawn in draws(len(labels), rng)]
        return float(np.std(np.concatenate(values), ddof=1))


SUMS: dict[str, SumMetric] = {
    "entity_f1": SumMetric("entity_f1", "tokens", {"word_accuracy": _word_accuracy, "entity_f1": _entity_f1}, _one_tag),
    "word_accuracy": SumMetric("word_accuracy", "tokens", {"word_accuracy": _word_accuracy}, _one_tag),
    "bits_saved": SumMetric(
        "bits_saved", "causal-lm", {"perplexity": _perplexity, "bits_saved": _bits_saved}, _unigrams
    ),
}


def draws(n: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows drawn with replacement, (R, n) at a time: the same numbers whatever R is."""
    at_once = max(1, DRAWN // n)
    for done in range(0, RESAMPLES, at_once):
        yield rng.integers(n, size=(min(at_once, RESAMPLES - done), n))


def _checked(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predictions, labels = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if predictions.ndim != 2 or labels.ndim != 2 or len(predictions) != len(labels) or not len(labels):
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape}: expected rows of both, N > 0")
    if not np.isfinite(predictions).all():
        raise TrainingError("predictions: not all are finite; the model has diverged, try a lower learning rate")
    return predictions, labels


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """``top / bottom``, and 0 where ``bottom`` is 0."""
    return np.divide(top, bottom, out=np.zeros(np.shape(top), np.float64), where=bottom > 0)
