from __future__ import annotations

import tracemalloc

import datasets
import numpy as np
import pytest
from pydantic import ValidationError

from autodisc.config import TaskConfig
from autodisc.errors import ConfigError, DataError
from autodisc.tasks.data import HELD_OUT, load_task


def rows(count: int, start: int = 0, classes: int = 2) -> list[dict[str, object]]:
    """Sentences of their own, of 2 to 8 words; labels in turn."""
    return [
        {"sentence": " ".join([f"w{start + i}", f"w{i // 10}", *["w1"] * (i % 7)]), "label": i % classes}
        for i in range(count)
    ]


def with_labels(*labels: object) -> list[dict[str, object]]:
    return [{"sentence": f"w{i} w2", "label": label} for i, label in enumerate(labels)]


def sentences(split) -> set[tuple[int, ...]]:
    return {tuple(tokens) for tokens in split.rows["input_ids"]}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_three_formats_give_the_same_task(write, load, tmp_path, suffix):
    data = {"train": rows(12), "validation": rows(5, 20), "test": rows(7, 30)}
    write(**data)
    expected = load()
    for path in (tmp_path / "data").iterdir():
        path.unlink()
    for name, content in data.items():
        table = datasets.Dataset.from_list(content)
        path = str(tmp_path / "data" / f"{name}{suffix}")
        {".csv": table.to_csv, ".jsonl": table.to_json, ".parquet": table.to_parquet}[suffix](path)
    task = load()
    for name in ("train", "validation", "test"):
        assert task.split(name).fingerprint == expected.split(name).fingerprint
    assert (len(task.train), len(task.validation), len(task.final), task.final_name) == (12, 5, 7, "test")
    assert task.label_names == ("0", "1")


def test_rows_are_tokenised_without_padding_and_truncated(write, load, tokenizer):
    long = {"sentence": " ".join(["w3"] * 30), "label": 0}
    write(train=[*with_labels(0, 1), long], validation=rows(2), test=rows(2))
    train = load(max_length=10).train
    assert train.rows.column_names == ["input_ids", "token_type_ids"]
    assert train.rows[0] == {"input_ids": [2, 4, 6, 3], "token_type_ids": [0, 0, 0, 0]}
    assert train.lengths.tolist() == [4, 4, 10]
    assert train.tokens == 18
    assert (train.labels.tolist(), train.labels.dtype) == ([0, 1, 0], np.int64)


def test_it_is_said_how_many_rows_may_be_cut(write, tokenizer, tmp_path, make_listener):
    long = {"sentence": " ".join(["w3"] * 30), "label": 0}
    write(train=[*with_labels(0, 1), long, long], validation=rows(2), test=rows(2))
    heard, config = make_listener(), TaskConfig(name="mine", data=tmp_path / "data", metric="accuracy", max_length=10)
    load_task(config, tokenizer, seed=0, cache_dir=tmp_path / "cache", progress=heard)
    assert heard.said == ["train: 2 of 4 rows have 10 tokens or more, of which so many are read; --max-length is more"]


def test_pairs_are_tokenised_together(write, load):
    pair = [{"sentence1": "w0", "sentence2": "w1", "label": i} for i in (0, 1)]
    write(train=pair, validation=pair, test=pair)
    assert load("mrpc", metric=None).train.rows[0] == {
        "input_ids": [2, 4, 3, 5, 3],
        "token_type_ids": [0, 0, 0, 1, 1],
    }


def test_columns_of_other_names_are_named_by_options(write, load):
    other = [{"a": "w0", "b": "w1", "c": i} for i in (0, 1)]
    write(train=other, validation=other, test=other)
    assert load(text="a", text_pair="b", label="c").train.rows["input_ids"][0] == [2, 4, 3, 5, 3]
    assert load(text="b", label="c").train.rows["input_ids"][0] == [2, 5, 3]


def test_columns_that_are_guessed_while_there_are_others_are_said(write, load, make_listener):
    pairs = [{"id": i, "question": "w0", "sentence": "w1", "label": i} for i in (0, 1)]
    write(train=pairs, validation=pairs, test=pairs)
    both = ("question", "sentence")

    def said(name: str = "mine", **settings) -> tuple[tuple[str, ...], list[str]]:
        heard = make_listener()
        return load(name, progress=heard, **settings).texts, heard.said

    assert said() == (
        ("sentence",),
        ["texts: of column sentence, not of id, question; name others with --text and --text-pair"],
    )
    assert said(text="question", text_pair="sentence") == said("qnli") == said(texts=both) == (both, [])
    with pytest.raises(ConfigError, match=r"--text: got sentence; of each row the model was trained on question \+"):
        load(text="sentence", texts=both)


def test_a_glue_name_brings_its_metric_and_classes(write, load):
    write(train=rows(10), validation=rows(5, 20))
    task = load("sst2", metric=None)
    assert (task.metric.name, task.kind, task.num_labels) == ("accuracy", "classification", 2)
    assert task.label_names == ("negative", "positive")


def test_a_regression_reads_numbers(write, load):
    write(train=with_labels(0.5, 5, 2.25), validation=with_labels(1.0), test=with_labels(3.0, 4))
    task = load(metric="pearson")
    assert (task.kind, task.num_labels, task.label_names) == ("regression", 1, None)
    assert (task.train.labels.tolist(), task.train.labels.dtype) == ([0.5, 5.0, 2.25], np.float32)


@pytest.mark.parametrize("test", [None, -1, "absent"])
def test_without_test_labels_a_part_of_train_is_held_out(write, load, test):
    hidden = [row | {"label": test} for row in rows(9, 70)]
    if test == "absent":
        hidden = [{"sentence": row["sentence"]} for row in hidden]
    write(train=rows(60), validation=rows(5, 80), test=hidden)
    task = load()
    assert (task.final_name, len(task.final), len(task.train)) == (HELD_OUT, 6, 54)
    assert sentences(task.final).isdisjoint(sentences(task.train))


def test_the_held_out_part_depends_on_neither_seed_nor_limit_nor_order(write, load):
    write(train=rows(60), validation=rows(5, 70))
    held_out = sentences(load().final)
    limited = load(seed=1, limit_train=10)
    assert sentences(limited.final) == held_out
    assert len(limited.train) == 10
    assert sentences(limited.train).isdisjoint(held_out)
    write(train=rows(60)[::-1])
    assert sentences(load().final) == held_out


def test_equal_texts_are_held_out_together(write, load):
    write(train=rows(20) * 3, validation=rows(5, 70))
    task = load(held_out=0.2)
    assert len(task.final) % 3 == 0
    assert sentences(task.final).isdisjoint(sentences(task.train))


def test_the_held_out_part_has_every_class_that_train_has_two_texts_of(write, load):
    write(train=rows(60), validation=rows(9, 70))
    plain = sentences(load(metric="pearson").final)
    assert sentences(load().final) == plain
    others = [i for i in range(60) if i not in {tokens[1] - 4 for tokens in plain}]
    for rare, held_out in ((others[:2], 1), (others[:1], 0)):
        write(train=[{**row, "label": int(i in rare)} for i, row in enumerate(rows(60))])
        task = load()
        assert plain <= sentences(task.final)
        assert len(task.final) == len(plain) + held_out
        assert (task.train.labels.sum(), task.final.labels.sum()) == (1, held_out)


def test_train_that_cannot_spare_a_row_is_refused(write, load):
    write(train=rows(1), validation=rows(2))
    with pytest.raises(DataError, match="too few or too alike to hold a part out"):
        load()


def test_limit_train_draws_the_same_rows_for_the_same_seed(write, load):
    write(train=rows(60), validation=rows(5, 70), test=rows(5, 80))
    first, again, other = (load(seed=seed, limit_train=20).train for seed in (3, 3, 4))
    assert len(first) == len(set(first.rows._indices.column(0).to_pylist())) == 20
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.rows["input_ids"][:] == again.rows["input_ids"][:]
    assert sentences(first) != sentences(other)


def test_a_limit_beyond_train_is_all_of_train(write, load):
    write(train=rows(6), validation=rows(5), test=rows(5))
    assert load(limit_train=100).train.fingerprint == load().train.fingerprint


def test_selected_rows_keep_their_labels_and_lengths(write, load):
    write(train=rows(20), validation=rows(5), test=rows(5))
    train = load().train
    part = train.select([7, 2])
    assert part.labels.tolist() == [1, 0]
    assert [len(tokens) for tokens in part.rows["input_ids"]] == part.lengths.tolist()
    assert part.rows[0] == train.rows[7]
    assert len({part.fingerprint, train.fingerprint, train.select([2, 7]).fingerprint}) == 3


def test_fingerprints_change_with_a_label_and_with_a_token(write, load):
    write(train=rows(6), validation=rows(5), test=rows(5))
    before = load().train.fingerprint
    write(train=[rows(6)[0] | {"label": 1}, *rows(6)[1:]])
    relabelled = load().train.fingerprint
    write(train=[{"sentence": "w9", "label": 0}, *rows(6)[1:]])
    assert len({before, relabelled, load().train.fingerprint}) == 3


def test_splits_are_found_by_name_and_others_refused(write, load):
    write(train=rows(40), validation=rows(5, 50), test=rows(5, 60))
    task = load()
    assert task.split("test") is task.split("final") is task.final
    with pytest.raises(DataError, match="no split 'dev'; it has train, validation, final, test"):
        task.split("dev")


def test_a_test_split_without_labels_is_refused_with_what_stands_in(write, load):
    write(train=rows(40), validation=rows(5, 50))
    with pytest.raises(DataError, match=r"no split 'test'; .*'final' is a held-out part of train"):
        load().split("test")


def test_a_second_load_does_not_tokenise_again(write, load, tokenizer, monkeypatch):
    write(train=rows(40), validation=rows(5, 50))
    calls = []
    original = type(tokenizer).__call__
    monkeypatch.setattr(type(tokenizer), "__call__", lambda self, *a, **k: calls.append(1) or original(self, *a, **k))
    first = load()
    assert len(calls) == 2
    tokenizer.backend_tokenizer.enable_truncation(5)  # what a call elsewhere leaves behind
    again = load(seed=1, limit_train=7)
    assert len(calls) == 2
    assert again.validation.fingerprint == first.validation.fingerprint
    load(max_length=8)
    assert len(calls) == 4


def test_another_tokenizer_tokenises_again(write, load, tokenizer):
    write(train=rows(40), validation=rows(5, 50))
    before = load().train.fingerprint
    tokenizer.add_tokens(["w1"])
    assert load().train.fingerprint != before


def test_tokens_are_memory_mapped(write, load):
    write(train=rows(40), validation=rows(5, 50))
    assert load().validation.rows.cache_files


def test_progress_bars_of_datasets_are_as_before(write, load, capfd):
    write(train=rows(40), validation=rows(5, 50))
    load()
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr().err == ""


def test_held_out_is_a_fraction():
    with pytest.raises(ValidationError):
        TaskConfig(name="x", held_out=0.7)


def test_texts_are_never_all_in_memory(write, load):
    """15,000 more sentences of a thousand letters; the files' readers take 10,000 rows at a time."""
    peaks = []
    for count in (15_000, 30_000):
        train = [{"sentence": f"w{i} {'x' * 1000}", "label": i % 2} for i in range(count)]
        write(train=train, validation=rows(2), test=rows(2))
        del train
        tracemalloc.start()
        try:
            load()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 5e6
