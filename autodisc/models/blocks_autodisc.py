"""The modules of a layer as units see them, and what becomes of those that lose all of theirs.

Travels with ``modeling_autodisc.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .layouts_autodisc import LAYOUTS, Layout, Projection


class Variant(nn.Module):
    """What a module becomes where a layer lacks something; made by ``variant``, as a subclass of the module's class."""

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle finds no class by the name of one that was made."""
        kind = type(self)
        return _remade, (next(base for base in kind.__bases__ if issubclass(base, Variant)), _plain(kind)), vars(self)


def variant(mixin: type[Variant], module: nn.Module) -> type[Variant]:
    """The class that ``module`` gets; a subclass of its own, since transformers records attentions by their class."""
    return _variant(mixin, _plain(type(module)))  # type: ignore[arg-type]


@functools.cache
def _variant(mixin: Any, kind: Any) -> type[Variant]:
    return type(f"{mixin.__name__}{kind.__name__}", (mixin, kind), {"__module__": __name__})


def _plain(kind: type) -> type:
    return next(base for base in kind.__mro__ if not issubclass(base, Variant))


def _remade(mixin: type, kind: type) -> Variant:
    made: Any = _variant(mixin, kind)
    return made.__new__(made)


class Unitless(Variant):
    """A projection without rows, or without columns: no product is left to run.

    Hooks see what they would see of any linear with no features on one side.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    @property
    def makes(self) -> bool:
        """Units, when there are any; else it takes them."""
        return not self.weight.shape[int(isinstance(self, Conv1D))]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        width = self.weight.shape[int(isinstance(self, Conv1D))]
        if not width:
            return x[..., :0]
        if self.bias is None:
            return x.new_zeros(()).expand(*x.shape[:-1], width)
        # A view of a parameter made in inference mode claims a gradient that it has not; torch's FLOP counter stumbles.
        bias = self.bias if torch.is_grad_enabled() else self.bias.detach()
        return bias.expand(*x.shape[:-1], -1)


class Headless(Variant):
    """A self-attention without a head: its unitless projections, of what enters it, and neither scores nor sums."""

    config: PreTrainedConfig
    layer_idx: int
    compute_bias: Callable[..., torch.Tensor]

    def forward(
        self,
        hidden_states: torch.Tensor,
        *_: Any,
        position_bias: torch.Tensor | None = None,
        past_key_values: Any = None,
        **__: Any,
    ) -> tuple[torch.Tensor | None, ...]:
        projections = [module for module in self.children() if isinstance(module, Unitless)]
        contexts = [module(hidden_states) for module in projections if module.makes]  # (B, T, 0) each
        out = [module for module in projections if not module.makes]
        B, T = hidden_states.shape[:2]
        if past_key_values is not None:  # a layer keeps its place in the cache, whose length may be asked of it alone
            nothing = hidden_states.new_zeros(B, 1, T, 1)
            S = past_key_values.update(nothing, nothing, self.layer_idx)[0].shape[2]
        else:
            S = T
        # Weights where others give theirs: a layer keeps its place among those that are recorded.
        eager = self.config._attn_implementation == "eager" if hasattr(self, "config") else True
        weights = hidden_states.new_empty(B, 0, T, S) if eager else None
        result = out[0](contexts[0]) if out else contexts[0]
        if not hasattr(self, "compute_bias"):
            return result, weights
        if position_bias is None:  # t5 makes it in its first layer, and hands it on
            position_bias = self.compute_bias(T, T, device=hidden_states.device)
        return result, position_bias, weights


class Selecting(Variant):
    """A self-attention that takes its own heads of the position bias that the model makes once for all layers."""

    places: tuple[int, ...]
    compute_bias: Callable[..., torch.Tensor]

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor | None, ...]:
        if position_bias is None:
            T = hidden_states.shape[1]
            position_bias = self.compute_bias(T, T, device=hidden_states.device)
        own = position_bias.index_select(1, torch.tensor(self.places, device=position_bias.device))
        first, *rest = super().forward(hidden_states, mask, position_bias=own, **others)
        return (first, position_bias, *rest[1:]) if hasattr(self, "compute_bias") else (first, *rest)


@dataclass(frozen=True)
class Port:
    """A projection's module, and what of it a unit has: ``width`` rows (columns of a sink) in each of its parts."""

    module: nn.Linear | Conv1D
    width: int
    parts: int = 1
    sink: bool = False

    @property
    def axis(self) -> int:
        """Of the weight: the one that units lie on. A Conv1D's is transposed."""
        return int(self.sink) if isinstance(self.module, nn.Linear) else int(not self.sink)

    @property
    def matrix(self) -> torch.Tensor:
        """(outputs, inputs), a view."""
        return self.module.weight if isinstance(self.module, nn.Linear) else self.module.weight.T

    @property
    def units(self) -> int:
        return self.module.weight.shape[self.axis] // (self.parts * self.width)

    @property
    def unit_weights(self) -> int:
        """Elements of the weight that one unit has."""
        return self.parts * self.width * self.module.weight.shape[1 - self.axis]

    @property
    def unit_parameters(self) -> int:
        biases = 0 if self.sink or self.module.bias is None else self.parts * self.width
        return self.unit_weights + biases

    def indices(self, units: Sequence[int]) -> torch.Tensor:
        """Where these units are on the axis, in this order."""
        each = self.units * self.width
        rows = [p * each + u * self.width + i for p in range(self.parts) for u in units for i in range(self.width)]
        return torch.tensor(rows, dtype=torch.long, device=self.module.weight.device)

    def tensors(self) -> dict[str, tuple[torch.Tensor, int]]:
        """The parameters that units are cut from, by name, and their axes."""
        found: dict[str, tuple[torch.Tensor, int]] = {"weight": (self.module.weight, self.axis)}
        if not self.sink and self.module.bias is not None:
            found["bias"] = (self.module.bias, 0)
        return found

    def take(self, units: Sequence[int]) -> None:
        """Keep these units, in this order; in place. Where that is what it has, tensors stay where they are."""
        if list(units) == list(range(self.units)):
            return
        where = self.indices(units)
        for name, (old, axis) in self.tensors().items():
            new = old.detach().index_select(axis, where)
            setattr(self.module, name, nn.Parameter(new, requires_grad=old.requires_grad))
        rows, columns = self.module.weight.shape
        if isinstance(self.module, nn.Linear):
            self.module.out_features, self.module.in_features = rows, columns
        else:
            self.module.nx, self.module.nf = rows, columns


@dataclass(frozen=True)
class Sublayer:
    """Attention or FFN: what makes its units, what takes them, and the module that reads the residual stream."""

    sources: tuple[Port, ...]
    sink: Port
    reader: nn.Module

    @property
    def units(self) -> int:
        return self.sink.units

    @property
    def ports(self) -> tuple[Port, ...]:
        return (*self.sources, self.sink)


Change = tuple[nn.Module, str, Any]  # a module, its attribute, the attribute's new value


@dataclass(frozen=True)
class Block:
    """One layer, as units see it."""

    layer: nn.Module
    layout: Layout
    head_size: int
    groups: int

    @property
    def attention(self) -> Sublayer:
        width = self.head_size * self.groups
        sources = [
            Port(module, self.head_size if entry.shared else width, entry.parts)
            for entry, module in self._found(self.layout.attention_in)
        ]
        return self._sublayer(sources, Port(self._get(self.layout.attention_out), width, sink=True), 0)

    @property
    def ffn(self) -> Sublayer:
        sources = [Port(module, 1, entry.parts) for entry, module in self._found(self.layout.ffn_in)]
        return self._sublayer(sources, Port(self._get(self.layout.ffn_out), 1, sink=True), 1)

    @property
    def sublayers(self) -> tuple[Sublayer, Sublayer]:
        return self.attention, self.ffn

    @property
    def attention_in(self) -> list[Any]:
        return [port.module for port in self.attention.sources]

    @property
    def attention_out(self) -> Any:
        return self.attention.sink.module

    @property
    def ffn_in(self) -> list[Any]:
        return [port.module for port in self.ffn.sources]

    @property
    def ffn_out(self) -> Any:
        return self.ffn.sink.module

    @property
    def heads(self) -> int:
        return self.attention.units

    @property
    def neurons(self) -> int:
        return self.ffn.units

    @property
    def places(self) -> tuple[int, ...]:
        """Of the heads in a position bias that all layers share."""
        return tuple(getattr(self._get(self.layout.attention), "places", range(self.heads)))

    def select(self, heads: Sequence[int], neurons: Sequence[int], *, places: Sequence[int] | None = None) -> None:
        """Keep these positions of the units, in this order; in place. A block without units runs no products."""
        places = [self.places[i] for i in heads] if places is None else places
        for sublayer, units in zip(self.sublayers, (heads, neurons), strict=True):
            for port in sublayer.ports:
                port.take(units)
        for module, name, value in self.changes(tuple(places), len(neurons)):
            setattr(module, name, value)

    def changes(self, places: tuple[int, ...], neurons: int) -> list[Change]:
        """What must be true of the modules beside their weights while the layer has these heads and so many neurons."""
        found: list[Change] = []
        heads = len(places) * self.groups
        for names, value in ((self.layout.head_counts, heads), (self.layout.head_sizes, heads * self.head_size)):
            for name in names:
                parent, _, attribute = name.rpartition(".")
                found.append((self.layer.get_submodule(parent), attribute, value))
        for sublayer, units in zip(self.sublayers, (len(places), neurons), strict=True):
            for port in sublayer.ports:
                if isinstance(port.module, Conv1D) and not port.sink:
                    found.append((port.module, "nf", units * port.parts * port.width))
                if not units:
                    found.append((port.module, "__class__", variant(Unitless, port.module)))
        attention = self._get(self.layout.attention)
        if self.layout.shared_bias:
            found += [(attention, "places", places), (attention, "__class__", variant(Selecting, attention))]
        if not heads:
            found.append((attention, "__class__", variant(Headless, attention)))
        if not neurons:
            parent, _, name = self.layout.activation.rpartition(".")
            found.append((self.layer.get_submodule(parent), name, nn.Identity()))
        return found

    def _found(self, entries: Sequence[Projection]) -> list[tuple[Projection, Any]]:
        pairs = [(entry, self._get(entry.name, entry.optional)) for entry in entries]
        return [(entry, module) for entry, module in pairs if module is not None]

    def _get(self, name: str, optional: bool = False) -> Any:
        parent, _, own = name.rpartition(".")
        owner = self.layer.get_submodule(parent)
        return getattr(owner, own, None) if optional else getattr(owner, own)

    def _sublayer(self, sources: list[Port], sink: Port, which: int) -> Sublayer:
        norms = self.layout.norms
        return Sublayer(tuple(sources), sink, self._get(norms[which]) if norms else sources[0].module)


def blocks_of(model: PreTrainedModel) -> list[Block]:
    """The layers of a model, bottom first."""
    layout = LAYOUTS[model.config.model_type]
    sizes = layout.head_size(model.config), layout.groups(model.config)
    return [Block(layer, layout, *sizes) for layer in model.base_model.get_submodule(layout.layers).children()]
