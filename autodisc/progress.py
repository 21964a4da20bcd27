"""Where long work says how far it is. The stages see only this; the terminal implements it in reporting."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

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
