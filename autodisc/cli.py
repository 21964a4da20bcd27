"""The commands: options in, one call of `autodisc.api`, tables or one JSON object out.

Standard output holds the result alone; progress, warnings and errors go to standard error. torch is imported
inside the commands, after what can be checked without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from autodisc.cli_options import (
    DISTILLATION,
    FINETUNING,
    GRID,
    LIMIT_TRAIN,
    MODEL,
    RUNTIME,
    SEARCH,
    STUDENT,
    TASK,
    TEACHER,
    Debug,
    Json,
    Quiet,
    Request,
    check_folder,
    check_inputs,
    takes,
)
from autodisc.errors import AutodiscError, ConfigError, StudyError

INTERRUPTED = 130  # what shells report of a process that SIGINT ended
DEMO = Path(__file__).with_name("demo.yaml")

app = typer.Typer(
    help="Distil a fine-tuned transformer to a tiny student, through a teacher assistant chosen in one cheap study.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the results are kept.")]


def example(*lines: str) -> str:
    return "\n".join(["Example:", *lines])


@app.command(
    epilog=example(
        "autodisc finetune --model google-bert/bert-base-uncased \\",
        "  --task mrpc --data data/mrpc --out teachers/mrpc",
    )
)
@takes(*MODEL, *TASK, *LIMIT_TRAIN, *FINETUNING, *RUNTIME)
def finetune(request: Request, out: Out) -> None:
    """Make a teacher: fine-tune a pretrained encoder on the task, and keep the best epoch on validation."""
    config = request.config()
    check_folder(out)
    from autodisc import api

    _finish(request, api.finetune(config, out, progress=request.progress()), _print_scores)


@app.command(
    epilog=example(
        "autodisc search --teacher teachers/mrpc --task mrpc --data data/mrpc \\",
        "  --student-sparsity 0.9 --out runs/mrpc",
    )
)
@takes(*TEACHER, *STUDENT, *TASK, *LIMIT_TRAIN, *SEARCH, *DISTILLATION, *RUNTIME)
def search(
    request: Request,
    out: Out,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Predict time, FLOPs, memory and disk; no study.")] = False,
) -> None:
    """Choose the teacher assistant in one study. The same command again goes on where it was stopped."""
    config = request.config()
    check_folder(out)
    from autodisc import api
    from autodisc.reporting.terminal import print_prediction, print_search

    if dry_run:
        return _finish(request, api.predict_search(config, progress=request.progress()), print_prediction)
    _finish(request, api.search(config, out, progress=request.progress()), print_search)


@app.command(epilog=example("autodisc distill --study runs/mrpc"))
@takes(*LIMIT_TRAIN, *DISTILLATION, *RUNTIME, config_file=False)
def distill(
    request: Request,
    study: Annotated[Path, typer.Option("--study", metavar="DIR", help="The --out of a finished search.")],
) -> None:
    """Distil teacher, assistant, student, with the study's own settings where no option says otherwise."""
    from autodisc.config import CONFIG

    if not (study / CONFIG).is_file():
        raise StudyError(f"--study: {study} holds no search; run 'autodisc search --out {study}' first")
    config = request.config(study / CONFIG)
    from autodisc import api
    from autodisc.reporting.terminal import print_distill

    _finish(request, api.distill(study, config=config, progress=request.progress()), print_distill)


@app.command(
    epilog=example(
        "autodisc baseline --strategy direct --teacher teachers/mrpc --task mrpc \\",
        "  --data data/mrpc --student-sparsity 0.9 --out runs/mrpc",
    )
)
@takes(*TEACHER, *STUDENT, *TASK, *LIMIT_TRAIN, *GRID, *DISTILLATION, *RUNTIME)
def baseline(
    request: Request,
    out: Out,
    strategy: Annotated[
        str,
        typer.Option("--strategy", metavar="NAME", help="maxidisc (a student for every assistant) or direct (none)."),
    ],
) -> None:
    """What the search is compared with, at the same budget: every assistant tried, or no assistant at all."""
    from typing import get_args

    from autodisc.config import Strategy

    if strategy not in get_args(Strategy):
        raise ConfigError(f"--strategy: got '{strategy}'; expected {' or '.join(get_args(Strategy))}")
    config = request.config()
    check_folder(out)
    from autodisc import api
    from autodisc.reporting.terminal import print_baseline

    _finish(request, api.baseline(config, strategy, out, progress=request.progress()), print_baseline)


@app.command(epilog=example("autodisc evaluate --model teachers/mrpc --task mrpc --data data/mrpc"))
@takes(*MODEL, *TASK, *RUNTIME)
def evaluate(
    request: Request,
    split: Annotated[
        str, typer.Option("--split", metavar="NAME", help="train, validation, test, or final: what stands in for test.")
    ] = "validation",
) -> None:
    """Metrics of a model, a teacher's or a student's, on a split of its task, and the floor below them."""
    config = request.config()
    from autodisc import api

    _finish(request, api.evaluate(config, split, progress=request.progress()), _print_scores)


@app.command(epilog=example("autodisc run studies/demo/config.yaml --out runs/demo"))
@takes(*TEACHER, *STUDENT, *TASK, *LIMIT_TRAIN, *SEARCH, *DISTILLATION, *RUNTIME, config_file=False)
def run(
    request: Request,
    file: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="A study's configuration.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where the results are kept; runs/NAME unless given.")
    ] = None,
) -> None:
    """All of a study: fine-tune where it says so, search, distil, run the baselines, write the report."""
    _run(request, file, out)


@app.command(epilog=example("autodisc demo"))
@takes(*LIMIT_TRAIN, *SEARCH, *DISTILLATION, *RUNTIME, config_file=False)
def demo(request: Request, out: Out = Path("runs/demo")) -> None:
    """The whole job on an embedded task, without network: which library is this docstring sentence from?"""
    _run(request, DEMO, out)


@app.command(epilog=example("autodisc report runs/mrpc --out runs/mrpc/report.html"))
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="The --out of searches and baselines.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.html", help="The page; a .md is written beside. First DIR/report.html."),
    ] = None,
    lam: Annotated[
        float | None, typer.Option("--lam", metavar="λ", help="Rank the recorded trials again; nothing is run.")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """One HTML page that opens offline, a Markdown summary beside it, and the tables here."""
    from autodisc.reporting.report import write_report
    from autodisc.reporting.terminal import print_summary

    out = out or folders[0] / "report.html"
    summary = write_report(_with_teachers(folders), out, lam=lam)
    if json_:
        import dataclasses

        _print_json({"report": str(out), **dataclasses.asdict(summary)})
    else:
        if not quiet:
            print_summary(summary)
        print(f"report: {out}")


@app.command(epilog=example("autodisc compare studies/compare-demo/config.yaml --out runs/compare --jobs 2"))
def compare(
    file: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Tasks, seeds, students and strategies.")],
    out: Out,
    jobs: Annotated[int | None, typer.Option("--jobs", metavar="N", min=1, help="Processes, a cell each.")] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Of what is there; nothing is run.")] = False,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Does the choice pay? Strategies by seeds and tasks, with intervals; the same command again goes on."""
    from autodisc.comparison.config import read_comparison
    from autodisc.comparison.summary import report as write
    from autodisc.reporting.terminal import terminal_progress

    config = read_comparison(file)
    check_folder(out)
    if not report_only:
        for study in config.studies():
            check_inputs(study)
        from autodisc.comparison.running import run as compute

        compute(config, out, jobs=jobs, progress=terminal_progress(quiet=quiet))
    result = write(config, out)
    if json_:
        _print_json(result)
    else:
        print("\n".join([*([] if quiet else result["verdicts"]), f"report: {result['report']}"]))
    if result["failed"]:
        raise typer.Exit(1)


@app.command(epilog=example("autodisc dashboard runs/mrpc --port 8080"))
def dashboard(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The --out of a search.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on; it has no password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8080,
    debug: Debug = False,
) -> None:
    """Open the study in optuna-dashboard, until Ctrl-C."""
    from autodisc.config import CONFIG, JOURNAL, read_config
    from autodisc.reporting.dashboard import serve

    if not (folder / CONFIG).is_file():
        raise StudyError(f"{folder}: holds no study; expected the --out of a search")
    print(f"http://{host}:{port}/dashboard (Ctrl-C ends it)", file=sys.stderr)
    serve(read_config(folder / CONFIG).search.storage or str(folder / JOURNAL), host=host, port=port)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 2 where the user can set it right, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # torch's CPU matrix library compiles a kernel for every shape and forgets all but 1,024; batches by length and
    # layers of different widths make tens of thousands. With room for more a student's step took 0.6 of the time;
    # a kernel takes some 0.8 MB, so room for all of them would take the memory.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
    debug = "--debug" in arguments
    try:
        with contextlib.nullcontext() if debug else _quiet_libraries():
            code = app(arguments or ["--help"], prog_name="autodisc", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if debug:
            raise
        return _explain(error)
    if code == INTERRUPTED:
        print("interrupted; what was finished is kept, the same command goes on from there", file=sys.stderr)
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


def _run(request: Request, file: Path, out: Path | None) -> None:
    config = request.config(file)
    out = out or Path("runs") / config.name
    check_folder(out)
    from autodisc import api
    from autodisc.reporting.report import write_report
    from autodisc.reporting.terminal import print_summary

    results = api.run(config, out, progress=request.progress())
    page = out / "report.html"
    summary = write_report(_with_teachers([out]), page)
    if request.json:
        _print_json({**results, "report": str(page)})
        return
    print_summary(summary)
    print(f"\nreport: {page}")


def _with_teachers(folders: Sequence[Path]) -> list[Path]:
    """The folders, and what `run` wrote of the teachers that it made in them."""
    made = [folder / "teacher" for folder in folders]
    return [*folders, *(folder for folder in made if (folder / "records").is_dir())]


def _finish(request: Request, result: dict[str, Any], show: Callable[[dict[str, Any]], None]) -> None:
    if request.json:
        _print_json(result)
    else:
        show(result)


def _print_json(values: dict[str, Any]) -> None:
    from autodisc.reporting.records import plain

    print(json.dumps(plain(values), allow_nan=False))


def _print_scores(result: dict[str, Any]) -> None:
    """What `finetune` and `evaluate` measured."""
    from autodisc.reporting import units

    for name, value in result["metrics"].items():
        print(f"{name}: {value:.4f}")
    spread = units.plus_minus(result["metric"], result["standard_error"])
    print(f"metric {spread} on {result['split']} ({result['examples']} examples), floor {result['floor']:.4f}")
    if "path" in result:
        print(f"model: {result['path']}")


if __name__ == "__main__":
    sys.exit(main())
