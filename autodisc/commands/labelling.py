"""predict and evaluate: a model's answers, and what they are worth. Files pass through, whatever their length."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from autodisc.commands.options import MODEL, RUNTIME, SPREAD_MODEL, TASK, Request, takes
from autodisc.commands.output import example, finish, print_scores
from autodisc.errors import ConfigError, ModelError

STANDARD = Path("-")
TEXTS = tuple(setting for setting in TASK if setting.name in ("text", "text_pair", "max_length"))
ON = tuple(setting for setting in RUNTIME if setting.name in ("device", "precision", "threads"))
# What a configuration cannot be without, and predict has no use for; and of a study's what it does not read.
ANY_TASK = {"task.name": "predict", "task.metric": "accuracy"}
OTHERS = ("task.kind", "task.data", "task.hub", "student_model", "search.sparsities", "search.low", "search.high")
NOT_READ = tuple(f"{name}=null" for name in OTHERS)

app = typer.Typer()


@app.command(epilog=example("autodisc predict --model teachers/mrpc --file data/mrpc/test.csv --out predicted.csv"))
@takes(*MODEL, *TEXTS, *ON)
def predict(
    request: Request,
    file: Annotated[
        Path,
        typer.Option(
            "--file",
            metavar="FILE",
            help=".csv, .jsonl, .parquet, .conll; - is JSON Lines from standard input.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Rows with predictions; standard output unless given.")
    ] = None,
    format: Annotated[
        Literal["csv", "jsonl", "parquet"] | None,
        typer.Option("--format", help="Of what is written; by --out's name, jsonl on standard output."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Rows at a time.")] = 64,
) -> None:
    """Add a prediction, and the probability of each class, to every row of a file; it may be of any length."""
    if request.json and out is None:
        raise ConfigError("--json: needs --out FILE; without it the predictions themselves go to standard output")
    model, request = _model(request)
    settings, sets = {**ANY_TASK, **request.settings}, (*NOT_READ, *request.sets)
    config = dataclasses.replace(request, settings=settings, sets=sets).config()
    from autodisc.labelling import predict_file

    try:
        result = predict_file(
            model or config.teacher.model,
            None if file == STANDARD else file,
            out,
            task=config.task,
            runtime=config.runtime,
            batch_size=batch_size,
            format=format,
            progress=request.progress(),
        )
    except BrokenPipeError:  # whoever read has had enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own flush at exit complains
        raise typer.Exit(0) from None
    if out is not None:
        finish(request, result, lambda result: print(f"{result['rows']} rows: {result['out']}"))


@app.command(epilog=example("autodisc evaluate --model teachers/mrpc --task mrpc --data data/mrpc"))
@takes(*SPREAD_MODEL, *TASK, *RUNTIME)
def evaluate(
    request: Request,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="NAME",
            help="train, validation (unless given), test, or final: what stands in for test.",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="A labelled file, instead; or a text."),
    ] = None,
) -> None:
    """Metrics of a model, a teacher's or a student's, on a split of its task or a file, and the floor below them."""
    model, request = _model(request)
    if file is not None:
        from autodisc.tasks.sources import OF_KINDS

        suffix = file.suffix.lower()
        kind = {"task.kind": OF_KINDS[suffix]} if suffix in OF_KINDS else {}
        request = dataclasses.replace(request, settings={**kind, **request.settings})
    config = request.config()
    if file is not None and (split is not None or "task.data" in request.settings):
        raise ConfigError("--file: not with --split or --data, which name the rows too; give one or the other")
    if file is not None:
        from autodisc.labelling import evaluate_file

        result = evaluate_file(
            model or config.teacher.model, file, task=config.task, runtime=config.runtime, progress=request.progress()
        )
    else:
        from autodisc import api
        from autodisc.labelling import onnx_file

        if onnx_file(model or config.teacher.model) is not None:
            raise ConfigError(f"--model: {model or config.teacher.model} is ONNX; evaluate it on a file, with --file")
        result = api.evaluate(config, split or "validation", progress=request.progress())
    finish(request, result, print_scores)


def _model(request: Request) -> tuple[str | None, Request]:
    """An ONNX file that --model names, and the request for its folder; no file in any other case."""
    name = request.settings.get("teacher.model", "")
    if not name.endswith(".onnx"):
        return None, request
    if not Path(name).is_file():
        raise ModelError(f"--model: {name}: no such file; autodisc export --format onnx makes one")
    return name, dataclasses.replace(request, settings={**request.settings, "teacher.model": str(Path(name).parent)})
