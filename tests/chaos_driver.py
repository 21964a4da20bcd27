"""Run autodisc's command lines in processes that die at a moment of our choice; started by tests/test_chaos.py.

One process imports everything and forks a child for each line of standard input, {"arguments", "die_at", "fail_at",
"error"}. In a child every moment that matters is counted: before and after each sync, rename, link and removal of a
file, before each optimizer step and each forward of a model. At moment ``die_at`` the child is killed by SIGKILL;
at moment ``fail_at`` the file operation raises ``error`` (a number of errno) instead. Answers are JSON lines:
{"signal", "code", "moments", "writes", "error"}.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

import autodisc.workspace
from autodisc import api  # noqa: F401  so that a child need not
from autodisc.cli import main
from autodisc.reporting import report, terminal  # noqa: F401

autodisc.workspace.CARD_SHAPES = ()  # a card's latencies take seconds
WRITES = ("fsync", "replace", "rename", "link", "unlink", "posix_fallocate")


class Moments:
    """Counts, and ends the process, or one write, at the moment asked for."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request, self.moments, self.writes = request, 0, 0
        for name in WRITES:
            setattr(os, name, self.around(getattr(os, name)))
        torch.optim.AdamW.step = self.before(torch.optim.AdamW.step)
        torch.nn.modules.module.register_module_forward_pre_hook(self.forward)

    def moment(self) -> None:
        self.moments += 1
        if self.moments == self.request.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.moment()
            self.writes += 1
            if self.writes == self.request.get("fail_at"):
                raise OSError(self.request["error"], os.strerror(self.request["error"]))
            found = call(*arguments, **named)
            self.moment()
            return found

        return wrapped

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.moment()
            return call(*arguments, **named)

        return wrapped

    def forward(self, module: torch.nn.Module, _: Any) -> None:
        if isinstance(module, PreTrainedModel):
            self.moment()


def child(request: dict[str, Any], answer: Any) -> int:
    """Everything that a command prints goes to ``answer``, and its last line with the counts."""
    os.dup2(answer.fileno(), 1)
    os.dup2(answer.fileno(), 2)
    counted = Moments(request)
    code = main([*request["arguments"], "--quiet"])
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(answer.fileno(), f"\n{json.dumps([counted.moments, counted.writes])}\n".encode())
    return code


def serve() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile("w+b") as answer:
            pid = os.fork()
            if pid == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    code = child(request, answer)
                os._exit(code)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            answer.seek(0)
            *printed, last = [text for text in answer.read().decode().splitlines() if text.strip()] or [""]
        moments, writes = json.loads(last) if last.startswith("[") and status >= 0 else (None, None)
        if moments is None:
            printed.append(last)
        found = {"code": status, "moments": moments, "writes": writes, "printed": printed}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    serve()
