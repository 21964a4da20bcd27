"""Any candidate of a finished study, or a student, as a folder that goes into production.

    autodisc    small and fast; opens by ``autodisc.load``, or by ``from_pretrained(…, trust_remote_code=True)``
    dense       the plain architecture, zeros where units were; opens anywhere, and is no faster than the teacher
    onnx        small and fast; opens in onnxruntime, and was compared with torch on the task's own texts

A candidate has the weights that the study scored: of the shared supernet, or, of the scorer ``pruned``, cut out of the
teacher and refitted. It was not distilled; what it is worth is measured on validation here.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autodisc.cards import write_cards
from autodisc.config import BATCH, LENGTH, BudgetConfig, StudyConfig
from autodisc.errors import ConfigError, StudyError
from autodisc.files import disk_errors, is_free, refuse_here
from autodisc.finished import Finished, open_finished
from autodisc.models.checkpoints import load, load_model, load_model_config, load_tokenizer, save_model
from autodisc.models.dense import to_dense
from autodisc.models.inference import evaluation_batch
from autodisc.models.latency import is_whole
from autodisc.models.onnx import MODEL, OnnxModel, export_onnx, quantize_int8, require_onnx, write_beside
from autodisc.models.reading import read
from autodisc.models.spreading import is_spread
from autodisc.opening import as_trained, open_workspace
from autodisc.progress import Progress, Silent
from autodisc.pruning.candidates import Candidate, candidate
from autodisc.reporting.model_card import CARD
from autodisc.search.budgets import allowed, grid, least_sparse
from autodisc.search.students import uses_of
from autodisc.search.tradeoff import Score
from autodisc.tasks.batches import batches
from autodisc.tasks.data import Split
from autodisc.workspace import Workspace, size

Format = Literal["autodisc", "dense", "onnx"]
INT8 = "model.int8.onnx"
COMPARED = 256  # rows of validation, of all lengths, on which another format's logits are compared


def candidates(
    study: Path,
    *,
    batch: int | None = None,
    length: int | None = None,
    config: StudyConfig | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Every candidate that a finished study measured, beside its teacher and its student: metric, size, latency.

    The latency is of a forward of ``batch`` rows of ``length`` tokens, those of the study's budget unless given,
    and predicted from the timings of the teacher's layers on this machine: none where the teacher is pruned itself, nor
    for a student of another architecture.
    """
    finished = open_finished(study)
    space = finished.open(config, progress=progress)
    result, budget = finished.searched.result, finished.config.budget
    batch = batch or (budget.batch if budget else BATCH)
    length = length or (budget.length if budget else LENGTH)
    timed = is_whole(space.teacher) and not is_spread(space.teacher)
    latency = space.latency(batch, length) if timed else None

    def row(each: Candidate, **others: Any) -> dict[str, Any]:
        (use,) = uses_of(space.teacher, [each], latency)
        return {**asdict(use), **others}

    rows = []
    for trial in result["trials"]:
        kept = trial["candidate"]
        facts = {name: trial.get(name) for name in ("state", "metric", "standard_error", "feasible")}
        facts["balance"] = trial.get("balance", 0.0)
        facts["chosen"] = result["best"] is not None and trial["number"] == result["best"]["number"]
        if kept is None:  # it failed
            rows.append({**dict.fromkeys(("params", "macs", "latency_ms")), "sparsity": trial["sparsity"], **facts})
        else:
            each = Candidate(trial["sparsity"], tuple(kept["heads"]), tuple(kept["neurons"]), facts["balance"])
            rows.append(row(each, **facts))
    student = row(space.student, metric=None, path=None)
    if space.other is not None:
        found = size(space.other.model)
        student |= {"params": found["params"], "macs": found["macs"], "latency_ms": None}
    if finished.distilled is not None:
        metric = finished.distilled.result["student"]["validation_metric"]
        student |= {"metric": metric, "path": str(finished.student)}
    low, high = _range(finished)
    return {
        "teacher": row(candidate(space.ranking(), 0.0), metric=result["teacher"]["metric"]),
        "candidates": rows,
        "student": student,
        "exportable": {"from": low, "to": high},
        "latency": {"batch": batch, "length": length, **_machine(space)},
    }


def export(
    study: Path,
    out: Path,
    *,
    sparsity: float | None = None,
    balance: float | None = None,
    budget: BudgetConfig | None = None,
    format: Format = "autodisc",
    int8: bool = False,
    opset: int | None = None,
    config: StudyConfig | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the candidate of a sparsity, or the least sparse within a budget, to the new folder ``out``.

    ``balance`` is one of the study's: its choice's, at the chosen sparsity, or the one nearest to 0, unless given.
    Without sparsity and budget, the student that was distilled last. Raises ConfigError for a sparsity or balance that
    the study has no weights for, or a budget that none of its candidates meets; StudyError where there is no study or
    no student.
    """
    _check(out, format, int8, opset)
    if sparsity is not None and budget is not None:
        raise ConfigError("sparsity: contradicts the budget, which is there to find it; give one of the two")
    finished, since = open_finished(study), time.perf_counter()
    low, high = _range(finished)
    if sparsity is not None and not low <= sparsity <= high:
        raise ConfigError(
            f"sparsity: got {sparsity:g}; {study} has weights from {low:g} to {high:g}. Give one of these, or search"
            " with other sparsities"
        )
    if sparsity is None and budget is None and finished.student is None:
        raise StudyError(
            f"{study}: no student was distilled yet; give a sparsity from {low:g} to {high:g} or a budget, or run"
            f" 'autodisc distill --study {study}' first"
        )
    balance = _balance(finished, sparsity, balance)
    space = finished.open(config, progress=progress)
    facts: dict[str, Any] = {}
    card: Path | None = None

    def cut(point: float) -> Candidate:
        return candidate(space.ranking(), point, balance=balance, student=space.student.sparsity)

    if budget is not None:
        latency = None if budget.latency_ms is None else space.latency(budget.batch, budget.length)
        points = [cut(point) for point in grid(low, high)]
        limits = allowed(budget)
        use = least_sparse(uses_of(space.teacher, points, latency), limits, of="candidate of the study")
        sparsity, facts["used"] = use.sparsity, {**asdict(use), "budget": budget.model_dump(mode="json")}
    if sparsity is not None:
        facts |= {"source": finished.config.search.scorer, "sparsity": sparsity, "balance": balance}
        with space.workshop.progress.stage("cutting", None):
            model, tokenizer = finished.cut(space, cut(sparsity)), space.tokenizer
    else:
        assert finished.student is not None
        assert finished.distilled is not None
        facts |= {"source": str(finished.student), "sparsity": finished.distilled.result["student"]["sparsity"]}
        model, tokenizer, card = load(finished.student), load_tokenizer(finished.student), finished.student / CARD
    facts["teacher"] = finished.searched.result["teacher"]
    return _export(model, tokenizer, space, out, facts, since, format=format, int8=int8, opset=opset, card=card)


def export_model(
    model: str | Path,
    out: Path,
    *,
    format: Format,
    int8: bool = False,
    opset: int | None = None,
    config: StudyConfig | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a model's folder as another format. ``config``, whose teacher it is, has the task to measure it on.

    Raises ConfigError for onnx without ``config``: a file is compared with torch on real texts before it is given out.
    """
    _check(out, format, int8, opset)
    since = time.perf_counter()
    if format == "autodisc":
        raise ConfigError(f"format: {model} is a model's folder already; copy it, or give dense or onnx")
    if format == "onnx" and config is None:
        raise ConfigError("format: onnx is compared with torch on real texts; give the task and its data too")
    facts = {"source": str(model)}
    if config is None:
        found = load_model(model)
        return _export(found, load_tokenizer(model), None, out, facts, since, format=format)
    if config.teacher.device_map is not None:
        raise ConfigError("teacher.device_map: a model that is exported is opened whole; leave the map out")
    config = config.model_copy(update={"task": as_trained(config.task, load_model_config(model))})
    space = open_workspace(config, progress=progress)
    return _export(space.teacher, space.tokenizer, space, out, facts, since, format=format, int8=int8, opset=opset)


def _check(out: Path, format: str, int8: bool, opset: int | None) -> None:
    if format not in get_args(Format):
        raise ConfigError(f"format: got '{format}'; expected {', '.join(get_args(Format))}")
    if format != "onnx" and (int8 or opset is not None):
        raise ConfigError(f"{'int8' if int8 else 'opset'}: is for format onnx, not for {format}")
    if format == "onnx":
        require_onnx()
    if not is_free(out):
        raise StudyError(f"{out}: holds something already; give --out an empty or a new folder")
    refuse_here(out)


def _range(finished: Finished) -> tuple[float, float]:
    """The sparsities that a study has weights for; what is cut and refitted may have any."""
    if finished.config.search.scorer == "recovered":
        return min(finished.config.assistant_sparsities), finished.config.student
    return 0.01, 0.99


def _balance(finished: Finished, sparsity: float | None, balance: float | None) -> float:
    """What was asked for, or what stands for it; ConfigError where the study has no such candidates."""
    known, best = finished.config.search.balances, finished.searched.result["best"]
    if balance is not None:
        if sparsity is None:
            raise ConfigError("balance: is of the candidate of a sparsity; give --sparsity too")
        if balance not in known:
            raise ConfigError(f"balance: got {balance:g}; the study has {', '.join(f'{b:g}' for b in known)}")
        return balance
    if best is not None and best["sparsity"] == sparsity:
        return float(best.get("balance", 0.0))
    return min(known, key=abs)


def _export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    space: Workspace | None,
    out: Path,
    facts: dict[str, Any],
    since: float,
    *,
    format: Format,
    int8: bool = False,
    opset: int | None = None,
    card: Path | None = None,
) -> dict[str, Any]:
    """Measure, write under a temporary name, rename: there is a whole folder or none."""
    progress = space.workshop.progress if space else Silent()
    result: dict[str, Any] = {"path": str(out), "format": format, **facts, **size(model)}
    if space is not None and format != "onnx":
        model.to(space.workshop.runtime.device)  # type: ignore[arg-type]
        with progress.stage("validation", None):
            result |= space.evaluate(model, space.task.validation)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    with disk_errors(out), progress.stage(f"writing {format}", None):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            if format == "onnx":
                assert space is not None, "refused before"
                result |= _write_onnx(model, tokenizer, space, partial, int8=int8, opset=opset)
            else:
                written = to_dense(model) if format == "dense" else model
                if space is not None and format == "dense":
                    result["max_difference"] = _difference(model, written, space)
                save_model(written, tokenizer, partial)
            if format == "autodisc":
                _write_card(partial, result, space, card)
            result["bytes"] = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
            out.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    if space is not None:
        score = Score(result.get("sparsity", 0.0), *(result[name] for name in ("metric", "floor", "standard_error")))
        result["feasible"] = score.feasible(space.config.search.margin)
    return {**result, "seconds": time.perf_counter() - since}


def _write_card(folder: Path, result: dict[str, Any], space: Workspace | None, card: Path | None) -> None:
    """A distilled student's own card; of a candidate that was cut out, what is known of it."""
    if card is not None and card.is_file():
        shutil.copy(card, folder / CARD)
    elif space is not None and "teacher" in result:
        names = ("sparsity", "params", "total_params", "macs")
        student = {"path": folder, "validation_metric": result["metric"], **{name: result[name] for name in names}}
        sizes = {name: value for name, value in result["teacher"].items() if name != "metric"}
        models = {"teacher": {**sizes, "validation_metric": result["teacher"]["metric"]}, "student": student}
        write_cards(space, "export", result["source"], models)


def _write_onnx(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    space: Workspace,
    folder: Path,
    *,
    int8: bool,
    opset: int | None,
) -> dict[str, Any]:
    """The ONNX file with tokenizer and configuration beside it; its metric on validation, in onnxruntime."""
    made = export_onnx(model, folder / MODEL, batches=_texts(space), opset=opset)
    file = OnnxModel(made.path, threads=space.workshop.runtime.threads)
    task, longest = space.task, space.config.task.max_length
    write_beside(folder, model, tokenizer, max_length=longest, inputs=file.inputs, texts=task.texts)
    result = {"opset": made.opset, "max_difference": made.max_difference, **_scores(file, space)}
    if int8:
        path = quantize_int8(made.path, folder / INT8)
        small = OnnxModel(path, threads=space.workshop.runtime.threads)
        result["int8"] = {"file": INT8, "bytes": path.stat().st_size, **_scores(small, space)}
    return result


def _scores(file: OnnxModel, space: Workspace) -> dict[str, Any]:
    """What an ONNX file is worth on validation, in onnxruntime."""
    split = space.task.validation
    task, rows, said = space.task, list[np.ndarray](), list[np.ndarray]()
    at_once = evaluation_batch(split, task)
    for batch in batches(split, batch_size=at_once, pad_token_id=task.pad_token_id, generator=None):
        logits = file.logits({name: x.numpy() for name, x in batch.inputs.items()})
        said.append(read(torch.from_numpy(logits), batch, split=split, task=task))
        rows.append(batch.rows)
    return space.scores(np.concatenate(said)[np.argsort(np.concatenate(rows))], split)


def _texts(space: Workspace) -> Iterator[dict[str, torch.Tensor]]:
    """Real inputs of every length that validation has."""
    split: Split = space.task.validation
    rows = split.select(np.unique(np.linspace(0, len(split) - 1, COMPARED).round().astype(int)))
    for batch in batches(rows, batch_size=32, pad_token_id=space.task.pad_token_id, generator=None):
        yield batch.inputs


def _difference(model: PreTrainedModel, other: PreTrainedModel, space: Workspace) -> float:
    """The largest between two models' logits, in fp32 on real texts."""
    largest = 0.0
    for each in (model, other):
        each.eval()
    with torch.inference_mode():
        for inputs in _texts(space):
            moved = {name: x.to(model.device) for name, x in inputs.items()}
            largest = max(largest, float((model(**moved).logits - other(**moved).logits).abs().max()))
    return largest


def _machine(space: Workspace) -> dict[str, Any]:
    environment = space.environment()
    return {name: environment[name] for name in ("hardware", "device", "precision", "threads", "torch")}
