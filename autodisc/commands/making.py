"""finetune, search, worker, distill, baseline, run, demo: what makes a student. torch comes after what needs none."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autodisc.commands.options import (
    BUDGET,
    DISTILLATION,
    FINETUNING,
    GRID,
    HERE,
    LIMIT_TRAIN,
    MODEL,
    RUNTIME,
    SEARCH,
    STUDENT,
    TASK,
    TEACHER,
    New,
    Out,
    Request,
    place_of,
    takes,
)
from autodisc.commands.output import example, finish, print_json, print_scores, with_teachers
from autodisc.errors import ConfigError, StudyError

DEMO = Path(__file__).parents[1] / "demo.yaml"

app = typer.Typer()


@app.command(
    epilog=example(
        "autodisc finetune --model google-bert/bert-base-uncased \\",
        "  --task mrpc --data data/mrpc --out teachers/mrpc",
    )
)
@takes(*MODEL, *TASK, *LIMIT_TRAIN, *FINETUNING, *RUNTIME)
def finetune(request: Request, out: Out, new: New = False) -> None:
    """Make a teacher: fine-tune a pretrained encoder on the task, and keep the best epoch on validation.

    The same command again goes on where it was stopped.
    """
    config = request.config()
    out = place_of(out, config, new=new)
    from autodisc import api

    finish(request, api.finetune(config, out, progress=request.progress()), print_scores)


@app.command(
    epilog=example(
        "autodisc search --teacher teachers/mrpc --task mrpc --data data/mrpc \\",
        "  --student-sparsity 0.9 --out runs/mrpc",
    )
)
@takes(*TEACHER, *STUDENT, *BUDGET, *TASK, *LIMIT_TRAIN, *SEARCH, *DISTILLATION, *RUNTIME)
def search(
    request: Request,
    out: Out,
    new: New = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Predict time, FLOPs, memory and disk; no study.")] = False,
) -> None:
    """Choose the teacher assistant in one study. The same command again goes on where it was stopped.

    With a budget the student is found first: the least sparse one that meets every part of it.
    """
    config = request.config()
    out = place_of(out, config, new=new)
    from autodisc import api
    from autodisc.reporting.terminal import print_prediction, print_search

    if dry_run:
        return finish(request, api.predict_search(config, progress=request.progress()), print_prediction)
    finish(request, api.search(config, out, progress=request.progress(out, "search")), print_search)


@app.command(
    epilog=example(
        "autodisc worker --study study-mrpc --storage postgresql://ann@db/optuna --out /shared/runs/mrpc",
    )
)
@takes(*HERE, config_file=False, with_sets=False)
def worker(
    request: Request,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The search's, on a disk that all see.")],
    study: Annotated[str, typer.Option("--study", metavar="NAME", help="As the search and the dashboard name it.")],
    storage: Annotated[str, typer.Option("--storage", metavar="URL", help="The search's: a database, or a journal.")],
) -> None:
    """Join a search, on this machine or another: take trials of it until there are none left.

    A password in the URL shows in process lists; AUTODISC_STORAGE_PASSWORD is filled in where the URL has none.
    """
    from autodisc.reporting.terminal import print_work
    from autodisc.working import work

    overrides = dict(request.settings)
    finish(request, work(study, storage, out, overrides=overrides, progress=request.progress()), print_work)


@app.command(epilog=example("autodisc distill --study runs/mrpc"))
@takes(*LIMIT_TRAIN, *DISTILLATION, *RUNTIME, config_file=False)
def distill(
    request: Request,
    study: Annotated[Path, typer.Option("--study", metavar="DIR", help="The --out of a finished search.")],
    new: New = False,
) -> None:
    """Distil teacher, assistant, student, with the study's own settings where no option says otherwise.

    The same command again goes on where it was stopped, or returns what it made.
    """
    from autodisc.config import CONFIG

    if not (study / CONFIG).is_file():
        raise StudyError(f"--study: {study} holds no search; run 'autodisc search --out {study}' first")
    config = request.config(study / CONFIG)
    from autodisc import api
    from autodisc.reporting.terminal import print_distill

    progress = request.progress(study, "distill")
    finish(request, api.distill(study, config=config, new=new, progress=progress), print_distill)


@app.command(
    epilog=example(
        "autodisc baseline --strategy direct --teacher teachers/mrpc --task mrpc \\",
        "  --data data/mrpc --student-sparsity 0.9 --out runs/mrpc",
    )
)
@takes(*TEACHER, *STUDENT, *BUDGET, *TASK, *LIMIT_TRAIN, *GRID, *DISTILLATION, *RUNTIME)
def baseline(
    request: Request,
    out: Out,
    strategy: Annotated[
        str,
        typer.Option("--strategy", metavar="NAME", help="maxidisc (a student for every assistant) or direct (none)."),
    ],
    new: New = False,
) -> None:
    """What the search is compared with, at the same budget: every assistant tried, or no assistant at all."""
    from typing import get_args

    from autodisc.config import Strategy

    if strategy not in get_args(Strategy):
        raise ConfigError(f"--strategy: got '{strategy}'; expected {' or '.join(get_args(Strategy))}")
    config = request.config()
    out = place_of(out, config, new=new)
    from autodisc import api
    from autodisc.reporting.terminal import print_baseline

    finish(request, api.baseline(config, strategy, out, progress=request.progress(out, strategy)), print_baseline)


@app.command(epilog=example("autodisc run studies/demo/config.yaml --out runs/demo"))
@takes(*TEACHER, *STUDENT, *BUDGET, *TASK, *LIMIT_TRAIN, *SEARCH, *DISTILLATION, *RUNTIME, config_file=False)
def run(
    request: Request,
    file: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="A study's configuration.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where the results are kept; runs/NAME unless given.")
    ] = None,
    new: New = False,
) -> None:
    """All of a study: fine-tune where it says so, search, distil, run the baselines, write the report."""
    _run(request, file, out, new)


@app.command(epilog=example("autodisc demo"))
@takes(*LIMIT_TRAIN, *SEARCH, *DISTILLATION, *RUNTIME, config_file=False)
def demo(request: Request, out: Out = Path("runs/demo"), new: New = False) -> None:
    """The whole job on an embedded task, without network: which library is this docstring sentence from?"""
    _run(request, DEMO, out, new)


def _run(request: Request, file: Path, out: Path | None, new: bool) -> None:
    config = request.config(file)
    out = place_of(out or Path("runs") / config.name, config, new=new)
    from autodisc import api
    from autodisc.reporting.report import write_report
    from autodisc.reporting.terminal import print_summary

    results = api.run(config, out, progress=request.progress(out, "run"))
    page = out / "report.html"
    summary = write_report(with_teachers([out]), page)
    if request.json:
        print_json({**results, "report": str(page)})
        return
    print_summary(summary)
    print(f"\nreport: {page}")
