"""Run a model over a split: what a metric needs of its answers, in the split's order; and what a forward pass costs.

FLOPs of B rows of T tokens = B · (head + T · token + T² · pair)

One row of a real batch tells all three: torch's counter names the operators (attention's products grow with T²) and
the modules (what is neither a layer nor an embedding sees one token of a row, unless every token has logits). So every
shape, 128 tokens too, follows exactly from one counted forward of some 200 operators; counting two whole batches and a
row of 128 tokens instead made a trial on 408 pairs a fifth longer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from autodisc.costs import Ledger, flop_counter
from autodisc.models.layouts import blocks, embeddings, uncached
from autodisc.models.reading import Reader, read
from autodisc.models.spreading import home, keeps_no_graph
from autodisc.progress import Bar
from autodisc.runtime import Runtime, free_memory, is_out_of_memory
from autodisc.tasks.batches import Batch, batches
from autodisc.tasks.data import Split, Task

EVALUATION_BATCH = 64
Found = TypeVar("Found")
LOGITS = 2**26  # of a batch at most: 256 MiB in fp32


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of a row: of a sentence's classification head, a token, and a pair of tokens."""

    head: int
    token: int
    pair: int

    def of(self, rows: int, length: int) -> int:
        return rows * (self.head + length * self.token + length * length * self.pair)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sequence of 128 tokens."""
        return self.of(1, 128) // 2


def predict(
    model: PreTrainedModel,
    split: Split,
    *,
    task: Task,
    runtime: Runtime,
    ledger: Ledger | None = None,
    kind: Hashable = "forward",
    bar: Bar | None = None,
    reader: Reader = read,
) -> np.ndarray:
    """What ``reader`` makes of every row, in the split's order; ``kind`` names the model in the ledger."""
    found: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    model.eval()
    at_once = evaluation_batch(split, task)
    for batch in batches(split, batch_size=at_once, pad_token_id=task.pad_token_id, generator=None):
        batch = batch.to(runtime.device)
        logits = forward(model, batch, runtime=runtime, ledger=ledger, kind=kind)
        found.append(reader(logits, batch, split=split, task=task))
        rows.append(batch.rows)
        if bar is not None:
            bar.advance()
    return np.concatenate(found)[np.argsort(np.concatenate(rows))]


def evaluation_batch(split: Split, task: Task) -> int:
    """Rows of a batch, of which a vocabulary's logits fit into memory."""
    if split.counts is None:
        return EVALUATION_BATCH
    return max(1, min(EVALUATION_BATCH, LOGITS // (int(split.lengths.max()) * task.num_labels)))


def width(model: PreTrainedModel, task: Task) -> int:
    """V of a model's logits; a vocabulary may have more than the tokenizer's."""
    return int((model.config.vocab_size if task.kind == "causal-lm" else model.config.num_labels) or 1)


def forward(
    model: PreTrainedModel, batch: Batch, *, runtime: Runtime, ledger: Ledger | None, kind: Hashable
) -> torch.Tensor:
    """Logits (B, V) or (B, T, V) of a batch on the device, in halves where memory is short; booked to ``ledger``."""

    def run(part: Batch) -> torch.Tensor:
        with keeps_no_graph(model), uncached(model), runtime.autocast():
            output: torch.Tensor = model(**model_inputs(model, part)).logits
        if ledger is not None:
            ledger.book(counted(model, part, ledger, kind).of(*part.inputs["input_ids"].shape), part.padded_tokens)
        return output

    parts = in_halves(batch, run)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def in_halves(batch: Batch, work: Callable[[Batch], Found]) -> list[Found]:
    """What ``work`` makes of a batch, or, where memory is short, of its halves, and theirs, one after the other."""
    try:
        return [work(batch)]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(batch) == 1:
            raise
    free_memory()  # out here nothing holds what was too large any more
    return [made for half in batch.split(2) for made in in_halves(half, work)]


def model_inputs(model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
    """What ``model`` takes of a batch: a student of another family may know no token types, as distilbert's."""
    known = inspect.signature(model.forward).parameters
    return {name: values for name, values in batch.inputs.items() if name in known}


def counted(model: PreTrainedModel, batch: Batch, ledger: Ledger, kind: Hashable) -> ForwardFlops:
    """What a forward costs, counted on a row of ``batch`` the first time that this ledger is asked for ``kind``."""
    row = {name: values[:1] for name, values in model_inputs(model, batch).items()}
    return ledger.once(("forward", kind), lambda: count_forward(model, row))


def count_forward(model: PreTrainedModel, row: Mapping[str, torch.Tensor]) -> ForwardFlops:
    """Run one row (1, T) under torch's FLOP counter; in fp32, for which a CPU compiles no kernels."""
    if relative_rows(model.config):
        return _fitted(model)
    with keeps_no_graph(model), uncached(model), flop_counter() as counter:
        by_token = model(**row).logits.dim() == 3
    T = row["input_ids"].shape[1]
    found = {name: {str(op): flops for op, flops in ops.items()} for name, ops in counter.get_flop_counts().items()}
    names = {module: name for name, module in model.named_modules()}
    per_token = [*embeddings(model), *(block.layer for block in blocks(model))]
    tokens = sum(sum(found.get(f"{type(model).__name__}.{names[module]}", {}).values()) for module in per_token)
    total = counter.get_total_flops()
    layers = [found.get(f"{type(model).__name__}.{names[block.layer]}", {}) for block in blocks(model)]
    pairs = sum(flops for ops in layers for op, flops in ops.items() if "bmm" in op or "attention" in op)
    head, tokens = (0, total) if by_token else (total - tokens, tokens)
    return ForwardFlops(head, (tokens - pairs) // T, pairs // (T * T))


def _fitted(model: PreTrainedModel) -> ForwardFlops:
    """Counted at three lengths: relative positions are products of neither tokens nor pairs alone."""
    flops, step = [], 8
    for T in (step, 2 * step, 3 * step):
        ids = torch.ones(1, T, dtype=torch.long, device=home(model))
        with keeps_no_graph(model), flop_counter() as counter:
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        flops.append(counter.get_total_flops())
    pair = (flops[2] - 2 * flops[1] + flops[0]) // (2 * step * step)
    token = (flops[1] - flops[0]) // step - 3 * step * pair
    return ForwardFlops(flops[0] - step * token - step * step * pair, token, pair)


def forward_macs(model: PreTrainedModel, tokens: int = 128) -> int:
    """Multiply-accumulates of one sequence of ``tokens`` tokens, by torch's FLOP counter."""
    if model.main_input_name == "pixel_values":  # of one image
        size = model.config.image_size
        pixels = torch.zeros(1, model.config.num_channels, size, size, dtype=model.dtype, device=home(model))
        with keeps_no_graph(model), flop_counter() as counter:
            model(pixel_values=pixels)
        return counter.get_total_flops() // 2
    ids = torch.ones(1, 8, dtype=torch.long, device=home(model))
    return count_forward(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).of(1, tokens) // 2


def saved_macs(model: PreTrainedModel, heads: Sequence[int], neurons: Sequence[int], tokens: int = 128) -> int:
    """By how many a cut of ``model`` to these heads and neurons a layer has fewer; exact, and nothing is run.

    A head costs its weights a token, and a product of queries and keys and one of weights and values a pair.
    """
    if model.main_input_name == "pixel_values":  # patches, and one token more
        tokens = (model.config.image_size // model.config.patch_size) ** 2 + 1
    R, total = relative_rows(model.config), 0
    for layer, block in enumerate(blocks(model)):
        sources, sink = block.attention.sources, block.attention.sink
        head = tokens * (sum(port.unit_weights for port in sources[:3]) + sink.unit_weights)
        head += 2 * tokens * tokens * sink.width
        if R:  # positions go through projections of their own, or through those of queries and keys
            positions = sources[3:] or sources[1 : 1 + len(model.config.pos_att_type or ())]
            head += sum(R * port.unit_weights + tokens * R * port.width for port in positions)
        neuron = tokens * sum(port.unit_weights for port in block.ffn.ports)
        total += (block.heads - heads[layer]) * head + (block.neurons - neurons[layer]) * neuron
    return total


def relative_rows(config: PretrainedConfig) -> int:
    """Relative positions that a deberta's attention projects and multiplies with; 0 for other families."""
    if not getattr(config, "relative_attention", False):
        return 0
    most = getattr(config, "max_relative_positions", -1)
    buckets = getattr(config, "position_buckets", -1)
    return 2 * (buckets if buckets > 0 else most if most > 0 else config.max_position_embeddings)
