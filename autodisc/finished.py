"""A study's folder, as what comes after the search opens it.

DIR/config.yaml     the settings that were asked for
DIR/journal.log     the Optuna studies, where no other storage was asked for
DIR/ranking.json    the removal orders that its candidates are of
DIR/supernet/       the recovered weights of all its candidates; of the scorer ``recovered``
DIR/records/        what was found
DIR/distilled-N/    assistant and student of each distillation
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from autodisc.config import CONFIG, JOURNAL, StudyConfig, differences, read_config, read_yaml
from autodisc.errors import StudyError
from autodisc.leases import Lease
from autodisc.models.checkpoints import load, settings_digest
from autodisc.opening import open_workspace
from autodisc.progress import Progress, Silent
from autodisc.pruning.candidates import Candidate
from autodisc.pruning.ranking_files import read_ranking
from autodisc.pruning.supernet import Supernet
from autodisc.reporting.records import Record, latest, read_records
from autodisc.resuming import Place, alone, located
from autodisc.search.evaluation import Opened
from autodisc.search.scorers import Cuts, Slices
from autodisc.workspace import Workspace, describe_task

SUPERNET, RANKING = "supernet", "ranking.json"


@dataclass(frozen=True)
class Finished:
    """A study that has its result."""

    folder: Path
    config: StudyConfig  # with the student that was found, where a budget asked for it
    searched: Record
    distillations: tuple[Record, ...]

    @property
    def distilled(self) -> Record | None:
        """The newest distillation."""
        return latest(self.distillations, "distill")

    @property
    def student(self) -> Path | None:
        """The folder of the newest student, wherever the study lies by now."""
        if self.distilled is None:
            return None
        return Path(located(self.distilled.result, self.folder)["student"]["path"])

    def open(self, config: StudyConfig | None = None, *, progress: Progress | None = None) -> Workspace:
        """What its work was done with, under other settings if need be; StudyError where teacher or rows are others."""
        config = self.settled(config or self.config)
        space = open_workspace(config, progress=progress)
        then, now = self.searched.values["teacher"], settings_digest(space.teacher)
        if (then["fingerprint"], then.get("settings", now)) != (space.teacher_fingerprint, now):
            raise StudyError(f"teacher: {config.teacher.model} has changed since the search; search again")
        self._refuse_other_rows(space)
        space.extra["ranking"], _ = read_ranking(self.folder / RANKING)  # what the study has paid for
        return space

    def _refuse_other_rows(self, space: Workspace) -> None:
        """The rows that chose the assistant might be among those that the student is judged by. Train may be another
        draw of ``task.limit_train``."""
        then, now = self.searched.values["task"]["fingerprints"], describe_task(space.task)["fingerprints"]
        redrawn = _drawn(self.searched.values["config"]) != _drawn(space.config.model_dump())
        compared = ("validation", "final") if redrawn else ("train", "validation", "final")
        changed = [name for name in compared if then[name] != now[name]]
        if changed:
            raise StudyError(
                f"task: the rows of {', '.join(changed)} are not the search's, by the files or by task settings; give"
                " those of the search again, or search again with --new; where nothing of them changed, this version"
                " reads them otherwise"
            )

    def settled(self, config: StudyConfig) -> StudyConfig:
        """``config``, with the student that the search found where a budget is what it has."""
        found = self.searched.values["config"]["student_sparsity"]
        return config.with_student(found) if config.student_sparsity is None else config

    def distilled_alike(self, config: StudyConfig, free: tuple[str, ...]) -> Record | None:
        """The newest distillation of these settings whose student is still there."""
        for record in sorted(self.distillations, key=lambda record: record.created, reverse=True):
            there = Path(located(record.result, self.folder)["student"]["path"]).exists()
            if there and not differences(record.values["config"], config, ignore=free):
                return record
        return None

    @contextlib.contextmanager
    def distilling(
        self, config: StudyConfig, free: tuple[str, ...], *, new: bool, progress: Progress | None
    ) -> Iterator[tuple[Place, Lease]]:
        """The place of a distillation of these settings, which no other process works in; it goes again where the body
        does nothing in it."""
        place = self._place_to_distil(config, free, new=new)
        with alone(place.lease, place.folder, progress or Silent()) as lease:
            try:
                yield place, lease
            finally:
                place.leave()

    def _place_to_distil(self, config: StudyConfig, free: tuple[str, ...], *, new: bool) -> Place:
        """Where a distillation of these settings was begun, or, none or ``new``, the next of the folders, begun."""
        numbers = [0]
        for folder in sorted(self.folder.glob("distilled-*")):
            place = Place.of(folder)
            numbers += [int(number)] if (number := folder.name.removeprefix("distilled-")).isdigit() else []
            claimed = place.exists() and (folder / CONFIG).exists()
            if claimed and not new and not differences(read_yaml(folder / CONFIG), config, ignore=free):
                return place
        following = max(numbers) + 1
        while not (place := Place.of(self.folder / f"distilled-{following}")).begin(config):
            following += 1
        return place

    def cut(self, space: Workspace, candidate: Candidate) -> PreTrainedModel:
        """A candidate with the weights that the study scored: out of the supernet, or cut and refitted."""
        if self.config.search.scorer == "recovered":
            return saved_supernet(space, self.folder).extract(candidate)
        return space.workshop.cut(space.teacher, space.ranking(), candidate)


def _drawn(config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """What decides which rows of train are used."""
    limit = config["task"]["limit_train"]
    return limit, None if limit is None else config["runtime"]["seed"]


def open_finished(folder: Path) -> Finished:
    """Raises StudyError where there is no finished search in ``folder``."""
    config = read_config(folder / CONFIG) if (folder / CONFIG).exists() else None
    records = read_records([folder]) if config and (folder / "records").is_dir() else []
    searched = latest(records, "search")
    if config is None or searched is None:
        raise StudyError(f"{folder}: holds no finished search; run 'autodisc search --out {folder}' first")
    finished = Finished(folder, config, searched, tuple(record for record in records if record.kind == "distill"))
    return replace(finished, config=finished.settled(config))


def storage_of(config: StudyConfig, folder: Path) -> str:
    """Where the Optuna studies of a folder are kept."""
    storage = config.search.storage or str(folder / JOURNAL)
    if not storage.endswith(".log"):
        return storage
    path = Path(storage)  # a link to a file keeps its name: its lock lies beside that, for whoever opens it
    return str(path.parent.resolve() / path.name)


def has_supernet(folder: Path) -> bool:
    return (folder / SUPERNET / "config.json").exists()


def saved_supernet(space: Workspace, folder: Path) -> Supernet:
    if not has_supernet(folder):
        raise StudyError(f"{folder / SUPERNET}: is gone, and with it the candidates' weights; search again")
    model = load(folder / SUPERNET).to(space.workshop.runtime.device)  # type: ignore[arg-type]
    return Supernet(model, space.ranking())


def scorer(space: Workspace, folder: Path) -> Opened:
    """How the study in ``folder`` gets a candidate: cut out alone, or as a slice of its supernet."""
    if space.config.search.scorer == "pruned":
        return Cuts(space.teacher, space.ranking(), space.workshop)
    return Slices(saved_supernet(space, folder))
