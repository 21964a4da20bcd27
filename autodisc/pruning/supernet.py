"""One set of weights that runs as any candidate.

The units of each layer are reordered, the most important first, so every candidate is a prefix slice of the same
weights, and compute falls with scale (``layers.py``, ``slicing.py``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers import PreTrainedModel

from autodisc.models.checkpoints import Kept
from autodisc.models.layouts import blocks
from autodisc.models.spreading import moves_weights
from autodisc.pruning.candidates import Candidate, Ranking
from autodisc.pruning.slicing import running, sliced_layers
from autodisc.pruning.surgery import in_same_memory, keep, positions


class Supernet:
    """``model`` with its units in ranking order; all else shares its memory. ``model`` may itself be a pruned one.

    With ``checkpointing`` training keeps what enters a layer and computes the rest again: the memory of one layer.
    """

    def __init__(self, model: PreTrainedModel, ranking: Ranking, *, checkpointing: bool = False) -> None:
        self.ranking = ranking
        self.model = in_same_memory(model)
        kept = Kept.of(model.config)
        orders = ranking.by_layer()
        self._heads = _present(orders[0], kept.heads)
        self._neurons = _present(orders[1], kept.neurons)
        for layer, block in enumerate(blocks(self.model)):
            block.select(
                positions(kept.heads[layer], self._heads[layer]),
                positions(kept.neurons[layer], self._neurons[layer]),
            )
        self._layers = sliced_layers(self.model, checkpointing=checkpointing)
        self._checkpointing = checkpointing

    @contextlib.contextmanager
    def active(self, candidate: Candidate) -> Iterator[PreTrainedModel]:
        """Run as ``candidate`` inside; everything again outside. Raises ValueError if it does not fit."""
        # In shards since it was made: what is written out may keep weights from call to call, and these come and go.
        layers = sliced_layers(self.model) if moves_weights(self.model) else self._layers
        widths = list(zip(layers, candidate.heads, candidate.neurons, strict=True))
        if any(heads > layer.heads or neurons > layer.neurons for layer, heads, neurons in widths):
            raise ValueError(f"candidate of sparsity {candidate.sparsity} is larger than the supernet")
        forwards = [layer.forward(heads, neurons) for layer, heads, neurons in widths]
        with running(self.model, forwards, checkpointing=self._checkpointing) as model:
            yield model

    def extract(self, candidate: Candidate) -> PreTrainedModel:
        """Cut ``candidate`` out: a plain small model, its units in the teacher's order (sparsity 0 is the teacher).

        What has no units is the supernet's own; see surgery.py before it is trained by hand. Raises ValueError if it
        does not fit.
        """
        for kept, had in ((candidate.heads, self._heads), (candidate.neurons, self._neurons)):
            if any(count > len(units) for count, units in zip(kept, had, strict=True)):
                raise ValueError(f"candidate of sparsity {candidate.sparsity} is larger than the supernet")
        plain = in_same_memory(self.model)
        for layer, block in enumerate(blocks(plain)):
            block.select(
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
    """``candidate`` cut out of a model, without a supernet; see surgery.py before it is trained by hand.

    In fp32, also of a teacher whose weights are in bf16: an optimizer's steps are too small for these.
    """
    heads, neurons = ranking.by_layer()
    kept = Kept(
        tuple(tuple(sorted(o[:n])) for o, n in zip(heads, candidate.heads, strict=True)),
        tuple(tuple(sorted(o[:n])) for o, n in zip(neurons, candidate.neurons, strict=True)),
    )
    found = keep(model, kept)
    for parameter in found.parameters():
        parameter.data = parameter.data.float()
    return found


def _present(orders: list[list[int]], kept: tuple[tuple[int, ...], ...]) -> list[list[int]]:
    """Per layer, the order restricted to the units that the model has."""
    return [[i for i in order if i in had] for order, had in zip(orders, map(frozenset, kept), strict=True)]


def _ascending(units: list[int]) -> list[int]:
    """Positions that put a prefix of a layer's units into the order of their indices."""
    return sorted(range(len(units)), key=units.__getitem__)
