"""Ctrl-C and SIGTERM: a training finishes its step and keeps its state; anything else stops where it is.

What is not training works in pieces that are kept or made again; so there a signal is a KeyboardInterrupt at once.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


@dataclass
class Stop:
    """Whether the user has asked for an end."""

    asked: bool = False


@contextlib.contextmanager
def finishing_steps() -> Iterator[Stop]:
    """Inside, the first signal is only noted, for the body to look at between steps; the second one interrupts."""
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    with _handled(note, signal.SIGINT, signal.SIGTERM):
        yield stop


@contextlib.contextmanager
def termination_interrupts() -> Iterator[None]:
    """Inside, SIGTERM does what Ctrl-C does: files in the making are removed, and the exit code is the same."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt, signal.SIGTERM):
        yield


@contextlib.contextmanager
def _handled(handler: Handler, *numbers: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python hands signals to the main thread alone
        yield
        return
    former = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)  # none: not set from Python
