"""Put the tradeoff and a note into an Optuna study, and serve optuna-dashboard on them.

optuna-dashboard has no authentication, so it listens on the loopback alone unless asked otherwise, and it
stores values in pieces of 2,045 characters, so the figure stays small and is overwritten by its id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import optuna_dashboard  # type: ignore[import-untyped]
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from autodisc.errors import StudyError, one_line
from autodisc.reporting import units
from autodisc.reporting.figure_data import TradeoffData, tradeoff_data
from autodisc.reporting.figures import tradeoff_figure
from autodisc.reporting.rows import Choice
from autodisc.reporting.summary import recorded_choice, trial_rows
from autodisc.urls import public, redacted, with_password

FIGURE_ID = "autodisc-tradeoff"
LOOPBACK = "127.0.0.1"


def open_storage(storage: str) -> BaseStorage:
    """The storage of an existing study: a journal's path (``….log``) or any Optuna storage URL."""
    if storage.endswith(".log"):
        if not Path(storage).is_file():
            raise StudyError(f"storage: {storage} does not exist; expected the journal of a search")
        return JournalStorage(JournalFileBackend(storage))
    try:
        return optuna.storages.get_storage(with_password(storage))
    except Exception as error:  # whatever the URL's driver raises: it is the user's URL
        reason = redacted(one_line(error), storage)
        raise StudyError(
            f"storage: {public(storage)} cannot be opened ({reason}); expected a journal ending in .log, or an Optuna"
            " URL"
        ) from None


def publish(storage: str, study_name: str, search_result: dict[str, Any], lam: float) -> None:
    """Decorate a finished study from its search's result; running it again overwrites."""
    try:
        study = optuna.load_study(study_name=study_name, storage=open_storage(storage))
    except KeyError:
        raise StudyError(f"study: {public(storage)} holds no study named {study_name!r}") from None
    choice = recorded_choice(search_result, lam)
    trials = trial_rows(search_result, lam=lam)
    data = tradeoff_data(trials, lam=lam, metric_name="metric", shown=choice, recorded=choice)
    decorate_study(study, data, choice)


def decorate_study(study: optuna.Study, data: TradeoffData, choice: Choice | None) -> None:
    """Save the study's note, and the tradeoff figure where there is a point to draw."""
    optuna_dashboard.save_note(study, note(data, choice))
    if data.points:
        optuna_dashboard.save_plotly_graph_object(study, tradeoff_figure(data), graph_object_id=FIGURE_ID)


def note(data: TradeoffData, choice: Choice | None) -> str:
    """Markdown: what was chosen and why."""
    lines = [f"Value of a trial: metric + λ·sparsity, λ = {units.plain(data.lam)}."]
    if choice is None:
        lines.append("**No teacher assistant was chosen**: no completed candidate left the floor.")
    else:
        lines.append(
            f"**Chosen: sparsity {units.plain(choice.sparsity)}** (scale {1 - choice.sparsity:.2g}), metric"
            f" {units.plus_minus(choice.metric, choice.standard_error)}, tradeoff {choice.tradeoff:.3f}."
        )
    if data.floor is not None:
        lines.append(f"Floor (best constant prediction): {data.floor:.3f}.")
    infeasible = [units.plain(point.sparsity) for point in data.points if not point.feasible]
    if infeasible:
        lines.append(f"Infeasible, at the floor: {', '.join(infeasible)}.")
    return "\n\n".join(lines)


def serve(storage: str, *, host: str = LOOPBACK, port: int = 8080) -> None:
    """Serve optuna-dashboard until interrupted."""
    opened = open_storage(storage)
    try:
        optuna_dashboard.run_server(opened, host=host, port=port)
    except OSError as error:
        raise StudyError(f"port: {host}:{port} cannot be used ({error.strerror}); choose another --port") from None
