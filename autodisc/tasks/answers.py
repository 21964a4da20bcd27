"""What a model's answers are worth, which classes it confuses, and where a student leaves its teacher.

Texts of examples are decoded from their tokens, so they are what the models read: cut at the task's length and, with
some tokenizers, in lower case. They leave the data and enter a record, hence few, short, and with what looks like an
address, a long number or a key hidden. That is a guard, not a guarantee: ``reporting.examples: 0`` keeps none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from autodisc.tasks.data import Split, Task
from autodisc.tasks.metrics import Metric, decode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_CLASSES = 100  # of a confusion table; 10,000 numbers in a record
LONGEST = 280  # characters of an example's text
HIDDEN = "[hidden]"
_PRIVATE = re.compile(
    r"\S+ ?@ ?\w[\w-]*(?: ?\. ?\w+)+"  # an address; tokenizers put spaces around punctuation
    r"|\d(?:[ .()-]{0,3}\d){8,}"  # a telephone's, an account's or a card's number
    r"|(?=[\w+/=-]*\d)(?=[\w+/=-]*[A-Za-z])[\w+/=-]{24,}",  # a key
    re.ASCII,
)


def scores(
    predictions: np.ndarray, labels: np.ndarray, metric: Metric, *, split: str, seed: int, classes: int
) -> dict[str, Any]:
    """What predictions are worth, with the floor below it and its standard error; ``seed`` draws the bootstrap's.

    A classification's have their confusion table too; ``classes`` is not looked at elsewhere.
    """
    table = confusion(predictions, labels, classes) if metric.kind == "classification" else None
    return {
        **({} if table is None else {"confusion": table}),
        "metric": metric.score(predictions, labels),
        "metrics": metric.components(predictions, labels),
        "floor": metric.floor(labels),
        "standard_error": metric.standard_error(predictions, labels, seed),
        "examples": len(labels),
        "split": split,
    }


def confusion(predictions: np.ndarray, labels: np.ndarray, classes: int) -> list[list[int]] | None:
    """How many examples of each class (row) were given each (column); None where that is no table to keep."""
    if not 1 < classes <= MOST_CLASSES:
        return None
    cells = np.bincount(labels.astype(np.int64) * classes + predictions, minlength=classes * classes)
    return cells.reshape(classes, classes).tolist()


def differing(
    teacher: np.ndarray,
    student: np.ndarray,
    split: Split,
    *,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
) -> dict[str, Any]:
    """Where two models' logits (N, V) of a split decide otherwise, counted by who is right; ``count`` of them shown.

    Shown are those of which the student is surest, by turns from the groups; of a regression the largest differences.
    """
    if task.kind == "regression":
        return _far_apart(teacher, student, split, tokenizer, count)
    ours, theirs = decode(student, task.kind), decode(teacher, task.kind)
    apart = ours != theirs
    groups = {
        "teacher right": apart & (theirs == split.labels),
        "student right": apart & (ours == split.labels),
        "neither right": apart & (theirs != split.labels) & (ours != split.labels),
    }
    sure = _softmax(student).max(axis=1)
    queues = [sorted(np.flatnonzero(rows), key=lambda row: -sure[row]) for rows in groups.values()]
    turns = [row for turn in range(count) for queue in queues for row in queue[turn : turn + 1]][:count]
    names = task.label_names or [str(i) for i in range(task.num_labels)]
    shown = [
        {
            "text": _text(split, int(row), tokenizer),
            "label": names[int(split.labels[row])],
            "teacher": names[int(theirs[row])],
            "student": names[int(ours[row])],
            "confidence": float(sure[row]),
        }
        for row in turns
    ]
    return {"of": len(split), **{name: int(rows.sum()) for name, rows in groups.items()}, "shown": shown}


def _far_apart(
    teacher: np.ndarray, student: np.ndarray, split: Split, tokenizer: PreTrainedTokenizerBase, count: int
) -> dict[str, Any]:
    ours, theirs = student[:, 0], teacher[:, 0]
    farthest = np.argsort(-np.abs(ours - theirs), kind="stable")[:count]
    shown = [
        {
            "text": _text(split, int(row), tokenizer),
            "label": f"{split.labels[row]:.3g}",
            "teacher": f"{theirs[row]:.3g}",
            "student": f"{ours[row]:.3g}",
            "confidence": None,
        }
        for row in farthest
    ]
    return {"of": len(split), "shown": shown}


def _text(split: Split, row: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """A row's texts, those of a pair apart."""
    ids = list(split.rows[row]["input_ids"])
    parts: list[list[int]] = [[]]
    for token in ids:
        parts[-1].append(token)
        if token == tokenizer.sep_token_id:
            parts.append([])
    texts = [str(tokenizer.decode(part, skip_special_tokens=True)).strip() for part in parts]
    return shorten(_PRIVATE.sub(HIDDEN, " ‖ ".join(text for text in texts if text)))


def shorten(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
