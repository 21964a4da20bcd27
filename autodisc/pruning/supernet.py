"""One set of weights that runs as any candidate.

The units of each layer are reordered, the most important first, so every candidate is a prefix slice:
views, no copies, and compute falls with scale.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from autodisc.models.checkpoints import Kept
from autodisc.models.layouts import blocks
from autodisc.pruning.candidates import Candidate, Ranking
from autodisc.pruning.surgery import keep, positions, select_units


class SlicedLinear(nn.Linear):
    """A linear module that may use only its first rows and columns.

    Gradients go straight into the slice of ``weight.grad`` that is active. Autograd's own way, a view of the weight,
    makes a zero-filled gradient of the whole weight for every candidate, and adds all of it.
    """

    rows: int | None = None
    columns: int | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        with torch.autocast(device, enabled=False):
            return _SlicedProduct.apply(input.to(dtype), self.weight, self.bias, self.rows, self.columns)


class _SlicedProduct(torch.autograd.Function):
    """``linear(x, weight[:rows, :columns], bias[:rows])`` in x's precision; parameters' gradients added in place."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        rows: int | None,
        columns: int | None,
    ) -> torch.Tensor:
        active = weight[:rows, :columns].to(x.dtype)
        ctx.save_for_backward(x, active)
        ctx.weight, ctx.bias = weight, bias
        return nn.functional.linear(x, active, None if bias is None else bias[:rows].to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, active = ctx.saved_tensors
        rows, columns = active.shape
        flat = grad.flatten(0, -2)  # (B * T, rows)
        if ctx.weight.requires_grad:
            _gradient(ctx.weight)[:rows, :columns].add_(flat.T @ x.flatten(0, -2))
        if ctx.bias is not None and ctx.bias.requires_grad:
            _gradient(ctx.bias)[:rows].add_(flat.sum(0))
        return (grad @ active if ctx.needs_input_grad[0] else None), None, None, None, None


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


class Supernet:
    """A copy of ``model`` with its units in ranking order. ``model`` may itself be a pruned one."""

    def __init__(self, model: PreTrainedModel, ranking: Ranking) -> None:
        self.ranking = ranking
        self.model = copy.deepcopy(model)
        kept = Kept.of(model.config)
        orders = ranking.by_layer()
        self._heads = _present(orders[0], kept.heads)
        self._neurons = _present(orders[1], kept.neurons)
        for layer, block in enumerate(blocks(self.model)):
            select_units(
                block,
                positions(kept.heads[layer], self._heads[layer]),
                positions(kept.neurons[layer], self._neurons[layer]),
            )
            for linear in [*block.attention_in, block.attention_out, *block.ffn_in, block.ffn_out]:
                linear.__class__ = SlicedLinear

    @contextlib.contextmanager
    def active(self, candidate: Candidate) -> Iterator[PreTrainedModel]:
        """Run as ``candidate`` inside; everything again outside. Raises ValueError if it does not fit."""
        layers = blocks(self.model)
        try:
            for block, heads, neurons in zip(layers, candidate.heads, candidate.neurons, strict=True):
                if heads > block.heads or neurons > block.neurons:
                    raise ValueError(f"candidate of sparsity {candidate.sparsity} is larger than the supernet")
                width = heads * block.head_size
                self._slice(block.attention_in, rows=width)
                self._slice([block.attention_out], columns=width)
                self._slice(block.ffn_in, rows=neurons)
                self._slice([block.ffn_out], columns=neurons)
                block.declare_heads(heads)
            yield self.model
        finally:
            for block in layers:
                self._slice([*block.attention_in, block.attention_out, *block.ffn_in, block.ffn_out])
                block.declare_heads(block.heads)

    @staticmethod
    def _slice(linears: list[nn.Linear], rows: int | None = None, columns: int | None = None) -> None:
        for linear in linears:
            assert isinstance(linear, SlicedLinear)
            linear.rows, linear.columns = rows, columns

    def extract(self, candidate: Candidate) -> PreTrainedModel:
        """Cut ``candidate`` out: a plain small model, its units in the teacher's order (sparsity 0 is the teacher)."""
        plain = copy.deepcopy(self.model)
        for layer, block in enumerate(blocks(plain)):
            for linear in [*block.attention_in, block.attention_out, *block.ffn_in, block.ffn_out]:
                linear.__class__ = nn.Linear
            select_units(
                block,
                _ascending(self._heads[layer][: candidate.heads[layer]]),
                _ascending(self._neurons[layer][: candidate.neurons[layer]]),
            )
        self.kept(candidate).write_to(plain.config)
        return plain

    def kept(self, candidate: Candidate) -> Kept:
        return Kept(
            tuple(tuple(sorted(o[:n])) for o, n in zip(self._heads, candidate.heads, strict=True)),
            tuple(tuple(sorted(o[:n])) for o, n in zip(self._neurons, candidate.neurons, strict=True)),
        )


def extract(model: PreTrainedModel, ranking: Ranking, candidate: Candidate) -> PreTrainedModel:
    """``candidate`` cut out of a model, without a supernet."""
    heads, neurons = ranking.by_layer()
    return keep(
        model,
        Kept(
            tuple(tuple(sorted(o[:n])) for o, n in zip(heads, candidate.heads, strict=True)),
            tuple(tuple(sorted(o[:n])) for o, n in zip(neurons, candidate.neurons, strict=True)),
        ),
    )


def _present(orders: list[list[int]], kept: tuple[tuple[int, ...], ...]) -> list[list[int]]:
    """Per layer, the order restricted to the units that the model has."""
    return [[i for i in order if i in had] for order, had in zip(orders, map(frozenset, kept), strict=True)]


def _ascending(units: list[int]) -> list[int]:
    """Positions that put a prefix of a layer's units into the order of their indices."""
    return sorted(range(len(units)), key=units.__getitem__)
