"""Which attention kernel to train with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers import PreTrainedModel

from autodisc.runtime import Runtime


@contextlib.contextmanager
def trainable_attention(model: PreTrainedModel, runtime: Runtime) -> Iterator[None]:
    """Eager attention inside where torch's fused kernel has a slow backward: bf16 on a CPU.

    Forward and backward of (32, 8, 64, 32) in bf16 on one core took 44 ms fused against 12 ms eager, in fp32 9 ms
    against 14 ms (torch 2.13, Xeon with AMX); forward alone the fused kernel is always the faster.
    """
    fused = model.config._attn_implementation
    slow = runtime.device.type == "cpu" and runtime.precision == "bf16" and fused == "sdpa"
    if slow:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if slow:
            model.set_attn_implementation(fused)
