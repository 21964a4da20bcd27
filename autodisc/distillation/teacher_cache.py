"""What a frozen teacher says about a split, computed once.

Logits and hidden states lie in memory-mapped files keyed by a fingerprint of weights, data, depths and
precision; a row is computed the first time that anyone asks for it, and read afterwards: by search,
distillation and baselines alike. A run is charged once for every row that it uses what the row cost to make,
whether it was made in this run or found. Where the files would be too large, or where reading them turns out to be
slower than computing (MEASURED_READS batches decide), the teacher runs again; the ledger records which and why.
Hidden states are kept in half precision: half the bytes to read, and below what bf16 arithmetic resolves. A run
that recomputes rounds alike; its rows meet others in a batch, which may move the last bits. Where every token has
logits these are kept by token, of a vocabulary the ``top_k`` likeliest: 520 bytes a token, where 49,152 took 197 kB.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import torch
from transformers import PreTrainedModel

from autodisc.config import DistillationConfig
from autodisc.costs import Cost, Ledger
from autodisc.distillation.losses import Likeliest, TeacherOutput
from autodisc.errors import TrainingError
from autodisc.files import write_json
from autodisc.models.checkpoints import identity
from autodisc.models.layouts import blocks
from autodisc.models.spreading import places
from autodisc.progress import Progress, Silent
from autodisc.pruning.slicing import running, sliced_layers
from autodisc.runtime import Runtime, made_with
from autodisc.tasks.batches import Batch
from autodisc.tasks.data import Split

STAGE = "teacher outputs"
HIDDEN, LOGITS, CLASSES, LIKELIEST = "hidden", "logits", "classes", "likeliest"  # files of a cache
MEASURED_READS = 8
LARGEST = torch.finfo(torch.float16).max  # a decoder's states may be larger, and infinite ones would be the loss


class TeacherCache:
    """The outputs of ``teacher`` on ``split``; a context manager that settles its cost rate at the end.

    ``classes`` is V of its logits, num_labels unless given; of ``config`` top_k and temperature count.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        split: Split,
        depths: tuple[int, ...],
        *,
        classes: int | None = None,
        config: DistillationConfig | None = None,
        folder: Path,
        max_gib: float,
        runtime: Runtime,
        ledger: Ledger,
        progress: Progress | None = None,
    ) -> None:
        self.teacher, self.split, self.depths = teacher.eval(), split, depths
        self.runtime, self.ledger = runtime, ledger
        self._offsets = np.concatenate([[0], np.cumsum(split.lengths)])
        config, classes = config or DistillationConfig(), classes or int(teacher.config.num_labels or 1)
        self._temperature = config.temperature
        self._top = config.top_k if split.counts is not None and classes > config.top_k else None
        self._kind = ("teacher", tuple((block.heads, block.neurons) for block in blocks(teacher)))
        self._forwards = [layer.forward(layer.heads, layer.neurons) for layer in sliced_layers(teacher)]
        self._store: _Store | None = None
        self._progress = progress or Silent()
        self._reads, self._read = 0, Cost()  # those that were measured
        kept = self._arrays(classes)
        self.token_bytes = sum(each.bytes for each in kept if each.by_token)
        needed = self.token_bytes * split.tokens + sum(each.bytes for each in kept if not each.by_token) * len(split)
        made_of = [
            identity(teacher),
            split.fingerprint,
            depths,
            runtime.precision,
            runtime.device.type,
            *made_with(),
            *places(teacher),
        ]
        key = joblib.hash([*made_of, *([self._top, self._temperature] if self._top else [])])
        # Kept by the ledger: the next trial of the same run opens the same cache, and has paid for these rows.
        self._charged: np.ndarray = ledger.paid.setdefault(key, np.zeros(len(split), dtype=bool))
        self._name = f"{STAGE} {key[:8]}"  # in the ledger's decisions
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        there = sum(512 * file.stat().st_blocks for file in (folder / key).glob("*"))
        if needed > max_gib * 2**30 or needed - there > free / 2:
            self._recompute(
                f"teacher outputs would take {needed / 2**30:.1f} GiB (limit {max_gib:g}, free {free / 2**30:.1f})"
            )
        else:
            decided = ledger.decisions.get(self._name, "")  # by a run that was stopped: the clock may say otherwise now
            if not decided.startswith("recompute"):
                self._store = _Store(folder / key, kept, len(split), split.tokens)
            if decided:
                self._reads = MEASURED_READS

    def _arrays(self, classes: int) -> list[_Array]:
        """What is kept of a row or a token."""
        kept = [_Array(HIDDEN, "f16", np.float16, (len(self.depths), int(self.teacher.config.hidden_size)), True)]
        if self._top:
            return [
                *kept,
                _Array(CLASSES, "i32", np.int32, (self._top,), True),
                _Array(LIKELIEST, "f32", np.float32, (self._top + 1,), True),
            ]
        return [*kept, _Array(LOGITS, "f32", np.float32, (classes,), self.split.counts is not None)]

    def __enter__(self) -> TeacherCache:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._store is not None:
            self._store.close()

    def __call__(self, batch: Batch) -> TeacherOutput:
        """Logits and hidden states (zero at padding), fp32 on the runtime's device."""
        with self.ledger.stage(STAGE):
            if self._store is None:
                return self._compute(batch)
            rows = batch.rows
            lengths, starts = self.split.lengths[rows], self._offsets[rows]
            missing = not self._store.filled[rows].all()
            if missing:
                self._store.write(rows, starts, lengths, _taken_apart(self._compute(batch)))
            else:
                self._charge(rows)
            self._charged[rows] = True
            # Read back even what was just made: a cached run and an uncached one see the same rounding.
            _wait(self.runtime.device)
            with self.ledger.timed() as took:
                values = self._store.read(rows, starts, lengths, batch.inputs["input_ids"].shape[1])
                found = self._put_together(values)
                _wait(self.runtime.device)
            if self._reads < MEASURED_READS:
                self._reads += 1
                self._read.add(Cost(seconds=took.seconds, tokens=batch.tokens))
                if self._reads == MEASURED_READS:
                    self._decide()
            return found

    def _put_together(self, values: dict[str, np.ndarray]) -> TeacherOutput:
        device = self.runtime.device
        on = {name: torch.from_numpy(array).to(device) for name, array in values.items()}
        logits = Likeliest(on[CLASSES].long(), on[LIKELIEST]) if self._top else on[LOGITS]
        return TeacherOutput(logits, on[HIDDEN].float() if self.depths else None)

    def _decide(self) -> None:
        """Go on reading, or compute from now on: whichever took less a token."""
        assert self._store is not None
        reading, computing = self._read.seconds / max(self._read.tokens, 1), self._store.rate()[0]
        measured = f"{1e6 * reading:.2f} µs a token to read, {1e6 * computing:.2f} to compute"
        if reading > computing:
            self._store.close()
            self._store = None
            self._recompute(measured)
        else:
            what = "logits and hidden states, float16" if self.depths else "logits"
            self.ledger.decisions[self._name] = f"read ({what}): {measured}"

    def _recompute(self, reason: str) -> None:
        self.ledger.decisions[self._name] = f"recompute: {reason}"
        self._progress.say(f"{reason}: the teacher runs again for each batch")

    def _compute(self, batch: Batch) -> TeacherOutput:
        before = self.ledger.stages[STAGE].flops
        with self.ledger.timed() as took:
            with (
                torch.no_grad(),
                running(self.teacher, self._forwards),
                self.runtime.autocast(),
                self.ledger.count(self._kind, batch.padded_tokens),
            ):
                out = self.teacher(**batch.inputs, output_hidden_states=bool(self.depths))
            states = [out.hidden_states[depth].float().clamp(-LARGEST, LARGEST).half().float() for depth in self.depths]
            padding = batch.inputs["attention_mask"] == 0
            hidden = torch.stack(states, dim=2).index_put_((padding,), states[0].new_zeros(())) if states else None
            _wait(self.runtime.device)
        bad = ~out.logits.isfinite().all(-1)  # (B,) or (B, T)
        if (bad if bad.dim() == 1 else bad & ~padding).any() or not (hidden is None or hidden.isfinite().all()):
            raise TrainingError(
                f"{STAGE}: a number is not finite, or a hidden state beyond float16; check the teacher, or give"
                " --precision fp32"
            )
        if self._store is not None:
            self._store.book(took.seconds, self.ledger.stages[STAGE].flops - before, batch.tokens)
        logits = Likeliest.of(out.logits, self._top, self._temperature) if self._top else out.logits.float()
        return TeacherOutput(logits, hidden)

    def _charge(self, rows: np.ndarray) -> None:
        """Book rows found in the cache that this run has not paid for yet."""
        assert self._store is not None
        new = rows[~self._charged[rows]]
        if len(new):
            tokens = int(self.split.lengths[new].sum())
            seconds, flops = self._store.rate()
            self.ledger.charge(STAGE, Cost(seconds=seconds * tokens, tokens=tokens, flops=flops * tokens))


def _wait(device: torch.device) -> None:
    """Until the device has done what it was told: a clock read before would see only the telling."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _taken_apart(output: TeacherOutput) -> dict[str, np.ndarray]:
    """The arrays of what a teacher said, by name."""
    said = output.logits
    if isinstance(said, Likeliest):
        values = {CLASSES: said.classes, LIKELIEST: said.log_probabilities}
    else:
        values = {LOGITS: said}
    if output.hidden is not None:
        values[HIDDEN] = output.hidden
    return {name: value.cpu().numpy() for name, value in values.items()}


class _Array(NamedTuple):
    """One array of a store: what it keeps of a row, or of each of its tokens."""

    name: str
    suffix: str
    dtype: type
    shape: tuple[int, ...]
    by_token: bool

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class _Store:
    """Memory-mapped arrays in a folder, and what their rows cost to make."""

    def __init__(self, folder: Path, arrays: Sequence[_Array], rows: int, tokens: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._meta = folder / "cost.json"
        self._by_token: dict[str, np.ndarray] = {}
        self._by_row: dict[str, np.ndarray] = {}
        filled, whole = _open(folder / "filled.u8", np.uint8, (rows,))
        self.filled = filled.view(np.bool_)
        for each in arrays:
            if each.bytes:
                kept, count = (self._by_token, tokens) if each.by_token else (self._by_row, rows)
                path = folder / f"{each.name}.{each.suffix}"
                kept[each.name], there = _open(path, each.dtype, (count, *each.shape))
                whole &= there
        spent = _read_spent(self._meta)
        self._spent = spent or {"seconds": 0.0, "flops": 0.0, "tokens": 0}
        if not (whole and spent):
            # Rows of a file that was cut off, and rows whose cost is not known, which would be free: make them again.
            self.filled[:] = False

    def write(self, rows: np.ndarray, starts: np.ndarray, lengths: np.ndarray, values: dict[str, np.ndarray]) -> None:
        """Rows that are there already stay as they are: a reader sees the same values all its life."""
        new = np.flatnonzero(~self.filled[rows])
        for name, array in self._by_token.items():
            for i in new:
                array[starts[i] : starts[i] + lengths[i]] = values[name][i, : lengths[i]]
        for name, array in self._by_row.items():
            array[rows[new]] = values[name][new]
        self.filled[rows] = True  # last: a row that says filled is

    def read(self, rows: np.ndarray, starts: np.ndarray, lengths: np.ndarray, longest: int) -> dict[str, np.ndarray]:
        """(B, …) and (B, T, …) by name, zero beyond a row's length."""
        found = {name: array[rows] for name, array in self._by_row.items()}
        for name, array in self._by_token.items():
            found[name] = np.empty((len(rows), longest, *array.shape[1:]), array.dtype)
            for row, start, length in zip(found[name], starts.tolist(), lengths.tolist(), strict=True):
                row[:length] = array[start : start + length]
                row[length:] = 0
        return found

    def book(self, seconds: float, flops: float, tokens: int) -> None:
        first = self._spent["tokens"] == 0
        for name, value in (("seconds", seconds), ("flops", flops), ("tokens", tokens)):
            self._spent[name] += value
        if first:
            self.close()

    def rate(self) -> tuple[float, float]:
        """Seconds and FLOPs a token."""
        tokens = max(self._spent["tokens"], 1)
        return self._spent["seconds"] / tokens, self._spent["flops"] / tokens

    def close(self) -> None:
        write_json(self._meta, self._spent)


def _read_spent(path: Path) -> dict[str, float] | None:
    """None where it is not there, or damaged."""
    try:
        spent = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return spent if isinstance(spent, dict) and spent.keys() == {"seconds", "flops", "tokens"} else None


def _open(path: Path, dtype: type, shape: tuple[int, ...]) -> tuple[np.ndarray, bool]:
    """The array in a file, and whether it was there; a new one has its place on the disk: without it a full disk ends
    the process by SIGBUS when a row is written, and not with an error now."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    there = path.exists() and path.stat().st_size == size
    if not there:
        with path.open("ab") as file:  # in place: another process may have it open
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape), there
