"""Run autodisc's command lines in processes that die at a moment of our choice, or whose writes fail.

One process imports everything and forks a child for each line of standard input, {"arguments", "die_at", "fail_at",
"error", "root", "rules"}. In a child every moment that matters is counted: before and after each sync, rename, link
and removal of a file, before each optimizer step and each forward of a model. At moment ``die_at`` the child is killed
by SIGKILL; from the write ``fail_at`` on every write raises ``error`` (a number of errno). Where failing_writes.c was
loaded, ``rules`` say which calls below ``root`` fail once, with ``error``. Answers are JSON lines: {"code" (minus the
signal that ended the child), "moments", "writes", "printed", "calls" (what failing_writes.c logged)}.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import datasets.io.csv  # noqa: F401  as others here: so that a child need not
import matplotlib.figure  # noqa: F401
import plotly.graph_objs  # noqa: F401
import torch
from transformers import PreTrainedModel
from transformers.models.bert import modeling_bert  # noqa: F401

import autodisc.cards
from autodisc import api  # noqa: F401
from autodisc.cli import main
from autodisc.reporting import drawing, report, terminal  # noqa: F401

autodisc.cards.CARD_SHAPES = ()  # a card's latencies take seconds
WRITES = ("fsync", "replace", "rename", "link", "posix_fallocate")


class Moments:
    """Counts, and ends the process, or one write, at the moment asked for."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request, self.moments, self.writes = request, 0, 0
        for name in (*WRITES, "unlink"):
            setattr(os, name, self.around(getattr(os, name), fails=name in WRITES))
        torch.optim.AdamW.step = self.before(torch.optim.AdamW.step)
        torch.nn.modules.module.register_module_forward_pre_hook(self.forward)

    def moment(self) -> None:
        self.moments += 1
        if self.moments == self.request.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, call: Callable[..., Any], *, fails: bool) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.moment()
            self.writes += fails
            if fails and self.writes >= self.request.get("fail_at", math.inf):
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


def child(request: dict[str, Any], answer: Any, log: Any) -> int:
    """Everything that a command prints goes to ``answer``, and its last line with the counts."""
    os.dup2(answer.fileno(), 1)
    os.dup2(answer.fileno(), 2)
    if "rules" in request:
        root, rules = request["root"].encode(), "\n".join(request["rules"]).encode()
        ctypes.CDLL(os.environ["LD_PRELOAD"]).arm(root, rules, request["error"], log.fileno())
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
        with tempfile.TemporaryFile("w+b") as answer, tempfile.TemporaryFile("w+b") as log:
            pid = os.fork()
            if pid == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    code = child(request, answer, log)
                os._exit(code)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            answer.seek(0)
            log.seek(0)
            calls = log.read().decode().splitlines()
            *printed, last = [text for text in answer.read().decode().splitlines() if text.strip()] or [""]
        moments, writes = json.loads(last) if last.startswith("[") and status >= 0 else (None, None)
        if moments is None:
            printed.append(last)
        found = {"code": status, "moments": moments, "writes": writes, "printed": printed, "calls": calls}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    serve()
