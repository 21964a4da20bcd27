"""The one training loop: fine-tuning, recovery and both distillation phases run through it.

A step draws what it trains (the sandwich's candidates), splits its batch into micro-batches, and runs forward
and backward once for each (micro-batch, candidate), adding gradients in place; then clips and steps. All that
changes from step to step stands in ``TrainingState``, which is kept on disk (checkpointing.py).

loss of a step = Σ over its labels / E,  E = labels of a pass / its steps            (of hidden states: tokens)

Batches hold a budget of tokens, so their sizes differ. Divided by their own, an example among few long ones would
weigh more than one among many short ones; with E each weighs the same, and a step's gradient has the same expected
scale as with a fixed number of examples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from autodisc.costs import Ledger
from autodisc.distillation import launching
from autodisc.distillation.checkpointing import States, TrainingState
from autodisc.distillation.launching import all_costs, micro_batches, summed
from autodisc.distillation.losses import Totals
from autodisc.distillation.sharding import Shards, clipped, sharded
from autodisc.errors import AutodiscError, DivergedError, TrainingError
from autodisc.interrupts import finishing_steps
from autodisc.models.attention import trainable_attention
from autodisc.progress import Progress, Tracker, Untracked
from autodisc.pruning.surgery import own_memory
from autodisc.runtime import Runtime, free_memory, is_out_of_memory, seeded
from autodisc.tasks.batches import Batch, batches, number_of_batches
from autodisc.tasks.data import Split, Task

CURVE_POINTS = 25  # losses kept a stage, each the mean since the one before: batches differ in size
HALVINGS = 2  # of the learning rate, before a loss that is not finite ends the training


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
    states: States | None = None,
    tracker: Tracker | None = None,
) -> TrainingState:
    """Train ``model`` in place for ``settings.steps`` steps over shuffled passes of ``split``.

    With ``evaluate`` (the metric on validation, called after each pass and at the end), the model ends with the
    weights of the best evaluation; without, with the last. With ``states`` it goes on from the last one there is.
    After a loss that is not finite it returns to the last state with half the learning rate, twice; then it raises
    DivergedError.
    """
    accelerator = Accelerator(cpu=runtime.device.type == "cpu", mixed_precision="no")  # autocast is the runtime's
    with sharded(model, accelerator, asked=launching.shards()) as shards:
        return _train(
            model,
            objective,
            split,
            settings,
            task=task,
            runtime=runtime,
            stage=stage,
            ledger=ledger,
            progress=progress,
            evaluate=evaluate,
            states=states or States(),
            tracker=tracker or Untracked(),
            accelerator=accelerator,
            shards=shards,
        )


def _train(
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
    evaluate: Callable[[], float] | None,
    states: States,
    tracker: Tracker,
    accelerator: Accelerator,
    shards: Shards | None,
) -> TrainingState:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if shards is None:  # shards are copies
        own_memory(parameters)
    optimizer = torch.optim.AdamW(_decayed(model, settings.weight_decay), lr=settings.lr, fused=True)
    scheduler = get_linear_schedule_with_warmup(optimizer, round(settings.warmup * settings.steps), settings.steps)
    order, draws = runtime.generator(stage, "order"), runtime.generator(stage, "draws")
    state = TrainingState(optimizer, scheduler, order, draws, settings.accumulation)
    states.shards, job = shards, _Job(stage, settings, ledger, progress)
    a_pass = number_of_batches(split, settings.batch_size)
    expected = Totals(labels=split.labelled / a_pass, tokens=split.tokens / a_pass)
    with (
        all_costs(ledger, accelerator),
        seeded(runtime.seed),
        trainable_attention(model, runtime),
        ledger.stage(stage),
        progress.stage(stage, settings.steps) as bar,
        finishing_steps() as stop,
    ):
        states.resume(model, state)
        if states.damaged:
            progress.say(f"{states.damaged}; {stage} starts again")
        bar.advance(state.step)
        while state.step < settings.steps:
            passed = batches(split, batch_size=settings.batch_size, pad_token_id=task.pad_token_id, generator=order)
            model.train(settings.dropout)  # each pass anew: evaluation switches it off
            for batch in itertools.islice(passed, state.place, None):
                drawn = objective.draw(draws)
                loss = _fitting(batch, objective, drawn, expected, state, accelerator, runtime, job, shards)
                if shards is None:
                    loss = summed(loss, parameters, accelerator)
                    norm = float(accelerator.clip_grad_norm_(parameters, settings.clip))
                else:  # gradients have been summed on the way
                    loss, norm = shards.sum(loss), clipped(parameters, settings.clip)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient's norm is {norm}"
                    _go_back(model, state, states, what, job)
                    break
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad(set_to_none=True)
                state.step += 1
                state.place += 1
                bar.advance()
                done = state.step == settings.steps
                state.recent.append(loss)
                if done or state.step % max(1, settings.steps // CURVE_POINTS) == 0:
                    mean = sum(state.recent) / len(state.recent)
                    state.curve.append({"step": state.step, "loss": mean, "metric": None})
                    tracker.log(stage, {"loss": mean, "lr": scheduler.get_last_lr()[0]}, step=state.step)
                    state.recent.clear()
                if evaluate is not None and (done or state.step % a_pass == 0):
                    metric = evaluate()
                    _keep_best(model, state, metric)
                    tracker.log(stage, {"metric": metric}, step=state.step)
                    bar.note(f"metric {metric:.3f}, best {state.best_metric:.3f}")
                stopped = stop.asked if shards is None else shards.any(stop.asked)
                states.keep(model, state, steps=settings.steps, at_once=stopped)
                if stopped:
                    raise KeyboardInterrupt
                if done:
                    break
            else:
                state.place, state.pass_start = 0, dict(order.bit_generator.state)
    if state.best_weights is not None:
        model.load_state_dict(state.best_weights)
        state.best_weights = None
    return state


@dataclass(frozen=True)
class _Job:
    """What is trained, how, and who is told."""

    stage: str
    settings: TrainingSettings
    ledger: Ledger
    progress: Progress


def _go_back(model: PreTrainedModel, state: TrainingState, states: States, what: str, job: _Job) -> None:
    """Return to the last state with half the learning rate; raises DivergedError where that was done twice."""
    failed, tried = state.step + 1, state.halvings
    lr = job.settings.lr * 0.5**tried
    if tried == HALVINGS:
        raise DivergedError(
            f"{job.stage}: the {what} at step {failed}; lower lr (now {job.settings.lr:g}; {lr:g} was tried too), "
            "or use --precision fp32"
        )
    state.optimizer.zero_grad(set_to_none=True)
    states.go_back(model, state)
    state.lower_lr(tried + 1)
    decided = f"{lr / 2:g} from step {state.step + 1} on: the {what} at step {failed} with {lr:g}"
    job.ledger.decisions[f"lr of {job.stage}"] = decided
    job.progress.say(f"{job.stage}: the {what} at step {failed}; back to step {state.step} with lr {lr / 2:g}")


def _fitting(
    batch: Batch,
    objective: Objective,
    drawn: Any,
    totals: Totals,
    state: TrainingState,
    accelerator: Accelerator,
    runtime: Runtime,
    job: _Job,
    shards: Shards | None,
) -> float:
    """Add the gradients of one effective batch, in more micro-batches from now on where memory is short."""
    while True:
        try:
            return _accumulate(
                batch, objective, drawn, totals, state.accumulation, accelerator, runtime, job.ledger, shards
            )
        except (RuntimeError, MemoryError, TrainingError) as error:
            short = is_out_of_memory(error)
            if shards is not None and (short or isinstance(error, TrainingError)):
                # Others wait for what this one was at, so this is no failure of a trial, after which another begins.
                why = f"{job.stage}: out of memory in shards; give more --set distillation.accumulation (now"
                why += f" {state.accumulation}), --set runtime.checkpointing=true, or more processes"
                raise AutodiscError(why if short else str(error)) from error
            if not short:
                raise
            if state.accumulation >= len(batch):
                raise TrainingError(
                    f"{job.stage}: out of memory with one example at a time; give a shorter --max-length"
                ) from error
        state.optimizer.zero_grad(set_to_none=True)  # out here nothing holds what was too large any more
        free_memory()
        state.accumulation *= 2
        decided = f"{state.accumulation} a step, from step {state.step + 1} on: memory was short"
        job.ledger.decisions[f"micro-batches of {job.stage}"] = decided
        job.progress.say(f"{job.stage}: memory is short; {state.accumulation} micro-batches a step from now on")


def _accumulate(
    batch: Batch,
    objective: Objective,
    drawn: Any,
    totals: Totals,
    parts: int,
    accelerator: Accelerator,
    runtime: Runtime,
    ledger: Ledger,
    shards: Shards | None,
) -> float:
    """Add the gradients of one effective batch in so many micro-batches; its loss, a share of ``totals``."""
    losses: list[torch.Tensor] = []
    for micro, weight in micro_batches(batch, parts, accelerator, in_step=shards is not None):
        micro = micro.to(runtime.device)
        for kind, compute in objective.terms(micro, totals, drawn):
            with ledger.count(("training", kind), micro.padded_tokens):
                loss = compute() * weight
                accelerator.backward(loss)
            losses.append(loss.detach())
    return float(torch.stack(losses).sum()) if losses else 0.0  # one synchronisation a step


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
