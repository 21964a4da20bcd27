"""Batches of similar length, padded to their own longest row, every row once a pass.

Shuffled rows are cut into buckets of BUCKET batches; a bucket is sorted by length and cut into batches, and the
batches of all buckets are shuffled. Padding is then a few percent, and which rows meet still changes each pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from autodisc.tasks.data import Split

BUCKET = 50


@dataclass(frozen=True)
class Batch:
    """Rows of a split as a model takes them."""

    rows: np.ndarray  # (B,) indices into the split
    inputs: dict[str, torch.Tensor]  # (B, T) int64: input_ids, attention_mask and maybe token_type_ids
    labels: torch.Tensor  # (B,)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Real tokens."""
        return int(self.inputs["attention_mask"].sum())

    @property
    def padded_tokens(self) -> int:
        """B × T: what is computed."""
        return self.inputs["input_ids"].numel()

    def split(self, parts: int) -> list[Batch]:
        """Micro-batches for accumulation, as equal as they can be and none empty; T stays."""
        edges = np.linspace(0, len(self), min(parts, len(self)) + 1).round().astype(int)
        return [
            Batch(self.rows[a:b], {name: x[a:b] for name, x in self.inputs.items()}, self.labels[a:b])
            for a, b in itertools.pairwise(edges)
        ]

    def to(self, device: torch.device | str) -> Batch:
        inputs = {name: x.to(device) for name, x in self.inputs.items()}
        return Batch(self.rows, inputs, self.labels.to(device))


def number_of_batches(split: Split, batch_size: int) -> int:
    return -(-len(split) // batch_size)


def batches(
    split: Split, *, batch_size: int, pad_token_id: int, generator: np.random.Generator | None
) -> Iterator[Batch]:
    """One pass over ``split``: shuffled by ``generator``, or without one sorted by length, for evaluation."""
    import torch

    columns = _columns(split)
    longest = int(split.lengths.max())  # fits the model, so no batch is padded beyond it
    offsets = np.concatenate([[0], np.cumsum(split.lengths)])
    for rows in plan(split.lengths, batch_size=batch_size, generator=generator):
        T = min(padded_length(int(split.lengths[rows].max())), longest)
        places = np.arange(T)[None, :]  # (1, T)
        real = places < split.lengths[rows, None]  # (B, T)
        sources = np.where(real, offsets[rows, None] + places, 0)  # (B, T)
        arrays = {
            name: np.where(real, values[sources], pad_token_id if name == "input_ids" else 0)
            for name, values in columns.items()
        }
        arrays["attention_mask"] = real
        inputs = {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}
        yield Batch(rows, inputs, torch.from_numpy(split.labels[rows]))


def padded_length(longest: int) -> int:
    """T of a batch: a multiple of 2, from 24 on of 4, from 48 on of 8.

    A CPU's matrix library compiles a kernel for every shape: a bf16 linear of 2,000 tokens took 1.4 ms, and the first
    of its shape 7 ms (Xeon with AMX). Fewer lengths cost some 4 % of padding and save far more.
    """
    step = 2 if longest < 24 else 4 if longest < 48 else 8
    return -(-longest // step) * step


def plan(lengths: np.ndarray, *, batch_size: int, generator: np.random.Generator | None) -> list[np.ndarray]:
    """The rows of each batch of one pass."""
    if generator is None:
        return _cut(np.argsort(lengths, kind="stable"), batch_size)
    shuffled = generator.permutation(len(lengths))
    # Buckets hold whole batches, so only the pass's last one is short.
    cut = [
        rows
        for bucket in _cut(shuffled, BUCKET * batch_size)
        for rows in _cut(bucket[np.argsort(lengths[bucket], kind="stable")], batch_size)
    ]
    return [cut[i] for i in generator.permutation(len(cut))]


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _columns(split: Split) -> dict[str, np.ndarray]:
    """All tokens of a split, row after row: gathering from one array takes microseconds a batch."""
    table = split.rows.with_format("arrow")[:]
    return {name: table.column(name).combine_chunks().flatten().to_numpy() for name in table.column_names}
