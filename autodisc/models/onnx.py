"""A model as an ONNX file, which needs only onnxruntime, and how it is run.

What is exported is the model with its layers written out for the kernels (``written.py``), or its modules where a
family's are not; rounding differs from torch's by some 1e-6, and the file is compared with the model on the batches
given before it is kept.

SST-2's MiniLM and its .9 student, one thread, onnxruntime 1.32, both by torch's exporter: batch 1, length 16, the
student is 5.1 times as fast as the teacher where the modules are exported and 7.1 times where they are written out, at
32 x 64 4.5 and 9.4 times. onnxruntime optimises a file when it is opened, in .3 s; what it would save is for one
processor only, so it is not saved.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autodisc.errors import CheckpointError, ModelError, one_line
from autodisc.models.checkpoints import TRAINED_TEXTS, own_head
from autodisc.models.written import INPUTS, Whole, Written, can_be_written, inputs_of

MODEL, BESIDE = "model.onnx", "onnx.json"  # in an ONNX folder, with tokenizer.json
LARGEST_DIFFERENCE = 1e-4
LOWEST_OPSET, OPSET = 18, 20  # 18: the exporter's lowest; from 20 on GELU is one operator


@dataclass(frozen=True)
class OnnxExport:
    """A file that was written and compared with its model."""

    path: Path
    opset: int
    max_difference: float  # of logits, absolute
    bytes: int


def export_onnx(
    model: PreTrainedModel,
    path: Path,
    *,
    batches: Iterable[Mapping[str, torch.Tensor]],
    opset: int | None = None,
) -> OnnxExport:
    """Write ``model`` to the file ``path``, any batch and length, if it computes what torch does on ``batches``.

    Raises ModelError where a logit differs by more than 1e-4, and for an opset too old.
    """
    require_onnx()
    opset = OPSET if opset is None else opset
    if opset < LOWEST_OPSET:
        raise ModelError(f"opset: got {opset}; the lowest that works is {LOWEST_OPSET}. Leave it out for {OPSET}.")
    if model.main_input_name != "input_ids":
        raise ModelError(f"onnx: a {model.config.model_type} reads {model.main_input_name}; only text is exported")
    examples = list(batches)
    if not examples:
        raise ModelError("onnx: no batch to compare with; give at least one of real text")
    inputs = tuple(name for name in inputs_of(model) if all(name in batch for batch in examples))
    examples = [{name: batch[name] for name in inputs} for batch in examples]
    model = copy.deepcopy(model).to("cpu").eval()  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write(Written(model) if can_be_written(model) else Whole(model), inputs, partial, opset)
        try:
            file = OnnxModel(partial, threads=torch.get_num_threads())
        except CheckpointError as error:  # what the exporter wrote of an opset that it does not know
            raise ModelError(
                f"opset: got {opset}, which this onnxruntime cannot open; leave it out for {OPSET}"
            ) from error
        difference = _difference(model, file, examples)
        if not difference <= LARGEST_DIFFERENCE:
            raise ModelError(
                f"onnx: its logits differ from torch's by {difference:.2g}; at most {LARGEST_DIFFERENCE:g} is exact."
                " Nothing was written; try another --opset, or another version of onnxruntime."
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return OnnxExport(path, opset, difference, path.stat().st_size)


def write_beside(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    inputs: Sequence[str],
    texts: Sequence[str] = (),
) -> None:
    """tokenizer.json, which truncates and pads, and onnx.json: what a use without transformers needs."""
    backend = copy.deepcopy(getattr(tokenizer, "backend_tokenizer", None))
    if backend is None:
        raise ModelError("onnx: this tokenizer has no tokenizer.json; save it as a fast tokenizer first")
    longest = min(max_length, tokenizer.model_max_length)
    side = "right" if own_head(model) == "token" else tokenizer.truncation_side  # words are counted from the first
    backend.enable_truncation(longest, direction=side)
    backend.enable_padding(pad_id=int(tokenizer.pad_token_id), pad_token=str(tokenizer.pad_token))
    names: Any = model.config.id2label
    values = {
        "inputs": [name for name in INPUTS if name in inputs],
        "max_length": longest,
        TRAINED_TEXTS: list(texts),
        "head": own_head(model),
        "id2label": {str(i): names[i] for i in range(len(names))},
    }
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / BESIDE).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def quantize_int8(path: Path, out: Path) -> Path:
    """Weights of the products as int8, activations quantised as they come: smaller; how exact is to be measured."""
    require_onnx()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    partial = out.with_name(f".{out.name}.{os.getpid()}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _silent():
            quantize_dynamic(path, partial, per_channel=True, weight_type=QuantType.QInt8)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out


class OnnxModel:
    """An exported file (or its folder) in onnxruntime, on the CPU."""

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        require_onnx()
        import onnxruntime

        path = Path(path)
        self.path = path / MODEL if path.is_dir() else path
        if not self.path.is_file():
            raise ModelError(f"{self.path}: no such file; 'autodisc export --format onnx' makes one")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0  # 0: one a core
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own classes, which derive from Exception alone
            raise CheckpointError(f"{self.path}: onnxruntime cannot open it ({one_line(error)})") from error
        self.inputs = tuple(entry.name for entry in self._session.get_inputs())
        self.width = self._session.get_outputs()[0].shape[-1]  # V: logits of a row

    def logits(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """(B, V), fp32; ``inputs`` are int64, (B, T), and may hold more than the model reads."""
        found: np.ndarray = self._session.run(None, {name: inputs[name] for name in self.inputs})[0]
        return found


def require_onnx() -> None:
    """Raise ModelError, which says what to install, where the extra is missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(f"onnx: {', '.join(missing)} is not installed; pip install 'autodisc[onnx]'")


def _write(written: torch.nn.Module, inputs: Sequence[str], path: Path, opset: int) -> None:
    """By torch's exporter, from shapes of no meaning: it takes a batch or a length of 1 for one that never changes."""
    example = tuple(torch.ones(2, 3, dtype=torch.long) for _ in inputs)
    shapes = tuple({0: "batch", 1: "length"} for _ in inputs)
    try:
        with _silent(), torch.no_grad():
            torch.onnx.export(
                written,
                example,
                str(path),
                input_names=list(inputs),
                output_names=["logits"],
                dynamic_shapes=shapes,
                opset_version=opset,
                dynamo=True,  # the older exporter's file has 1.4 times the operators
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch.onnx.errors, about what a converter in between raised
        raise ModelError(
            f"onnx: torch cannot export this model at opset {opset} ({one_line(error.__cause__ or error)});"
            f" at {OPSET} the supported families work"
        ) from error


def _difference(model: PreTrainedModel, file: OnnxModel, examples: Iterable[Mapping[str, torch.Tensor]]) -> float:
    """The largest between the logits of file and model; NaN where one of them is."""
    differences = []
    with torch.inference_mode():
        for inputs in examples:
            inputs = {name: values.cpu() for name, values in inputs.items()}
            expected = model(**inputs).logits.numpy()
            found = file.logits({name: values.numpy() for name, values in inputs.items()})
            differences.append(np.abs(found - expected).max())
    return float(np.max(differences))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the exporter's and the quantiser's prints, log lines and warnings."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
