"""Evaluate candidates side by side: one pass over validation, every batch read and moved once for all of them.

What a candidate measures is what it measures alone, bit for bit: the batches are the same, and they are all that is
shared. Where a ``Judge`` looks on, they come in an order drawn by the seed, so that those seen stand for all.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedModel

from autodisc.distillation.schedule import Workshop
from autodisc.errors import TrainingError
from autodisc.models.inference import ForwardFlops, counted, evaluation_batch, forward
from autodisc.models.layouts import encoder_parameters
from autodisc.models.reading import read
from autodisc.progress import Bar
from autodisc.pruning.candidates import Candidate
from autodisc.search.stopping import Judge, Standing, step_ends, step_values
from autodisc.search.tradeoff import Score
from autodisc.tasks.answers import confusion
from autodisc.tasks.batches import Batch, batches

Opened = Callable[[Candidate], AbstractContextManager[PreTrainedModel]]  # a model that runs as a candidate


@dataclass(frozen=True)
class Measured:
    """What a trial measures. ``params`` counts the encoder's parameters, ``macs`` one sequence of 128 tokens.

    ``values`` are its steps' where a ``Judge`` looked on; one that was ``stopped`` has a score of ``examples`` alone.
    """

    candidate: Candidate
    score: Score
    examples: int
    params: int
    macs: int
    seconds: float
    values: tuple[float, ...] = ()
    stopped: bool = False
    confusion: list[list[int]] | None = None  # of a classification: examples by label and prediction


Outcome = Measured | TrainingError


def evaluate(
    opened: Opened,
    candidates: Sequence[Candidate],
    workshop: Workshop,
    *,
    judge: Judge | None = None,
    bar: Bar | None = None,
) -> list[Outcome]:
    """What each candidate measures, or why it could not; ``bar`` counts batches times candidates."""
    task, runtime = workshop.task, workshop.runtime
    since = time.perf_counter()
    passes = [_Pass(opened, candidate, workshop) for candidate in candidates]
    at_once = evaluation_batch(task.validation, task)
    made: Iterable[Batch] = batches(task.validation, batch_size=at_once, pad_token_id=task.pad_token_id, generator=None)
    ends: list[int] = []
    if judge is not None:
        made = list(made)
        made = [made[i] for i in runtime.generator("trials", "order").permutation(len(made))]
        ends = step_ends(len(made))
    for seen, batch in enumerate(made, 1):
        batch = batch.to(runtime.device)
        running = [each for each in passes if each.error is None and not each.stopped]
        for each in running:
            each.see(batch)
        if judge is not None and seen in ends[:-1]:
            _look(judge, [each for each in running if each.error is None], ends[: ends.index(seen) + 1])
        if bar is not None:
            bar.advance(len(passes))
    found = [each.outcome(ends, judge) for each in passes]
    shared = (time.perf_counter() - since - sum(each.seconds for each in passes)) / len(passes)
    return [each if isinstance(each, TrainingError) else replace(each, seconds=each.seconds + shared) for each in found]


class _Pass:
    """One candidate's way through validation."""

    def __init__(self, opened: Opened, candidate: Candidate, workshop: Workshop) -> None:
        self.opened, self.candidate, self.workshop = opened, candidate, workshop
        self.rows: list[np.ndarray] = []  # (B,) by batch
        self.said: list[np.ndarray] = []  # what is read of the logits, by batch
        self.params, self.flops = 0, ForwardFlops(0, 0, 0)
        self.seconds = 0.0
        self.error: TrainingError | None = None
        self.stopped = False

    def see(self, batch: Batch) -> None:
        heads, neurons = self.candidate.heads, self.candidate.neurons
        kind, ledger, since = (heads, neurons), self.workshop.ledger, time.perf_counter()
        try:
            with self.opened(self.candidate) as model:
                if not self.rows:
                    model.eval()
                    self.params = encoder_parameters(model, heads, neurons)
                    self.flops = counted(model, batch, ledger, kind)
                logits = forward(model, batch, runtime=self.workshop.runtime, ledger=ledger, kind=kind)
                self.said.append(read(logits, batch, split=self.workshop.task.validation, task=self.workshop.task))
                self.rows.append(batch.rows)
        except TrainingError as error:
            self.error = error
        self.seconds += time.perf_counter() - since

    def score(self) -> Score:
        """On the examples seen."""
        task = self.workshop.task
        predictions, labels = self.answers()
        return Score(
            sparsity=self.candidate.sparsity,
            metric=task.metric.score(predictions, labels),
            floor=task.metric.floor(labels),
            standard_error=task.metric.standard_error(predictions, labels, self.workshop.runtime.seed),
        )

    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and labels of the examples seen, in the split's order."""
        task, rows = self.workshop.task, np.concatenate(self.rows)
        order = np.argsort(rows)
        return np.concatenate(self.said)[order], task.validation.labels[rows[order]]

    def values(self, ends: Sequence[int], lam: float) -> tuple[float, ...]:
        """Of the steps that end after so many batches."""
        task, steps = self.workshop.task, []
        for start, end in itertools.pairwise([0, *ends]):
            labels = task.validation.labels[np.concatenate(self.rows[start:end])]
            steps.append((np.concatenate(self.said[start:end]), labels))
        return tuple(value + lam * self.candidate.sparsity for value in step_values(task.metric, steps))

    def outcome(self, ends: Sequence[int], judge: Judge | None) -> Outcome:
        since = time.perf_counter()
        if self.error is not None:
            return self.error
        seen = [end for end in ends if end <= len(self.rows)]
        try:
            score = self.score()
            values = self.values(seen, judge.lam) if judge is not None else ()
            task = self.workshop.task
            table = confusion(*self.answers(), task.num_labels) if task.kind == "classification" else None
        except TrainingError as error:
            return error
        examples = sum(len(rows) for rows in self.rows)
        self.seconds += time.perf_counter() - since
        return Measured(
            self.candidate, score, examples, self.params, self.flops.macs, self.seconds, values, self.stopped, table
        )


def _look(judge: Judge, running: Sequence[_Pass], ends: Sequence[int]) -> None:
    """Stop what has become hopeless, and what has become nonsense."""
    standings: dict[_Pass, Standing] = {}
    for each in running:
        try:
            standings[each] = Standing(each.score(), each.values(ends, judge.lam))
        except TrainingError as error:
            each.error = error
    for each, hopeless in zip(standings, judge.hopeless(list(standings.values())), strict=True):
        each.stopped = hopeless
