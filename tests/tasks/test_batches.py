from __future__ import annotations

import datasets
import numpy as np
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


def padding(batch_list: list[np.ndarray], lengths: np.ndarray) -> float:
    padded = sum(len(rows) * lengths[rows].max() for rows in batch_list)
    return 1 - lengths.sum() / padded


@pytest.mark.parametrize("generator", generators())
@pytest.mark.parametrize("count", [1, 4, 23])
def test_every_row_comes_once_a_pass(generator, count):
    split = split_of(np.random.default_rng(1).integers(1, 9, count))
    got = list(batches(split, batch_size=4, pad_token_id=PAD, generator=generator))
    assert sorted(np.concatenate([batch.rows for batch in got])) == list(range(count))
    assert len(got) == number_of_batches(split, 4)
    assert sum(batch.tokens for batch in got) == split.tokens


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
@pytest.mark.parametrize("generator", generators())
def test_padding_is_below_a_tenth_of_the_tokens(count, mean, generator):
    # sst2 has 13 tokens a sentence with a long tail, mrpc 53 a pair; a log-normal is wider than either
    rng = np.random.default_rng(2)
    lengths = np.clip(rng.lognormal(np.log(mean), 0.5, count), 3, 128).astype(np.int64)
    assert padding(plan(lengths, batch_size=32, generator=generator), lengths) < 0.1


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
    ("longest", "expected"), [(1, 2), (2, 2), (13, 14), (23, 24), (25, 28), (47, 48), (49, 56), (128, 128)]
)
def test_lengths_are_rounded_up_to_few_values(longest, expected):
    assert padded_length(longest) == expected


def test_no_batch_is_padded_beyond_the_longest_row():
    (batch,) = batches(split_of([33, 2]), batch_size=2, pad_token_id=PAD, generator=None)
    assert batch.inputs["input_ids"].shape == (2, 33)
