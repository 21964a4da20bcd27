"""What a search has before its first trial: the order of the units, the student, the recovered supernet.

Each is made once for a study's folder, by whichever process comes first, and kept there for the others and for later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autodisc.config import (
    CONFIG,
    FREE,
    FREE_IN_BASELINE,
    DistillationConfig,
    SearchConfig,
    StudyConfig,
    differences,
    flatten,
    read_config,
    scored_examples,
    upgraded,
)
from autodisc.distillation.schedule import recover, recovery_steps
from autodisc.errors import DataError
from autodisc.finished import RANKING, SUPERNET, has_supernet, scorer, storage_of
from autodisc.leases import once
from autodisc.models.checkpoints import save_model, settings_digest
from autodisc.pruning.candidates import Ranking, envelope
from autodisc.pruning.ranking_files import RANKING_PAID, read_ranking, write_ranking
from autodisc.pruning.supernet import Supernet
from autodisc.resuming import TOKEN, Place
from autodisc.search.evaluation import Opened
from autodisc.search.patience import MISSED
from autodisc.search.scorers import Slices
from autodisc.search.storage import FOLDER, Study
from autodisc.search.students import fingerprint, known_student, run_students, students
from autodisc.tasks.data import Task
from autodisc.tasks.drawing import draw_part, least_rows
from autodisc.tasks.splits import Split
from autodisc.workspace import Workspace

TEACHER_SETTINGS = "teacher settings"


def made_of(space: Workspace) -> dict[str, Any]:
    return {
        "teacher": space.teacher_fingerprint,
        TEACHER_SETTINGS: settings_digest(space.teacher),
        "train": space.task.train.fingerprint,
        "validation": space.task.validation.fingerprint,
        "student_sparsity": space.config.student,
        "seed": space.config.runtime.seed,
    }


def search_settings(config: StudyConfig) -> dict[str, Any]:
    """What decides a trial beside model and rows: a storage may hold a study of the same name made otherwise."""
    settings = flatten(config.model_dump(mode="json", include={"search", "distillation"}))
    return {name: value for name, value in settings.items() if name not in FREE}


def told_before(space: Workspace) -> dict[str, Any]:
    """What a study of before some setting came had of it: its trials were scored on all rows."""
    whole = len(scored_rows(space)) == len(space.task.validation)
    had = {**_default_settings(), **flatten(upgraded({})), TEACHER_SETTINGS: settings_digest(space.teacher)}
    return {**had, "search.examples": space.config.search.examples} if whole else had


def _default_settings() -> dict[str, Any]:
    """The settings of a study that sets nothing."""
    sections = {"search": SearchConfig(), "distillation": DistillationConfig()}
    return flatten({name: section.model_dump(mode="json") for name, section in sections.items()})


def own(place: Place) -> Callable[[Study], bool]:
    """Whether a study in a storage is the folder's: its trials were measured with what lies there."""

    def is_own(study: Study) -> bool:
        token = (place.made_of or {}).get(TOKEN)
        if FOLDER in study.user_attrs:
            return bool(study.user_attrs[FOLDER] == token)
        return (place.folder / CONFIG).exists() or not study.get_trials(deepcopy=False)  # of before there were tokens

    return is_own


def mark(study: Study, place: Place) -> None:
    """Make a study its folder's, which is claimed."""
    token = (place.made_of or {}).get(TOKEN)
    if FOLDER not in study.user_attrs and token is not None:
        study.set_user_attr(FOLDER, token)


def lease_s(config: StudyConfig) -> float:
    """After how many seconds without a sign of life another process takes over."""
    return float(MISSED * config.search.heartbeat_s)


def study_name(config: StudyConfig) -> str:
    return f"{config.name}-{config.task.name}"


def with_student(space: Workspace, out: Path) -> Workspace:
    """The workspace with the student that a budget leads to: found once, in a study of its own beside the search's."""
    config, budget = space.config, space.config.budget
    if budget is None:
        return space
    made_of = fingerprint(space.teacher_fingerprint, space.ranking(), budget)
    name, storage = f"{config.name}-{config.task.name}-student", storage_of(config, out)
    student = known_student(name, storage, made_of)
    if student is None:
        with space.ledger.stage("student"), space.workshop.progress.stage("student", None):
            uses, best = students(space.teacher, space.ranking(), budget, space.budgeted_latency)
            config.with_student(best.sparsity)  # a grid beyond it is refused before anything is written
            space.workshop.book()
            student = run_students(name, storage, made_of, uses, budget)
    space.extra["student"] = student
    return replace(space, config=config.with_student(student.sparsity))


def check_varied(task: Task, *, final: bool = True) -> None:
    """Raise DataError where all labels of a split are one: nothing can be learned, or measured."""
    splits = [("train", task.train), ("validation", task.validation), (task.final_name, task.final)]
    for name, split in splits if final else splits[:2]:
        if _is_uniform(task, split):
            value = split.labels[0] if task.label_names is None else f"'{task.label_names[int(split.labels[0])]}'"
            without = ", or no such file: then a part of train is held out" if name == "test" else ""
            raise DataError(
                f"{name}: all {len(split)} labels are {value}, so no model does better than one that says nothing else;"
                f" give rows of other labels too{without}"
            )


def _is_uniform(task: Task, split: Split) -> bool:
    return task.kind in ("classification", "regression") and bool(np.ptp(split.labels) == 0)


def scored_rows(space: Workspace) -> np.ndarray:
    """Which rows of validation a trial is scored on, in their order."""
    task, config = space.task, space.config
    train, validation = len(task.train), len(task.validation)
    least = least_rows(task.metric.name, task.kind, task.validation.labels)
    count = scored_examples(config.search, config.distillation, train=train, validation=validation, least=least)
    if count == validation:
        return np.arange(validation)
    return draw_part(task.validation.labels, task.kind, count, space.workshop.runtime.generator("trials", "rows"))


def scored(space: Workspace) -> Workspace:
    """The workspace as trials see it: its validation is the part that they are scored on.

    Raises DataError where the part has one label alone.
    """
    task, rows = space.task, scored_rows(space)
    if len(rows) == len(task.validation):
        return space
    part = replace(task, validation=task.validation.select(rows))
    if _is_uniform(task, part.validation):
        raise DataError(
            f"search.examples: the {len(rows)} rows of validation that trials would be scored on have one label alone;"
            " take more, or all"
        )
    return replace(space, task=part, workshop=replace(space.workshop, task=part))


def keep_ranking(space: Workspace, out: Path) -> None:
    """Order the units once for the study in ``out``: other training rows or another seed would order otherwise."""

    def rank() -> Ranking:
        ranking = space.ranking()
        space.workshop.book()  # first: what is there has been booked
        return ranking

    once(
        out / "ranking.lease",
        there=(out / RANKING).exists,
        make=rank,
        put=lambda ranking: write_ranking(out / RANKING, ranking, space.extra["ranking_cost"]),
        progress=space.workshop.progress,
        seconds=lease_s(space.config),
    )
    space.extra["ranking"], _ = read_ranking(out / RANKING)


def take_ranking(space: Workspace, out: Path) -> None:
    """Order the units as the study in ``out`` did, where it is of the same teacher and rows, ranked alike; charged as
    if made."""
    if not (out / CONFIG).exists() or not (out / RANKING).exists():
        return
    of_trials = (f"search.{name}" for name in SearchConfig.model_fields if name != "importance")
    free = (*FREE_IN_BASELINE, "name", "distillation", *of_trials)
    others = {"teacher", TEACHER_SETTINGS, "train"} & Place.of(out).changed(space).keys()
    if not others and not differences(read_config(out / CONFIG), space.config, ignore=free):
        space.extra["ranking"], cost = read_ranking(out / RANKING)
        space.ledger.charge_once(RANKING_PAID, "importance", cost)


def opened(space: Workspace, out: Path) -> Opened:
    """How a trial gets its candidate; the shared recovery is made once, and found again by a resumed study."""
    if space.config.search.scorer == "recovered":
        whole = envelope(space.assistants)
        made = once(
            out / "recovery.lease",
            there=lambda: has_supernet(out),
            make=lambda: _recovered(space),
            put=lambda supernet: save_model(supernet.extract(whole), None, out / SUPERNET),
            progress=space.workshop.progress,
            seconds=lease_s(space.config),
        )
        if made is not None:
            return Slices(made)
    return scorer(space, out)


def _recovered(space: Workspace) -> Supernet:
    """The supernet after the shared recovery."""
    config, workshop = space.config, space.workshop
    nested = [*space.assistants, space.student]
    with workshop.teacher(space.teacher, config.distillation) as outputs:
        supernet = recover(
            outputs,
            space.ranking(),
            nested,
            steps=recovery_steps(config.search.recovery, config.distillation, space.task),
            recovery=config.search.recovery,
            distillation=config.distillation,
            workshop=workshop,
        )
    workshop.book()  # first: what is there has been booked
    return supernet
