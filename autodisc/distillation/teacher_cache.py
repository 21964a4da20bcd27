"""What a frozen teacher says about a split, computed once.

Logits and hidden states lie in memory-mapped files keyed by a fingerprint of weights, data, depths and
precision; a row is computed the first time that anyone asks for it, and read afterwards: by search,
distillation and baselines alike. A run is charged once for every row that it uses what the row cost to make,
whether it was made in this run or found. Where the files would be too large, or where reading them turns out to be
slower than computing (MEASURED_READS batches decide), the teacher runs again; the ledger records which and why.
Hidden states are kept in half precision: half the bytes to read, and below what bf16 arithmetic resolves. A run
that recomputes rounds alike; its rows meet others in a batch, which may move the last bits.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import joblib
import numpy as np
import torch
from transformers import PreTrainedModel

from autodisc.costs import Cost, Ledger
from autodisc.distillation.losses import TeacherOutput
from autodisc.models.checkpoints import fingerprint
from autodisc.models.layouts import blocks
from autodisc.progress import Progress, Silent
from autodisc.pruning.slicing import running, sliced_layers
from autodisc.runtime import Runtime
from autodisc.tasks.batches import Batch
from autodisc.tasks.data import Split

STAGE = "teacher outputs"
MEASURED_READS = 8


class TeacherCache:
    """The outputs of ``teacher`` on ``split``; a context manager that settles its cost rate at the end."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        split: Split,
        depths: tuple[int, ...],
        *,
        folder: Path,
        max_gib: float,
        runtime: Runtime,
        ledger: Ledger,
        progress: Progress | None = None,
    ) -> None:
        self.teacher, self.split, self.depths = teacher.eval(), split, depths
        self.runtime, self.ledger = runtime, ledger
        self._offsets = np.concatenate([[0], np.cumsum(split.lengths)])
        self._width = int(teacher.config.hidden_size)
        classes = int(teacher.config.num_labels or 1)
        self._kind = ("teacher", tuple((block.heads, block.neurons) for block in blocks(teacher)))
        self._forwards = [layer.forward(layer.heads, layer.neurons) for layer in sliced_layers(teacher)]
        self._store: _Store | None = None
        self._progress = progress or Silent()
        self._reads, self._read = 0, Cost()
        tokens = int(self._offsets[-1])
        needed = 2 * tokens * len(depths) * self._width + 4 * len(split) * classes
        key = joblib.hash([fingerprint(teacher), split.fingerprint, depths, runtime.precision, runtime.device.type])
        # Kept by the ledger: the next trial of the same run opens the same cache, and has paid for these rows.
        self._charged: np.ndarray = ledger.paid.setdefault(key, np.zeros(len(split), dtype=bool))
        self._name = f"{STAGE} {key[:8]}"  # in the ledger's decisions
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if needed > max_gib * 2**30 or needed > free / 2:
            self._recompute(
                f"teacher outputs would take {needed / 2**30:.1f} GiB (limit {max_gib:g}, free {free / 2**30:.1f})"
            )
        else:
            shape = (tokens, len(depths), self._width)
            self._store = _Store(folder / key, shape, (len(split), classes))

    def __enter__(self) -> TeacherCache:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._store is not None:
            self._store.close()

    def __call__(self, batch: Batch) -> TeacherOutput:
        """logits (B, V) and hidden states (B, T, depths, C; zero at padding), fp32 on the runtime's device."""
        with self.ledger.stage(STAGE):
            if self._store is None:
                return self._compute(batch)
            rows = batch.rows
            lengths, starts = self.split.lengths[rows], self._offsets[rows]
            missing = not self._store.filled[rows].all()
            if missing:
                output = self._compute(batch)
                hidden = None if output.hidden is None else output.hidden.cpu().numpy()
                self._store.write(rows, starts, lengths, output.logits.cpu().numpy(), hidden)
            else:
                self._charge(rows)
            self._charged[rows] = True
            # Read back even what was just made: a cached run and an uncached one see the same rounding.
            _wait(self.runtime.device)
            with self.ledger.timed() as took:
                logits, states = self._store.read(rows, starts, lengths, batch.inputs["input_ids"].shape[1])
                device = self.runtime.device
                hidden_states = torch.from_numpy(states).to(device).float() if self.depths else None
                found = TeacherOutput(torch.from_numpy(logits).to(device), hidden_states)
                _wait(device)
            self._reads += 1
            if self._reads <= MEASURED_READS:
                self._read.add(Cost(seconds=took.seconds, tokens=batch.tokens))
            if self._reads == MEASURED_READS:
                self._decide()
            return found

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
            states = [out.hidden_states[depth].half().float() for depth in self.depths]
            padding = batch.inputs["attention_mask"] == 0
            hidden = torch.stack(states, dim=2).index_put_((padding,), states[0].new_zeros(())) if states else None
            _wait(self.runtime.device)
        if self._store is not None:
            self._store.book(took.seconds, self.ledger.stages[STAGE].flops - before, batch.tokens)
        return TeacherOutput(out.logits.float(), hidden)

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


class _Store:
    """Memory-mapped arrays in a folder, and what their rows cost to make."""

    def __init__(self, folder: Path, hidden: tuple[int, int, int], logits: tuple[int, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._meta = folder / "cost.json"
        self._hidden = _open(folder / "hidden.f16", np.float16, hidden)
        self._logits = _open(folder / "logits.f32", np.float32, logits)
        self.filled = _open(folder / "filled.u8", np.uint8, (logits[0],)).view(np.bool_)
        self._spent = {"seconds": 0.0, "flops": 0.0, "tokens": 0}
        if self._meta.exists():
            self._spent = json.loads(self._meta.read_text())
        else:
            self.filled[:] = False  # rows whose cost is not known would be free: make them again

    def write(
        self,
        rows: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        logits: np.ndarray,
        hidden: np.ndarray | None,
    ) -> None:
        """Rows that are there already stay as they are: a reader sees the same values all its life."""
        new = np.flatnonzero(~self.filled[rows])
        if hidden is not None:
            for i in new:
                self._hidden[starts[i] : starts[i] + lengths[i]] = hidden[i, : lengths[i]]
        self._logits[rows[new]] = logits[new]
        self.filled[rows] = True  # last: a row that says filled is

    def read(
        self, rows: np.ndarray, starts: np.ndarray, lengths: np.ndarray, longest: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """logits (B, V) and hidden states (B, T, depths, C), zero beyond a row's length."""
        hidden = np.empty((len(rows), longest, *self._hidden.shape[1:]), self._hidden.dtype)
        for row, start, length in zip(hidden, starts.tolist(), lengths.tolist(), strict=True):
            row[:length] = self._hidden[start : start + length]
            row[length:] = 0
        return self._logits[rows], hidden

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
        partial = self._meta.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(self._spent))
        os.replace(partial, self._meta)


def _open(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    if 0 in shape:
        return np.empty(shape, dtype)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    fits = path.exists() and path.stat().st_size == size
    return np.memmap(path, dtype=dtype, mode="r+" if fits else "w+", shape=shape)
