"""Where long work says how far it is. The stages see only this; the terminal implements it in reporting, and what
people track their runs with in distillation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from autodisc.costs import Cost


class Bar(Protocol):
    def advance(self, steps: int = 1) -> None: ...
    def note(self, text: str) -> None:
        """A few words beside the bar: the current metric, for instance."""


class Progress(Protocol):
    def stage(self, name: str, total: int | None) -> contextlib.AbstractContextManager[Bar]: ...
    def say(self, text: str) -> None:
        """One line that stays: a decision, a fallback, a result."""

    def spending(self, cost: Callable[[], Cost]) -> None:
        """Where the run's cost so far can be asked for."""


class Tracker(Protocol):
    def log(self, stage: str, values: Mapping[str, float], *, step: int) -> None:
        """Figures of a stage at one of its steps."""

    def within(self, name: str) -> Tracker:
        """The tracker of a part of this work, whose stages have the same names as other parts'."""


class Untracked:
    """Tells nobody: the default."""

    def log(self, stage: str, values: Mapping[str, float], *, step: int) -> None:
        pass

    def within(self, name: str) -> Tracker:
        return self


class _SilentBar:
    def advance(self, steps: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Silent:
    """Says nothing: the default of the Python API."""

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Bar]:
        yield _SilentBar()

    def say(self, text: str) -> None:
        pass

    def spending(self, cost: Callable[[], Cost]) -> None:
        pass
