"""Where each model family keeps its units: one entry each. Travels with ``modeling_autodisc.py``.

A unit is a slice of the *input of an output projection*: a head is ``head_size`` columns of the attention's output
projection, a neuron one column of the FFN's. Removing it cuts those columns, and the rows that produce them. In
grouped-query attention a unit is a head of keys and values with all of its queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from transformers import PreTrainedConfig

Head = Literal["sequence", "token", "causal", "image"]
SUFFIXES: dict[Head, str] = {  # of classes, transformers' Auto ones too
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "causal": "ForCausalLM",
    "image": "ForImageClassification",
}


@dataclass(frozen=True)
class Projection:
    """A linear (or Conv1D) of one layer that makes units, which are then rows of it; or takes them, its columns."""

    name: str
    parts: int = 1  # stacked in one weight: all units' rows of the first, then all of the second
    shared: bool = False  # keys or values that a group of queries shares
    optional: bool = False  # some configurations do without it


def _at(parent: str, *names: str, shared: bool = False, optional: bool = False) -> tuple[Projection, ...]:
    return tuple(Projection(f"{parent}.{name}", shared=shared, optional=optional) for name in names)


@dataclass(frozen=True)
class Layout:
    """Where one family keeps its units. ``layers`` and ``embeddings`` are relative to the base model, other names to
    one layer."""

    prefix: str  # of transformers' class names
    layers: str
    attention: str  # the module that mixes tokens; its first output is what leaves it
    attention_in: tuple[Projection, ...]
    attention_out: str
    ffn_in: tuple[Projection, ...]
    ffn_out: str
    activation: str
    norms: tuple[str, str] | None = None  # pre-norm: what reads the residual stream, else the first linears do
    embeddings: tuple[str, ...] = ("embeddings",)  # and whatever else runs before the first layer
    head_counts: tuple[str, ...] = ()  # attributes of a layer that must equal its number of heads
    head_sizes: tuple[str, ...] = ()  # attributes of a layer that must equal heads * head_size
    shared_bias: bool = False  # one position bias is made for all layers; each selects its own heads of it
    standard: bool = False  # norm(x + attention(x)), norm(a + ffn(a)), with biases: has hand-written forwards
    config_heads: str = "num_attention_heads"
    config_groups: str = ""  # of grouped-query attention: the heads of keys and values, which are the units
    config_head_size: str = "head_dim"  # where a config says it; else it is hidden size / heads
    config_neurons: str = "intermediate_size"
    config_hidden: str = "hidden_size"
    config_layers: str = "num_hidden_layers"
    config_activation: str = "hidden_act"
    unknown: tuple[str, ...] = ()  # settings that must be off: modules or masks that nothing here covers
    heads: tuple[Head, ...] = ("sequence", "token")
    names: Mapping[Head, str] = field(default_factory=dict)  # of classes that are not prefix + suffix

    def class_name(self, head: Head) -> str:
        return self.names.get(head, self.prefix + SUFFIXES[head])

    def groups(self, config: PreTrainedConfig) -> int:
        """Queries of a unit: more than one in grouped-query attention."""
        return getattr(config, self.config_heads) // getattr(config, self.config_groups or self.config_heads)

    def head_size(self, config: PreTrainedConfig) -> int:
        size = getattr(config, self.config_head_size, None)
        return size or getattr(config, self.config_hidden) // getattr(config, self.config_heads)

    def shape(self, config: PreTrainedConfig) -> tuple[int, int, int]:
        """(layers L, heads H, neurons N a layer) of the unpruned architecture."""
        return (
            getattr(config, self.config_layers),
            getattr(config, self.config_groups or self.config_heads),
            getattr(config, self.config_neurons) or 4 * getattr(config, self.config_hidden),  # gpt2 may leave it out
        )


_BERT = Layout(
    prefix="Bert",
    layers="encoder.layer",
    attention="attention.self",
    attention_in=_at("attention.self", "query", "key", "value"),
    attention_out="attention.output.dense",
    ffn_in=_at("intermediate", "dense"),
    ffn_out="output.dense",
    activation="intermediate.intermediate_act_fn",
    embeddings=("embeddings", "embeddings_project"),  # electra projects small embeddings up
    head_counts=("attention.self.num_attention_heads",),
    head_sizes=("attention.self.all_head_size",),
    standard=True,
    unknown=("is_decoder", "add_cross_attention"),  # each word would see those before it alone
)

_DISTILBERT = Layout(
    prefix="DistilBert",
    layers="transformer.layer",
    attention="attention",
    attention_in=_at("attention", "q_lin", "k_lin", "v_lin"),
    attention_out="attention.out_lin",
    ffn_in=_at("ffn", "lin1"),
    ffn_out="ffn.lin2",
    activation="ffn.activation",
    head_counts=("attention.n_heads",),
    standard=True,
    config_heads="n_heads",
    config_neurons="hidden_dim",
    config_hidden="dim",
    config_layers="n_layers",
    config_activation="activation",
)

_DEBERTA = replace(
    _BERT,
    prefix="DebertaV2",
    # The first says what enters a layer: values, since relative positions may go through queries and keys too.
    attention_in=_at("attention.self", "value_proj", "query_proj", "key_proj")
    + _at("attention.self", "pos_key_proj", "pos_query_proj", optional=True),  # of relative positions
    embeddings=("embeddings", "encoder.rel_embeddings", "encoder.LayerNorm"),
    standard=False,
    config_head_size="attention_head_size",
    unknown=("conv_kernel_size",),
)

_MPNET = replace(
    _BERT,
    prefix="MPNet",
    attention="attention.attn",
    attention_in=_at("attention.attn", "q", "k", "v"),
    attention_out="attention.attn.o",
    embeddings=("embeddings", "encoder.relative_attention_bias"),
    head_counts=("attention.attn.num_attention_heads",),
    head_sizes=("attention.attn.all_head_size",),
    shared_bias=True,
    standard=False,
)

_MODERNBERT = Layout(
    prefix="ModernBert",
    layers="layers",
    attention="attn",
    attention_in=(Projection("attn.Wqkv", parts=3),),
    attention_out="attn.Wo",
    ffn_in=(Projection("mlp.Wi", parts=2),),  # what is activated, and its gate
    ffn_out="mlp.Wo",
    activation="mlp.act",
    norms=("attn_norm", "mlp_norm"),
)

_T5 = Layout(  # its encoder; of the two ways to write its FFN a configuration has one
    prefix="T5",
    layers="encoder.block",
    attention="layer.0.SelfAttention",
    attention_in=_at("layer.0.SelfAttention", "q", "k", "v"),
    attention_out="layer.0.SelfAttention.o",
    ffn_in=_at("layer.1.DenseReluDense", "wi", "wi_0", "wi_1", optional=True),
    ffn_out="layer.1.DenseReluDense.wo",
    activation="layer.1.DenseReluDense.act",
    norms=("layer.0.layer_norm", "layer.1.layer_norm"),
    embeddings=("shared",),
    head_counts=("layer.0.SelfAttention.n_heads",),
    head_sizes=("layer.0.SelfAttention.inner_dim",),
    shared_bias=True,
    config_heads="num_heads",
    config_head_size="d_kv",
    config_neurons="d_ff",
    config_hidden="d_model",
    config_layers="num_layers",
    names={"sequence": "T5EncoderForSequenceClassification"},
)

_GPT2 = Layout(
    prefix="GPT2",
    layers="h",
    attention="attn",
    attention_in=(Projection("attn.c_attn", parts=3),),
    attention_out="attn.c_proj",
    ffn_in=_at("mlp", "c_fc"),
    ffn_out="mlp.c_proj",
    activation="mlp.act",
    norms=("ln_1", "ln_2"),
    embeddings=("wte", "wpe"),
    head_counts=("attn.num_heads",),
    head_sizes=("attn.split_size",),
    config_neurons="n_inner",
    unknown=("add_cross_attention",),
    heads=("sequence", "token", "causal"),
    names={"causal": "GPT2LMHeadModel"},
)

_LLAMA = Layout(
    prefix="Llama",
    layers="layers",
    attention="self_attn",
    attention_in=_at("self_attn", "q_proj") + _at("self_attn", "k_proj", "v_proj", shared=True),
    attention_out="self_attn.o_proj",
    ffn_in=_at("mlp", "gate_proj", "up_proj"),
    ffn_out="mlp.down_proj",
    activation="mlp.act_fn",
    norms=("input_layernorm", "post_attention_layernorm"),
    embeddings=("embed_tokens", "rotary_emb"),
    config_groups="num_key_value_heads",
    heads=("sequence", "token", "causal"),
)

_VIT = Layout(
    prefix="ViT",
    layers="layers",
    attention="attention",
    attention_in=_at("attention", "q_proj", "k_proj", "v_proj"),
    attention_out="attention.o_proj",
    ffn_in=_at("mlp", "fc1"),
    ffn_out="mlp.fc2",
    activation="mlp.activation_fn",
    norms=("layernorm_before", "layernorm_after"),
    head_counts=("attention.num_attention_heads",),
    heads=("image",),
)

LAYOUTS: dict[str, Layout] = {
    "bert": _BERT,
    "roberta": replace(_BERT, prefix="Roberta"),
    "xlm-roberta": replace(_BERT, prefix="XLMRoberta"),
    "camembert": replace(_BERT, prefix="Camembert"),
    "electra": replace(_BERT, prefix="Electra"),
    "distilbert": _DISTILBERT,
    "deberta-v2": _DEBERTA,
    "mpnet": _MPNET,
    "modernbert": _MODERNBERT,
    "t5": _T5,
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, prefix="Mistral"),
    "qwen2": replace(_LLAMA, prefix="Qwen2"),
    "qwen3": replace(_LLAMA, prefix="Qwen3"),
    "gemma": replace(_LLAMA, prefix="Gemma"),
    "vit": _VIT,
}
NAMES: dict[str, tuple[str, Head]] = {
    layout.class_name(head): (family, head) for family, layout in LAYOUTS.items() for head in layout.heads
}
