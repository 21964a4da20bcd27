"""An Optuna storage in a database that may be away for a minute: restarted, or behind a network that drops.

pauses: 0.5, 1, 2, 4, 8, 15, 15, … s until PATIENCE_S have passed

Only what a connection does is repeated; a statement that the database refuses is an error at once. Where a commit's
answer is lost, the call is made again: a trial that is finished already counts as told.
"""

from __future__ import annotations

import functools
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    ProgrammingError,
)

from autodisc.errors import AutodiscError, one_line

PATIENCE_S = 120.0
FIRST_S, LONGEST_S = 0.5, 15.0
# What is called besides BaseStorage's public methods, by the cache that Optuna puts around a database.
_OF_THE_CACHE = (
    *("_create_new_trial", "_get_best_trial_id", "_get_trials", "_set_trial_param"),
    *("record_heartbeat", "_get_stale_trial_ids"),
)
MISSED = 3  # signs of life, before a trial is given to another process


class PatientStorage(RDBStorage):
    """RDBStorage whose calls outlast a database that is away; ``say`` is told once each time.

    With ``heartbeat_s``, the seconds between signs of life, a trial that misses three is stale.
    """

    def __init__(
        self, url: str, *, say: Callable[[str], None] = lambda text: None, heartbeat_s: int | None = None
    ) -> None:
        self._say = say
        self._inside = threading.local()  # one call makes others: only the outermost is repeated
        alive = {} if url.startswith("sqlite") else {"pool_pre_ping": True}  # a connection may have died unused
        super().__init__(
            url,
            engine_kwargs=alive,
            heartbeat_interval=heartbeat_s,
            grace_period=None if heartbeat_s is None else MISSED * heartbeat_s,
        )


def is_away(error: BaseException) -> bool:
    """Whether the database could not be reached, or gave up under the call, rather than refused it."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    lost = isinstance(cause, DBAPIError) and cause.connection_invalidated
    # The last: of what Optuna still asked of a session whose connection had gone.
    return lost or isinstance(cause, (OperationalError, InterfaceError, PendingRollbackError))


def _patiently(name: str) -> Callable[..., Any]:
    plain = getattr(RDBStorage, name)

    @functools.wraps(plain)
    def call(self: PatientStorage, *arguments: Any, **named: Any) -> Any:
        if getattr(self._inside, "call", False):
            return plain(self, *arguments, **named)
        self._inside.call = True
        try:
            return _repeat(self, functools.partial(plain, self, *arguments, **named))
        finally:
            self._inside.call = False

    return call


def _repeat(storage: PatientStorage, call: Callable[[], Any]) -> Any:
    since, pause, failed = time.monotonic(), FIRST_S, False
    while True:
        try:
            return call()
        except UpdateFinishedTrialError:
            if failed:  # it was told before the connection broke
                return True
            raise
        except (StorageInternalError, DBAPIError) as error:
            if not is_away(error):
                raise
            reason = one_line(error.__cause__ or error, 120)
        if time.monotonic() - since + pause > PATIENCE_S:
            raise AutodiscError(
                f"search.storage: not reachable for {PATIENCE_S:g} s ({reason}); what was finished is kept, the same"
                " command goes on from there"
            )
        if not failed:
            storage._say(f"storage: not reachable ({reason}); trying again for {PATIENCE_S:g} s")
        failed = True
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_S)


for _name in (*(name for name in vars(BaseStorage) if not name.startswith("_")), *_OF_THE_CACHE):
    if callable(getattr(RDBStorage, _name, None)):
        setattr(PatientStorage, _name, _patiently(_name))


def open_database(
    url: str, say: Callable[[str], None], *, heartbeat_s: int | None = None, wait_s: float = 0.0
) -> BaseStorage:
    """Raises what the driver does where the database is not reachable for ``wait_s``."""
    since = time.monotonic()
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats
                return optuna.storages.get_storage(PatientStorage(url, say=say, heartbeat_s=heartbeat_s))
        except (DBAPIError, StorageInternalError) as error:
            # Processes that come at once race to make its tables: the loser finds them there the next time.
            race = isinstance(error, (IntegrityError, ProgrammingError))
            if time.monotonic() - since > (FIRST_S if race else wait_s):
                raise
        time.sleep(FIRST_S)
