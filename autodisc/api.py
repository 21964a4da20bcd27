"""The Python API: what each command of the CLI does, as a function of a configuration.

The main path reads like the paper: rank the teacher's units, nest the candidates, recover them together once,
let a study choose the assistant, distil teacher -> assistant -> student.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from autodisc import rehearsal
from autodisc.cards import write_cards
from autodisc.config import FREE, FREE_IN_BASELINE, FREE_IN_FINETUNING, JOURNAL, FinetuneConfig, StudyConfig
from autodisc.costs import save_ledger, take_paid
from autodisc.distillation.finetuning import finetune_classifier
from autodisc.distillation.launching import check_launched, check_shared, on_each_process
from autodisc.distillation.schedule import Distilled, distill_sandwich
from autodisc.errors import StudyError
from autodisc.files import disk_errors, is_free, refuse_here
from autodisc.finished import RANKING, Finished, open_finished, storage_of
from autodisc.models.checkpoints import load, load_model_config, save_model
from autodisc.opening import as_trained, open_workspace, settled
from autodisc.preparing import (
    check_varied,
    keep_ranking,
    made_of,
    mark,
    opened,
    own,
    scored,
    search_settings,
    study_name,
    take_ranking,
    told_before,
    with_student,
)
from autodisc.progress import Progress
from autodisc.pruning.candidates import Candidate, chain_from
from autodisc.pruning.ranking_files import read_ranking
from autodisc.reporting.records import Record
from autodisc.resuming import LEDGER, Place, clear_records, located, made, unfinished_teacher
from autodisc.search.assistants import run_study, search_result
from autodisc.search.baselines import MultiTrial, baseline_result, distill_direct, run_maxidisc
from autodisc.search.sharing import SharedStudy, publish
from autodisc.search.storage import Study, open_study
from autodisc.search.tradeoff import Score
from autodisc.showing import show_finished, show_maxidisc, show_search
from autodisc.tasks.answers import differing
from autodisc.tasks.metrics import decode
from autodisc.urls import public
from autodisc.working import is_shared, merge_ledgers, portable, take_trials
from autodisc.workspace import SET_UP, TEACHER_METRIC, Workspace, size

__all__ = ["baseline", "distill", "evaluate", "finetune", "load", "predict_search", "run", "search"]


@on_each_process("out")
def finetune(config: StudyConfig, out: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Make a teacher: fine-tune ``config.teacher.model`` on the task, keep the best epoch on validation, save it.

    The same call again goes on where it stopped, or returns the result.
    """
    refuse_here(out)
    settings, place = config.teacher.finetune or FinetuneConfig(), unfinished_teacher(out)
    with disk_errors(out.parent), place.alone(config, FREE_IN_FINETUNING, progress) as lease:
        done = made(out, "finetune", config, FREE_IN_FINETUNING)
        if done is not None:
            place.remove()
            return done
        if not place.exists() and not is_free(out):
            raise StudyError(f"{out}: holds something already; give --out an empty or a new folder, or --new")
        space = open_workspace(config, progress=progress, finetune=True)
        check_varied(space.task, final=False)
        with place.claimed(space) as space:
            finetune_classifier(space.teacher, settings, space.workshop)
            clear_records(out)  # of a run that was stopped while it wrote one
            save_model(space.teacher, space.tokenizer, out)
            with space.ledger.stage(TEACHER_METRIC):
                result = {"path": str(out), **space.evaluate(space.teacher, space.task.validation)}
            lease.check()
            space.record(out, "finetune", None, result)
        return {**result, "cost": space.ledger.as_dict()}


@on_each_process("out")
def search(config: StudyConfig, out: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Choose the teacher assistant in one study; the same call again goes on where it stopped, or returns the result.

    Raises StudyError when ``out`` holds a study made with another configuration.
    """
    config, place = settled(config), Place.of(out)
    check_launched(config)
    with disk_errors(out), place.alone(config, FREE, progress) as lease:
        done = made(out, "search")
        if done is not None:
            place.remove()
            return done
        space = open_workspace(config, progress=progress)
        check_varied(space.task)
        place.refuse_changed(space)
        storage, shared = storage_of(config, out), is_shared(config.search.storage)
        with place.working(space) as space:
            if (out / RANKING).exists():
                space.extra["ranking"], _ = read_ranking(out / RANKING)  # the ledger that was kept holds what it cost
            space = with_student(space, out)
            seen = scored(space)
            study = open_study(
                study_name(config),
                storage,
                fingerprint={**made_of(seen), **search_settings(config)},
                defaults=told_before(space),
                metric_name=f"{space.task.metric.name} + {config.search.lam:g}·sparsity",
                is_own=own(place),
                say=space.workshop.progress.say,
                heartbeat_s=config.search.heartbeat_s if shared else None,
            )
            place.claim(config, space)  # only now: a mistake in data, teacher or storage leaves nothing behind
            mark(study, place)
            if shared:
                publish(study, portable(config))
                if config.search.jobs > 1:
                    space.workshop.progress.say(
                        "search.jobs: one trial at a time in each process of a shared study; start more of them with"
                        " 'autodisc worker'"
                    )
            keep_ranking(space, out)
            teacher = _measure_teacher(seen, study)
            if not teacher.feasible(config.search.margin):
                rows, part = len(seen.task.validation), len(seen.task.validation) < len(space.task.validation)
                space.workshop.progress.say(
                    f"teacher: its {space.task.metric.name} of {teacher.metric:.3f} on {rows} rows of validation does"
                    f" not leave the floor of {teacher.floor:.3f}, so nothing can be learned from it; is it of this"
                    f" task, in these labels?{' More rows may tell: search.examples=all' if part else ''}"
                )
            live = show_search(study, space, out, teacher=teacher.metric, storage=storage)
            with space.ledger.stage(SET_UP):
                live.refresh()
            found, latency = opened(space, out), space.budgeted_latency
            if shared:
                take_trials(seen, SharedStudy.of(study, out, config), found, live)
                merge_ledgers(space.ledger, out)
            else:
                run_study(study, found, space.assistants, config.search, seen.workshop, latency=latency, watch=live)
            save_ledger(space.ledger, out / LEDGER)
            result = search_result(study, config.search, storage=public(storage))
            result["examples"] = len(seen.task.validation)
            result["projected_flops"] = live.about.projected_flops
            if config.budget is not None:
                result["student"] = {
                    **asdict(space.extra["student"]),
                    "budget": config.budget.model_dump(mode="json"),
                }
            feasible = teacher.feasible(config.search.margin)
            result["teacher"] = {"metric": teacher.metric, "feasible": feasible, **size(space.teacher)}
            lease.check()
            space.record(out, "search", "autodisc", result)
            live.refresh()
        return {**result, "cost": space.ledger.as_dict()}


def _measure_teacher(seen: Workspace, study: Study) -> Score:
    """On the rows that trials are scored on; once for a study, however often it is stopped."""
    told = study.user_attrs.get(TEACHER_METRIC)
    if told is None:
        with seen.ledger.stage(TEACHER_METRIC):
            scores = seen.evaluate(seen.teacher, seen.task.validation)
        seen.workshop.book()  # first: what is told has been booked
        told = {name: scores[name] for name in ("metric", "floor", "standard_error")}
        study.set_user_attr(TEACHER_METRIC, told)
    return Score(sparsity=0.0, **told)


def predict_search(config: StudyConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """What ``search`` would cost from nothing, from a few real batches; leaves tokens in the cache, and no study."""
    space = open_workspace(settled(config), progress=progress)
    with space.workshop.progress.stage("measuring", None):
        return {"predicted": rehearsal.predict_search(space)}


@on_each_process("study")
def distill(
    study: Path, *, config: StudyConfig | None = None, new: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """The fixed sandwich distillation from a finished search; ``config`` overrides the study's distillation settings.

    Saves assistant and student under ``study/distilled-N``. The same call again goes on where it stopped, or returns
    the result; with ``new`` it starts afresh beside it. Raises StudyError when nothing feasible was found.
    """
    finished = open_finished(study)
    config = finished.settled(config or finished.config)
    check_shared(config)
    chosen = finished.searched.result["best"]
    if chosen is None:
        raise StudyError(
            f"{study}: no candidate left the floor, so there is no assistant to distil through. Search again with more "
            "--recovery-steps or lower --sparsities, or distil without: autodisc baseline --strategy direct"
        )
    with disk_errors(study):
        done = None if new else _distilled_alike(finished, config)
        if done is not None:
            return done
        with finished.distilling(config, FREE, new=new, progress=progress) as (place, lease):
            done = None if new else _distilled_alike(open_finished(study), config)  # by who was waited for
            if done is not None:
                return done
            with place.claimed(finished.open(config, progress=progress)) as space:
                take_paid(space.ledger, study / LEDGER)  # rows that the recovery read
                result = _distil(space, finished, chosen, place.folder)
                lease.check()
                space.record(study, "distill", "autodisc", result)
                try:
                    show_finished(space, finished)
                except StudyError as error:  # a folder that was moved has left its storage's path
                    space.workshop.progress.say(f"the dashboard does not show the student: {error}")
        return {**result, "cost": space.ledger.as_dict()}


def _distilled_alike(finished: Finished, config: StudyConfig) -> dict[str, Any] | None:
    """What a distillation of these settings came to that is done."""
    alike = finished.distilled_alike(config, FREE)
    if alike is None:
        return None
    result = located(alike.result, finished.folder)
    Place.of(Path(result["student"]["path"]).parent).remove()
    return {**result, "cost": alike.values["cost"]}


def _distil(space: Workspace, finished: Finished, chosen: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Assistant and student through the chosen candidate, saved with their cards."""
    chain = chain_from(space.assistant(chosen), space.assistants, space.student)
    start = finished.cut(space, chain[0])
    schedule = distill_sandwich(
        space.teacher, start, space.ranking(), chain, space.config.distillation, space.workshop, space.student_model
    )
    result = _distilled_result(space, schedule.assistant, schedule.student, folder, finished.searched)
    result["between"] = [{**_point(d.candidate), "metric": d.metric} for d in schedule.between]
    result["latency"] = write_cards(space, "distill", "autodisc", _distilled_cards(result))
    return result


@on_each_process("out")
def baseline(config: StudyConfig, strategy: str, out: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """What autodisc is compared with: ``maxidisc`` (multi-trial search) or ``direct`` (no assistant)."""
    config, place = settled(config), Place.of(out / f"baseline-{strategy}")
    check_launched(config)
    with disk_errors(out), place.alone(config, FREE_IN_BASELINE, progress) as lease:
        done = made(out, "baseline", strategy=strategy)
        if done is not None:
            place.remove()
            return done
        space = open_workspace(config, progress=progress)
        check_varied(space.task)
        place.refuse_changed(space)
        with place.working(space) as space:
            take_ranking(space, out)
            space = with_student(space, out)
            place.claim(config, space)
            result = (_direct if strategy == "direct" else _maxidisc)(space, place.folder)
            if result["best"] is not None:
                write_cards(space, "baseline", strategy, _baseline_cards(space, result["best"]))
            lease.check()
            space.record(out, "baseline", strategy, result)
        return {**result, "cost": space.ledger.as_dict()}


def evaluate(config: StudyConfig, split: str = "validation", *, progress: Progress | None = None) -> dict[str, Any]:
    """Metrics of a saved model (``config.teacher.model``) on a split of its task, its texts cut as in its training
    unless ``config.task.max_length`` was given."""
    task = as_trained(config.task, load_model_config(config.teacher.model))
    space = open_workspace(config.model_copy(update={"task": task}), progress=progress)
    return space.evaluate(space.teacher, space.task.split(split))


@on_each_process("out")
def run(config: StudyConfig, out: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """All of a study: fine-tune where asked, search, distil, and the baselines. Finished parts are not run again."""
    results: dict[str, Any] = {}
    check_launched(config)
    if config.teacher.finetune is not None:
        teacher = out / "teacher"
        results["finetune"] = finetune(config, teacher, progress=progress)
        config = config.model_copy(
            update={"teacher": config.teacher.model_copy(update={"model": str(teacher), "finetune": None})}
        )
    results["search"] = search(config, out, progress=progress)
    if results["search"]["best"] is not None:
        results["distill"] = distill(out, progress=progress)
    for strategy in config.baseline.strategies:
        results[strategy] = baseline(config, strategy, out, progress=progress)
    return results


def _save(space: Workspace, distilled: Distilled, path: Path, *, student: bool = False) -> dict[str, Any]:
    other = space.other if student else None
    save_model(distilled.model, space.tokenizer if other is None else other.tokenizer, path)
    kept = distilled.candidate
    found = {"path": str(path), **_point(kept), **size(distilled.model)}
    if other is None:
        found["candidate"] = {"heads": list(kept.heads), "neurons": list(kept.neurons)}
    return found


def _point(kept: Candidate) -> dict[str, Any]:
    return {"sparsity": kept.sparsity, "balance": kept.balance}


def _distilled_result(
    space: Workspace, assistant: Distilled, student: Distilled, folder: Path, searched: Record
) -> dict[str, Any]:
    """Metrics, sizes and folders of all three; the teacher's on validation as searched, where that saw all of it."""
    task, told = space.task, searched.result["teacher"]["metric"]
    with space.ledger.stage("final evaluation"):
        answers, final = _final_answers(space, student.model)
        extra = {name: space.evaluate(student.model, split) for name, split in task.extra.items()}
        theirs, teachers = _final_answers(space, space.teacher)
        finals = {
            "teacher": teachers,
            "assistant": space.evaluate(assistant.model, task.final),
        }
        if searched.result.get("examples", len(task.validation)) < len(task.validation):
            told = space.evaluate(space.teacher, task.validation)["metric"]
    known = ("metric", "standard_error", "confusion")
    teacher: dict[str, Any] = {
        **{name: value for name, value in finals["teacher"].items() if name in known},
        "validation_metric": told,
        **size(space.teacher),
    }
    return {
        "assistant": {
            **_save(space, assistant, folder / "assistant"),
            "metric": assistant.metric,
            "final": finals["assistant"],
        },
        "student": {
            **_save(space, student, folder / "student", student=True),
            **final,
            "validation_metric": student.metric,
            "extra": extra,
        },
        "teacher": teacher,
        "differing": _differing(space, theirs, answers),
    }


def _final_answers(space: Workspace, model: PreTrainedModel) -> tuple[np.ndarray | None, dict[str, Any]]:
    """A model's logits (N, V) on the final split, where examples of it are to be shown, and its scores."""
    final, kind = space.task.final, space.task.kind
    if not space.config.reporting.examples or kind not in ("classification", "regression"):
        return None, space.evaluate(model, final)
    logits = space.logits(model, final)
    return logits, space.scores(decode(logits, kind), final)


def _differing(space: Workspace, teacher: np.ndarray | None, student: np.ndarray | None) -> dict[str, Any] | None:
    """Where the student decides otherwise than the teacher on the final split; None where nothing is to be kept."""
    if teacher is None or student is None:
        return None
    count = space.config.reporting.examples
    return differing(teacher, student, space.task.final, task=space.task, tokenizer=space.tokenizer, count=count)


def _distilled_cards(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Teacher, assistant and student as their cards show them: the metric is the final split's."""
    assistant = result["assistant"]
    return {
        "teacher": result["teacher"],
        "assistant": {**assistant, **assistant["final"], "validation_metric": assistant["metric"]},
        "student": result["student"],
    }


def _baseline_cards(space: Workspace, best: dict[str, Any]) -> dict[str, dict[str, Any]]:
    student = {
        **best,
        "sparsity": space.config.student,
        "metric": best["final_metric"],
        "validation_metric": best["student_metric"],
    }
    models = {"teacher": size(space.teacher), "student": student}
    if best["sparsity"] is not None:
        models["assistant"] = {"sparsity": best["sparsity"], "validation_metric": best["assistant_metric"]}
    return models


def _maxidisc(space: Workspace, place: Path) -> dict[str, Any]:
    storage = str((place / JOURNAL).resolve())
    study = open_study(
        f"{space.config.name}-{space.config.task.name}-maxidisc",
        storage,
        fingerprint=made_of(space),
        metric_name=f"student's {space.task.metric.name}",
        say=space.workshop.progress.say,
    )

    def keep(assistant: Distilled, student: Distilled) -> None:
        _save(space, assistant, place / "assistant")
        _save(space, student, place / "student", student=True)

    live = show_maxidisc(study, space, place, storage=storage)
    live.refresh()
    work = MultiTrial(
        space.teacher, space.ranking(), space.candidates, space.student, space.config.distillation, space.student_model
    )
    search = space.config.search
    run_maxidisc(
        study,
        work,
        space.workshop,
        keep,
        jobs=search.jobs,
        backend=search.backend,
        retries=search.retries,
        watch=live,
    )
    live.refresh()
    result = baseline_result(study, storage=storage)
    best = result["best"]
    if best is not None:
        best |= _final(space, load(place / "student"), place / "student")
    return {"strategy": "maxidisc", **result}


def _direct(space: Workspace, place: Path) -> dict[str, Any]:
    student = distill_direct(
        space.teacher,
        space.ranking(),
        space.candidates,
        space.student,
        space.config.distillation,
        space.workshop,
        space.student_model,
    )
    _save(space, student, place / "student", student=True)
    spent = space.ledger.total
    trial = {
        "number": 0,
        "state": "COMPLETE",
        "sparsity": None,
        "assistant_metric": None,
        "student_metric": student.metric,
        "seconds": spent.seconds,
        "flops": spent.flops,
    }
    best = {**trial, **_final(space, student.model, place / "student")}
    return {"strategy": "direct", "best": best, "trials": [trial], "storage": None, "study": None}


def _final(space: Workspace, model: PreTrainedModel, path: Path) -> dict[str, Any]:
    """The best student's figure on the final split, and its size."""
    model.to(space.workshop.runtime.device)  # type: ignore[arg-type]
    with space.ledger.stage("final evaluation"):
        final = space.evaluate(model, space.task.final)
    return {
        "final_metric": final["metric"],
        "floor": final["floor"],
        "metrics": final["metrics"],
        "split": final["split"],
        "standard_error": final["standard_error"],
        "confusion": final.get("confusion"),
        "path": str(path),
        **size(model),
    }
