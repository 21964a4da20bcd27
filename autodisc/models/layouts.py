"""Where each model family keeps its heads and neurons.

A unit is a slice of the *input of an output projection*: a head is ``head_size`` columns of the attention's
output projection, a neuron one column of the FFN's. Removing it cuts those columns, and the rows that
produce them. A layout names the modules; masks, importance, supernet and surgery are written once.

To add a family: name its modules below, relative to one layer, and run ``tests/models/test_families.py``
with a tiny configuration of it. A family whose layout cannot be said in these terms is refused. A supernet runs
its layers by ``pruning/layers.py``, which takes them as post-norm, with biases and one ungated FFN; others need a way
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from autodisc.errors import ModelError


@dataclass(frozen=True)
class Layout:
    """Module names of one family. ``layers`` is relative to the base model, the others to one layer."""

    layers: str
    attention_in: tuple[str, ...]  # rows are heads, head_size rows each
    attention_out: str  # columns are heads
    ffn_in: tuple[str, ...]  # rows are neurons
    ffn_out: str  # columns are neurons
    head_counts: tuple[str, ...] = ()  # attributes of a layer that must equal its number of heads
    head_sizes: tuple[str, ...] = ()  # attributes of a layer that must equal heads * head_size
    config_heads: str = "num_attention_heads"
    config_neurons: str = "intermediate_size"
    config_hidden: str = "hidden_size"
    config_layers: str = "num_hidden_layers"
    config_activation: str = "hidden_act"


_BERT = Layout(
    layers="encoder.layer",
    attention_in=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_out="attention.output.dense",
    ffn_in=("intermediate.dense",),
    ffn_out="output.dense",
    head_counts=("attention.self.num_attention_heads",),
    head_sizes=("attention.self.all_head_size",),
)

_DISTILBERT = Layout(
    layers="transformer.layer",
    attention_in=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    attention_out="attention.out_lin",
    ffn_in=("ffn.lin1",),
    ffn_out="ffn.lin2",
    head_counts=("attention.n_heads",),
    config_heads="n_heads",
    config_neurons="hidden_dim",
    config_hidden="dim",
    config_layers="n_layers",
    config_activation="activation",
)

LAYOUTS: dict[str, Layout] = {"bert": _BERT, "roberta": _BERT, "electra": _BERT, "distilbert": _DISTILBERT}


def layout_of(config: PretrainedConfig) -> Layout:
    """The layout of a configuration's family; raises ModelError naming the supported ones."""
    layout = LAYOUTS.get(config.model_type)
    if layout is None:
        raise ModelError(
            f"model: family '{config.model_type}' has no layout; supported: {', '.join(sorted(LAYOUTS))}."
            " Write one in autodisc/models/layouts.py."
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
        for names, value in ((self.layout.head_counts, heads), (self.layout.head_sizes, heads * self.head_size)):
            for name in names:
                parent, _, attribute = name.rpartition(".")
                setattr(self.layer.get_submodule(parent), attribute, value)


def _linear(layer: nn.Module, name: str) -> nn.Linear:
    module = layer.get_submodule(name)
    assert isinstance(module, nn.Linear), f"{name} is a {type(module).__name__}"
    return module


def blocks(model: PreTrainedModel) -> list[Block]:
    """The layers of a model, bottom first; raises ModelError for an unsupported family."""
    layout = layout_of(model.config)
    head_size = getattr(model.config, layout.config_hidden) // getattr(model.config, layout.config_heads)
    layers: Sequence[nn.Module] = model.base_model.get_submodule(layout.layers)  # type: ignore[assignment]
    return [Block(layer, layout, head_size) for layer in layers]


def base_shape(config: PretrainedConfig) -> tuple[int, int, int]:
    """(layers L, heads H, neurons N a layer) of the unpruned architecture."""
    layout = layout_of(config)
    return (
        getattr(config, layout.config_layers),
        getattr(config, layout.config_heads),
        getattr(config, layout.config_neurons),
    )


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
