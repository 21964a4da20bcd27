"""Cut units out of a model: the result is small, dense, and computes what masking would."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from autodisc.models.checkpoints import Kept
from autodisc.models.layouts import Block, blocks


def keep(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """A copy of ``model`` with only the units ``kept`` (indices into the unpruned architecture).

    Raises ValueError when ``kept`` names a unit that the model no longer has.
    """
    own = Kept.of(model.config)
    heads = [positions(had, wanted) for had, wanted in zip(own.heads, kept.heads, strict=True)]
    neurons = [positions(had, wanted) for had, wanted in zip(own.neurons, kept.neurons, strict=True)]
    small = copy.deepcopy(model)
    for block, head_positions, neuron_positions in zip(blocks(small), heads, neurons, strict=True):
        select_units(block, head_positions, neuron_positions)
    kept.write_to(small.config)
    return small


def select_units(block: Block, heads: Sequence[int], neurons: Sequence[int]) -> None:
    """Keep these positions of a block's units, in this order; in place."""
    D = block.head_size
    columns = torch.tensor([position * D + i for position in heads for i in range(D)], dtype=torch.long)
    for linear in block.attention_in:
        _take(linear, columns, dim=0)
    _take(block.attention_out, columns, dim=1)
    rows = torch.tensor(list(neurons), dtype=torch.long)
    for linear in block.ffn_in:
        _take(linear, rows, dim=0)
    _take(block.ffn_out, rows, dim=1)
    block.declare_heads(len(heads))


def _take(linear: torch.nn.Linear, indices: torch.Tensor, *, dim: int) -> None:
    indices = indices.to(linear.weight.device)
    with torch.no_grad():
        linear.weight = torch.nn.Parameter(
            linear.weight.index_select(dim, indices), requires_grad=linear.weight.requires_grad
        )
        if dim == 0 and linear.bias is not None:
            linear.bias = torch.nn.Parameter(
                linear.bias.index_select(0, indices), requires_grad=linear.bias.requires_grad
            )
    linear.out_features, linear.in_features = linear.weight.shape


def positions(had: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Where the ``wanted`` units stand among those that a layer ``had``."""
    where = {unit: position for position, unit in enumerate(had)}
    try:
        return [where[unit] for unit in wanted]
    except KeyError as error:
        raise ValueError(f"unit {error.args[0]} is not in the model") from None
