"""Rank heads and neurons by the loss that removing them costs once what is left of their layer makes up for it.

Δloss(unit q) = ½ tr( G W_q ([A⁻¹]_qq)⁻¹ W_qᵀ )        W ← W − W_q ([A⁻¹]_qq)⁻¹ [A⁻¹]_q,   A⁻¹ likewise

W_q are the unit's columns of an output projection, A is the covariance of what reaches it (where the projection has no
bias, its second moment) and G that of the Fisher
gradients at its output, both over real tokens: optimal brain surgeon for groups (Hassibi & Stork 1993; ZipLM,
arXiv:2302.04089) with the Fisher information as a Kronecker product (Martens & Grosse 2015; LLM Surgeon,
arXiv:2312.17244). A unit that others can stand in for is cheap however large its gradient; and the costs of two
layers are both in the loss, so one greedy order runs over all. The cheapest goes first, what is left of its layer is
updated, and so on: the removal order gives the nesting. Heads and neurons have their costs in the same loss too, so
how many of each are left at a sparsity follows from what they cost a parameter. No labels, one forward and one backward
over the examples.

Memory: two (N, N) fp64 matrices of the widest layer's N neurons, and one fp32 for each layer.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from autodisc.costs import Ledger
from autodisc.errors import TrainingError
from autodisc.models.attention import trainable_attention
from autodisc.models.checkpoints import Kept
from autodisc.models.inference import in_halves
from autodisc.models.layouts import Port, blocks, uncached, unit_ratio
from autodisc.models.losses import labelled
from autodisc.models.spreading import frozen, value
from autodisc.progress import Bar
from autodisc.pruning.candidates import NEURON_MULTIPLE, Ranking
from autodisc.pruning.slicing import recomputing
from autodisc.runtime import Runtime
from autodisc.tasks.batches import Batch, batches
from autodisc.tasks.data import Split, Task

MANY = 64  # classes above which no (V, V) matrix is made of a row's
RIDGE = 0.01  # added to A and G, over the mean of their diagonals; .001 to 1 for G measured alike


@dataclass
class _Moments:
    """Sums over real tokens at one output projection with ``columns`` inputs and C outputs; fp32."""

    biased: bool  # the projection
    tokens: int
    inputs: torch.Tensor  # (columns,)
    squares: torch.Tensor  # (columns, columns)
    gradients: torch.Tensor  # (C, C)

    @classmethod
    def none(cls, sink: Port, device: torch.device) -> _Moments:
        outputs, columns = sink.matrix.shape
        new = partial(torch.zeros, dtype=torch.float32, device=device)  # sums, also of a teacher in bf16
        biased = sink.module.bias is not None
        return cls(biased, 0, new(columns), new(columns, columns), new(outputs, outputs))

    def covariance(self) -> torch.Tensor:
        """A of the inputs, about their mean where there is a bias, which gives a constant back for nothing."""
        if not self.biased:
            return self.squares.double()
        return self.squares.double() - torch.outer(self.inputs.double(), self.inputs.double()) / max(self.tokens, 1)


Moments = Mapping[nn.Module, _Moments]  # by output projection


def rank_by_fisher(
    model: PreTrainedModel,
    split: Split,
    *,
    batch_size: int,
    least_heads: int,
    task: Task,
    runtime: Runtime,
    ledger: Ledger,
    bar: Bar,
) -> Ranking:
    """Removal orders of the units that ``model`` has, over the tokens of ``split``; raises TrainingError on NaN."""
    moments = second_moments(model, split, batch_size=batch_size, task=task, runtime=runtime, ledger=ledger, bar=bar)
    with ledger.count(("removal order",), 0):
        return removal_order(model, moments, least_heads=least_heads)


@torch.no_grad()
def removal_order(
    model: PreTrainedModel, moments: Moments, only: Collection[int] | None = None, *, least_heads: int = 0
) -> Ranking:
    """The greedy order over all layers, or ``only`` some; each layer's last ``least_heads`` heads go after all others.

    Its cost depends on the widths alone.
    """
    layers, kept = blocks(model), Kept.of(model.config)
    chosen = [i for i in range(len(layers)) if only is None or i in only]
    attentions = {i: layers[i].attention.sink for i in chosen if layers[i].heads}
    ffns = {i: layers[i].ffn.sink for i in chosen if layers[i].neurons}
    heads, neurons = (
        _order({i: _Layer(sink, moments[sink.module]) for i, sink in sinks.items()}, at_once=at_once, least=least)
        for sinks, at_once, least in ((attentions, 1, least_heads), (ffns, NEURON_MULTIPLE, 0))
    )
    ratio = unit_ratio(layers)
    return Ranking(
        tuple((one.layer, kept.heads[one.layer][position]) for one in heads for position in one.positions),
        tuple((one.layer, kept.neurons[one.layer][position]) for one in neurons for position in one.positions),
        layers=len(layers),
        ratio=ratio,
        head_sparsities=in_one_order([one.cost for one in heads], neurons, ratio=ratio),
    )


def in_one_order(heads: Sequence[float], neurons: Sequence[Removal], *, ratio: float) -> tuple[float, ...]:
    """The sparsity, of the parameters of heads and neurons, at which each head goes where what is cheaper a parameter
    goes first; ``heads`` are the costs of removing them one by one.

    What goes after something dearer waits for it: a removal counts as dear as the dearest before it.
    """
    if not heads or not neurons:
        return ()
    head, neuron = ratio / len(heads), 1 / sum(len(one.positions) for one in neurons)  # parameters of one
    of_heads = ((cost / head, 0) for cost in accumulate(heads, max))
    shares = [neuron * len(one.positions) for one in neurons]
    of_neurons = accumulate((one.cost / share for one, share in zip(neurons, shares, strict=True)), max)
    gone, found, left = 0.0, [], iter(shares)
    for _, which in heapq.merge(of_heads, ((cost, 1) for cost in of_neurons)):
        if which:
            gone += next(left)
        else:
            found.append((gone + head / 2) / (1 + ratio))
            gone += head
    return tuple(found)


def second_moments(
    model: PreTrainedModel, split: Split, *, batch_size: int, task: Task, runtime: Runtime, ledger: Ledger, bar: Bar
) -> Moments:
    """What enters every output projection that has units left, and the Fisher gradients of what leaves it."""
    ports = [sublayer.sink for block in blocks(model) for sublayer in block.sublayers if sublayer.units]
    moments: dict[nn.Module, _Moments] = {port.module: _Moments.none(port, runtime.device) for port in ports}
    sinks = [port.module for port in ports]
    seen: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = [sink.register_forward_hook(_remember(seen)) for sink in sinks]
    signs = runtime.generator("fisher")

    def see(part: Batch) -> None:
        """Add a batch to the moments; nothing is added before all memory that it takes is there."""
        real, before = part.inputs["attention_mask"].bool(), signs.bit_generator.state
        seen.clear()
        try:
            with ledger.count(("fisher",), part.padded_tokens), recomputing(model, asked=False):
                with uncached(model), trainable_attention(model, runtime), runtime.autocast():
                    logits = model(**part.inputs).logits.float()
                if not torch.isfinite(logits).all():
                    raise TrainingError("importance: the teacher's outputs are not finite; check the teacher")
                logits = labelled(logits, part.labels)
                drawn = draw_signs(signs, *logits.shape).to(logits.device)
                asked = (logits * fisher_root(logits.detach(), drawn)).sum()
                found = torch.autograd.grad(asked, [seen[sink][1] for sink in sinks])
                passed = [
                    [each.to(real.device)[real].float() for each in (seen.pop(sink)[0], gradient)]
                    for sink, gradient in zip(sinks, found, strict=True)
                ]
                for sink, (x, g) in zip(sinks, passed, strict=True):
                    own = moments[sink]  # of x (tokens, columns) and g (tokens, C)
                    own.tokens += len(x)
                    own.inputs += x.sum(0)
                    own.squares.addmm_(x.T, x)
                    own.gradients.addmm_(g.T, g)
        except BaseException:
            seen.clear()
            signs.bit_generator.state = before  # its halves draw the same
            raise

    model.eval()
    try:
        with frozen(model):
            for batch in batches(split, batch_size=batch_size, pad_token_id=task.pad_token_id, generator=None):
                for sink in sinks:
                    sink.weight.requires_grad_(True)  # so that there is a graph; its own gradient is never asked for
                in_halves(batch.to(runtime.device), see)
                bar.advance()
    finally:
        for handle in handles:
            handle.remove()
    return moments


def draw_signs(generator: np.random.Generator, rows: int, columns: int) -> torch.Tensor:
    """±1, int8: of a vocabulary's logits all at once in eight bytes each would be gigabytes."""
    drawn = np.empty((rows, columns), np.int8)
    for row in drawn:
        row[:] = generator.integers(0, 2, columns)
    return torch.from_numpy(2 * drawn - 1)


def fisher_root(logits: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """v (B, V) with E[v vᵀ] = the Fisher information of each row's logits, over random ``signs`` (B, V) of ±1.

    diag(p) − p pᵀ of a classifier, exactly with two classes; 1 of a regression (squared error). Of many classes
    (diag(√p) − p √pᵀ) s, whose root takes no (V, V) matrix.
    """
    if logits.shape[1] == 1:
        return torch.ones_like(logits)
    if logits.shape[1] > MANY:
        p = logits.softmax(-1)
        drawn = p.sqrt() * signs
        return drawn - p * drawn.sum(-1, keepdim=True)
    p = logits.double().softmax(-1)
    values, vectors = torch.linalg.eigh(torch.diag_embed(p) - p[:, :, None] * p[:, None])
    root = vectors * values.clamp_min(0.0).sqrt()[:, None]  # (B, V, V): its columns, and one of them is zero
    return (root @ signs.double()[:, :, None])[:, :, 0].to(logits)


def _remember(seen: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        seen[module] = (inputs[0].detach(), output)

    return hook


class _Layer:
    """One layer's units of a kind while they are being removed; ``width`` columns each."""

    def __init__(self, sink: Port, moments: _Moments) -> None:
        whole = value(sink.module, "weight").detach().to(moments.inputs.device).double()
        self.width = sink.width
        self.weight = (whole if isinstance(sink.module, nn.Linear) else whole.T).contiguous()  # (C, columns)
        self.weighted = _damped(moments.gradients.double()) @ self.weight  # G W
        self.inverse = torch.linalg.inv(_damped(moments.covariance()))
        self.units = torch.arange(sink.units, device=self.weight.device)  # their positions
        self.left = torch.ones_like(self.units, dtype=torch.bool)
        self.costs = self._costs()

    def _costs(self) -> torch.Tensor:
        """(units,) twice the Δloss of each, infinite for those that are gone."""
        D, units = self.width, len(self.units)
        own = self.inverse.view(units, D, units, D).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (units, D, D)
        square = self.weight.T.reshape(units, D, -1) @ self.weighted.T.reshape(units, D, -1).transpose(1, 2)
        costs = torch.linalg.solve(own, square).diagonal(dim1=1, dim2=2).sum(1)
        return costs.masked_fill(~self.left, torch.inf)

    def remove(self, count: int) -> list[int]:
        """The positions of the ``count`` cheapest units, now gone, the cheapest first."""
        units = torch.topk(self.costs, count, largest=False).indices
        columns = self._columns(units)
        rows = torch.linalg.solve(self.inverse[columns][:, columns], self.inverse[columns])
        for matrix in (self.weight, self.weighted, self.inverse):
            matrix.addmm_(matrix[:, columns], rows, alpha=-1)
            matrix[:, columns] = 0.0
        self.inverse[columns] = 0.0
        self.inverse[columns, columns] = 1.0
        removed = self.units[units].tolist()
        self.left[units] = False
        if self.left.any():
            if 2 * int(self.left.sum()) <= len(self.left):
                self._compact()
            self.costs = self._costs()
        return removed

    def _compact(self) -> None:
        """Drop what is gone: halving each time, all removals take a third of the time that they took at full size."""
        columns = self._columns(self.left.nonzero()[:, 0])
        self.weight, self.weighted = self.weight[:, columns], self.weighted[:, columns]
        self.inverse = self.inverse[columns][:, columns]
        self.units, self.left = self.units[self.left], self.left[self.left]

    def _columns(self, units: torch.Tensor) -> torch.Tensor:
        return (units[:, None] * self.width + torch.arange(self.width, device=units.device)).flatten()


@dataclass(frozen=True)
class Removal:
    """Units of a layer that went together, and twice the Δloss of it."""

    layer: int
    positions: tuple[int, ...]
    cost: float


def _order(layers: dict[int, _Layer], *, at_once: int, least: int) -> list[Removal]:
    """Remove every unit, ``at_once`` of the layer that has the cheapest: widths go by as many anyway.

    Layers that are down to ``least`` wait for the others.
    """
    order: list[Removal] = []
    while layers:
        index, layer = min(layers.items(), key=lambda item: (int(item[1].left.sum()) <= least, item[1].costs.min()))
        count = min(at_once, int(layer.left.sum()))
        cost = float(torch.topk(layer.costs, count, largest=False).values.sum())
        order.append(Removal(index, tuple(layer.remove(count)), cost))
        if not layer.left.any():
            del layers[index]
    return order


def _damped(matrix: torch.Tensor) -> torch.Tensor:
    mean = matrix.diagonal().mean().clamp_min(torch.finfo(matrix.dtype).tiny)
    return matrix + RIDGE * mean * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
