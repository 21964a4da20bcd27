"""Rank heads and neurons by the harm that removing them would do, in first order or after Fisher (fisher.py), or by the
size of their weights alone (magnitude.py).

importance(unit) = Σ over batches |∂loss/∂mask(unit)|        (Michel et al. 2019; arXiv:2205.14570)

The paper L2-normalises it per layer and ranks everything once, on the full model. Several rounds remove a part,
then estimate again on what remains; the removal order gives the nesting. Measured without normalisation, several
rounds lose far less (benchmarks/README.md), so both are settings. Training examples and gold labels; no training.

The last ``least_heads`` heads of every layer go after all others: what a global ranking leaves of heads stands in the
last layers, and where the first ones mixed no tokens a student of sparsity .9 learned nothing of STS-B.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from autodisc.config import ImportanceConfig
from autodisc.costs import Ledger
from autodisc.errors import TrainingError
from autodisc.models.attention import trainable_attention
from autodisc.models.checkpoints import Kept
from autodisc.models.inference import in_halves
from autodisc.models.layouts import blocks, unit_ratio
from autodisc.models.losses import label_count, label_loss
from autodisc.models.spreading import frozen, is_spread
from autodisc.progress import Progress, Silent
from autodisc.pruning.candidates import Ranking, Unit
from autodisc.pruning.fisher import rank_by_fisher
from autodisc.pruning.magnitude import unit_norms
from autodisc.pruning.masks import masked
from autodisc.pruning.slicing import recomputing
from autodisc.pruning.surgery import keep, positions
from autodisc.runtime import Runtime
from autodisc.tasks.batches import Batch, batches, number_of_batches
from autodisc.tasks.data import Split, Task

ROUNDS = 4
LAST_ROUND = 0.95  # sparsity after which several rounds stop estimating again: too little is left to tell apart


@dataclass(frozen=True)
class Importance:
    """Per layer, tensors (H,) and (N,): fp32, not negative."""

    heads: tuple[torch.Tensor, ...]
    neurons: tuple[torch.Tensor, ...]


def estimate_importance(
    model: PreTrainedModel,
    split: Split,
    config: ImportanceConfig,
    *,
    task: Task,
    runtime: Runtime,
    ledger: Ledger,
    left: Kept | None = None,
) -> Importance:
    """Importance of the units that ``model`` still has, over all of ``split``; raises TrainingError on NaN.

    With ``left`` all others are masked, and importance is of those alone: what a cut to them has.
    """
    layers = blocks(model)
    sums = [[torch.zeros(n) for n in counts] for counts in ([b.heads for b in layers], [b.neurons for b in layers])]
    own = Kept.of(model.config)
    there = [
        [torch.tensor(positions(*pair), dtype=torch.long) for pair in zip(had, wanted, strict=True)]
        for had, wanted in zip((own.heads, own.neurons), ((left or own).heads, (left or own).neurons), strict=True)
    ]
    kind = ("importance", tuple((block.heads, block.neurons) for block in layers))
    model.eval()
    with frozen(model):  # only the masks' gradients: two thirds of a training step
        for batch in batches(split, batch_size=config.batch_size, pad_token_id=task.pad_token_id, generator=None):
            count = max(1, label_count(batch.labels))

            def gradients(part: Batch, count: int = count) -> list[list[torch.Tensor | None]]:
                ones = [
                    [
                        torch.zeros_like(total).index_fill_(0, where, 1.0).to(runtime.device).requires_grad_()
                        for total, where in zip(units, kept, strict=True)
                    ]
                    for units, kept in zip(sums, there, strict=True)
                ]
                with (
                    ledger.count(kind, part.padded_tokens),
                    masked(model, *ones),
                    trainable_attention(model, runtime),
                    recomputing(model, asked=runtime.checkpointing),
                ):
                    with runtime.autocast():
                        logits = model(**part.inputs).logits.float()
                    loss = label_loss(logits, part.labels, count)
                    if not torch.isfinite(loss):
                        raise TrainingError("importance: the loss is not finite; check the teacher and its labels")
                    loss.backward()  # in here: what is computed again has to be computed masked
                return [[mask.grad for mask in masks] for masks in ones]

            parts = in_halves(batch.to(runtime.device), gradients)
            for units, *found in zip(sums, *parts, strict=True):
                for total, *grads in zip(units, *found, strict=True):
                    passed = [grad for grad in grads if grad is not None]  # a layer without heads passes none
                    if passed:
                        total += torch.stack(passed).sum(0).abs().cpu()
        if not all(total.isfinite().all() for units in sums for total in units):
            raise TrainingError("importance: a gradient is not finite; give --precision fp32, or check the teacher")
    sums = [[total[where] for total, where in zip(*pair, strict=True)] for pair in zip(sums, there, strict=True)]
    if config.normalise:
        sums = [[_normalise(total) for total in units] for units in sums]
    heads, neurons = (tuple(units) for units in sums)
    return Importance(heads, neurons)


def calibration(task: Task, config: ImportanceConfig, runtime: Runtime) -> Split:
    """The training rows that pruning looks at, drawn by the seed."""
    count = min(config.examples, len(task.train))
    rows = runtime.generator("importance").choice(len(task.train), count, replace=False)
    return task.train.select(np.sort(rows))


def rank_units(
    teacher: PreTrainedModel,
    task: Task,
    config: ImportanceConfig,
    *,
    runtime: Runtime,
    ledger: Ledger | None = None,
    progress: Progress | None = None,
) -> Ranking:
    """Removal orders of the teacher's units by ``config.criterion``."""
    ledger, progress = ledger or Ledger(), progress or Silent()
    sample = calibration(task, config, runtime)
    passes = rounds(config)
    with (
        ledger.stage("importance"),
        progress.stage("importance", passes * number_of_batches(sample, config.batch_size)) as bar,
    ):
        if config.criterion == "fisher":
            return rank_by_fisher(
                teacher,
                sample,
                batch_size=config.batch_size,
                least_heads=config.least_heads,
                task=task,
                runtime=runtime,
                ledger=ledger,
                bar=bar,
            )

        def estimate(model: PreTrainedModel, left: Kept | None) -> Importance:
            if config.criterion == "magnitude":
                heads, neurons = ([_normalise(u) if config.normalise else u for u in own] for own in unit_norms(model))
                return Importance(tuple(heads), tuple(neurons))
            found = estimate_importance(model, sample, config, task=task, runtime=runtime, ledger=ledger, left=left)
            bar.advance(number_of_batches(sample, config.batch_size))
            return found

        return _rank_in_rounds(teacher, estimate, max(1, passes), config.least_heads)


def rounds(config: ImportanceConfig) -> int:
    """Passes over the examples."""
    return {"magnitude": 0, "fisher": 1}.get(config.criterion, config.rounds or ROUNDS)


def _rank_in_rounds(
    teacher: PreTrainedModel,
    estimate: Callable[[PreTrainedModel, Kept | None], Importance],
    times: int,
    least_heads: int,
) -> Ranking:
    """Estimate so many times, each on what remains; the last one orders all of that."""
    kept = Kept.of(teacher.config)
    left = [[(layer, i) for layer, own in enumerate(k) for i in own] for k in (kept.heads, kept.neurons)]
    totals = [len(units) for units in left]
    removed: list[list[Unit]] = [[], []]
    model, masked_to = teacher, None
    for number in range(1, times + 1):
        found = estimate(model, masked_to)
        last = number == times
        reached = LAST_ROUND * number / times
        for which, (tensors, least) in enumerate(((found.heads, least_heads), (found.neurons, 0))):
            scores, last_ones = torch.cat(tensors).tolist(), torch.cat([_best(own, least) for own in tensors]).tolist()
            order = sorted(range(len(scores)), key=lambda i: (last_ones[i], scores[i], -i))
            drop = len(order) if last else round(reached * totals[which]) - len(removed[which])
            removed[which] += [left[which][i] for i in order[:drop]]
            left[which] = sorted(left[which][i] for i in order[drop:])
        if not last:
            rest = Kept(*(_by_layer(units, len(kept.heads)) for units in left))
            if is_spread(teacher):  # most of it might fit on one device as little as all of it
                masked_to = rest
            else:
                model = keep(teacher, rest)
    return Ranking(tuple(removed[0]), tuple(removed[1]), len(kept.heads), unit_ratio(blocks(teacher)))


def _best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """True for the ``count`` units of a layer that go last; of equal ones the first."""
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[scores.argsort(descending=True, stable=True)[:count]] = True
    return chosen


def _normalise(total: torch.Tensor) -> torch.Tensor:
    return total / total.norm().clamp_min(torch.finfo(total.dtype).tiny)


def _by_layer(units: Sequence[Unit], layers: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(index for own, index in units if own == layer) for layer in range(layers))
