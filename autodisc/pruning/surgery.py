"""Cut units out of a model: the result is small, dense, and computes what masking would.

What is not cut (embeddings, norms, heads, whole layers) lies in the memory of the model that it was cut out of: who
writes to it, to train or to refit, calls ``own_memory`` first.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel

from autodisc.models.checkpoints import Kept
from autodisc.models.layouts import blocks
from autodisc.models.spreading import apart, bring, home, is_spread


def keep(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """A copy of ``model`` with only the units ``kept`` (indices into the unpruned architecture).

    Raises ValueError when ``kept`` names a unit that the model no longer has.
    """
    own = Kept.of(model.config)
    heads = [positions(had, wanted) for had, wanted in zip(own.heads, kept.heads, strict=True)]
    neurons = [positions(had, wanted) for had, wanted in zip(own.neurons, kept.neurons, strict=True)]
    small = apart(model) if is_spread(model) else in_same_memory(model)
    for block, whole, head_positions, neuron_positions in zip(
        blocks(small), blocks(model), heads, neurons, strict=True
    ):
        if is_spread(model):  # a layer at a time: the whole model may not fit where its cut does
            bring(block.layer, whole.layer, home(model))
        block.select(head_positions, neuron_positions)
    if is_spread(model):
        bring(small, model, home(model))
    kept.write_to(small.config)
    return small


def in_same_memory(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of ``model``, its configuration and modules, whose tensors are views of the model's own.

    Of a spread model only what is at its home already; all else is brought there.
    """
    if is_spread(model):
        made = apart(model)
        bring(made, model, home(model))
        return made
    parameters = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, {**parameters, **{id(buffer): buffer for buffer in model.buffers()}})


def own_memory(parameters: Iterable[nn.Parameter]) -> None:
    """Before they are written to: nobody else's change with them."""
    for parameter in parameters:
        parameter.data = parameter.data.clone()


def positions(had: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Where the ``wanted`` units stand among those that a layer ``had``."""
    where = {unit: position for position, unit in enumerate(had)}
    try:
        return [where[unit] for unit in wanted]
    except KeyError as error:
        raise ValueError(f"unit {error.args[0]} is not in the model") from None
