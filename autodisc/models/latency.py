"""How long a forward takes: honest timings side by side, and predictions from timed layer shapes.

ms(candidate) = base + Σ over layers of attention[heads] + ffn[neurons]        (linear between what was timed)

Models take turns of a few calls, so that a busy machine slows all of them, while each runs as a deployed model does,
call after call: the first call of a turn, which finds the other's data in the processor's cache, is not counted. The
first turn, which picks kernels, is not either. A ratio is the median over turns, each of one model's median and the
other's right beside it.

The shapes are timed as whole models whose layers all have the same heads and no neurons, or the reverse, so a layer
streams its weights as it does in use. ``base`` is embeddings, classifier, and what a layer without units still does.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from autodisc.errors import ConfigError, ModelError
from autodisc.models.layouts import base_shape, blocks, embeddings, uncached
from autodisc.models.modeling_autodisc import Kept, resize
from autodisc.models.spreading import is_spread
from autodisc.runtime import Runtime

Key = TypeVar("Key", bound=Hashable)
Work = Callable[[int], object]  # a call, by its number: real inputs differ from call to call
TURNS, CALLS, TURN_S = 8, 8, 0.5
# Of a layer's heads and neurons; between them a straight line. Kernels step at widths of 16 and 32, so small ones are
# close together: there a candidate's layers are.
HEADS = (0, 1 / 12, 1 / 6, 1 / 4, 1 / 2, 3 / 4, 1)
NEURONS = (0, 1 / 48, 1 / 24, 1 / 12, 1 / 6, 1 / 3, 2 / 3, 1)
SHARE_CALLS = 9  # of an eager forward, whose shares are taken
TABLE_TURNS, TABLE_CALLS = 5, 4


@dataclass(frozen=True)
class Timing:
    """Seconds of every counted call, turn by turn."""

    turns: tuple[tuple[float, ...], ...]

    @property
    def calls(self) -> tuple[float, ...]:
        return tuple(seconds for turn in self.turns for seconds in turn)

    @property
    def median_ms(self) -> float:
        return 1e3 * statistics.median(self.calls)

    @property
    def p95_ms(self) -> float:
        return 1e3 * float(np.percentile(self.calls, 95))

    def times_as_fast(self, other: Timing) -> float:
        """How many times as fast as ``other``, which took the same turns."""
        pairs = zip(other.turns, self.turns, strict=True)
        return statistics.median(statistics.median(theirs) / statistics.median(ours) for theirs, ours in pairs)


def take_turns(
    works: Mapping[Key, Work],
    *,
    turns: int = TURNS,
    calls: int = CALLS,
    turn_s: float = TURN_S,
    settle: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, Timing]:
    """Time each work ``turns`` times, up to ``calls`` calls in a row: fewer, but 2, where they take over ``turn_s``.

    The calls of a turn are the same for all, and the first is not counted unless it is the only one. ``settle`` waits
    until a device is done.
    """

    def seconds(work: Work, number: int) -> float:
        since = clock()
        work(number)
        settle()
        return clock() - since

    slowest = 0.0
    for work in works.values():  # the turn that is not counted
        work(0)
        settle()
        slowest = max(slowest, seconds(work, 0))
    counted = int(min(calls, max(2, turn_s / max(slowest, 1e-9))))
    found: dict[Key, list[tuple[float, ...]]] = {name: [] for name in works}
    for turn in range(turns):
        for name, work in works.items():
            if calls > 1:
                work(turn * counted)
                settle()
            found[name].append(tuple(seconds(work, turn * counted + i) for i in range(counted)))
    return {name: Timing(tuple(times)) for name, times in found.items()}


def settle_on(device: torch.device) -> Callable[[], object]:
    """What waits until a device has done what it was given."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds on one machine, at one batch and length, by layer shape; ``base_ms`` is a model without units."""

    batch: int
    length: int
    base_ms: float
    heads: tuple[tuple[int, float], ...]  # (heads, ms that a layer's attention adds), ascending from 0
    neurons: tuple[tuple[int, float], ...]  # (neurons, ms that a layer's FFN adds)

    def ms(self, heads: Sequence[int], neurons: Sequence[int]) -> float:
        """Predicted ms of a forward of the candidate with so many heads and neurons a layer."""
        return self.base_ms + _between(self.heads, heads) + _between(self.neurons, neurons)


def _between(known: Sequence[tuple[int, float]], widths: Sequence[int]) -> float:
    """Sum over ``widths`` of what is ``known`` at some, on straight lines between."""
    at, values = zip(*known, strict=True)
    return float(np.sum(np.interp(np.asarray(widths, float), np.asarray(at, float), np.asarray(values, float))))


def latency_table(model: PreTrainedModel, *, batch: int, length: int, runtime: Runtime) -> LatencyTable:
    """Time the layer shapes of an unpruned ``model`` here; in seconds to a minute, by its size."""
    if is_spread(model):
        raise ConfigError("latency: layers are timed on one device, and teacher.device_map spreads them; leave it out")
    if not is_whole(model):
        raise ModelError("latency: layers are timed of the whole model, but this one is pruned; give its teacher")
    most = longest_input(model)
    if most is not None and length > most:
        raise ConfigError(f"length: got {length}; the teacher has positions for {most} tokens, give no more")
    L, H, N = base_shape(model.config)
    head_counts, widths = counts(HEADS, H), counts(NEURONS, N)
    shapes = list(dict.fromkeys([*((heads, 0) for heads in head_counts), *((0, width) for width in widths)]))
    models = {f"{heads}-{width}": shaped(model, (heads,) * L, (width,) * L) for heads, width in shapes}
    inputs = random_inputs(model, batch, length, runtime.device)
    works = {name: _forward(each, inputs) for name, each in models.items()}
    with torch.inference_mode(), runtime.autocast():
        timings = take_turns(works, turns=TABLE_TURNS, calls=TABLE_CALLS, settle=settle_on(runtime.device))
    ms = {name: timing.median_ms for name, timing in timings.items()}
    base = ms["0-0"]
    return LatencyTable(
        batch,
        length,
        base,
        tuple((heads, (ms[f"{heads}-0"] - base) / L) for heads in head_counts),
        tuple((width, (ms[f"0-{width}"] - base) / L) for width in widths),
    )


def is_whole(model: PreTrainedModel) -> bool:
    """Whether no unit of a model was removed."""
    _, H, N = base_shape(model.config)
    return all((block.heads, block.neurons) == (H, N) for block in blocks(model))


def counts(fractions: Sequence[float], units: int) -> tuple[int, ...]:
    """Different numbers of units, ascending; of many units multiples of 8, which candidates have."""
    step = 8 if units >= 8 * len(fractions) else 1
    return tuple(sorted({units if part == 1 else round(part * units / step) * step for part in fractions}))


def shaped(model: PreTrainedModel, heads: Sequence[int], neurons: Sequence[int]) -> PreTrainedModel:
    """A model with the first so many units of each layer, which shares ``model``'s embeddings: for timing alone."""
    small = copy.deepcopy(model, {id(module): module for module in embeddings(model)}).eval()
    kept = Kept(tuple(tuple(range(n)) for n in heads), tuple(tuple(range(n)) for n in neurons))
    resize(small, kept)
    return small


def longest_input(model: PreTrainedModel) -> int | None:
    """Tokens that a model has positions for; those of roberta count from behind the padding's.

    None where they have no end: t5's and deberta's, unless it has absolute ones too, are distances, the far ones alike.
    """
    if not getattr(model.config, "position_biased_input", True):
        return None
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.base_model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return module.num_embeddings - module.padding_idx - 1
    return positions


def random_inputs(
    model: PreTrainedModel,
    batch: int,
    length: int,
    device: torch.device,
    *,
    seed: int = 0,
    words: int | None = None,
) -> dict[str, torch.Tensor]:
    """(B, T) of random tokens (of the first ``words``), none padded; their types too, where a model has several. Or B
    images."""
    generator = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values":
        size = model.config.image_size
        return {
            "pixel_values": torch.randn(batch, model.config.num_channels, size, size, generator=generator).to(device)
        }
    ids = torch.randint(0, words or model.config.vocab_size, (batch, length), generator=generator).to(device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    return inputs


def _forward(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> Work:
    def run(_: int) -> object:
        with uncached(model):
            return model(**inputs)

    return run


@dataclass(frozen=True)
class Shares:
    """Of a forward's seconds: before the first layer, in the layers, behind the last."""

    embedding: float
    encoder: float
    classifier: float


def shares(model: PreTrainedModel, inputs: Sequence[Mapping[str, torch.Tensor]], runtime: Runtime) -> Shares:
    """Where an eager forward's time goes: the median of ``SHARE_CALLS``."""
    marks: list[float] = []
    settle = settle_on(runtime.device)

    def mark(*_: object) -> None:
        settle()
        marks.append(time.perf_counter())

    layers = [block.layer for block in blocks(model)]
    hooks = [layers[0].register_forward_pre_hook(mark), layers[-1].register_forward_hook(mark)]
    parts = []
    try:
        with torch.inference_mode(), uncached(model), runtime.autocast():
            for call in range(SHARE_CALLS + 1):
                marks.clear()
                mark()
                model(**inputs[call % len(inputs)])
                mark()
                if call:
                    parts.append(np.diff(marks) / (marks[-1] - marks[0]))
    finally:
        for hook in hooks:
            hook.remove()
    return Shares(*(float(share) for share in np.median(parts, axis=0)))
