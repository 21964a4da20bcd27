"""Trials side by side: processes that share the CPU threads out among them, or those of a cluster (``backends``).

A worker gets the work itself, pickled, a ledger of its own, and threads // jobs threads (a cluster's gets all of them);
so what it returns is what one process with so many threads computes. Only the parent asks the study, tells it, keeps
files and books costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import joblib
import torch
from transformers import PretrainedConfig, PreTrainedModel

from autodisc.costs import Ledger
from autodisc.distillation.schedule import Distilled, Workshop
from autodisc.errors import TrainingError
from autodisc.models.checkpoints import own_head, unfilled
from autodisc.models.layouts_autodisc import Head
from autodisc.progress import Silent, Untracked
from autodisc.runtime import Runtime
from autodisc.search.backends import LOCAL, placed, started

Key = TypeVar("Key")
Result = TypeVar("Result")
Work = Callable[[Workshop, Key], Result]  # in a worker: all of it is pickled


class Sendable:
    """Goes to another process with its models as configuration and weights: a model that has shown its hidden states
    holds hooks of transformers, which cannot be pickled."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: packed(value) for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({name: opened(value) for name, value in state.items()})


@dataclass(frozen=True)
class _Parcel:
    config: PretrainedConfig
    head: Head
    weights: dict[str, torch.Tensor]
    dtype: torch.dtype
    device: torch.device


def packed(value: Any) -> Any:
    """A model, or what holds one, as it can be sent."""
    if isinstance(value, PreTrainedModel):
        weights = {k: v.cpu() for k, v in value.state_dict().items()}
        return _Parcel(value.config, own_head(value), weights, value.dtype, value.device)
    if isinstance(value, Distilled):
        return replace(value, model=packed(value.model))
    return value


def opened(value: Any) -> Any:
    """What was ``packed``, with a model of its own."""
    if isinstance(value, _Parcel):
        model = unfilled(value.config, value.head, dtype=value.dtype)
        model.load_state_dict(value.weights)
        return model.eval().to(placed(value.device))
    if isinstance(value, Distilled):
        return replace(value, model=opened(value.model))
    return value


def processes(jobs: int, workshop: Workshop, *, backend: str = LOCAL) -> int:
    """How many processes ``jobs`` comes to: on this machine's CPU never more than threads."""
    threads = workshop.runtime.threads
    if workshop.runtime.device.type != "cpu" or jobs <= threads or backend != LOCAL:
        return jobs
    workshop.progress.say(f"workers: {jobs} asked for, {threads} at a time, since there are no more threads")
    return threads


def apart(workshop: Workshop) -> Workshop:
    """The workshop for another process: it has paid for what this one has, tells nobody, and books for itself."""
    ledger = Ledger()
    ledger.paid = dict(workshop.ledger.paid)
    return replace(workshop, ledger=ledger, progress=Silent(), curves={}, tracker=Untracked())


def spread(
    work: Work[Key, Result], keys: Iterable[Key], jobs: int, workshop: Workshop, *, backend: str = LOCAL
) -> Iterator[tuple[Key, Result | Exception]]:
    """Each key with what ``work`` returned for it or raised, as they finish; a key is taken when a process is free.

    Costs and the curves of the last key are the workshop's afterwards. Where a process dies, what had been started is
    done again one at a time, then the rest; a TrainingError is what comes of a key whose process dies even so.
    """
    threads = max(1, workshop.runtime.threads // jobs) if backend == LOCAL else workshop.runtime.threads
    asked, done = list[Key](), set[Key]()
    since = time.perf_counter()

    def call(key: Key) -> Any:
        if key not in asked:
            asked.append(key)
        return joblib.delayed(_run)(work, apart(workshop), key, threads)

    for key, found in side_by_side(call, keys, jobs, threads, backend):
        if isinstance(found, TrainingError):
            yield key, found
            continue
        outcome, ledger, curves = found
        now = time.perf_counter()
        workshop.ledger.merge(ledger, now - since)
        since = now
        if not any(other in done for other in asked[asked.index(key) :]):
            workshop.curves.update(curves)
        done.add(key)
        yield key, outcome


def side_by_side(
    call: Callable[[Key], Any], keys: Iterable[Key], jobs: int, threads: int, backend: str = LOCAL
) -> Iterator[tuple[Key, Any | TrainingError]]:
    """Each key with what ``call(key)``, a delayed call whose value starts with the key, came to; as they finish.

    ``call`` is asked in this process, when another is free.
    """
    waiting, begun, done = iter(keys), list[Key](), set[Key]()

    def calls(keys: Iterable[Key]) -> Iterator[Any]:
        for key in keys:
            begun.append(key)
            yield call(key)

    def finished(keys: Iterable[Key], at_once: int) -> Iterator[tuple[Key, Any]]:
        parallel = joblib.Parallel(max(2, at_once), return_as="generator_unordered", batch_size=1, pre_dispatch=at_once)
        for key, *found in parallel(calls(keys)):
            done.add(key)
            yield key, found

    with started(backend, threads) as died:
        while True:
            try:
                yield from finished(waiting, jobs)
                return
            except died:
                for key in [key for key in begun if key not in done]:
                    try:
                        yield from finished([key], 1)
                    except died:
                        done.add(key)
                        yield key, TrainingError("its process was ended from outside, alone too; is memory short?")


def _run(
    work: Work[Key, Result], workshop: Workshop, key: Key, threads: int
) -> tuple[Key, Result | Exception, Ledger, dict[str, Any]]:
    torch.set_num_threads(threads)
    # A cluster's arrays arrive read-only; what has been paid for is written down here.
    workshop.ledger.paid = {key: rows.copy() for key, rows in workshop.ledger.paid.items()}
    workshop = replace(workshop, runtime=_own(workshop.runtime, threads))
    try:
        outcome: Result | Exception = work(workshop, key)
    except Exception as error:
        outcome = error
    return key, outcome, workshop.ledger, workshop.curves


def _own(runtime: Runtime, threads: int) -> Runtime:
    return replace(runtime, threads=threads, device=placed(runtime.device))
