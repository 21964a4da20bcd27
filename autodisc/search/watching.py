"""Who looks on while a study's trials finish: the dashboard, through this door, since a search draws no pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import optuna

Table = Sequence[Sequence[int]]  # examples by label and prediction


class Watch(Protocol):
    def measured(self, trial: optuna.Trial, confusion: Table | None) -> None:
        """A trial has its attributes and still runs: its note and its artifacts can be kept."""

    def told(self) -> None:
        """A trial has ended."""


class Unwatched:
    """Nobody: the default of the Python API's inner functions."""

    def measured(self, trial: optuna.Trial, confusion: Table | None) -> None:
        pass

    def told(self) -> None:
        pass
