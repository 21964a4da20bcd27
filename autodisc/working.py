"""A process that joins a study: it takes trials of it until there are none left, beside others, here or elsewhere.

What it needs to know stands in the storage, with the study; what it needs to have, the order of the units and the
recovered supernet, lies in the study's folder, which all see, or is made there by the first that needs it.

OUT/workers/HOST-PROCESS-….json    what each process spent, for the search that ends the study
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autodisc.config import CONFIG, FREE, StudyConfig, make_config, upgraded
from autodisc.costs import Ledger, resume_ledger
from autodisc.distillation.checkpointing import Keeping
from autodisc.errors import StudyError
from autodisc.files import disk_errors
from autodisc.finished import RANKING
from autodisc.opening import open_workspace
from autodisc.preparing import (
    keep_ranking,
    made_of,
    opened,
    own,
    scored,
    search_settings,
    study_name,
    told_before,
    with_student,
)
from autodisc.progress import Progress, Silent
from autodisc.pruning.ranking_files import read_ranking
from autodisc.resuming import UNFINISHED, Place, refuse_another
from autodisc.search.assistants import join_study
from autodisc.search.evaluation import Opened
from autodisc.search.patience import PATIENCE_S
from autodisc.search.sharing import SharedStudy, published
from autodisc.search.storage import completed, open_study
from autodisc.search.watching import Watch
from autodisc.workspace import Workspace

WORKERS = "workers"
# Where things lie on the machine of whoever searched, and how that computes: what a worker may have otherwise.
OWN = ("task.data", "teacher.model", "teacher.device_map", "student_model", "runtime.device", "runtime.precision")


def is_shared(storage: str | None) -> bool:
    """Whether others may join a search: a storage of its own, and not SQLite, which takes no parallel writers."""
    return storage is not None and not storage.startswith("sqlite")


def portable(config: StudyConfig) -> dict[str, Any]:
    """The settings as another process takes them, from wherever it was started; without what is secret."""
    values = config.model_dump(mode="json")
    places = (
        (values["task"], "data"),
        (values["teacher"], "model"),
        (values["cache"], "dir"),
        (values, "student_model"),
    )
    for section, name in places:
        if section[name] is not None and Path(section[name]).is_dir():
            section[name] = str(Path(section[name]).resolve())
    return values


def work(
    name: str,
    storage: str,
    out: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Take trials of the study ``name`` until all are done; ``overrides`` are of this machine, by their dotted names.

    Raises StudyError where there is no such study, or teacher, data or seed here are not what it was begun with.
    """
    progress = progress or Silent()
    config = _config(published(name, storage, say=progress.say), storage, overrides or {})
    if study_name(config) != name:
        raise StudyError(f"--study: '{name}' is not a search's own study; its search's is '{study_name(config)}'")
    if not (out / CONFIG).is_file():
        raise StudyError(f"--out: {out} does not hold the study; give the folder of its search, which all must see")
    with disk_errors(out):
        refuse_another(config, out, (*FREE, *OWN))
        space = open_workspace(config, progress=progress)
        ledger = out / WORKERS / f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}.json"
        keeping = Keeping(out / UNFINISHED, config.runtime.checkpoint_minutes, ledger)
        space = replace(space, workshop=replace(space.workshop, keeping=keeping))
        if (out / RANKING).exists():
            space.extra["ranking"], _ = read_ranking(out / RANKING)
        space = with_student(space, out)
        seen = scored(space)
        study = open_study(
            name,
            storage,
            fingerprint={**made_of(seen), **search_settings(config)},
            defaults=told_before(space),
            metric_name="",  # it has one
            is_own=own(Place.of(out)),
            say=progress.say,
            heartbeat_s=config.search.heartbeat_s,
            wait_s=PATIENCE_S,  # it was there a moment ago
        )
        keep_ranking(space, out)
        taken = take_trials(seen, SharedStudy.of(study, out, config), opened(space, out))
        space.workshop.book()
        return {"study": name, "trials": taken, "completed": completed(study), "cost": space.ledger.as_dict()}


def take_trials(space: Workspace, shared: SharedStudy, found: Opened, watch: Watch | None = None) -> int:
    """This process's part of a study's trials; returns how many."""
    search, workshop = space.config.search, space.workshop
    taken = join_study(shared, found, space.assistants, search, workshop, latency=space.budgeted_latency, watch=watch)
    done = completed(shared.study)
    workshop.progress.say(f"{taken} trials here, {done - taken} of {done} by others or before")
    return taken


def merge_ledgers(ledger: Ledger, out: Path) -> None:
    """Add what every process that joined has spent, each once; the clock of this one went on meanwhile."""
    for path in sorted((out / WORKERS).glob("*.json")):
        if path.stem not in ledger.paid:
            theirs = Ledger()
            resume_ledger(theirs, path)
            ledger.merge(theirs, 0.0)
            ledger.pay(path.stem)


def _config(values: dict[str, Any], storage: str, overrides: Mapping[str, Any]) -> StudyConfig:
    values = upgraded(values)
    for key, value in {**overrides, "search.storage": storage}.items():
        section, _, name = key.partition(".")
        values = {**values, section: {**values[section], name: value}}
    return make_config(values)
