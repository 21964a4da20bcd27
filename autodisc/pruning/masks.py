"""Mask units in place: multiply the input of each output projection.

A mask of 1 keeps a unit, 0 removes it; the gradient of the loss by the mask is what importance sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from autodisc.models.layouts import blocks, uncached


@contextlib.contextmanager
def masked(
    model: PreTrainedModel, head_masks: Sequence[torch.Tensor], neuron_masks: Sequence[torch.Tensor]
) -> Iterator[PreTrainedModel]:
    """Run ``model`` with units masked: per layer (H,) and (N,), or per example (B, H) and (B, N)."""
    handles = []
    try:
        for block, *masks in zip(blocks(model), head_masks, neuron_masks, strict=True):
            for sublayer, mask in zip(block.sublayers, masks, strict=True):
                sink = sublayer.sink
                handles.append(sink.module.register_forward_pre_hook(_multiply(mask, sink.width)))
        with uncached(model):
            yield model
    finally:
        for handle in handles:
            handle.remove()


def _multiply(mask: torch.Tensor, width: int) -> Callable[[nn.Module, tuple[torch.Tensor]], tuple[torch.Tensor]]:
    def hook(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (inputs,) = args  # (B, T, units * width)
        per_column = mask.repeat_interleave(width, dim=-1) if width > 1 else mask
        if mask.dim() == 2:
            per_column = per_column[:, None]  # (B, 1, units * width)
        return (inputs * per_column.to(inputs),)

    return hook
