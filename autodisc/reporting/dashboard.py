"""Serve optuna-dashboard on the studies of one folder or of several.

optuna-dashboard has no authentication, so it listens on the loopback alone unless asked otherwise. What it shows of
a study was written into the study while it ran (``live``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna_dashboard  # type: ignore[import-untyped]
from optuna.storages import BaseStorage

from autodisc.errors import StudyError
from autodisc.reporting.live import ARTIFACTS
from autodisc.reporting.together import Stores, Together
from autodisc.search.journals import open_storage as open_any

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Shown:
    """A storage, under the name that tells its studies from another's of the same name, and its trials' files."""

    name: str
    storage: str
    artifacts: Path


def shown_of(folder: Path, storage: str | None, baselines: Sequence[Path]) -> list[Shown]:
    """The studies of a folder: the search's, where there is one, and those that its baselines have begun."""
    name = folder.resolve().name  # a whole path would fill the dashboard's legends
    own = [] if storage is None else [Shown(name, storage, folder / ARTIFACTS)]
    return own + [Shown(name, str(path), path.parent / ARTIFACTS) for path in baselines]


def open_storage(storage: str) -> BaseStorage:
    """The storage of an existing study: a journal's path (``….log``) or any Optuna storage URL."""
    if storage.endswith(".log") and not Path(storage).is_file():
        raise StudyError(f"storage: {storage} does not exist; expected the journal of a search")
    return open_any(storage)


def serve(shown: Sequence[Shown], *, host: str = LOOPBACK, port: int = 8080) -> None:
    """Serve optuna-dashboard until interrupted."""
    distinct = {one.storage: one.name for one in reversed(shown)}  # of a database all studies are shown: once
    storages = [(name, open_storage(storage)) for storage, name in reversed(distinct.items())]
    storage = storages[0][1] if len(storages) == 1 else Together(storages)
    artifacts = Stores([one.artifacts for one in shown])
    try:
        optuna_dashboard.run_server(storage, host=host, port=port, artifact_store=artifacts)
    except OSError as error:
        raise StudyError(f"port: {host}:{port} cannot be used ({error.strerror}); choose another --port") from None
