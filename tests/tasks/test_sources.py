from __future__ import annotations

import os

import datasets
import pytest
from pydantic import ValidationError

from autodisc.errors import ConfigError, DataError
from autodisc.tasks.data import HELD_OUT


def rows(count: int, start: int = 0, classes: int = 2) -> list[dict[str, object]]:
    """Sentences of their own, of 2 to 8 words; labels in turn."""
    return [
        {"sentence": " ".join([f"w{start + i}", f"w{i // 10}", *["w1"] * (i % 7)]), "label": i % classes}
        for i in range(count)
    ]


def with_labels(*labels: object) -> list[dict[str, object]]:
    return [{"sentence": f"w{i} w2", "label": label} for i, label in enumerate(labels)]


def test_mnli_keeps_its_second_validation_set(write, load):
    pair = [{"premise": "w0", "hypothesis": "w1", "label": i} for i in (0, 1, 2)]
    write(train=pair, validation_matched=pair, validation_mismatched=pair[:2], test=pair)
    task = load("mnli", metric=None)
    assert (len(task.split("validation")), len(task.split("validation_mismatched"))) == (3, 2)


def test_csv_cells_are_read_as_written(write, load, tokenizer):
    write(
        ".csv", **dict.fromkeys(("train", "validation", "test"), '\ufeffsentence,label\nNA,no\n12,nan\n"w1, w2",no\n')
    )
    task = load()
    assert task.label_names == ("nan", "no")
    assert task.train.lengths.tolist() == [3, 3, 5]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_that_changed_is_read_anew_whatever_its_time(write, load, tmp_path, suffix):
    for labels in ((0, 1), (1, 0)):
        table = datasets.Dataset.from_list(with_labels(*labels))
        write()
        for split in ("train", "validation", "test"):
            path = tmp_path / "data" / f"{split}{suffix}"
            {".csv": table.to_csv, ".jsonl": table.to_json, ".parquet": table.to_parquet}[suffix](str(path))
            os.utime(path, (1e9, 1e9))
        assert load().train.labels.tolist() == list(labels)


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_text_is_refused_with_its_row(write, load, value):
    write(train=rows(4), validation=[*rows(2), {"sentence": value, "label": 0}], test=rows(2))
    with pytest.raises(DataError, match="validation row 3: column 'sentence' is empty"):
        load()


def test_a_missing_column_is_refused_with_those_that_exist_and_the_option(write, load):
    write(train=rows(4), validation=[{"text": "w1", "label": 0}], test=rows(2))
    with pytest.raises(DataError, match=r"validation: no column 'sentence'; it has text, label; .* --text"):
        load()
    with pytest.raises(DataError, match=r"no column 'polarity'; it has sentence, label; .* --label"):
        load(label="polarity")
    with pytest.raises(DataError, match=r"no column 'second'; .* --text-pair"):
        load(text_pair="second")
    write(train=[{"words": "w1", "label": 0}])
    with pytest.raises(DataError, match=r"no text column .*sentence1 \+ sentence2; it has words, label; .* --text"):
        load()


def test_an_absent_folder_or_file_is_refused_with_what_is_there(write, load, tmp_path):
    with pytest.raises(DataError, match="data: missing; expected a folder"):
        load()
    write(train=rows(4), notes=rows(1))
    with pytest.raises(DataError, match=r"no validation file .*; the folder holds: notes.jsonl, train.jsonl"):
        load()
    with pytest.raises(DataError, match="a file; expected a folder"):
        load(data=tmp_path / "data" / "train.jsonl")


def test_two_files_of_one_split_are_refused(write, load):
    write(train=rows(4), validation=rows(2))
    write(".csv", train="sentence,label\nw1,0\n")
    with pytest.raises(DataError, match=r"train.csv and train.jsonl are both train"):
        load()


@pytest.mark.parametrize("content", ["", "sentence,label\n"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_split_is_refused(write, load, split, content):
    splits = dict.fromkeys(("train", "validation", "test"), "sentence,label\nw1,0\nw2,1\n")
    write(".csv", **(splits | {split: content}))
    with pytest.raises(DataError, match=f"the {split} split is empty"):
        load()


def test_a_file_that_is_not_what_its_name_says_is_refused_in_one_line(write, load):
    write(train="{not json\n", validation=rows(2))
    with pytest.raises(DataError, match=r"train.jsonl: cannot be read as jsonl") as error:
        load()
    assert "\n" not in str(error.value)


def test_an_unknown_task_without_data_is_refused_with_the_nearest(load):
    with pytest.raises(DataError, match="'sst3': unknown, and no data given; did you mean 'sst2'"):
        load("sst3", data=None)
    with pytest.raises(DataError, match=r"known: cola, .*docstrings"):
        load("zzzzzz", data=None, metric=None)


def test_a_task_without_a_metric_is_refused(write, load):
    write(train=rows(4), validation=rows(2))
    with pytest.raises(ConfigError, match=r"task.metric: .* takes --metric, one of accuracy"):
        load(metric=None)


def test_an_unreachable_hub_is_refused_with_the_way_out(load, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("a long story\nof several lines")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match="offline pass --data DIR") as error:
        load("rte", data=None)
    assert "\n" not in str(error.value)


def test_hub_splits_of_mnli_are_known_by_our_names(load, monkeypatch):
    def hub(path, name, *, cache_dir):
        assert (path, name) == ("nyu-mll/glue", "mnli")
        pair = [{"premise": f"w{i}", "hypothesis": "w1", "label": i % 3, "idx": i} for i in range(60)]
        unlabelled = [row | {"label": -1} for row in pair]
        return {
            "train": datasets.Dataset.from_list(pair),
            "validation_matched": datasets.Dataset.from_list(pair[:6]),
            "validation_mismatched": datasets.Dataset.from_list(pair[:5]),
            "test_matched": datasets.Dataset.from_list(unlabelled),
        }

    monkeypatch.setattr(datasets, "load_dataset", hub)
    task = load("mnli", data=None)
    assert (len(task.train), len(task.validation), len(task.extra["validation_mismatched"])) == (54, 6, 5)
    assert (len(task.final), task.final_name) == (6, HELD_OUT)


def test_a_data_set_on_a_hub_is_known_by_its_owner_and_name(load, monkeypatch):
    splits = dict.fromkeys(("train", "validation", "test"), datasets.Dataset.from_list(rows(6)))

    def hub(path, name, *, cache_dir):
        assert (path, name) == ("somebody/tickets", None)
        return splits

    monkeypatch.setattr(datasets, "load_dataset", hub)
    task = load(data=None, hub="somebody/tickets")
    assert (len(task.train), len(task.final), task.final_name) == (6, 6, "test")
    del splits["validation"]
    with pytest.raises(DataError, match="somebody/tickets has no validation split; it has train, test"):
        load(data=None, hub="somebody/tickets")
    with pytest.raises(ValidationError, match="data: contradicts hub"):
        load(hub="somebody/tickets")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("sentence,label\nhello, world,0\nw1,1\n", "train.csv line 2: 3 cells, but 2 columns"),
        ("sentence,label\nw1\nw2,1\n", "train.csv line 2: 1 cells, but 2 columns"),
        ("sentence,label,label\nw1,0,1\n", "train.csv: column 'label' stands twice"),
        ('sentence,label\n"hello,0\nbye,1\n"x,2\n', "train.csv line 2: cannot be read as csv"),
    ],
)
def test_a_csv_row_that_is_not_of_the_columns_is_refused_and_not_moved(write, load, content, said):
    good = "sentence,label\nw1,0\nw2,1\n"
    write(".csv", train=content, validation=good, test=good)
    with pytest.raises(DataError, match=said) as error:
        load()
    assert "\n" not in str(error.value)
