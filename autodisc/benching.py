"""What students gain on this machine: latency and throughput of several models, in turn, and why it is not more.

achieved = speed-up over the first model / reduction of the encoder's MACs against it

Runtimes: eager (the model's modules in torch), written (``models/written.py``, in torch), compile (torch.compile of the
modules), onnx (written, in onnxruntime). Both sides of a speed-up are in the same runtime. MACs are the modules':
written and onnx, which leave out what no classifier reads, may achieve more than all.

A model's encoder shrinks, its embeddings and its classifier do not: their shares of the time are shown.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from autodisc.config import RuntimeConfig, StudyConfig
from autodisc.errors import ConfigError
from autodisc.models.checkpoints import load_model, load_model_config, load_tokenizer, trained_texts
from autodisc.models.inference import ForwardFlops, count_forward
from autodisc.models.latency import TURNS, Work, longest_input, random_inputs, settle_on, shares, take_turns
from autodisc.models.layouts import blocks, encoder_parameters
from autodisc.models.runners import KINDS, Absent, Runner, runners
from autodisc.opening import cache_folder, label_names
from autodisc.progress import Progress, Silent
from autodisc.reporting.records import environment
from autodisc.runtime import Runtime, make_runtime
from autodisc.tasks.batches import batches
from autodisc.tasks.data import load_task

REAL = "real"  # the lengths of the task's validation
BATCHES, LENGTHS = (1, 8, 32), (16, 64, 128)
REAL_BATCHES = 64  # different ones at most; a turn goes on where the one before it stopped
Inputs = Sequence[Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Row:
    """One model in one runtime at one shape."""

    model: str
    runtime: str
    batch: int
    length: int | str
    median_ms: float
    p95_ms: float
    rows_per_s: float
    times_as_fast: float  # as the first model in the same runtime
    as_the_first: float  # times as fast as the first model in the first runtime
    mac_reduction: float  # of the encoder
    achieved: float  # of the MAC reduction
    embedding_share: float | None = None  # of the time, in eager
    encoder_share: float | None = None
    classifier_share: float | None = None


def bench(
    models: Sequence[str | Path],
    *,
    config: StudyConfig | None = None,
    runtimes: Sequence[str] = KINDS,
    batch_sizes: Sequence[int] = BATCHES,
    lengths: Sequence[int | str] = LENGTHS,
    turns: int = TURNS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time ``models``; the first is what the others are compared with.

    ``lengths`` are tokens, or "real" for batches of the validation of ``config``'s task. A runtime that is not to be
    had is left out, with a line; raises ConfigError where none is left, or for a length that has no positions.
    """
    progress = progress or Silent()
    for name in runtimes:
        if name not in KINDS:
            raise ConfigError(f"runtimes: got '{name}'; expected {', '.join(KINDS)}")
    ready = make_runtime(config.runtime if config else RuntimeConfig())
    names = _names(models)
    with progress.stage("loading", None):
        opened = {name: load_model(model) for name, model in zip(names, models, strict=True)}
        for each in opened.values():
            if (
                getattr(each.config, "pad_token_id", 0) is None
            ):  # which a decoder's classifier asks for before it takes two rows
                each.config.pad_token_id = -1  # no token is padding
            each.to(ready.device)  # type: ignore[arg-type]
    _check_inputs(opened, lengths)
    flops = {name: _counted(model) for name, model in opened.items()}
    real: dict[int, Inputs] = {}
    if REAL in lengths:
        if config is None:
            raise ConfigError("lengths: 'real' takes a task's own texts; give one, or leave it out")
        real = _real_inputs(models[0], config, batch_sizes, ready, progress)
    first = opened[names[0]]
    cells: dict[tuple[int, int | str], Inputs] = {
        (batch, length): real[batch] if isinstance(length, str) else [random_inputs(first, batch, length, ready.device)]
        for batch in batch_sizes
        for length in lengths
    }

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        made, left_out = _prepare(runtimes, opened, cells, ready, Path(folder), progress)
        with progress.stage("timing", len(cells)) as bar:
            for (batch, length), inputs in cells.items():
                found = _timed(made, batch, length, inputs, flops, ready, turns)
                rows += [_with_shares(row, opened[row.model], inputs, ready) for row in found]
                bar.advance()
    rows.sort(key=lambda row: list(runtimes).index(row.runtime))  # stable: by runtime, then by shape
    parameters = {name: encoder_parameters(model) for name, model in opened.items()}
    return {
        "models": [
            {
                "name": name,
                "path": str(model),
                "encoder_parameters": parameters[name],
                "of_the_first": parameters[name] / parameters[names[0]],
                "parameters": sum(p.numel() for p in opened[name].parameters()),
                "heads": [block.heads for block in blocks(opened[name])],
                "neurons": [block.neurons for block in blocks(opened[name])],
            }
            for name, model in zip(names, models, strict=True)
        ],
        "rows": [asdict(row) for row in rows],
        "left_out": left_out,
        "turns": turns,
        "task": config.task.name if real and config else None,
        "environment": {
            **environment(device=str(ready.device), precision=ready.precision, threads=ready.threads),
            **({"onnxruntime": importlib.metadata.version("onnxruntime")} if _used(rows, "onnx") else {}),
        },
    }


def _prepare(
    runtimes: Sequence[str],
    models: Mapping[str, PreTrainedModel],
    cells: Mapping[tuple[int, int | str], Inputs],
    ready: Runtime,
    folder: Path,
    progress: Progress,
) -> tuple[dict[tuple[str, str], Runner], dict[str, str]]:
    """What to run, by runtime and model, and why a runtime is left out; raises ConfigError where all are."""
    made: dict[tuple[str, str], Runner] = {}
    left_out: dict[str, str] = {}
    for kind in runtimes:
        try:
            with progress.stage(f"preparing {kind}", None):
                found = runners(kind, models, [each[0] for each in cells.values()], ready, folder)
        except Absent as error:
            left_out[kind] = str(error)
            progress.say(f"{kind}: left out; {error}")
        else:
            made |= {(kind, name): run for name, run in found.items()}
    if not made:
        raise ConfigError(f"runtimes: {'; '.join(f'{kind}: {why}' for kind, why in left_out.items())}")
    return made, left_out


def _timed(
    made: Mapping[tuple[str, str], Runner],
    batch: int,
    length: int | str,
    inputs: Inputs,
    flops: Mapping[str, ForwardFlops],
    ready: Runtime,
    turns: int,
) -> list[Row]:
    """Every model in every runtime at one shape; MACs are those of the encoder on the very inputs."""
    with torch.inference_mode(), ready.autocast():
        works = {key: _by_number(run, inputs) for key, run in made.items()}
        timings = take_turns(works, turns=turns, settle=settle_on(ready.device))
    first = next(iter(timings))
    macs = {name: sum(_encoder(flops[name], *each["input_ids"].shape) for each in inputs) for _, name in timings}
    rows = []
    for (kind, name), timing in timings.items():
        fast = timing.times_as_fast(timings[kind, first[1]])
        reduction = macs[first[1]] / max(1, macs[name])
        rows.append(
            Row(
                model=name,
                runtime=kind,
                batch=batch,
                length=length,
                median_ms=timing.median_ms,
                p95_ms=timing.p95_ms,
                rows_per_s=batch * len(timing.calls) / sum(timing.calls),
                times_as_fast=fast,
                as_the_first=timing.times_as_fast(timings[first]),
                mac_reduction=reduction,
                achieved=fast / reduction,
            )
        )
    return rows


def _by_number(run: Runner, inputs: Inputs) -> Work:
    return lambda number: run(inputs[number % len(inputs)])


def _with_shares(row: Row, model: PreTrainedModel, inputs: Inputs, ready: Runtime) -> Row:
    if row.runtime != "eager":
        return row
    found = shares(model, inputs[:8], ready)
    return replace(row, embedding_share=found.embedding, encoder_share=found.encoder, classifier_share=found.classifier)


def _names(models: Sequence[str | Path]) -> list[str]:
    """The last parts of the paths, so many that no two are alike."""
    parts = [Path(model).parts for model in models]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError(f"model: {models[0]} is given twice; leave one out")


def _check_inputs(models: Mapping[str, PreTrainedModel], lengths: Sequence[int | str]) -> None:
    """All models are given the first one's tokens."""
    for name, model in models.items():
        if model.main_input_name != "input_ids":
            kind = model.config.model_type
            raise ConfigError(f"model: {name} is a {kind}, which reads {model.main_input_name}; only text is timed")
    first, known = next((name, model.config.vocab_size) for name, model in models.items())
    for name, model in models.items():
        if (words := model.config.vocab_size) < known:
            raise ConfigError(
                f"model: {name} knows {words} tokens, {first}, whose tokens all are given, {known}; give it first"
            )
        most = longest_input(model)
        for length in lengths:
            if isinstance(length, int) and most is not None and length > most:
                raise ConfigError(f"lengths: got {length}; {name} has positions for {most} tokens")


def _counted(model: PreTrainedModel) -> ForwardFlops:
    return count_forward(model, random_inputs(model, 1, 8, model.device))


def _encoder(flops: ForwardFlops, rows: int, length: int) -> int:
    """MACs of the layers on a batch."""
    return (flops.of(rows, length) - rows * flops.head) // 2


def _real_inputs(
    model: str | Path,
    config: StudyConfig,
    sizes: Sequence[int],
    ready: Runtime,
    progress: Progress,
) -> dict[int, Inputs]:
    """By batch size, batches of the task's validation in a random order: texts of like length together."""
    tokenizer = load_tokenizer(model)
    told = load_model_config(model)
    task = load_task(
        config.task,
        tokenizer,
        seed=ready.seed,
        cache_dir=cache_folder(config) / "data",
        label_names=label_names(told),
        texts=trained_texts(told),
        progress=progress,
    )
    found: dict[int, Inputs] = {}
    for size in sizes:
        made = batches(task.validation, batch_size=size, pad_token_id=task.pad_token_id, generator=None)
        full = [batch for batch in made if len(batch) == size]
        if not full:
            raise ConfigError(f"batches: got {size}; validation has {len(task.validation)} rows, give no more")
        order = ready.generator("bench", size).permutation(len(full))[:REAL_BATCHES]
        found[size] = [full[i].to(ready.device).inputs for i in order]
    return found


def _used(rows: Sequence[Row], kind: str) -> bool:
    return any(row.runtime == kind for row in rows)
