"""The one training loop: fine-tuning, recovery and both distillation phases run through it.

A step draws what it trains (the sandwich's candidates), splits its batch into micro-batches, and runs forward
and backward once for each (micro-batch, candidate), adding gradients in place; then clips and steps. All that
changes from step to step stands in ``TrainingState``.

loss of a step = Σ over its labels / E,  E = labels of a pass / its steps            (of hidden states: tokens)

Batches hold a budget of tokens, so their sizes differ. Divided by their own, an example among few long ones would
weigh more than one among many short ones; with E each weighs the same, and a step's gradient has the same expected
scale as with a fixed number of examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from autodisc.costs import Ledger
from autodisc.distillation.losses import Totals
from autodisc.errors import TrainingError
from autodisc.models.attention import trainable_attention
from autodisc.progress import Progress
from autodisc.runtime import Runtime, seeded
from autodisc.tasks.batches import Batch, batches, number_of_batches
from autodisc.tasks.data import Split, Task

CURVE_POINTS = 25  # losses kept a stage, each the mean since the one before: batches differ in size


class Term(NamedTuple):
    """One forward and backward: the ledger's kind of work, and a function that gives the loss."""

    kind: Hashable
    loss: Callable[[], torch.Tensor]


class Objective(Protocol):
    """What a step minimises: the sum of the terms over micro-batches."""

    def draw(self, generator: np.random.Generator) -> Any:
        """What this step trains; the same for all its micro-batches."""

    def terms(self, batch: Batch, totals: Totals, drawn: Any) -> Iterator[Term]: ...


@dataclass(frozen=True)
class TrainingSettings:
    steps: int
    batch_size: int
    lr: float
    warmup: float
    weight_decay: float
    clip: float
    accumulation: int = 1
    dropout: bool = False  # off in distillation: a student far below its teacher's size underfits


@dataclass
class TrainingState:
    """Everything that a step reads and changes, beside the weights."""

    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    step: int = 0
    best_step: int = 0
    best_metric: float | None = None
    best_weights: dict[str, torch.Tensor] | None = None
    curve: list[dict[str, float | int | None]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)  # losses since the curve's last point


def steps_for(split: Split, batch_size: int, epochs: float) -> int:
    return max(1, round(number_of_batches(split, batch_size) * epochs))


def train(
    model: PreTrainedModel,
    objective: Objective,
    split: Split,
    settings: TrainingSettings,
    *,
    task: Task,
    runtime: Runtime,
    stage: str,
    ledger: Ledger,
    progress: Progress,
    evaluate: Callable[[], float] | None = None,
) -> TrainingState:
    """Train ``model`` in place for ``settings.steps`` steps over shuffled passes of ``split``.

    With ``evaluate`` (the metric on validation, called after each pass and at the end), the model ends with the
    weights of the best evaluation; without, with the last. Raises TrainingError when the loss is not finite.
    """
    accelerator = Accelerator(cpu=runtime.device.type == "cpu")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(_decayed(model, settings.weight_decay), lr=settings.lr, fused=True)
    scheduler = get_linear_schedule_with_warmup(optimizer, round(settings.warmup * settings.steps), settings.steps)
    state = TrainingState(optimizer, scheduler)
    order = runtime.generator(stage, "order")
    draws = runtime.generator(stage, "draws")
    a_pass = number_of_batches(split, settings.batch_size)
    expected = Totals(labels=split.labelled / a_pass, tokens=split.tokens / a_pass)
    with (
        seeded(runtime.seed),
        trainable_attention(model, runtime),
        ledger.stage(stage),
        progress.stage(stage, settings.steps) as bar,
    ):
        while state.step < settings.steps:
            passed = batches(split, batch_size=settings.batch_size, pad_token_id=task.pad_token_id, generator=order)
            model.train(settings.dropout)  # each pass anew: evaluation switches it off
            for batch in passed:
                drawn = objective.draw(draws)
                loss = _accumulate(batch, objective, drawn, expected, settings, accelerator, runtime, ledger)
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"{stage}: the loss is {loss} at step {state.step + 1}; lower lr (now {settings.lr:g}), "
                        "or use --precision fp32"
                    )
                accelerator.clip_grad_norm_(parameters, settings.clip)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad(set_to_none=True)
                state.step += 1
                bar.advance()
                done = state.step == settings.steps
                state.recent.append(loss)
                if done or state.step % max(1, settings.steps // CURVE_POINTS) == 0:
                    mean = sum(state.recent) / len(state.recent)
                    state.curve.append({"step": state.step, "loss": mean, "metric": None})
                    state.recent.clear()
                if evaluate is not None and (done or state.step % a_pass == 0):
                    _keep_best(model, state, evaluate())
                    bar.note(f"metric {state.curve[-1]['metric']:.3f}, best {state.best_metric:.3f}")
                if done:
                    break
    if state.best_weights is not None:
        model.load_state_dict(state.best_weights)
        state.best_weights = None
    return state


def _accumulate(
    batch: Batch,
    objective: Objective,
    drawn: Any,
    totals: Totals,
    settings: TrainingSettings,
    accelerator: Accelerator,
    runtime: Runtime,
    ledger: Ledger,
) -> float:
    """Add the gradients of one effective batch; its loss, a share of ``totals``."""
    losses: list[torch.Tensor] = []
    for micro in batch.split(settings.accumulation):
        micro = micro.to(runtime.device)
        for kind, compute in objective.terms(micro, totals, drawn):
            with ledger.count(("training", kind), micro.padded_tokens):
                loss = compute()
                accelerator.backward(loss)
            losses.append(loss.detach())
    return float(torch.stack(losses).sum())  # one synchronisation a step


def _keep_best(model: PreTrainedModel, state: TrainingState, metric: float) -> None:
    state.curve.append({"step": state.step, "loss": None, "metric": metric})
    if state.best_metric is None or metric > state.best_metric:
        state.best_metric, state.best_step = metric, state.step
        state.best_weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _decayed(model: PreTrainedModel, weight_decay: float) -> Sequence[dict[str, Any]]:
    """Weight decay for matrices, none for biases and norms."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
