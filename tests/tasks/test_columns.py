from __future__ import annotations

import re

import datasets
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


@pytest.mark.parametrize("label", [[1, 0, 0], ["joy", "anger"], {"joy": 1}])
@pytest.mark.parametrize("metric", ["accuracy", "pearson"])
def test_several_labels_of_a_row_are_refused(write, load, label, metric):
    write(train=with_labels(label, label), validation=with_labels(label), test=with_labels(label))
    with pytest.raises(DataError, match=r"train row 1: label is a (list|dict); a row has one label") as error:
        load(metric=metric)
    assert "\n" not in str(error.value)


def test_a_binary_metric_refuses_three_classes(write, load):
    write(train=rows(9, classes=3), validation=rows(3, 20), test=rows(3, 30))
    with pytest.raises(ConfigError, match="f1 is for 2 classes, the labels have 3; take f1_macro"):
        load(metric="f1")


@pytest.mark.parametrize("labels", [(0, 1), ("not_equivalent", "equivalent")], ids=["ids", "names"])
def test_f1_is_refused_where_the_teacher_has_the_positive_class_as_another(write, load, labels):
    pair = [{"sentence1": "w0", "sentence2": "w1", "label": label} for label in labels]
    write(train=pair, validation=pair, test=pair)
    swapped = ("equivalent", "not_equivalent")
    with pytest.raises(
        ConfigError, match=r"task\.metric: accuracy_f1 is of the data set's class 1, equivalent, which the"
    ):
        load("mrpc", metric=None, label_names=swapped)
    assert load("mrpc", metric="f1_macro", label_names=swapped).train.labels.tolist() == [1, 0]
    assert load("mrpc", metric=None, label_names=swapped[::-1]).train.labels.tolist() == [0, 1]


OWN = ("entailment", "neutral", "contradiction")  # GLUE's order


@pytest.mark.parametrize(
    ("known", "expected", "said"),
    [
        (OWN, [0, 1, 2], None),
        (
            ("CONTRADICTION", "NEUTRAL", "ENTAILMENT"),
            [2, 1, 0],
            "0 is entailment, .* in another order, which is heeded",
        ),
        (("LABEL_0", "LABEL_1", "LABEL_2"), [0, 1, 2], None),
        (
            ("yes", "maybe", "no"),
            [0, 1, 2],
            r"other names \(yes, maybe, no\), and its classes are taken to be in the same",
        ),
    ],
)
@pytest.mark.parametrize("source", ["glue", "its own"])
def test_integers_are_the_data_set_s_classes_where_the_teacher_has_the_same(
    write, load, make_listener, tmp_path, known, expected, said, source
):
    rows = [{"premise": f"w{i}", "hypothesis": "w9", "label": i} for i in range(3)]
    if source == "glue":
        name, settings = "mnli", {}
        write(train=rows, validation=rows, test=rows)
    else:
        name, settings = "mine", {"text": "premise", "text_pair": "hypothesis"}
        features = datasets.Features(
            {
                **{n: datasets.Value("string") for n in ("premise", "hypothesis")},
                "label": datasets.ClassLabel(names=OWN),
            }
        )
        write()
        for split in ("train", "validation", "test"):
            datasets.Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / f"data/{split}.parquet"))
    listener = make_listener()
    task = load(name, label_names=known, progress=listener, **settings)
    assert (task.label_names, task.validation.labels.tolist()) == (known, expected)
    told = [line for line in listener.said if line.startswith("labels: ")]
    assert len(told) == (said is not None)
    assert all(re.search(said, line) for line in told)
    assert load(name, **settings).label_names == OWN


def test_class_ids_in_floats_and_names_that_look_like_decimals_are_classes(write, load):
    write(train=with_labels(1.0, 0.0), validation=with_labels(1.0), test=with_labels(0.0))
    assert load().validation.labels.tolist() == [1]
    write(train=with_labels("250.0", "5e2"), validation=with_labels("5e2"), test=with_labels("250.0"))
    with pytest.raises(DataError, match="is a decimal"):
        load()
    assert load(label_names=("5e2", "250.0")).validation.labels.tolist() == [0]
    write(train=with_labels(1.0, 2.0), validation=with_labels(2.0), test=with_labels(1.0))
    assert load(label_names=("1.0", "2.0", "3.0")).train.labels.tolist() == [0, 1]


def test_of_f1_the_class_is_named_where_names_alone_decide(write, load, make_listener):
    write(train=with_labels("fraud", "legit"), validation=with_labels("fraud", "legit"), test=with_labels("legit"))
    listener = make_listener()
    load(metric="f1", progress=listener)
    assert listener.said[0].startswith("f1: of class 'legit', the second; where the other is meant, write labels as 0")
    listener = make_listener()
    load(metric="f1", progress=listener, label_names=("legit", "fraud"))  # an ordinary teacher's order, not the names'
    assert listener.said[0].startswith("f1: of class 'fraud', the model's class 1; where the other is meant, take f1_m")
    write(train=rows(6), validation=rows(3, 20), test=rows(3, 30))
    listener = make_listener()
    load(metric="f1", progress=listener)
    load(metric="f1", progress=listener, label_names=("legit", "fraud"))  # whose class 1 is the rows' 1
    assert listener.said == []


@pytest.mark.parametrize(
    ("values", "said"), [((2.5, 4.0), []), ((2000.0, 2010.0), ["2005"]), ((-300.0, 300.0), ["300"])]
)
def test_values_far_from_what_an_output_is_are_said(write, load, make_listener, values, said):
    write(train=with_labels(*values), validation=with_labels(*values), test=with_labels(*values))
    listener = make_listener()
    load(metric="pearson", progress=listener)
    assert len(listener.said) == len(said)
    assert all(
        part in line and "(label - mean) / deviation" in line for part, line in zip(said, listener.said, strict=True)
    )


def test_a_value_beyond_32_bits_is_no_number(write, load):
    write(train=with_labels(1e39, 1.0), validation=with_labels(1.0), test=with_labels(1.0))
    with pytest.raises(DataError, match=r"train row 1: label 1e\+39 is no finite number"):
        load(metric="pearson")
