"""The runtimes that a model may be deployed in, each as a function from inputs to logits.

eager: the model's modules in torch. written: ``written.py`` in torch, for the layers that it knows. compile:
torch.compile of the modules. onnx: ``written.py``, else the modules, in onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from autodisc.errors import CheckpointError, ModelError, one_line
from autodisc.models.checkpoints import own_head
from autodisc.models.layouts import without_cache
from autodisc.models.onnx import OnnxModel, export_onnx, require_onnx
from autodisc.models.written import Written, can_be_written
from autodisc.runtime import Runtime

KINDS = ("eager", "written", "compile", "onnx")
Inputs = Mapping[str, torch.Tensor]
Runner = Callable[[Inputs], object]


class Absent(Exception):
    """A runtime cannot be had here; says why in a line."""


def runners(
    kind: str, models: Mapping[str, PreTrainedModel], examples: Sequence[Inputs], runtime: Runtime, folder: Path
) -> dict[str, Runner]:
    """Each of ``models`` in the runtime ``kind``, ready for inputs like ``examples``; files go to ``folder``."""
    if kind == "onnx":
        return _onnx(models, examples, runtime, folder)
    if kind == "compile":
        return _compiled(models, examples, runtime)
    if kind == "eager":
        return {name: _calls(model, **without_cache(model.config)) for name, model in models.items()}
    for name, model in models.items():
        if not can_be_written(model):
            kinds = f"{model.config.model_type} with a {own_head(model)} head"
            raise Absent(f"{name}: a {kinds} has no layers written out; eager runs it")
    return {name: _calls(Written(model)) for name, model in models.items()}


def _calls(module: nn.Module, **told: bool) -> Runner:
    return lambda inputs: module(**inputs, **told)


def _compiled(models: Mapping[str, PreTrainedModel], examples: Sequence[Inputs], runtime: Runtime) -> dict[str, Runner]:
    """For any shape; the first calls are made here, since they are what fails and what takes long."""
    made: dict[str, Any] = {name: torch.compile(model, dynamic=True) for name, model in models.items()}
    try:
        with torch.inference_mode(), runtime.autocast():
            for name, model in made.items():
                for inputs in examples:
                    model(**inputs, **without_cache(models[name].config))
    except Exception as error:  # of torch._dynamo or torch._inductor, or the compiler's own
        raise Absent(f"torch.compile does not work here ({one_line(error)})") from error
    return {name: _calls(model, **without_cache(models[name].config)) for name, model in made.items()}


def _onnx(
    models: Mapping[str, PreTrainedModel], examples: Sequence[Inputs], runtime: Runtime, folder: Path
) -> dict[str, Runner]:
    """Exported, compared with torch on the examples, and run with as many threads."""
    try:
        require_onnx()
    except ModelError as error:
        raise Absent(str(error)) from None
    if runtime.device.type != "cpu" or runtime.precision != "fp32":
        raise Absent(f"it runs in fp32 on the CPU, and this is {runtime.precision} on {runtime.device}")

    def run(model: OnnxModel) -> Runner:
        return lambda inputs: model.logits({name: values.numpy() for name, values in inputs.items()})

    made = {}
    for number, (name, model) in enumerate(models.items()):
        try:
            file = export_onnx(model, folder / f"{number}.onnx", batches=examples).path
            made[name] = run(OnnxModel(file, threads=runtime.threads))
        except (ModelError, CheckpointError) as error:
            raise Absent(f"{name}: {error}") from error
    return made
