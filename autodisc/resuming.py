"""How a command's folder is claimed, gone on with, and found finished.

FOLDER/config.yaml     the settings that it is of
FOLDER/made_of.json    fingerprints of the teacher's weights and of the data, whose results it holds, and its token
FOLDER/ledger.json     what was spent up to now
FOLDER/unfinished/     states of trainings under way, and what they need; removed when the command is done
FOLDER/tracking/       what trackers keep here
FOLDER/running.lease   who works here; another process waits for it

A folder is one configuration's, of one teacher and one set of rows: anything else is refused with what differs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autodisc.config import CONFIG, StudyConfig, differences, make_config, read_yaml, upgraded, write_config
from autodisc.costs import resume_ledger, save_ledger
from autodisc.distillation.checkpointing import Keeping
from autodisc.distillation.tracking import FOLDER, tracking
from autodisc.errors import StudyError, UserError
from autodisc.files import write_json
from autodisc.leases import Lease, LostLeaseError, leased
from autodisc.models.checkpoints import settings_digest
from autodisc.progress import Progress, Silent
from autodisc.reporting.records import latest, read_records
from autodisc.workspace import Workspace

LEDGER, MADE_OF, UNFINISHED = "ledger.json", "made_of.json", "unfinished"
TOKEN = "token"  # that a study in a storage has, too: its trials are of what lies in one folder


@dataclass(frozen=True)
class Place:
    """A command's folder, and the one for what it leaves unfinished."""

    folder: Path
    unfinished: Path

    @classmethod
    def of(cls, folder: Path) -> Place:
        return cls(folder, folder / UNFINISHED)

    @property
    def logs(self) -> Path:
        """Where trackers keep theirs: beside a teacher's folder, which holds a model alone."""
        return self.folder.with_suffix(f".{FOLDER}") if self.folder == self.unfinished else self.folder / FOLDER

    @property
    def lease(self) -> Path:
        """What is held by who works here; beside a teacher's folder, too."""
        return self.folder.with_suffix(".lease") if self.folder == self.unfinished else self.folder / "running.lease"

    def exists(self) -> bool:
        return self.unfinished.exists()

    def remove(self) -> None:
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def begin(self, config: StudyConfig) -> bool:
        """Make the folder, this configuration's; false where there is one, which may be another process's by now."""
        try:
            self.folder.mkdir()
        except FileExistsError:
            return False
        try:
            self.unfinished.mkdir()
            write_config(config, self.folder / CONFIG)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return True

    def leave(self) -> None:
        """Remove a folder that was begun, and in which nothing has been done."""
        if not (self.folder / MADE_OF).exists() and not any(self.unfinished.glob("*")):
            shutil.rmtree(self.folder, ignore_errors=True)

    def claim(self, config: StudyConfig, space: Workspace) -> None:
        """Make the folder this configuration's, and this teacher's and data's."""
        self.unfinished.mkdir(parents=True, exist_ok=True)
        if not (self.folder / CONFIG).exists():
            write_config(config, self.folder / CONFIG)
        if not (self.folder / MADE_OF).exists():
            write_json(self.folder / MADE_OF, {**_made_of(space), TOKEN: uuid.uuid4().hex})

    @property
    def made_of(self) -> dict[str, str] | None:
        """What its file says; none where nothing is there yet, StudyError where it is damaged."""
        path = self.folder / MADE_OF
        try:
            return dict(json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise StudyError(f"{path}: is damaged; start afresh beside it with --new") from None

    def changed(self, space: Workspace) -> dict[str, str]:
        """In which fingerprints teacher and rows are not the folder's, and how; nothing where it has none yet."""
        then, now = self.made_of, _made_of(space)
        if then is None:
            return {}
        then = {"teacher settings": now["teacher settings"], **then}  # which were not always told
        return {name: f"{then.get(name)} -> {now[name]}" for name in now if then.get(name) != now[name]}

    def refuse_changed(self, space: Workspace) -> None:
        """Raise StudyError naming what differs, where the folder is of another teacher or of other rows."""
        if changed := self.changed(space):
            listed = "; ".join(f"{name}: {how}" for name, how in changed.items())
            raise StudyError(
                f"{self.folder}: is of another teacher or of other data ({listed}). Give those again, or "
                "start afresh beside it with --new; where nothing of them changed, this version reads them otherwise"
            )

    @contextlib.contextmanager
    def alone(self, config: StudyConfig, free: tuple[str, ...], progress: Progress | None) -> Iterator[Lease]:
        """Once no other process works here, with nothing to refuse before or after it was waited for.

        Who stood still (a suspended machine, a stopped process) may have been taken over: the lease says so.
        """
        refuse_another(config, self.folder, free)
        with alone(self.lease, self.folder, progress or Silent()) as lease:
            refuse_another(config, self.folder, free)
            yield lease

    @contextlib.contextmanager
    def working(self, space: Workspace) -> Iterator[Workspace]:
        """The workspace, going on with what was left; what is unfinished is removed when the body ends well.

        Whatever ends it otherwise, what was spent is booked, but for a mistake of the user's, which leaves all as is,
        as does another process that has taken over.
        """
        ledger, path = space.ledger, self.folder / LEDGER
        resume_ledger(ledger, path)
        keeping = Keeping(self.unfinished, space.config.runtime.checkpoint_minutes, path)
        with contextlib.suppress(FileNotFoundError, ValueError):  # of trainings that need not be run again
            space.workshop.curves.update(json.loads(keeping.curves.read_text()))
        runtime, say = space.workshop.runtime, space.workshop.progress.say
        try:
            with tracking(
                space.config, str(self.folder), self.logs, runtime=runtime, ledger=ledger, say=say
            ) as tracker:
                yield replace(space, workshop=replace(space.workshop, keeping=keeping, tracker=tracker))
        except (UserError, LostLeaseError):
            raise
        except BaseException:
            if self.exists():
                with contextlib.suppress(OSError):
                    save_ledger(ledger, path)
            raise
        self.remove()

    @contextlib.contextmanager
    def claimed(self, space: Workspace) -> Iterator[Workspace]:
        """``working`` in a folder that is claimed at once."""
        self.refuse_changed(space)
        self.claim(space.config, space)
        with self.working(space) as working:
            yield working


@contextlib.contextmanager
def alone(lease: Path, what: Path, progress: Progress) -> Iterator[Lease]:
    """Once no other process holds ``lease``, of ``what``; a folder that is left empty is removed again."""
    folder = lease.parent
    before = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    try:
        with leased(lease, waiting=lambda who: progress.say(f"{what}: waiting for {who}")) as held:
            yield held
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            with contextlib.suppress(OSError):  # another process waits there, or has begun to
                for path in itertools.takewhile(lambda path: path != before, (folder, *folder.parents)):
                    path.rmdir()


def unfinished_teacher(folder: Path) -> Place:
    """Where the making of a teacher is kept: beside its folder, which is there when it is done, and then holds a model
    alone."""
    beside = folder.with_name(f"{folder.name}.{UNFINISHED}")
    return Place(beside, beside)


def made(
    folder: Path,
    kind: str,
    config: StudyConfig | None = None,
    free: tuple[str, ...] = (),
    *,
    strategy: str | None = None,
) -> dict[str, Any] | None:
    """The recorded result of a command that is done, with its cost; StudyError naming what differs, where it is of
    other settings than ``config``."""
    if not any((folder / "records").glob("*.json")):
        return None
    record = latest(read_records([folder]), kind, strategy=strategy)
    if record is None:
        return None
    if config is not None:
        _refuse(folder, "result", differences(record.values["config"], config, ignore=free))
    return {**located(record.result, folder), "cost": record.values["cost"]}


def located(result: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A recorded result with its models' paths, wherever ``folder`` lies by now."""
    found = {**result, "path": str(folder)} if "path" in result else dict(result)
    for role in ("assistant", "student", "best"):
        if isinstance(known := result.get(role), dict) and "path" in known:
            found[role] = {**known, "path": str(folder.joinpath(*Path(known["path"]).parts[-2:]))}
    return found


def clear_records(folder: Path) -> None:
    """Remove a folder of records that holds none: of a run that was killed while it wrote the first."""
    if not any((folder / "records").glob("*.json")):
        shutil.rmtree(folder / "records", ignore_errors=True)


def refuse_another(config: StudyConfig, folder: Path, free: tuple[str, ...]) -> None:
    """Raise StudyError naming what differs, where ``folder`` is of another configuration."""
    path = folder / CONFIG
    if path.exists():
        values = read_yaml(path)
        if config.search.examples == "all":  # else the storage says whether those are the same rows
            values = upgraded(values)
        _refuse(folder, "study", differences(make_config(values, source=str(path)), config, ignore=free))


def _refuse(folder: Path, what: str, changed: list[str]) -> None:
    if changed:
        raise StudyError(
            f"{folder}: holds a {what} with another configuration ({'; '.join(changed[:4])}). "
            "Give another --out, or the same settings; --new starts afresh beside it."
        )


def next_free(folder: Path) -> Path:
    """``folder``, or where it holds anything the first of ``folder-2``, ``folder-3`` and so on that does not."""
    number, free = 2, folder
    while free.exists() or unfinished_teacher(free).exists():
        free, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return free


def _made_of(space: Workspace) -> dict[str, str]:
    task = space.task
    splits = {"train": task.train, "validation": task.validation, "final": task.final}
    teacher = {"teacher": space.teacher_fingerprint, "teacher settings": settings_digest(space.teacher)}
    return teacher | {name: split.fingerprint for name, split in splits.items()}
