"""bench: how fast models are on this machine, side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from autodisc.commands.options import RUNTIME, TASK, Request, takes
from autodisc.commands.output import example, finish
from autodisc.errors import ConfigError, DataError

app = typer.Typer()


@app.command(
    epilog=example(
        "autodisc bench --model teachers/mrpc --model runs/mrpc/distilled-1/student --task mrpc --data data/mrpc"
        " --threads 1 --precision fp32"
    )
)
@takes(*TASK, *RUNTIME, config_file=False)
def bench(
    request: Request,
    model: Annotated[
        list[str],
        typer.Option("--model", metavar="DIR", help="May be repeated; the first is what the others are compared with."),
    ],
    runtimes: Annotated[
        str,
        typer.Option(
            "--runtimes", metavar="NAME,…", help="eager, written, compile (torch.compile), onnx (onnxruntime)."
        ),
    ] = "eager,written,compile,onnx",
    batches: Annotated[str, typer.Option("--batches", metavar="N,…", help="Sequences a forward.")] = "1,8,32",
    lengths: Annotated[
        str | None,
        typer.Option("--lengths", metavar="N,…", help="Tokens; real: those of the task's validation, with --task."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.json", help="Keep the result, unrounded.")] = None,
) -> None:
    """Latency and throughput of models in torch and onnxruntime, and how much of what pruning saves arrives."""
    with_task = "task.name" in request.settings
    sizes = [_number("--batches", text) for text in batches.split(",")]
    wanted = lengths or ("16,64,128,real" if with_task else "16,64,128")
    tokens = [text if text == "real" else _number("--lengths", text) for text in map(str.strip, wanted.split(","))]
    if "real" in tokens and not with_task:
        raise ConfigError("--lengths: real takes the task's own texts; give --task and --data, or leave it out")
    if out is not None and out.exists():
        raise DataError(f"--out: {out} exists; give a new file")
    settings = {"task.name": "bench", "task.metric": "accuracy"} if not with_task else {}
    settings |= {"teacher.model": model[0], **request.settings}
    config = dataclasses.replace(request, settings=settings).config()
    from autodisc import benching
    from autodisc.files import disk_errors, write_json
    from autodisc.reporting.records import plain
    from autodisc.reporting.terminal import print_bench

    result = benching.bench(
        model,
        config=config,
        runtimes=[text.strip() for text in runtimes.split(",")],
        batch_sizes=sizes,
        lengths=tokens,
        progress=request.progress(),
    )
    finish(request, result, print_bench)  # first: where the file cannot be written, minutes of timing are not lost
    if out is not None:
        with disk_errors(out):
            write_json(out, plain(result))


def _number(field: str, text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise ConfigError(f"{field}: got '{text}'; expected whole numbers from 1 on, with commas between")
    return int(text)
