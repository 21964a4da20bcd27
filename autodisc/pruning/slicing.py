"""Layers that run as a prefix of their units: by hand where a layout is standard (``layers.py``), else as here.

A layer runs its own class's forward while each projection's weight is a slice of the whole one, and the attributes
that state sizes say the slice's. A slice's gradient is added in place into the same slice of ``weight.grad``: autograd
alone would fill a zero gradient of the whole weight for every candidate. Everything is set up inside the layer's call
and undone on leaving it, so a backward pass may come later, and a checkpoint may run the call again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from autodisc.models.layouts import Block, Port, blocks, layout_of, uncached
from autodisc.models.spreading import is_spread, moves_weights, waits
from autodisc.pruning.layers import SlicedLayer

Forward = Callable[..., Any]


@contextlib.contextmanager
def running(
    model: PreTrainedModel, forwards: Sequence[Forward], *, checkpointing: bool = False
) -> Iterator[PreTrainedModel]:
    """The layers of ``model`` do what ``forwards`` say inside, and their own again outside.

    With ``checkpointing`` what happens in a layer is not kept for the backward pass, which computes it again.
    """
    modules = [block.layer for block in blocks(model)]
    name = "_old_forward" if is_spread(model) else "forward"  # what hooks call, once weights and inputs are there
    before = [vars(module).get(name) for module in modules]
    try:
        for module, forward in zip(modules, forwards, strict=True):
            vars(module)[name] = _checkpointed(forward) if checkpointing else forward
        with uncached(model), _recomputed_to_the_end(checkpointing and is_spread(model)):
            yield model
    finally:
        for module, own in zip(modules, before, strict=True):
            vars(module).pop(name, None)  # the class's own is below it
            if own is not None:
                vars(module)[name] = own


def _recomputed_to_the_end(asked: bool) -> contextlib.AbstractContextManager[None]:
    """A layer that is left as soon as it has what backward asks for would keep weights that were brought to it."""
    return set_checkpoint_early_stop(False) if asked else contextlib.nullcontext()


def own_forwards(model: PreTrainedModel) -> list[Forward]:
    """What the layers of ``model`` do by themselves: for ``running`` with checkpoints."""
    return [_own_forward(block) for block in blocks(model)]


def recomputing(model: PreTrainedModel, *, asked: bool) -> contextlib.AbstractContextManager[object]:
    """Layers compute again in the backward pass inside, where that is ``asked``, or weights wait elsewhere: a graph
    that keeps what was computed keeps all weights that were brought."""
    if not asked and not waits(model):
        return contextlib.nullcontext()
    return running(model, own_forwards(model), checkpointing=True)


def _own_forward(block: Block) -> Forward:
    forward: Forward = type(block.layer).forward.__get__(block.layer)
    return forward


def _checkpointed(forward: Forward) -> Forward:
    def run(*args: Any, **keywords: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **keywords)
        return checkpoint(forward, *args, use_reentrant=False, **keywords)

    return run


def sliced_layers(model: PreTrainedModel, *, checkpointing: bool = False) -> Sequence[SlicedLayer | ModuleLayer]:
    """The layers of a model; those computed by hand keep what they need for backward, so not with checkpoints, and read
    weights, so not where these come and go."""
    layout, own = layout_of(model.config), blocks(model)
    if not layout.standard or checkpointing or moves_weights(model):
        return [ModuleLayer(block) for block in own]
    activation = ACT2FN[getattr(model.config, layout.config_activation)]
    return [SlicedLayer(block, activation.forward) for block in own]


class ModuleLayer:
    """A layer that runs through its own modules."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self.heads, self.neurons = block.heads, block.neurons

    def forward(self, heads: int, neurons: int) -> Forward:
        """What the layer's module does while its first ``heads`` and ``neurons`` are active."""
        own = _own_forward(self._block)
        if (heads, neurons) == (self.heads, self.neurons):
            return own
        changes = self._block.changes(self._block.places[:heads], neurons)
        ports = [
            (port, units)
            for sublayer, units in zip(self._block.sublayers, (heads, neurons), strict=True)
            for port in sublayer.ports
        ]

        def run(*args: Any, **keywords: Any) -> Any:
            slices = [
                (port.module, name, _sliced(parameter, axis, port, units))
                for port, units in ports
                for name, (parameter, axis) in port.tensors().items()
            ]
            with _changed(changes, slices):
                return own(*args, **keywords)

        return run


@contextlib.contextmanager
def _changed(
    attributes: Sequence[tuple[nn.Module, str, Any]], weights: Sequence[tuple[nn.Module, str, torch.Tensor]]
) -> Iterator[None]:
    """Modules have these attributes, and these tensors for parameters, inside."""
    with contextlib.ExitStack() as stack:
        for module, name, tensor in weights:
            stack.callback(module._parameters.__setitem__, name, module._parameters[name])
            module._parameters[name] = tensor  # type: ignore[assignment]
        for module, name, value in attributes:
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        yield


def _sliced(parameter: torch.Tensor, axis: int, port: Port, units: int) -> torch.Tensor:
    if not (parameter.requires_grad and torch.is_grad_enabled()):
        return _first(parameter.detach(), axis, port.parts, units * port.width)
    found: torch.Tensor = _Slice.apply(parameter, axis, port.parts, units * port.width)
    return found


def _first(tensor: torch.Tensor, axis: int, parts: int, width: int) -> torch.Tensor:
    """The first ``width`` of each part on an axis: a view, unless there are several parts."""
    return _in_parts(tensor, axis, parts).narrow(axis + 1, 0, width).flatten(axis, axis + 1)


def _in_parts(tensor: torch.Tensor, axis: int, parts: int) -> torch.Tensor:
    return tensor.unflatten(axis, (parts, tensor.shape[axis] // parts))


class _Slice(torch.autograd.Function):
    """The gradient goes into the parameter's own; autograd is given none."""

    @staticmethod
    def forward(ctx: Any, parameter: torch.Tensor, axis: int, parts: int, width: int) -> torch.Tensor:
        ctx.parameter, ctx.where = parameter, (axis, parts, width)
        return _first(parameter.detach(), axis, parts, width)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, None, None, None]:
        parameter, (axis, parts, width) = ctx.parameter, ctx.where
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        _in_parts(parameter.grad, axis, parts).narrow(axis + 1, 0, width).add_(_in_parts(grad, axis, parts))
        return None, None, None, None
