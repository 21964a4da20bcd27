"""A classifier with its layers written out for the kernels: the same logits but for rounding, and sooner.

x -> norm(x + o(attention(x)) + b_o) -> norm(x + down(act(up(x))) + b_down)      (layouts that are ``standard``)

In rows (B·T, C):
- Query, key and value are one product, the scale of the scores is in its weights, and an empty block is its norm alone.
- x is the addend of the product that follows it, and b_o is in the bias of the norm before (what reads x takes it off
  again): no addition stands before a norm. That saves torch a pass over memory, of which a small student does little
  else; and onnxruntime fuses such a pair to SkipLayerNormalization, which took 3.6 ms where its own LayerNormalization
  took .6 (2,048 tokens of 384, version 1.32): half of a student's time.
- Behind the last attention only the first token is computed, which is all that the families' classifiers read.
"""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling

from autodisc.models.checkpoints import own_head
from autodisc.models.layouts import Block, blocks, embeddings, layout_of

INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # what Written takes, in its order


def inputs_of(model: PreTrainedModel) -> tuple[str, ...]:
    """Those of ``INPUTS`` that a model reads: distilbert's knows no token types, and its teacher's texts have them."""
    known = inspect.signature(model.forward).parameters
    return tuple(name for name in INPUTS if name in known)


def can_be_written(model: PreTrainedModel) -> bool:
    """Whether a model is a classifier of sequences with layers of that shape."""
    return layout_of(model.config).standard and own_head(model) == "sequence"


class Written(nn.Module):
    """A whole classifier, for inference: its own embeddings and head, its layers' weights copied and written out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.typed = "token_type_ids" in inputs_of(model)
        self.model = copy.copy(model)
        head = {name: module for name, module in model.named_children() if module is not model.base_model}
        self.model._modules = {name: _sharing(module) for name, module in head.items()}
        setattr(self.model, model.base_model_prefix, _Body(model))
        self.eval()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, V)."""
        types = {} if token_type_ids is None or not self.typed else {"token_type_ids": token_type_ids}
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits
        return logits


class _Body(nn.Module):
    """What stands before the head."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(map(_sharing, embeddings(model)))
        pooler = getattr(model.base_model, "pooler", None)
        self.pooler = None if pooler is None else _sharing(pooler)
        activation = ACT2FN[getattr(model.config, layout_of(model.config).config_activation)]
        made = blocks(model)
        self.last = max((i for i, block in enumerate(made) if block.heads), default=-1)
        sinks = [sink.bias for block in made for sink in (block.attention_out, block.ffn_out)]
        self.first_bias = _owned(sinks[0])
        self.layers = nn.ModuleList(
            _Layer(block, activation, following)
            for block, following in zip(made, [*sinks[2::2], torch.zeros_like(sinks[0])], strict=True)
        )

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling:
        first, *others = self.embeddings
        x = first(input_ids) if token_type_ids is None else first(input_ids=input_ids, token_type_ids=token_type_ids)
        for module in others:
            x = module(x)
        x = x + self.first_bias
        B, T, C = x.shape
        penalty = (1.0 - attention_mask[:, None, None].to(x.dtype)) * torch.finfo(x.dtype).min  # (B, 1, 1, T)
        x = x.reshape(-1, C) if self.last >= 0 else x[:, 0]
        for i, layer in enumerate(self.layers):
            x = layer(x, penalty, B, T, i == self.last)
        x = x[:, None]  # (B, 1, C)
        return BaseModelOutputWithPooling(
            last_hidden_state=x, pooler_output=None if self.pooler is None else self.pooler(x)
        )


class _Layer(nn.Module):
    """x comes with the bias of this layer's attention output added, and leaves with that of the next layer's."""

    def __init__(self, block: Block, activation: nn.Module, following: torch.Tensor) -> None:
        super().__init__()
        self.heads, self.head_size, self.neurons = block.heads, block.head_size, block.neurons
        self.activation = activation
        out, (up,), down = block.attention_out, block.ffn_in, block.ffn_out
        after_attention, after_ffn = (m for m in block.layer.modules() if isinstance(m, nn.LayerNorm))
        with torch.no_grad():
            scales = (1 / math.sqrt(block.head_size), 1.0, 1.0)
            rows = torch.cat([m.weight * s for m, s in zip(block.attention_in, scales, strict=True)])
            bias = torch.cat([m.bias * s for m, s in zip(block.attention_in, scales, strict=True)])
            self.rows, self.rows_bias = _owned(rows), _owned(bias - rows @ out.bias)  # (3 H D, C), (3 H D)
            self.out, self.down = _owned(out.weight.T), _owned(down.weight.T)  # (H D, C), (N, C)
            self.up, self.up_bias = _owned(up.weight), _owned(up.bias - up.weight @ down.bias)  # (N, C), (N)
        self.after_attention = _shifted(after_attention, down.bias)
        self.after_ffn = _shifted(after_ffn, following)

    def forward(self, x: torch.Tensor, penalty: torch.Tensor, B: int, T: int, last: bool) -> torch.Tensor:
        """x (B·T, C), from the last attention on (B, C)."""
        if self.heads:
            context, x = self._attend(x, penalty, B, T, last)
            x = torch.addmm(x, context, self.out)
        x = self.after_attention(x)
        if self.neurons:
            x = torch.addmm(x, self.activation(F.linear(x, self.up, self.up_bias)), self.down)
        return self.after_ffn(x)

    def _attend(
        self, x: torch.Tensor, penalty: torch.Tensor, B: int, T: int, last: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the heads give, and the rows that it is added to."""
        H, D, width = self.heads, self.head_size, self.heads * self.head_size
        if last:
            first = x.view(B, T, -1)[:, 0]
            q = F.linear(first, self.rows[:width], self.rows_bias[:width]).view(B, H, 1, D)
            k, v = (
                F.linear(x, self.rows[width:], self.rows_bias[width:]).view(B, T, 2 * H, D).transpose(1, 2).chunk(2, 1)
            )
        else:
            first = x
            q, k, v = F.linear(x, self.rows, self.rows_bias).view(B, T, 3 * H, D).transpose(1, 2).chunk(3, 1)
        weights = torch.softmax(q @ k.transpose(2, 3) + penalty, -1)  # (B, H, T, T)
        return (weights @ v).transpose(1, 2).reshape(-1, width), first


def _sharing(module: nn.Module) -> nn.Module:
    """A copy with the same parameters: the model itself may be in training, and its dropout stays on."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})


def _owned(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone())


def _shifted(norm: nn.LayerNorm, bias: torch.Tensor) -> nn.LayerNorm:
    made = copy.deepcopy(norm)
    with torch.no_grad():
        made.bias.add_(bias)
    return made
