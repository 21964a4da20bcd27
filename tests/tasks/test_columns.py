from __future__ import annotations

import pytest

from autodisc.errors import ConfigError, DataError


def rows(count: int, start: int = 0, classes: int = 2) -> list[dict[str, object]]:
    """Sentences of their own, of 2 to 8 words; labels in turn."""
    return [
        {"sentence": " ".join([f"w{start + i}", f"w{i // 10}", *["w1"] * (i % 7)]), "label": i % classes}
        for i in range(count)
    ]


def with_labels(*labels: object) -> list[dict[str, object]]:
    return [{"sentence": f"w{i} w2", "label": label} for i, label in enumerate(labels)]


def test_strings_are_classes_in_sorted_order(write, load):
    write(train=with_labels("b", "a", "c"), validation=with_labels("c"), test=with_labels("a"))
    task = load()
    assert (task.label_names, task.train.labels.tolist()) == (("a", "b", "c"), [1, 0, 2])


def test_strings_are_classes_in_the_teachers_order(write, load):
    write(train=with_labels("b", "a"), validation=with_labels("c"), test=with_labels("a"))
    task = load(label_names=("c", "b", "a"))
    assert (task.num_labels, task.train.labels.tolist(), task.validation.labels.tolist()) == (3, [1, 2], [0])


def test_integers_are_the_teachers_class_ids(write, load):
    write(train=with_labels(1, 0), validation=with_labels(2), test=with_labels(0))
    assert load(label_names=("x", "y", "z")).validation.labels.tolist() == [2]


def test_stars_from_1_to_5_are_classes_and_stay_so_with_their_own_teacher(write, load):
    write(train=with_labels(5, 1, 3), validation=with_labels(3), test=with_labels(1))
    task = load()
    assert (task.label_names, task.train.labels.tolist()) == (("1", "3", "5"), [2, 0, 1])
    assert load(label_names=task.label_names).train.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("train", "validation", "names", "message"),
    [
        (("a", "b"), ("a", "x"), None, "validation row 2: unknown label 'x'; known: a, b"),
        ((0, 1), (0, 7), None, "validation row 2: unknown label '7'; known: 0, 1"),
        ((0, 2), (0,), ("no", "yes"), r"train row 2: unknown label '2'; known: no \(or 0\), yes \(or 1\)"),
        (("no", "x"), ("no",), ("no", "yes"), "train row 2: unknown label 'x'; known: no, yes"),
        ((0, -1), (0,), ("no", "yes"), "train row 2: unknown label '-1'"),
        ((0, None), (0,), None, "train row 2: column 'label' is empty"),
        (("a", ""), ("a",), None, "train row 2: column 'label' is empty"),
        ((0, 1), (0, None), None, "validation row 2: column 'label' is empty"),
        ((0, 1.5), (0,), None, "is a decimal, but accuracy needs classes; for a regression"),
    ],
)
def test_a_label_that_is_no_class_is_refused_with_its_row(write, load, train, validation, names, message):
    write(train=with_labels(*train), validation=with_labels(*validation), test=rows(2))
    with pytest.raises(DataError, match=message):
        load(label_names=names)


@pytest.mark.parametrize("cell", ["", "nan", "high", "inf"])
def test_a_regression_refuses_what_is_no_number(write, load, cell):
    good = "sentence,label\nw1,0.5\n"
    write(".csv", train=f"{good}w2,{cell}\n", validation=good, test=good)
    with pytest.raises(DataError, match="train row 2: "):
        load(metric="pearson")


def test_a_binary_metric_refuses_three_classes(write, load):
    write(train=rows(9, classes=3), validation=rows(3, 20), test=rows(3, 30))
    with pytest.raises(ConfigError, match="f1 is for 2 classes, the labels have 3; take f1_macro"):
        load(metric="f1")
