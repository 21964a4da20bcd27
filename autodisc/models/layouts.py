"""The layers of a model as pruning sees them: which it has, their units, and how large they are.

Layouts stand in ``layouts_autodisc.py`` and what is done with them in ``blocks_autodisc.py``, since a pruned model's
folder has to open alone; masks, importance, supernet and surgery are written once, on blocks.

To add a family, some 30 lines:

1. In ``layouts_autodisc.py`` write a ``Layout``, or ``replace`` one that is close, and put it into ``LAYOUTS`` under
   the ``model_type`` of its configurations. Read the family's modeling file in transformers for:
   - the linears that make heads (``attention_in``; several stacked in one weight are ``parts``, keys and values that
     groups of queries share are ``shared``) and the one that takes them, likewise for neurons, and the activation;
   - whether a layer adds first and normalises then (``norms=None``), or has norms that read the residual stream;
   - what runs before the first layer (``embeddings``);
   - attributes that state a number of heads where ``forward`` uses them in a view or a split (``head_counts``,
     ``head_sizes``): a wrong one is an error, or silently another model;
   - a position bias that is made once and added in every layer (``shared_bias``): silently another model, if missed;
   - the names of the configuration's sizes, and settings that bring modules which no name covers (``unknown``).
2. Give it a tiny configuration in ``tests/conftest.py``: ``tests/models/test_families.py`` then runs for it, and is
   the judge. A family that cannot be said in these terms (layers that share weights, experts) stays refused.

``standard=True`` is for layers that ``pruning/layers.py`` and ``written.py`` compute by hand; others run through their
own modules.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from autodisc.errors import ModelError
from autodisc.models.blocks_autodisc import Block, Port, Sublayer, blocks_of
from autodisc.models.layouts_autodisc import LAYOUTS, Layout

__all__ = ["LAYOUTS", "Block", "Layout", "Port", "Sublayer"]  # others' that are to be had from here


def layout_of(config: PretrainedConfig) -> Layout:
    """The layout of a configuration's family; raises ModelError naming the supported ones."""
    layout = LAYOUTS.get(config.model_type)
    if layout is None:
        raise ModelError(
            f"model: family '{config.model_type}' has no layout; supported: {', '.join(sorted(LAYOUTS))}."
            " Write one in autodisc/models/layouts_autodisc.py; autodisc/models/layouts.py says how."
        )
    for setting in layout.unknown:
        if getattr(config, setting, None):
            raise ModelError(
                f"model: {config.model_type} with {setting}={getattr(config, setting)} has modules or masks that its"
                " layout in autodisc/models/layouts_autodisc.py does not cover; give a model without"
            )
    return layout


def blocks(model: PreTrainedModel) -> list[Block]:
    """The layers of a model, bottom first; raises ModelError for an unsupported family, or linears that are none."""
    layout_of(model.config)
    made = blocks_of(model)
    for port in (port for block in made for sublayer in block.sublayers for port in sublayer.ports):
        if not isinstance(port.module, nn.Linear | Conv1D):
            name = next(name for name, module in model.named_modules() if module is port.module)
            kind = type(port.module).__name__
            raise ModelError(f"model: {name} is a {kind}, not a Linear; give it in floating point")
    return made


def base_shape(config: PretrainedConfig) -> tuple[int, int, int]:
    """(layers L, heads H, neurons N a layer) of the unpruned architecture."""
    return layout_of(config).shape(config)


def embeddings(model: PreTrainedModel) -> list[nn.Module]:
    """What runs before the first layer: shared by every candidate, and by teacher and student while frozen."""
    found = []
    for name in layout_of(model.config).embeddings:
        parent, _, own = name.rpartition(".")
        module = getattr(model.base_model.get_submodule(parent), own, None)
        if module is not None:
            found.append(module)
    return found


def without_cache(config: PretrainedConfig) -> dict[str, bool]:
    """What tells a decoder to keep no keys and values; nothing, for other models."""
    return {"use_cache": False} if "causal" in layout_of(config).heads else {}


@contextlib.contextmanager
def uncached(model: PreTrainedModel) -> Iterator[None]:
    """A decoder keeps no keys and values inside, unless asked to: for passes over whole texts."""
    told = without_cache(model.config)
    if not told:
        yield
        return

    def ask(_: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**told, **keywords}

    handle = model.register_forward_pre_hook(ask, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def unit_ratio(layers: Sequence[Block]) -> float:
    """Parameters of all heads over those of all neurons; infinite where there is no neuron."""
    heads, neurons = (
        sum(part.units * sum(port.unit_parameters for port in part.ports) for part in parts)
        for parts in ([block.attention for block in layers], [block.ffn for block in layers])
    )
    return heads / neurons if neurons else math.inf


def encoder_parameters(
    model: PreTrainedModel, heads: Sequence[int] | None = None, neurons: Sequence[int] | None = None
) -> int:
    """Number of parameters of the layers, without embeddings and head: the part that shrinks.

    With ``heads`` and ``neurons``, kept units a layer, the number that a cut to them would have.
    """
    total = 0
    for layer, block in enumerate(blocks(model)):
        total += sum(p.numel() for p in block.layer.parameters())
        for sublayer, kept in zip(block.sublayers, (heads, neurons), strict=True):
            if kept is not None:
                total -= (sublayer.units - kept[layer]) * sum(port.unit_parameters for port in sublayer.ports)
    return total
