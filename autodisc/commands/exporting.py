"""candidates, export: what a finished study holds, and any of it as a folder to deploy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer

from autodisc.commands.options import BUDGET, RUNTIME, TASK, Out, Request, check_folder, check_model, takes
from autodisc.commands.output import example, finish
from autodisc.errors import ConfigError, StudyError

app = typer.Typer()


@app.command(epilog=example("autodisc candidates --study runs/mrpc"))
@takes(*RUNTIME, config_file=False)
def candidates(
    request: Request,
    study: Annotated[Path, typer.Option("--study", metavar="DIR", help="The --out of a finished search.")],
    batch: Annotated[
        int | None,
        typer.Option("--batch", metavar="N", min=1, help="Of the latency: sequences a forward; the budget's, or 1."),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option("--length", metavar="N", min=1, help="Of the latency: tokens a sequence; the budget's, or 64."),
    ] = None,
) -> None:
    """Every candidate of a finished study: metric, parameters, MACs, and what a forward takes on this machine."""
    config = request.config(_study_file(study))
    from autodisc import exporting
    from autodisc.reporting.terminal import print_candidates

    result = exporting.candidates(study, batch=batch, length=length, config=config, progress=request.progress())
    finish(request, result, print_candidates)


@app.command(
    epilog=example("autodisc export --study runs/mrpc --sparsity 0.85 --format onnx --int8 --out exports/mrpc-85")
)
@takes(*BUDGET, *TASK, *RUNTIME, config_file=False)
def export(
    request: Request,
    out: Out,
    study: Annotated[
        Path | None, typer.Option("--study", metavar="DIR", help="The --out of a finished search.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="DIR", help="A student's folder, instead; with --task and --data.")
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(
            "--sparsity", metavar="S", help="Of the candidate to cut out; the distilled student unless given."
        ),
    ] = None,
    balance: Annotated[
        float | None,
        typer.Option("--balance", metavar="B", help="Of that candidate, where the study has several: see its choice."),
    ] = None,
    format: Annotated[
        Literal["autodisc", "dense", "onnx"],
        typer.Option("--format", help="dense opens anywhere and is no faster; onnx is for onnxruntime."),
    ] = "autodisc",
    int8: Annotated[bool, typer.Option("--int8", help="Of onnx: a file of 8-bit weights too.")] = False,
    opset: Annotated[int | None, typer.Option("--opset", metavar="N", help="Of onnx: its version.")] = None,
) -> None:
    """Write any candidate of a study, or a distilled student, as a folder to deploy; measured on validation."""
    from autodisc.config import make_budget

    of_budget = {
        key.removeprefix("budget."): text for key, text in request.settings.items() if key.startswith("budget.")
    }
    budget = make_budget(of_budget) if of_budget else None
    rest = {key: text for key, text in request.settings.items() if not key.startswith("budget.")}
    of_task = [setting.flag for setting in TASK if setting.key in rest]
    if (study is None) == (model is None):
        raise ConfigError("--study, --model: give one of the two: a finished search, or a model's folder")
    if sparsity is not None and budget is not None:
        raise ConfigError("--sparsity: contradicts the budget, which is there to find it; give one of the two")
    if study is None and (sparsity is not None or balance is not None or budget is not None):
        raise ConfigError(
            "--sparsity, --balance and budgets: cut a candidate out of a study; give --study in place of --model"
        )
    if study is not None and of_task:
        raise ConfigError(f"{of_task[0]}: the study has its own; it goes with --model")
    if format != "onnx" and (int8 or opset is not None):
        raise ConfigError(f"{'--int8' if int8 else '--opset'}: is for --format onnx")
    check_folder(out)
    if study is not None:
        config = dataclasses.replace(request, settings=rest).config(_study_file(study))
        from autodisc import exporting

        result = exporting.export(
            study,
            out,
            sparsity=sparsity,
            balance=balance,
            budget=budget,
            format=format,
            int8=int8,
            opset=opset,
            config=config,
            progress=request.progress(),
        )
    else:
        assert model is not None
        if format == "onnx" and "task.name" not in rest:
            raise ConfigError("--format onnx: is compared with torch on real texts; give --task and --data too")
        config = None
        check_model(str(model))
        if of_task:
            config = dataclasses.replace(request, settings={"teacher.model": str(model), **rest}).config()
        from autodisc import exporting

        result = exporting.export_model(
            model, out, format=format, int8=int8, opset=opset, config=config, progress=request.progress()
        )
    from autodisc.reporting.terminal import print_export

    finish(request, result, print_export)


def _study_file(study: Path) -> Path:
    from autodisc.config import CONFIG

    if not (study / CONFIG).is_file():
        raise StudyError(f"--study: {study} holds no search; run 'autodisc search --out {study}' first")
    return study / CONFIG
