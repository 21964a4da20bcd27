"""A transformer layer that runs as a prefix of its units, forward and backward written out.

x -> a = norm(x + attention(x)) -> norm(a + ffn(a))        (post-norm: layouts that are ``standard``)

Through its modules a layer spends most of its time beside the matrix products: query, key and value each cast what
they read, and autograd passes over memory for every cast, slice, copy and addition. Here a layer is one node of the
graph: what it reads is cast once, query, key and value are one product, and gradients go straight into the active
slice of ``weight.grad``. A sandwich step of 420 tokens over .6, .9 and one between took 235 ms through the modules and
170 here, a step of 2,000 tokens of the .9 student alone 144 and 122 (MiniLM-L6, one core of a Xeon with AMX).

Dropout is left out: distillation has none (``TrainingSettings.dropout``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from autodisc.models.layouts import Block

# In training on a CPU the rows of a bf16 product are padded to a multiple of this: the library compiles a kernel for
# every shape, and batches of one budget of tokens differ by a few rows (sst2: 26 shapes become 2).
ROWS = 64

Forward = Callable[..., torch.Tensor]


class SlicedLayer:
    """The modules of one layer."""

    def __init__(self, block: Block, activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.head_size, self.activation = block.head_size, activation
        self.heads, self.neurons = block.heads, block.neurons
        self.attention_in, self.attention_out = block.attention_in, block.attention_out
        (self.ffn_in,), self.ffn_out = block.ffn_in, block.ffn_out
        self.after_attention, self.after_ffn = (m for m in block.layer.modules() if isinstance(m, nn.LayerNorm))

    def forward(self, heads: int, neurons: int) -> Forward:
        """What the layer's module does while ``heads`` and ``neurons`` are active."""
        kept: tuple[torch.Tensor, ...] = ()

        def run(hidden: torch.Tensor, mask: torch.Tensor | None = None, *_: Any, **others: Any) -> torch.Tensor:
            nonlocal kept
            device, training = hidden.device.type, torch.is_grad_enabled()
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
            # An optimizer changes weights between two passes that have gradients; without them one cast serves all.
            if training or not kept or kept[0].dtype != dtype:
                kept = self._weights(heads, neurons, dtype)
            weights, kept = kept, () if training else kept
            # A parameter is named so that there is a gradient to ask for where ``hidden`` needs none.
            return _Layer.apply(
                hidden, self.after_ffn.weight, others.get("attention_mask", mask), self, heads, training, *weights
            )

        return run

    def _weights(self, heads: int, neurons: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """Weights and biases of: query, key and value as one (3 H D, C); attention's output; the FFN's two."""
        width, (out, up, down) = heads * self.head_size, (self.attention_out, self.ffn_in, self.ffn_out)
        with torch.no_grad():
            return (
                torch.cat([linear.weight[:width].to(dtype) for linear in self.attention_in]),
                torch.cat([linear.bias[:width] for linear in self.attention_in]).to(dtype),
                out.weight[:, :width].to(dtype),
                out.bias.to(dtype),
                up.weight[:neurons].to(dtype),
                up.bias[:neurons].to(dtype),
                down.weight[:, :neurons].to(dtype),
                down.bias.to(dtype),
            )


class _Layer(torch.autograd.Function):
    """Gradients of parameters are added in place; autograd is given that of ``hidden`` alone."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        _: torch.Tensor,
        mask: torch.Tensor | None,
        layer: SlicedLayer,
        heads: int,
        training: bool,
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        w_in, b_in, w_out, b_out, w_up, b_up, w_down, b_down = weights
        B, T, C = hidden.shape
        dtype = w_in.dtype
        x = hidden.reshape(-1, C)
        compiled = training and x.device.type == "cpu" and dtype == torch.bfloat16
        rows = -(-len(x) // ROWS) * ROWS if compiled else len(x)
        read = _padded(x, rows, dtype)  # (rows, C)
        joined = torch.addmm(b_in, read, w_in.T)[: B * T].view(B, T, 3, heads, layer.head_size)
        attend = _attend(joined.permute(2, 0, 3, 1, 4).contiguous(), mask, training)  # of (3, B, H, T, D)
        context = _padded(attend.value.transpose(1, 2), rows, dtype)  # (rows, H D)
        summed = torch.addmm(b_out, context, w_out.T)[: B * T].to(x.dtype).add_(x)
        a, *moments = _norm(summed, layer.after_attention)
        between = _padded(a, rows, dtype)
        activate = _Inner(layer.activation, torch.addmm(b_up, between, w_up.T), training)  # (rows, N)
        last = torch.addmm(b_down, activate.value, w_down.T)[: B * T].to(x.dtype).add_(a)
        result, *more = _norm(last, layer.after_ffn)
        if training:
            ctx.layer, ctx.heads, ctx.attend, ctx.activate = layer, heads, attend, activate
            ctx.save_for_backward(read, context, summed, between, last, w_in, w_out, w_up, w_down, *moments, *more)
        return result.view(B, T, C)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        read, context, summed, between, last, w_in, w_out, w_up, w_down, *moments = ctx.saved_tensors
        layer, rows, dtype = ctx.layer, len(read), read.dtype
        B, T, C = grad.shape

        d_a = _norm_backward(grad.reshape(-1, C), last, moments[2:], layer.after_ffn)  # (B T, C)
        above = _padded(d_a, rows, dtype)
        _add_product(above, ctx.activate.value, layer.ffn_out)
        below = ctx.activate.backward(above @ w_down)  # (rows, N)
        _add_product(below, between, layer.ffn_in)
        d_a += (below @ w_up)[: B * T]

        d_x = _norm_backward(d_a, summed, moments[:2], layer.after_attention)
        above = _padded(d_x, rows, dtype)
        _add_product(above, context, layer.attention_out)
        d_heads = (above @ w_out)[: B * T].view(B, T, ctx.heads, layer.head_size).transpose(1, 2)
        below = _padded(ctx.attend.backward(d_heads).permute(1, 3, 0, 2, 4), rows, dtype)  # (rows, 3 H D)
        _add_product(below, read, *layer.attention_in)
        d_hidden = d_x.add_((below @ w_in)[: B * T]).view(B, T, C) if ctx.needs_input_grad[0] else None
        return d_hidden, *[None] * 13


class _Inner:
    """``function(x)``, whose backward autograd keeps: for what has several kernels to choose from."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, training: bool) -> None:
        with torch.set_grad_enabled(training):
            self._x = x.requires_grad_(training)
            self._y = function(x)
        self.value = self._y.detach()

    def backward(self, grad: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(self._y, self._x, grad)[0]


def _attend(joined: torch.Tensor, mask: torch.Tensor | None, training: bool) -> _Inner:
    """Attention (B, H, T, D) of query, key and value (3, B, H, T, D); ``mask`` as transformers makes it."""
    if mask is not None:
        mask = mask[:, :, :1]  # (B, 1, 1, T): of keys alone
        mask = mask if mask.dtype == torch.bool else mask == 0
    if training and joined.device.type == "cpu" and joined.dtype == torch.bfloat16:
        return _Inner(lambda j: _Attention.apply(j, mask), joined, training)
    return _Inner(lambda j: F.scaled_dot_product_attention(j[0], j[1], j[2], mask), joined, training)


class _Attention(torch.autograd.Function):
    """Eager attention, since torch's fused kernel has a slow backward in bf16 on a CPU (``models/attention.py``)."""

    @staticmethod
    def forward(ctx: Any, joined: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        _, B, H, T, D = joined.shape
        query, key, value = joined.flatten(1, 2)  # (B H, T, D)
        scores = torch.bmm(query, key.transpose(1, 2)).view(B, H, T, T)
        bias = torch.zeros((), device=joined.device)
        if mask is not None:
            bias = bias.expand(mask.shape).masked_fill(~mask, float("-inf"))
        weights = torch.softmax(torch.add(bias, scores, alpha=D**-0.5), -1).to(joined.dtype).flatten(0, 1)
        ctx.save_for_backward(joined, weights)
        return torch.bmm(weights, value).view(B, H, T, D)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        joined, weights = ctx.saved_tensors  # (3, B, H, T, D), (B H, T, T)
        query, key, value = joined.flatten(1, 2)
        above = grad.reshape(query.shape)
        d_weights = torch.bmm(above, value.transpose(1, 2))
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        d_joined = torch.empty_like(joined)
        d_query, d_key, d_value = d_joined.flatten(1, 2)
        torch.bmm(d_scores, key, out=d_query)
        torch.bmm(d_scores.transpose(1, 2), query, out=d_key)
        torch.bmm(weights.transpose(1, 2), above, out=d_value)
        d_joined[:2].mul_(joined.shape[-1] ** -0.5)
        return d_joined, None


def _padded(x: torch.Tensor, rows: int, dtype: torch.dtype) -> torch.Tensor:
    """(B, T, ...) or (B T, C) as (rows, all that is beyond T): cast, with rows of zeros below."""
    if x.shape[:-1] == (rows,):
        return x.to(dtype)
    tokens = x.shape[:2] if x.dim() > 2 else x.shape[:1]
    made = torch.empty((rows, x.shape[len(tokens) :].numel()), dtype=dtype, device=x.device)
    count = tokens.numel()
    made[:count].view(x.shape).copy_(x)
    made[count:].zero_()
    return made


def _norm(x: torch.Tensor, norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The normalised rows, their means and inverse deviations."""
    return torch.native_layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _norm_backward(
    grad: torch.Tensor, x: torch.Tensor, moments: Sequence[torch.Tensor], norm: nn.LayerNorm
) -> torch.Tensor:
    d_x: torch.Tensor
    d_x, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
        grad, x, norm.normalized_shape, *moments, norm.weight, norm.bias, [True, True, True]
    )
    _add(norm.weight, d_weight)
    _add(norm.bias, d_bias)
    return d_x


def _add_product(grad: torch.Tensor, x: torch.Tensor, *linears: nn.Linear) -> None:
    """Gradients of the weights and biases that gave ``grad`` (rows, out) from ``x`` (rows, in)."""
    count = len(linears)
    parts = zip(linears, (grad.T @ x).chunk(count), grad.sum(0).chunk(count), strict=True)
    for linear, of_weight, of_bias in parts:
        _add(linear.weight, of_weight)
        _add(linear.bias, of_bias)


def _add(parameter: torch.Tensor, grad: torch.Tensor) -> None:
    """Add to the gradient of the first rows and columns."""
    if not parameter.requires_grad:
        return
    if parameter.grad is None and parameter.shape == grad.shape:
        parameter.grad = grad.to(parameter.dtype, copy=True)
        return
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad[tuple(slice(n) for n in grad.shape)].add_(grad)
