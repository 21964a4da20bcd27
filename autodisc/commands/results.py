"""report, compare, status, dashboard: what is known of what was made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from autodisc.commands.options import Debug, Json, Out, Quiet, check_folder, check_inputs
from autodisc.commands.output import example, print_json, with_teachers
from autodisc.errors import StudyError

app = typer.Typer()


@app.command(epilog=example("autodisc report runs/mrpc --out runs/mrpc/report.html"))
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="The --out of searches and baselines.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE|DIR",
            help="FILE.html (a .md beside), FILE.md, or a folder for page, Markdown, PNG and CSV; DIR/report.html.",
        ),
    ] = None,
    lam: Annotated[
        float | None, typer.Option("--lam", metavar="λ", help="Rank the recorded trials again; nothing is run.")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """One HTML page that opens offline, a Markdown summary, and the tables here; several studies side by side."""
    from autodisc.reporting.report import page_of, write_report
    from autodisc.reporting.terminal import print_summary

    out = out or folders[0] / "report.html"
    summary = write_report(with_teachers(folders), out, lam=lam)
    if json_:
        import dataclasses

        print_json({"report": str(page_of(out)), **dataclasses.asdict(summary)})
    else:
        if not quiet:
            print_summary(summary)
        print(f"report: {page_of(out)}")


@app.command(epilog=example("autodisc compare studies/compare-demo/config.yaml --out runs/compare --workers 2"))
def compare(
    file: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Tasks, seeds, students and strategies.")],
    out: Out,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="Processes, a cell each.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option("--backend", metavar="NAME", help="Where they run: loky (here), dask://HOST:PORT, ray."),
    ] = None,
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
    failed = {}
    if not report_only:
        for study in config.studies():
            check_inputs(study)
        from autodisc.comparison.running import run as compute

        progress = terminal_progress(quiet=quiet, json=json_)
        failed = compute(config, out, jobs=workers, backend=backend, progress=progress)
    result = write(config, out)
    result["failed"] |= {str(cell): reason for cell, reason in failed.items()}
    if json_:
        print_json(result)
    else:
        print("\n".join([*([] if quiet else result["verdicts"]), f"report: {result['report']}"]))
    if result["failed"]:
        raise typer.Exit(1)


@app.command(epilog=example("autodisc status runs/mrpc"))
def status(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="The --out of searches and baselines.")],
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """A study at a glance, running or finished: what is done, the best so far, its cost, the time left."""
    from autodisc.reporting.status import lines, read_status

    found = [read_status(folder) for folder in folders]
    if json_:
        import dataclasses

        print_json({"studies": [dataclasses.asdict(one) for one in found]})
    else:
        print("\n".join(line for one in found for line in lines(one)))


@app.command(epilog=example("autodisc dashboard runs/mrpc --port 8080"))
def dashboard(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="The --out of searches and baselines; several are compared.")
    ],
    host: Annotated[str, typer.Option("--host", help="Address to listen on; it has no password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8080,
    debug: Debug = False,
) -> None:
    """Open studies in optuna-dashboard, running or finished, until Ctrl-C; a search beside its baseline."""
    from autodisc.config import CONFIG, JOURNAL, read_config
    from autodisc.reporting.dashboard import serve, shown_of

    shown = []
    for folder in folders:
        baselines = sorted(folder.glob(f"baseline-*/{JOURNAL}"))
        if (folder / CONFIG).is_file():
            storage = read_config(folder / CONFIG).search.storage or str(folder / JOURNAL)
            shown += shown_of(folder, storage, baselines)
        elif baselines:
            shown += shown_of(folder, None, baselines)
        else:
            raise StudyError(f"{folder}: holds no study; expected the --out of a search or a baseline")
    print(f"http://{host}:{port}/dashboard (Ctrl-C ends it)", file=sys.stderr)
    serve(shown, host=host, port=port)
