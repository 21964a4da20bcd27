"""Cut units out of a model: the result is small, dense, and computes what masking would."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from transformers import PreTrainedModel

from autodisc.models.checkpoints import Kept
from autodisc.models.layouts import blocks


def keep(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """A copy of ``model`` with only the units ``kept`` (indices into the unpruned architecture).

    Raises ValueError when ``kept`` names a unit that the model no longer has.
    """
    own = Kept.of(model.config)
    heads = [positions(had, wanted) for had, wanted in zip(own.heads, kept.heads, strict=True)]
    neurons = [positions(had, wanted) for had, wanted in zip(own.neurons, kept.neurons, strict=True)]
    small = copy.deepcopy(model)
    for block, head_positions, neuron_positions in zip(blocks(small), heads, neurons, strict=True):
        block.select(head_positions, neuron_positions)
    kept.write_to(small.config)
    return small


def positions(had: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Where the ``wanted`` units stand among those that a layer ``had``."""
    where = {unit: position for position, unit in enumerate(had)}
    try:
        return [where[unit] for unit in wanted]
    except KeyError as error:
        raise ValueError(f"unit {error.args[0]} is not in the model") from None
