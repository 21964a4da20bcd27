from __future__ import annotations

import sys
from pathlib import Path

import datasets
import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch

from autodisc.tasks.batches import Batch, batches, number_of_batches, padded_length, plan
from autodisc.tasks.data import Split

PAD = 99


def split_of(lengths: list[int] | np.ndarray, types: bool = True) -> Split:
    """Row i holds the token i, ``lengths[i]`` times."""
    columns = {"input_ids": [[i] * int(n) for i, n in enumerate(lengths)]}
    if types:
        columns["token_type_ids"] = [[1] * int(n) for n in lengths]
    labels = np.arange(len(lengths), dtype=np.int64)
    return Split("train", datasets.Dataset.from_dict(columns), np.asarray(lengths, np.int64), labels, "print")


def generators() -> list[np.random.Generator | None]:
    return [None, np.random.default_rng(0)]


def sentences(mean: int, count: int) -> np.ndarray:
    """sst2 has 13 tokens a sentence with a long tail, mrpc 53 a pair; a log-normal is wider than either."""
    lengths = np.random.default_rng(2).lognormal(np.log(mean), 0.5, count)
    return np.clip(lengths, 3, 128).astype(np.int64)


def longest(rows: np.ndarray, lengths: np.ndarray) -> int:
    return min(padded_length(int(lengths[rows].max())), int(lengths.max()))


def padding(batch_list: list[np.ndarray], lengths: np.ndarray) -> float:
    padded = sum(len(rows) * longest(rows, lengths) for rows in batch_list)
    return 1 - lengths.sum() / padded


@pytest.mark.parametrize("generator", generators())
@pytest.mark.parametrize("count", [1, 4, 23])
def test_every_row_comes_once_a_pass(generator, count):
    split = split_of(np.random.default_rng(1).integers(1, 9, count))
    got = list(batches(split, batch_size=4, pad_token_id=PAD, generator=generator))
    assert sorted(np.concatenate([batch.rows for batch in got])) == list(range(count))
    assert sum(batch.tokens for batch in got) == split.tokens


@pytest.mark.parametrize(("count", "batch_size"), [(1, 8), (5, 100), (33, 8), (64, 8), (700, 32), (3000, 1), (3000, 3)])
def test_a_training_pass_has_the_same_number_of_batches_whatever_the_seed(count, batch_size):
    split = split_of(np.random.default_rng(3).integers(1, 30, count), types=False)
    number = number_of_batches(split, batch_size)
    assert 0.95 * count / batch_size <= number <= -(-count // batch_size)
    for seed in range(3):
        generator = np.random.default_rng(seed)
        assert len(plan(split.lengths, batch_size=batch_size, generator=generator)) == number


@pytest.mark.parametrize("mean", [13, 53])
def test_training_batches_of_one_length_are_of_one_size_within_one_budget(mean):
    lengths = sentences(mean, 5000)
    sizes: dict[int, list[int]] = {}
    for rows in plan(lengths, batch_size=32, generator=np.random.default_rng(0)):
        sizes.setdefault(longest(rows, lengths), []).append(len(rows))
    last = sizes[min(sizes)]  # a pass ends with what is left of the shortest rows
    assert sum(len(set(found)) > 1 for found in sizes.values()) <= 1
    assert len(set(last)) <= 2
    tokens = [T * max(found) for T, found in sizes.items() if min(sizes) != T]
    assert max(tokens) - min(tokens) <= max(sizes)
    assert max(tokens) < 1.1 * 32 * lengths.mean()


def test_rows_of_one_length_make_batches_of_the_size_asked_for():
    cut = plan(np.full(64, 7), batch_size=8, generator=np.random.default_rng(0))
    assert [len(rows) for rows in cut] == [8] * 8


@pytest.mark.parametrize("generator", generators())
def test_a_row_holds_its_own_tokens_and_padding_after_them(generator):
    split = split_of([3, 1, 5, 2, 4])
    for batch in batches(split, batch_size=2, pad_token_id=PAD, generator=generator):
        T = min(padded_length(max(split.lengths[batch.rows])), 5)
        for i, row in enumerate(batch.rows):
            n = split.lengths[row]
            assert batch.inputs["input_ids"][i].tolist() == [row] * n + [PAD] * (T - n)
            assert batch.inputs["attention_mask"][i].tolist() == [1] * n + [0] * (T - n)
            assert batch.inputs["token_type_ids"][i].tolist() == [1] * n + [0] * (T - n)
            assert batch.labels[i] == row


def test_selected_rows_are_batched_as_selected():
    split = split_of([3, 1, 5, 2, 4]).select([4, 0])
    (batch,) = batches(split, batch_size=8, pad_token_id=PAD, generator=None)
    assert batch.inputs["input_ids"].tolist() == [[0, 0, 0, PAD], [4, 4, 4, 4]]
    assert batch.labels.tolist() == [0, 4]


def test_token_types_are_given_only_where_the_split_has_them():
    (batch,) = batches(split_of([2], types=False), batch_size=1, pad_token_id=PAD, generator=None)
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert all(x.dtype == torch.int64 for x in batch.inputs.values())


def test_evaluation_is_sorted_by_length():
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    order = np.concatenate(plan(lengths, batch_size=16, generator=None))
    assert (np.diff(lengths[order]) >= 0).all()


def test_passes_of_one_generator_differ_and_its_seed_repeats_them():
    lengths = np.random.default_rng(0).integers(1, 60, 500)
    one, two = np.random.default_rng(5), np.random.default_rng(5)
    first = [rows.tolist() for rows in plan(lengths, batch_size=8, generator=one)]
    assert first == [rows.tolist() for rows in plan(lengths, batch_size=8, generator=two)]
    assert first != [rows.tolist() for rows in plan(lengths, batch_size=8, generator=one)]


def test_shuffled_batches_do_not_come_in_order_of_length():
    lengths = np.random.default_rng(0).integers(1, 60, 3000)
    means = [lengths[rows].mean() for rows in plan(lengths, batch_size=32, generator=np.random.default_rng(0))]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.4


@pytest.mark.parametrize("count", [3672, 20000])
@pytest.mark.parametrize("mean", [13, 53])
def test_padding_is_below_a_twentieth_of_what_is_computed(count, mean):
    lengths = sentences(mean, count)
    assert padding(plan(lengths, batch_size=32, generator=np.random.default_rng(0)), lengths) < 0.05


def mapped(path: Path, lengths: np.ndarray, chunk: int) -> Split:
    """A split in a file of chunks, as tokenising writes it; row i holds i, i + 1, and so on."""
    schema = pa.schema({"input_ids": pa.list_(pa.int32())})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for first in range(0, len(lengths), chunk):
            own = lengths[first : first + chunk]
            offsets = np.concatenate([[0], np.cumsum(own)])
            tokens = np.arange(offsets[-1]) + np.repeat(first + np.arange(len(own)) - offsets[:-1], own)
            lists = pa.ListArray.from_arrays(offsets.astype(np.int32), tokens.astype(np.int32))
            writer.write_batch(pa.record_batch([lists], schema=schema))
    return Split("train", datasets.Dataset.from_file(str(path)), lengths, np.arange(len(lengths)), "print")


@pytest.mark.parametrize(
    "chosen", [range(50), range(13, 37), [40, 3, 3, 17], range(49, -1, -1)], ids=["all", "slice", "some", "reversed"]
)
def test_tokens_of_a_selection_come_from_the_right_place_in_a_file_of_many_chunks(tmp_path, chosen):
    split = mapped(tmp_path / "split.arrow", np.random.default_rng(0).integers(1, 9, 50), chunk=7)
    split = split.select(list(chosen)).select(np.arange(len(chosen))[1:])
    for batch in batches(split, batch_size=4, pad_token_id=PAD, generator=np.random.default_rng(0)):
        for ids, mask, label in zip(
            batch.inputs["input_ids"], batch.inputs["attention_mask"], batch.labels, strict=True
        ):
            n = int(mask.sum())
            assert ids[:n].tolist() == list(range(int(label), int(label) + n))


@pytest.mark.skipif(sys.platform != "linux", reason="tells a process's own memory from its mapped files")
def test_a_pass_over_a_mapped_file_takes_no_memory_for_its_tokens(tmp_path):
    def own_mib() -> float:  # uss would count the pages of the file
        memory = psutil.Process().memory_info()
        return (memory.rss - memory.shared) / 2**20

    split = mapped(tmp_path / "split.arrow", np.full(100_000, 128), chunk=1000)
    assert (tmp_path / "split.arrow").stat().st_size > 50e6
    list(batches(split.select(range(100)), batch_size=32, pad_token_id=PAD, generator=np.random.default_rng(0)))
    before = own_mib()
    seen = most = 0.0
    part = split.select(np.arange(99_999)[::-1])
    for i, batch in enumerate(batches(part, batch_size=32, pad_token_id=PAD, generator=np.random.default_rng(0))):
        seen += batch.tokens
        if i % 500 == 0:
            most = max(most, own_mib() - before)
    assert seen == part.tokens
    assert most < 15  # the tokens are 49 MiB; lengths, labels and places some 5


@pytest.mark.parametrize("parts", [1, 2, 3, 9])
def test_micro_batches_put_together_are_the_batch(parts):
    (batch,) = batches(split_of([3, 1, 5, 2, 4]), batch_size=5, pad_token_id=PAD, generator=None)
    micro = batch.split(parts)
    assert len(micro) == min(parts, 5)
    assert all(len(part) for part in micro)
    assert np.concatenate([part.rows for part in micro]).tolist() == batch.rows.tolist()
    assert torch.equal(torch.cat([part.labels for part in micro]), batch.labels)
    for name, value in batch.inputs.items():
        assert torch.equal(torch.cat([part.inputs[name] for part in micro]), value)


def test_tokens_are_counted_with_and_without_padding():
    (batch,) = batches(split_of([3, 1]), batch_size=2, pad_token_id=PAD, generator=None)
    assert (batch.tokens, batch.padded_tokens) == (4, 6)


def test_a_batch_moves_whole():
    (batch,) = batches(split_of([3, 1]), batch_size=2, pad_token_id=PAD, generator=None)
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    assert {x.device.type for x in (*moved.inputs.values(), moved.labels)} == {"meta"}


@pytest.mark.parametrize(
    ("longest", "expected"),
    [(1, 1), (7, 7), (9, 10), (13, 14), (23, 24), (25, 26), (47, 48), (49, 52), (97, 104), (128, 128)],
)
def test_lengths_are_rounded_up_to_few_values(longest, expected):
    assert padded_length(longest) == expected


def test_no_batch_is_padded_beyond_the_longest_row():
    (batch,) = batches(split_of([33, 2]), batch_size=2, pad_token_id=PAD, generator=None)
    assert batch.inputs["input_ids"].shape == (2, 33)
