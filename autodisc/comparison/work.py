"""What each kind of cell computes, through the stages that every command goes through.

    shared               the ranking, and the teacher's outputs on train: paid for once by whoever uses them
    search-NAME          a study; beside its result each candidate's loss to the teacher, on validation
    autodisc, pruned     the fixed schedule through what that study chose; plain: the same with a sandwich of one,
                         chain: with a second assistant, at the same steps
    balanced-SAMPLER     the same through what a study of sparsity and balance chose, in as many trials
    assistant-S          the fixed schedule through the assistant of sparsity S: a trial of maxidisc
    direct               no assistant, at a mean trial's compute
    released             the authors' algorithm (``released``)

A search and what is distilled from it share a folder under OUT/work, where an interrupted search goes on; it is removed
when they are done. Seconds are the process's own, with other cells beside it.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from autodisc import api
from autodisc.comparison.cells import Cell, Spent, assistant, fingerprints, read_cell, write_cell
from autodisc.comparison.config import ComparisonConfig
from autodisc.comparison.plan import CHAINS, SEARCHED, all_cells, recorded, teachers
from autodisc.comparison.released import distill_released
from autodisc.config import StudyConfig
from autodisc.costs import Ledger
from autodisc.distillation.losses import prediction_loss
from autodisc.distillation.schedule import Distilled
from autodisc.errors import StudyError, TrainingError
from autodisc.finished import RANKING, scorer
from autodisc.models.checkpoints import load
from autodisc.models.inference import evaluation_batch, forward, forward_macs, predict
from autodisc.models.layouts import encoder_parameters
from autodisc.models.reading import read
from autodisc.opening import open_workspace
from autodisc.preparing import check_varied, scored, scored_rows
from autodisc.pruning.ranking_files import read_ranking
from autodisc.reporting import units
from autodisc.reporting.records import latest, read_records
from autodisc.search.baselines import MultiTrial, distill_direct, fill_cache
from autodisc.search.evaluation import Opened
from autodisc.search.scorers import let_go
from autodisc.tasks.batches import batches
from autodisc.tasks.splits import Split
from autodisc.workspace import Workspace, describe_task

FINAL = "final evaluation"
Arrays = tuple[np.ndarray, np.ndarray]  # predictions (N,), of a search (K, N), and labels (N,)


def make_teacher(config: ComparisonConfig, label: str, out: Path) -> None:
    """Fine-tune the teacher of a task that says so, where it is not there yet; StudyError where it was otherwise."""
    entry = next(entry for entry in config.compare.tasks if entry.label == label)
    if entry.teacher.finetune is not None:
        api.finetune(config.teacher(entry), teachers(out) / label)


def prepare(config: ComparisonConfig, cell: Cell, out: Path) -> None:
    """Compute a shared cell where it is not recorded; data and teacher have to be what the task's records had."""
    settings = config.study(cell, teachers(out))
    space = open_workspace(settings)
    check_varied(space.task)
    of_task = recorded(config, [other for other in all_cells(config, out) if other.task == cell.task], out)
    then = {
        key: (old, record.path)
        for other, record in of_task.items()
        for _, key, old in fingerprints(other, record.values["data"], record.values["teacher"])
    }
    for what, key, new in fingerprints(cell, describe_task(space.task), space.made_teacher()):
        old, path = then.get(key, (new, None))
        if old != new:
            raise StudyError(
                f"{path}: was computed when {what} had fingerprint {old}, now it has {new}; give another --out"
            )
    work = MultiTrial(space.teacher, space.ranking(), space.candidates, space.student, settings.distillation)
    fill_cache(work, space.workshop)
    if cell not in of_task:
        teacher = {
            split.name: space.scores(_predictions(space, space.teacher, split), split)
            for split in (space.task.validation, space.task.final)
        }
        result = {"teacher": {"validation": teacher["validation"], "final": teacher[space.task.final.name]}}
        write_cell(out, cell, {**_made_by(space), "result": result, "cost": space.ledger.as_dict()})


def compute(config: ComparisonConfig, cell: Cell, out: Path) -> None:
    """Compute one cell of a student, and record it."""
    settings = config.study(cell, teachers(out))
    arrays: Arrays | None
    if cell.kind.startswith("search-"):
        values, arrays = _search(settings, study_folder(cell, out))
    elif cell.kind in SEARCHED:
        search = Cell(cell.task, cell.seed, cell.student, SEARCHED[cell.kind])
        values, arrays = _distil(config, cell, search, out)
    else:
        space = open_workspace(settings)
        space.ranking()
        _pay_ahead(space)
        result, arrays = _distil_here(space, cell.kind)
        values = {**_made_by(space), "result": result, "cost": space.ledger.as_dict()}
    write_cell(out, cell, values, arrays)


def study_folder(cell: Cell, out: Path) -> Path:
    return out / "work" / cell.folder / cell.kind


def clear(cell: Cell, out: Path) -> None:
    """Remove a job's folder, and those above it that hold no other."""
    folder = study_folder(cell, out)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: another job's
        for parent in [*folder.parents][: -len(out.parents) - 1]:
            parent.rmdir()


def _search(settings: StudyConfig, folder: Path) -> tuple[dict[str, Any], Arrays | None]:
    api.search(settings, folder)
    values = _kept(folder, "search")
    result = {name: value for name, value in values["result"].items() if name not in ("storage", "study")}
    if len(settings.search.balances) > 1:  # judged by its student alone
        return {**values, "result": result}, None
    space = open_workspace(settings)
    space.extra["ranking"], _ = read_ranking(folder / RANKING)
    losses, predictions = _candidates(space, scorer(space, folder))
    return {**values, "result": {**result, "losses": losses}}, (predictions, space.task.validation.labels)


def _candidates(space: Workspace, opened: Opened) -> tuple[dict[str, float], np.ndarray]:
    """By sparsity, how far each candidate's outputs are from the teacher's on the rows that trials are scored on
    (smooth, and without labels); and what it predicts on all of validation (K, N)."""
    split, task, runtime = space.task.validation, space.task, space.workshop.runtime
    seen = scored(space).task.validation
    scored_on = np.zeros(len(split), dtype=bool)
    scored_on[scored_rows(space)] = True
    losses = dict.fromkeys(space.candidates, 0.0)
    said: dict[float, list[np.ndarray]] = {sparsity: [] for sparsity in space.candidates}
    rows = []
    space.teacher.eval()
    at_once = evaluation_batch(split, task)
    for batch in batches(split, batch_size=at_once, pad_token_id=task.pad_token_id, generator=None):
        batch = batch.to(runtime.device)
        rows.append(batch.rows)
        theirs = torch.from_numpy(scored_on[batch.rows]).to(runtime.device)
        target = forward(space.teacher, batch, runtime=runtime, ledger=None, kind="teacher").float()[theirs]
        for sparsity, candidate in space.candidates.items():
            with opened(candidate) as model:
                model.eval()
                logits = forward(model, batch, runtime=runtime, ledger=None, kind=sparsity).float()
            if len(target):
                labels = batch.labels[theirs]
                loss = prediction_loss(logits[theirs], target, labels, temperature=1.0, count=seen.labelled)
                losses[sparsity] += float(loss)
            said[sparsity].append(read(logits, batch, split=split, task=task))
    let_go(opened)
    order = np.argsort(np.concatenate(rows))
    found = [np.concatenate(parts)[order] for parts in said.values()]
    return {f"{sparsity:g}": loss for sparsity, loss in losses.items()}, np.stack(found)


def _distil(config: ComparisonConfig, cell: Cell, search: Cell, out: Path) -> tuple[dict[str, Any], Arrays | None]:
    """The fixed schedule from a finished search; without a feasible candidate nothing, which the record says."""
    folder, settings = study_folder(search, out), config.study(cell, teachers(out))
    found = api.search(config.study(search, teachers(out)), folder)  # as it was found, where it is still there
    record = read_cell(out, search, config.study(search, teachers(out)).model_dump(mode="json"))
    if record is not None and _point(record.result["best"]) != _point(found["best"]):
        raise TrainingError(
            f"{record.path}: chose {_said(record.result['best'])}, the same search computed again"
            f" {_said(found['best'])}; remove that file and the records of {', '.join(CHAINS[search.kind])} beside it"
        )
    if found["best"] is None:
        nothing = {"config": settings.model_dump(mode="json"), "cost": Ledger().as_dict()}
        return {**_kept(folder, "search"), **nothing, "result": {"assistant": None}}, None
    made = api.distill(folder, config=settings)
    space = open_workspace(settings)
    student = load(made["student"]["path"]).to(space.workshop.runtime.device)  # type: ignore[arg-type]
    scores, arrays = _on_final(space, student)
    result = {
        **scores,
        "assistant": made["assistant"]["sparsity"],
        "assistant_balance": made["assistant"]["balance"],
        "assistant_metric": made["assistant"]["metric"],
        "validation_metric": made["student"]["validation_metric"],
    }
    values = _kept(folder, "distill")
    shutil.rmtree(Path(made["student"]["path"]).parent)
    return {**values, "result": result}, arrays


def _point(best: dict[str, Any] | None) -> tuple[float, float] | None:
    """Sparsity and balance of what a search chose."""
    return None if best is None else (best["sparsity"], best.get("balance", 0.0))


def _said(best: dict[str, Any] | None) -> str:
    return "nothing" if best is None else units.point(*_point(best))  # type: ignore[misc]


def _distil_here(space: Workspace, kind: str) -> tuple[dict[str, Any], Arrays]:
    config, ranking = space.config.distillation, space.ranking()
    through: Distilled | None = None
    extra: dict[str, Any] = {}
    if kind == "direct":
        student = distill_direct(space.teacher, ranking, space.candidates, space.student, config, space.workshop)
    elif kind == "released":
        before = _spent(space)
        made = distill_released(space)
        through, student = made.assistant, made.student
        extra["search"] = asdict(made.searched + before * -1.0)
    else:
        work = MultiTrial(space.teacher, ranking, space.candidates, space.student, config)
        by_kind = {assistant(sparsity): sparsity for sparsity in space.candidates}  # whose name may be rounded
        pair = work(space.workshop, by_kind[kind])
        through, student = pair.assistant, pair.student
    scores, arrays = _on_final(space, student.model)
    chosen = None if through is None else through.candidate.sparsity
    metric = None if through is None else through.metric
    own = {"assistant": chosen, "assistant_metric": metric, "validation_metric": student.metric}
    return {**scores, **own, **extra}, arrays


def _pay_ahead(space: Workspace) -> None:
    """The shared cell has paid for the ranking and the teacher's outputs; this one books what comes on top."""
    space.ledger.stages.pop("importance", None)
    with space.workshop.teacher(space.teacher, space.config.distillation):
        for rows in space.ledger.paid.values():
            rows[:] = True


def _on_final(space: Workspace, model: PreTrainedModel) -> tuple[dict[str, Any], Arrays]:
    model.to(space.workshop.runtime.device)  # type: ignore[arg-type]
    final = space.task.final
    with space.ledger.stage(FINAL):
        predictions = _predictions(space, model, final)
        size = {"params": encoder_parameters(model), "macs": forward_macs(model)}
        return {**space.scores(predictions, final), **size}, (predictions, final.labels)


def _predictions(space: Workspace, model: PreTrainedModel, split: Split) -> np.ndarray:
    return predict(model, split, task=space.task, runtime=space.workshop.runtime)


def _made_by(space: Workspace) -> dict[str, Any]:
    return {
        "config": space.config.model_dump(mode="json"),
        "data": space.made_task(),
        "teacher": space.made_teacher(),
        "environment": space.environment(),
    }


def _kept(folder: Path, kind: str) -> dict[str, Any]:
    """What ``api`` recorded last of this kind, as a cell keeps it."""
    record = latest(read_records([folder]), kind)
    assert record is not None, "it has just been written"
    values = record.values
    kept = {name: values[name] for name in ("config", "teacher", "environment", "result", "cost")}
    return {**kept, "data": values["task"]}


def _spent(space: Workspace) -> Spent:
    total = space.ledger.total
    return Spent(total.seconds, total.flops)
