"""The command line: the commands, in the order of ``--help``, and what becomes of an error.

Standard output holds the result alone; progress, warnings and errors go to standard error. torch is imported
inside the commands, after what can be checked without it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

import typer

from autodisc.commands import bench, exporting, labelling, making, results, upkeep
from autodisc.errors import AutodiscError
from autodisc.interrupts import termination_interrupts

INTERRUPTED = 130  # what shells report of a process that SIGINT ended
GOES_ON = ("finetune", "search", "worker", "distill", "baseline", "run", "demo", "compare")  # the others keep nothing

app = typer.Typer(
    help="Distil a fine-tuned transformer to a tiny student, through a teacher assistant chosen in one cheap study.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for group in (making, exporting, bench, labelling, results, upkeep):
    app.add_typer(group.app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 2 where the user can set it right, 130 after Ctrl-C or SIGTERM."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # torch's CPU matrix library compiles a kernel for every shape and forgets all but 1,024; batches by length and
    # layers of different widths make tens of thousands. With room for more a student's step took 0.6 of the time;
    # a kernel takes some 0.8 MB, so room for all of them would take the memory.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
    debug = "--debug" in arguments
    try:
        with termination_interrupts(), _one_of_many(), contextlib.nullcontext() if debug else _quiet_libraries():
            code = app(arguments or ["--help"], prog_name="autodisc", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if debug:
            raise
        return _explain(error)
    if code == INTERRUPTED:
        kept = next((word for word in arguments if not word.startswith("-")), "") in GOES_ON
        after = (
            "what was finished is kept, the same command goes on from there" if kept else "the same command begins anew"
        )
        print(f"interrupted; {after}", file=sys.stderr)
    return code


def _explain(error: Exception) -> int:
    """One line on standard error, and the exit code."""
    if isinstance(error, AutodiscError):
        text, code = str(error), error.exit_code
    elif hasattr(error, "format_message"):  # a usage error; which class depends on typer's version
        text, code = f"{error.format_message().rstrip('.')}; see --help", 2
    else:
        text = f"{type(error).__name__}: {error}; run again with --debug for the traceback"
        code = 1
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _one_of_many() -> Iterator[None]:
    """Of processes that `accelerate launch` starts the first speaks, and all leave their group at the end."""
    if "RANK" not in os.environ:
        yield
        return
    with contextlib.ExitStack() as silence:
        if os.environ["RANK"] != "0":
            nowhere = silence.enter_context(open(os.devnull, "w", encoding="utf-8"))
            silence.enter_context(contextlib.redirect_stdout(nowhere))
        yield
    if "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized():
        sys.modules["torch.distributed"].destroy_process_group()


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Nobody else's warnings, bars or log lines between ours. The variables are read when a library is imported."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    sys.exit(main())
