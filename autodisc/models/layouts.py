"""Where each model family keeps its heads and neurons.

A unit is a slice of the *input of an output projection*: a head is ``head_size`` columns of the attention's
output projection, a neuron one column of the FFN's. Removing it cuts those columns, and the rows that
produce them. A layout names the modules; masks, importance, supernet and surgery are written once. The names stand
in ``modeling_autodisc.py``, since that file has to open a pruned model alone.

To add a family: name its modules there, relative to one layer, give it its two classes, and run
``tests/models/test_families.py`` with a tiny configuration of it. A family whose layout cannot be said in these terms
is refused. A supernet runs its layers by ``pruning/layers.py``, which takes them as post-norm, with biases and one
ungated FFN; others need a way there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from autodisc.errors import ModelError
from autodisc.models.modeling_autodisc import LAYOUTS, Layout


def layout_of(config: PretrainedConfig) -> Layout:
    """The layout of a configuration's family; raises ModelError naming the supported ones."""
    layout = LAYOUTS.get(config.model_type)
    if layout is None:
        raise ModelError(
            f"model: family '{config.model_type}' has no layout; supported: {', '.join(sorted(LAYOUTS))}."
            " Write one in autodisc/models/modeling_autodisc.py."
        )
    return layout


@dataclass(frozen=True)
class Block:
    """The modules of one layer that own units."""

    layer: nn.Module
    layout: Layout
    head_size: int

    @property
    def attention_in(self) -> list[nn.Linear]:
        return [_linear(self.layer, name) for name in self.layout.attention_in]

    @property
    def attention_out(self) -> nn.Linear:
        return _linear(self.layer, self.layout.attention_out)

    @property
    def ffn_in(self) -> list[nn.Linear]:
        return [_linear(self.layer, name) for name in self.layout.ffn_in]

    @property
    def ffn_out(self) -> nn.Linear:
        return _linear(self.layer, self.layout.ffn_out)

    @property
    def heads(self) -> int:
        return self.attention_out.weight.shape[1] // self.head_size

    @property
    def neurons(self) -> int:
        return self.ffn_out.weight.shape[1]

    def declare_heads(self, heads: int) -> None:
        """Make the attributes that state the number of heads true."""
        self.layout.declare_heads(self.layer, heads, self.head_size)


def _linear(layer: nn.Module, name: str) -> nn.Linear:
    module = layer.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise ModelError(f"model: {name} is a {type(module).__name__}, not a Linear; give it in floating point")
    return module


def blocks(model: PreTrainedModel) -> list[Block]:
    """The layers of a model, bottom first; raises ModelError for an unsupported family."""
    layout = layout_of(model.config)
    head_size = layout.head_size(model.config)
    layers: Sequence[nn.Module] = model.base_model.get_submodule(layout.layers)  # type: ignore[assignment]
    return [Block(layer, layout, head_size) for layer in layers]


def base_shape(config: PretrainedConfig) -> tuple[int, int, int]:
    """(layers L, heads H, neurons N a layer) of the unpruned architecture."""
    return layout_of(config).shape(config)


def embeddings(model: PreTrainedModel) -> list[nn.Module]:
    """What runs before the first layer: shared by every candidate, and by teacher and student while frozen."""
    base = model.base_model
    names = ("embeddings", "embeddings_project")  # electra projects small embeddings up
    return [getattr(base, name) for name in names if hasattr(base, name)]


def encoder_parameters(
    model: PreTrainedModel, heads: Sequence[int] | None = None, neurons: Sequence[int] | None = None
) -> int:
    """Number of parameters of the layers, without embeddings and head: the part that shrinks.

    With ``heads`` and ``neurons``, kept units a layer, the number that a cut to them would have.
    """
    total = 0
    for layer, block in enumerate(blocks(model)):
        total += sum(p.numel() for p in block.layer.parameters())
        if heads is not None:
            total -= (block.heads - heads[layer]) * block.head_size * _unit(block.attention_in, block.attention_out)
        if neurons is not None:
            total -= (block.neurons - neurons[layer]) * _unit(block.ffn_in, block.ffn_out)
    return total


def _unit(sources: Sequence[nn.Linear], sink: nn.Linear) -> int:
    """Parameters of a neuron, or of one of a head's columns: its rows and their biases, and its column."""
    rows = sum(linear.weight.shape[1] + (linear.bias is not None) for linear in sources)
    return rows + sink.weight.shape[0]
