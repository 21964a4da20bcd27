from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from autodisc.tasks.answers import HIDDEN, confusion, differing
from autodisc.tasks.data import Split, Task
from autodisc.tasks.metrics import METRICS

WORDS = ("[CLS]", "[SEP]", "[PAD]")


class Words:
    """A tokenizer as far as reading back goes: an id is a place in ``vocabulary``."""

    sep_token_id = 1

    def __init__(self, vocabulary):
        self.vocabulary = [*WORDS, *vocabulary]

    def decode(self, ids, *, skip_special_tokens):
        assert skip_special_tokens
        return " ".join(self.vocabulary[i] for i in ids if i >= len(WORDS))


def task_of(texts, labels, metric="accuracy"):
    """``texts`` are rows of one or two texts."""
    words = sorted({word for row in texts for text in row for word in text.split()})
    place = {word: i + len(WORDS) for i, word in enumerate(words)}
    ids = []
    for row in texts:
        ids.append([0])
        for text in row:
            ids[-1] += [place[word] for word in text.split()] + [1]
    lengths = np.array([len(row) for row in ids])
    split = Split("test", Dataset.from_dict({"input_ids": ids}), lengths, np.array(labels), "f")
    kind = METRICS[metric].kind
    names = None if kind == "regression" else ("no", "yes", "maybe")
    task = Task("t", kind, METRICS[metric], names, 3 if names else 1, split, split, split, "test", {}, 2)
    return task, split, Words(words)


def test_a_confusion_counts_labels_by_predictions():
    predictions, labels = np.array([0, 1, 1, 2, 0]), np.array([0, 1, 2, 2, 1])
    table = confusion(predictions, labels, 3)
    assert table == [[int(((labels == i) & (predictions == j)).sum()) for j in range(3)] for i in range(3)]
    assert confusion(predictions, labels, 101) is None
    assert confusion(predictions, labels, 1) is None


def test_differences_are_counted_by_who_is_right_and_shown_by_turns():
    task, split, words = task_of([(f"row {i}", "second") for i in range(6)], [0, 0, 0, 1, 2, 1])
    teacher = np.eye(3)[[0, 0, 0, 0, 0, 1]] * 4
    student = np.eye(3)[[0, 1, 1, 1, 1, 1]] * [[4], [2], [9], [4], [4], [4]]
    found = differing(teacher, student, split, task=task, tokenizer=words, count=3)
    groups = ("teacher right", "student right", "neither right")
    assert [found[name] for name in groups] == [2, 1, 1]
    assert found["of"] == 6
    assert [one["text"] for one in found["shown"]] == ["row 2 ‖ second", "row 3 ‖ second", "row 4 ‖ second"]
    assert found["shown"][0] == {
        "text": "row 2 ‖ second", "label": "no", "teacher": "no", "student": "yes",
        "confidence": pytest.approx(1.0, abs=1e-3),
    }  # fmt: skip
    assert len(differing(teacher, student, split, task=task, tokenizer=words, count=50)["shown"]) == 4


def test_of_a_regression_the_largest_differences_are_shown():
    task, split, words = task_of([("a",), ("b",), ("c",)], [1.0, 2.0, 3.0], "pearson")
    found = differing(
        np.array([[1.0], [2.0], [3.0]]), np.array([[1.1], [0.0], [3.5]]), split, task=task, tokenizer=words, count=2
    )
    assert [(one["text"], one["student"]) for one in found["shown"]] == [("b", "0"), ("c", "3.5")]


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("write to ann . lee @ example . com today", "lee @ example"),
        ("write to ann@example.com today", "ann@"),
        ("card 4111 - 1111 - 1111 - 1111 ok", "1111"),
        ("call + 44 20 7946 0958 now", "7946"),
        ("key sk-proj1234567890abcdefghij1234 leaked", "abcdef"),
    ],
)
def test_what_looks_like_an_address_a_number_or_a_key_is_hidden(text, secret):
    task, split, words = task_of([(text,)], [0])
    found = differing(np.eye(3)[[0]], np.eye(3)[[1]], split, task=task, tokenizer=words, count=1)["shown"][0]["text"]
    assert HIDDEN in found
    assert secret not in found
    assert found.split()[0] == text.split()[0]


def test_long_texts_are_cut_and_plain_ones_stay_as_they_are():
    plain = "in 2004 profits of 1 , 250 rose by 12 . 5 % at internationalisation"
    task, split, words = task_of([("word " * 200,), (plain,)], [0, 0])
    rows = differing(np.eye(3)[[0, 0]], np.eye(3)[[1, 1]], split, task=task, tokenizer=words, count=2)["shown"]
    texts = sorted((one["text"] for one in rows), key=len)
    assert texts[0] == plain
    assert len(texts[1]) == 280
    assert texts[1].endswith("…")
