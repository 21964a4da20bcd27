from __future__ import annotations

import numpy as np
import pytest

from autodisc.tasks.drawing import draw_part, least_rows


def drawn(labels, kind: str, count: int, seed: int = 0) -> np.ndarray:
    return draw_part(np.asarray(labels), kind, count, np.random.default_rng(seed))


def test_each_class_is_there_in_proportion_whatever_is_drawn():
    labels = np.repeat([0, 1, 2], [1700, 290, 10])
    np.random.default_rng(1).shuffle(labels)
    for seed in range(20):
        rows = drawn(labels, "classification", 300, seed)
        assert len(set(rows.tolist())) == 300
        assert (np.diff(rows) > 0).all()
        counts = np.bincount(labels[rows], minlength=3)
        assert np.abs(counts - [255, 43.5, 1.5]).max() <= 1
    assert (drawn(labels, "classification", 300, 1) != drawn(labels, "classification", 300, 2)).any()


def test_every_row_is_as_likely_as_any():
    labels, times = np.repeat([0, 1], [36, 4]), np.zeros(40)
    for seed in range(2000):
        times[drawn(labels, "classification", 10, seed)] += 1
    assert np.abs(times / 2000 - 0.25).max() < 0.05  # five standard errors of .0097


def test_the_values_of_a_regression_keep_their_distribution():
    labels = np.random.default_rng(2).exponential(size=5000).astype(np.float32)
    labels[:4500] = 0  # nearly all alike
    part = labels[drawn(labels, "regression", 200)]
    assert abs((part > 0).sum() - 20) <= 1
    assert part.mean() == pytest.approx(labels.mean(), rel=0.2)  # a draw at random has .0967 ± .031


def test_sentences_are_drawn_by_their_entities_and_blocks_at_random():
    labels = np.zeros((1000, 4))
    labels[:50, 0] = 1
    assert (drawn(labels, "tokens", 100) < 50).sum() in (5, 6)
    blocks = drawn(np.ones((1000, 3)), "causal-lm", 100)
    assert len(set(blocks.tolist())) == 100


@pytest.mark.parametrize(
    ("metric", "kind", "counts", "expected"),
    [
        ("f1", "classification", (99_500, 500), 6000),
        ("f1_macro", "classification", (900, 60, 40), 750),
        ("matthews", "classification", (990, 10), 1000),  # all: there are no 30
        ("accuracy_f1", "classification", (50, 50), 60),
        ("accuracy", "classification", (99_500, 500), 1),
    ],
)
def test_a_metric_that_hangs_on_the_rarest_class_asks_for_thirty_of_it(metric, kind, counts, expected):
    assert least_rows(metric, kind, np.repeat(np.arange(len(counts)), counts)) == expected


def test_sentences_with_an_entity_are_a_class():
    labels = np.zeros((1000, 4))
    labels[:50, 0] = 3
    assert least_rows("entity_f1", "tokens", labels) == 600
    assert least_rows("word_accuracy", "tokens", labels) == 1
    assert least_rows("bits_saved", "causal-lm", labels) == 1
    assert least_rows("pearson", "regression", np.arange(9.0)) == 1
