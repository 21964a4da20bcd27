"""Training on the processes that ``accelerate launch`` starts: each runs the whole command, and shares a step's rows.

gradient of a step = Σ over processes, each of its own rows;  the loss likewise

Every row's share of a step's totals is fixed beforehand (training.py), so the sum is what one process adds up, in
another order. All else is drawn from the same seeds, and is the same in each. Process 0 is the command; the others work
in a copy of its folder, which is thrown away, and say nothing. With FSDP they hold shards of what is trained
(sharding.py), and gradients are summed on the way.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from autodisc.config import StudyConfig
from autodisc.costs import Cost, Ledger
from autodisc.errors import ConfigError, StudyError
from autodisc.leases import held_by
from autodisc.progress import Silent
from autodisc.tasks.batches import Batch

LOADED_BY_FIRST = "FSDP_CPU_RAM_EFFICIENT_LOADING"
# Of FSDP's options: what is not done here, and who does it.
NOT_OURS = (
    ("FSDP_VERSION", "1", "give --fsdp_version 2"),
    ("FSDP_OFFLOAD_PARAMS", "true", "leave --fsdp_offload_params out, and start more processes"),
    ("FSDP_ACTIVATION_CHECKPOINTING", "true", "leave it out, and give --set runtime.checkpointing=true"),
)
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
_inside = contextvars.ContextVar("inside", default=False)  # a command that is part of another has its folder


def processes() -> int:
    """How many were launched together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def shards() -> bool:
    """Whether launched processes are to hold shards of what is trained: `accelerate launch --use_fsdp`."""
    return processes() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")


def is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def check_launched(config: StudyConfig) -> None:
    """Raise ConfigError where launched processes would start others, or meet in a storage; or as ``check_shared``."""
    search = config.search
    if processes() > 1 and (search.jobs > 1 or search.backend != "loky" or search.storage is not None):
        raise ConfigError(
            "accelerate launch: shares a training's rows among processes; leave out --workers, --backend and --storage,"
            " or start autodisc without it"
        )
    check_shared(config)


def check_shared(config: StudyConfig) -> None:
    """Raise ConfigError for a student that has no layers in shards, or a teacher on GPUs that are other processes'."""
    if shards() and config.student_model is not None:
        raise ConfigError(
            "accelerate launch: got FSDP, but a student of another architecture (student_model) is trained whole; use"
            " --multi_gpu"
        )
    if processes() > 1 and config.teacher.device_map is not None:
        asked = config.teacher.device_map
        devices = [
            place for place in (asked.values() if isinstance(asked, dict) else [asked]) if place not in ("cpu", "disk")
        ]
        if devices:
            raise ConfigError(
                f"teacher.device_map: got '{devices[0]}', but each launched process has one GPU and opens the teacher"
                " itself; give a mapping to cpu and disk, or start autodisc without accelerate launch"
            )


def check_options() -> None:
    """Raise ConfigError for what `accelerate launch` was asked of FSDP and is not done here."""
    for variable, wrong, way_out in NOT_OURS if shards() else ():
        if os.environ.get(variable, "").lower() == wrong:
            raise ConfigError(f"accelerate launch: got FSDP with {variable.lower()}={wrong}; {way_out}")


def own_rows(batch: Batch, accelerator: Accelerator) -> list[Batch]:
    """This process's rows of a step; none where there are fewer rows than processes."""
    parts = batch.split(accelerator.num_processes)
    return parts[accelerator.process_index : accelerator.process_index + 1]


def micro_batches(
    batch: Batch, parts: int, accelerator: Accelerator, *, in_step: bool
) -> Iterator[tuple[Batch, float]]:
    """This process's rows of a step in at most ``parts``, and what each counts: 1.

    Where all processes are to make as many calls, who has fewer makes up for it by rows that count nothing.
    """
    own = [micro for rows in own_rows(batch, accelerator) for micro in rows.split(parts)]
    yield from ((micro, 1.0) for micro in own)
    if in_step:
        most = min(parts, max(len(rows) for rows in batch.split(accelerator.num_processes)))
        row = batch.split(len(batch))[0]
        yield from itertools.repeat((row, 0.0), most - len(own))


def summed(loss: float, parameters: Sequence[torch.nn.Parameter], accelerator: Accelerator) -> float:
    """Make every process's gradients the sum of all, and return the sum of the losses."""
    if accelerator.num_processes == 1:
        return loss
    own = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([*(grad.flatten() for grad in own), own[0].new_tensor([loss])])
    total: torch.Tensor = accelerator.reduce(flat, reduction="sum")
    for parameter, grad in zip(parameters, total[:-1].split([p.numel() for p in parameters]), strict=True):
        parameter.grad = grad.view_as(parameter)
    return float(total[-1])


@contextlib.contextmanager
def all_costs(ledger: Ledger, accelerator: Accelerator) -> Iterator[None]:
    """Book what the other processes spend in the body, too: seconds are the sum, and the clock's go on as they are."""
    before = {name: replace(cost) for name, cost in ledger.stages.items()}
    yield
    if accelerator.num_processes == 1:
        return
    spent = {name: cost.since(before.get(name, Cost())) for name, cost in ledger.stages.items()}
    for number, theirs in enumerate(gather_object([spent])):
        if number != accelerator.process_index:
            other = Ledger()
            other.stages = theirs
            ledger.merge(other, 0.0)


def on_each_process(folder: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Of a command: let it run on every process, each in a ``folder`` (the parameter's name) of its own."""

    def decorate(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        signature = inspect.signature(command)

        @functools.wraps(command)
        def wrapped(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
            if processes() == 1 or _inside.get():
                return command(*arguments, **named)
            check_options()
            given = signature.bind(*arguments, **named)
            token = _inside.set(True)
            try:
                with _own_folder(given.arguments[folder]) as own:
                    given.arguments[folder] = own
                    if not is_first():
                        given.arguments["progress"] = Silent()
                    return command(*given.args, **given.kwargs)
            finally:
                _inside.reset(token)

        return wrapped

    return decorate


@contextlib.contextmanager
def _own_folder(folder: Path) -> Iterator[Path]:
    """The folder itself in the first process; a copy of it, with what lies unfinished beside it, in the others."""
    state = PartialState(cpu=not torch.cuda.is_available())
    _refuse_in_use(folder)
    with tempfile.TemporaryDirectory(prefix="autodisc-process-") as name:
        if is_first():
            own = folder
        else:
            own = Path(name) / folder.resolve().name
            for beside in folder.resolve().parent.glob(f"{own.name}*"):
                if beside.is_dir() and beside.name in (own.name, f"{own.name}.unfinished"):
                    shutil.copytree(beside, Path(name) / beside.name, ignore=shutil.ignore_patterns("*.lease"))
        state.wait_for_everyone()  # the copy is of what was there before anybody began
        try:
            with _all_save(), _all_load():
                yield own
        finally:
            if torch.distributed.is_initialized() and sys.exc_info()[0] is None:
                state.wait_for_everyone()


def _refuse_in_use(folder: Path) -> None:
    """Raise StudyError where another command works in ``folder``: to wait for it each process would have to know of it,
    and then copy what it left."""
    beside = [path.with_suffix(".lease") for path in folder.resolve().parent.glob(f"{folder.name}.unfinished")]
    for path in (*folder.glob("running.lease"), *folder.glob("*/running.lease"), *beside):
        if (who := held_by(path)) is not None:
            raise StudyError(f"{folder}: {who} works in it; wait for it, or give another --out")


@contextlib.contextmanager
def _all_load() -> Iterator[None]:
    """With FSDP transformers fills the weights of the first process's models alone, for accelerate to send; and spreads
    no teacher. Ours are each opened whole."""
    former = os.environ.get(LOADED_BY_FIRST)
    os.environ[LOADED_BY_FIRST] = "false"
    try:
        yield
    finally:
        if former is None:
            del os.environ[LOADED_BY_FIRST]
        else:
            os.environ[LOADED_BY_FIRST] = former


@contextlib.contextmanager
def _all_save() -> Iterator[None]:
    """transformers lets the first process alone save a model; ours have a folder each, and read from it."""
    first_alone = PreTrainedModel.should_save_on_this_rank
    PreTrainedModel.should_save_on_this_rank = lambda self, is_main_process: is_main_process  # type: ignore[method-assign]
    try:
        yield
    finally:
        PreTrainedModel.should_save_on_this_rank = first_alone  # type: ignore[method-assign]
