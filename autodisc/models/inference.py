"""Run a classifier over a split: logits out, in the split's order."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import torch
from transformers import PreTrainedModel

from autodisc.costs import Ledger
from autodisc.progress import Bar
from autodisc.runtime import Runtime
from autodisc.tasks.batches import batches
from autodisc.tasks.data import Split, Task

EVALUATION_BATCH = 64


def predict(
    model: PreTrainedModel,
    split: Split,
    *,
    task: Task,
    runtime: Runtime,
    ledger: Ledger | None = None,
    kind: Hashable = "forward",
    bar: Bar | None = None,
) -> np.ndarray:
    """Logits (N, V), fp32, of every row; ``kind`` names the model's cost per token in the ledger."""
    ledger = ledger or Ledger()
    logits: np.ndarray | None = None
    model.eval()
    for batch in batches(split, batch_size=EVALUATION_BATCH, pad_token_id=task.pad_token_id, generator=None):
        batch = batch.to(runtime.device)
        with torch.inference_mode(), runtime.autocast(), ledger.count(("forward", kind), batch.padded_tokens):
            output = model(**batch.inputs).logits.float().cpu().numpy()  # (B, V)
        if logits is None:
            logits = np.empty((len(split), output.shape[1]), dtype=np.float32)
        logits[batch.rows] = output
        if bar is not None:
            bar.advance()
    assert logits is not None, "a split is never empty"
    return logits


def forward_macs(model: PreTrainedModel, tokens: int = 128) -> int:
    """Multiply-accumulates of one sequence of ``tokens`` tokens, counted by torch's FLOP counter."""
    from autodisc.costs import flop_counter

    device = next(model.parameters()).device
    ids = torch.ones(1, tokens, dtype=torch.long, device=device)
    with torch.inference_mode(), flop_counter() as counter:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return counter.get_total_flops() // 2
