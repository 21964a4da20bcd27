"""Models on disk: loading a teacher, saving and loading a pruned model, never with a re-initialised weight.

A pruned folder is safetensors plus a config whose ``autodisc`` entry holds, per layer, the indices of the
kept heads and neurons in the unpruned architecture. Plain ``from_pretrained`` cannot size such a model;
``load`` builds the architecture, cuts it to the kept units and then loads the weights strictly.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from autodisc.errors import CheckpointError, ModelError
from autodisc.models.layouts import base_shape, blocks, layout_of

FORMAT = 1
WEIGHTS = "model.safetensors"
PACKAGE = "package:"


@dataclass(frozen=True)
class Kept:
    """Kept units per layer: ascending indices into the unpruned architecture's heads and neurons."""

    heads: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]

    @classmethod
    def everything(cls, config: PretrainedConfig) -> Kept:
        L, H, N = base_shape(config)
        return cls((tuple(range(H)),) * L, (tuple(range(N)),) * L)

    @classmethod
    def of(cls, config: PretrainedConfig) -> Kept:
        """What a model's config says is kept; raises CheckpointError where that cannot be."""
        entry = getattr(config, "autodisc", None)
        if entry is None:
            return cls.everything(config)
        if not isinstance(entry, dict) or entry.get("format") != FORMAT:
            found = entry.get("format") if isinstance(entry, dict) else entry
            raise CheckpointError(
                f"config.autodisc.format: got {found!r}; this version reads {FORMAT}."
                " Upgrade autodisc, or save it again."
            )
        L, H, N = base_shape(config)
        kept = []
        for field, units in (("kept_heads", H), ("kept_neurons", N)):
            layers = entry.get(field)
            if not isinstance(layers, list) or len(layers) != L:
                raise CheckpointError(f"config.autodisc.{field}: expected one list for each of {L} layers")
            for number, indices in enumerate(layers):
                valid = isinstance(indices, list) and all(type(i) is int and 0 <= i < units for i in indices)
                if not valid or any(a >= b for a, b in itertools.pairwise(indices)):
                    raise CheckpointError(
                        f"config.autodisc.{field}[{number}]: expected ascending indices in [0, {units})"
                    )
            kept.append(tuple(tuple(indices) for indices in layers))
        return cls(*kept)

    def write_to(self, config: PretrainedConfig) -> None:
        config.autodisc = {
            "format": FORMAT,
            "kept_heads": [list(layer) for layer in self.heads],
            "kept_neurons": [list(layer) for layer in self.neurons],
        }


def resize(model: PreTrainedModel, heads: Sequence[int], neurons: Sequence[int]) -> None:
    """Give each layer linear modules for this many heads and neurons, their weights not yet set."""
    for block, n_heads, n_neurons in zip(blocks(model), heads, neurons, strict=True):
        width = n_heads * block.head_size
        for linear in block.attention_in:
            _resize(linear, rows=width)
        _resize(block.attention_out, columns=width)
        for linear in block.ffn_in:
            _resize(linear, rows=n_neurons)
        _resize(block.ffn_out, columns=n_neurons)
        block.declare_heads(n_heads)


def _resize(linear: torch.nn.Linear, *, rows: int | None = None, columns: int | None = None) -> None:
    rows = linear.out_features if rows is None else rows
    columns = linear.in_features if columns is None else columns
    linear.weight = torch.nn.Parameter(linear.weight.new_empty(rows, columns))
    if linear.bias is not None and linear.bias.shape[0] != rows:
        linear.bias = torch.nn.Parameter(linear.bias.new_empty(rows))
    linear.out_features, linear.in_features = rows, columns


def load_model(name: str | Path, *, num_labels: int | None = None) -> PreTrainedModel:
    """A sequence classifier in fp32, evaluation mode, from a folder (pruned or not) or a hub name.

    ``num_labels`` is for fine-tuning: a new classification head of that size is made where there is none.
    Raises ModelError (missing, unreachable, unsupported) or CheckpointError (corrupt, not a classifier).
    """
    name = resolve(name)
    config = load_model_config(name)
    layout_of(config)
    with _quiet(), _explained(name):
        if getattr(config, "autodisc", None) is not None:
            return _load_pruned(Path(name), config)
        if num_labels is not None:
            config.num_labels = num_labels
            if num_labels == 1:
                config.problem_type = "regression"
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True
        )
    fresh = sorted(str(key) for key in report["missing_keys"])
    # A pooler, like a head, is new where a model was pretrained without one; nothing else of the body may be.
    body = [key for key in fresh if key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key]
    if body:
        raise CheckpointError(f"{name}: the weights lack {', '.join(body[:3])}; the file is damaged or incomplete")
    if fresh and num_labels is None:
        raise CheckpointError(
            f"{name}: not a fine-tuned classifier, its weights lack {', '.join(fresh[:3])}."
            " Run 'autodisc finetune' first."
        )
    return model.eval()


def load(path: str | Path) -> PreTrainedModel:
    """The model that autodisc saved in a folder: an ordinary torch module, with exactly the saved logits.

    Raises CheckpointError when the folder's weights and its config do not fit each other.
    """
    if not Path(path).is_dir():
        raise ModelError(f"{path}: no such folder; expected one that autodisc saved")
    return load_model(path)


def load_model_config(name: str | Path) -> PretrainedConfig:
    """The configuration of a model in a folder or on the hub; raises ModelError when it cannot be had."""
    name = resolve(name)
    with _explained(name):
        return AutoConfig.from_pretrained(name)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    name = resolve(name)
    with _quiet(), _explained(name):
        return AutoTokenizer.from_pretrained(name)


def _load_pruned(path: Path, config: PretrainedConfig) -> PreTrainedModel:
    kept = Kept.of(config)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    resize(model, [len(layer) for layer in kept.heads], [len(layer) for layer in kept.neurons])
    weights = load_file(path / WEIGHTS)
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path / WEIGHTS}: does not fit config.json: {_one_line(error, 200)}") from None
    return model.eval()


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, path: Path) -> None:
    """Write a folder that ``load`` opens, under a temporary name first: a crash leaves nothing half-written.

    A model that is there is replaced; raises CheckpointError where a folder holds anything else.
    """
    partial, former = path.with_name(path.name + ".partial"), path.with_name(path.name + ".former")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with _quiet():
            try:
                model.save_pretrained(partial)
            except SafetensorError as error:  # what it makes of a full disk; OSError is what callers know
                raise OSError(f"{path / WEIGHTS}: cannot be written ({_one_line(error, 160)})") from error
            if tokenizer is not None:
                tokenizer.save_pretrained(partial)
        _replace(path, partial, former)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _replace(path: Path, partial: Path, former: Path) -> None:
    """Put ``partial`` in the place of ``path``, which keeps its model until then."""
    if not path.exists():
        partial.rename(path)
        return
    ours = {file.name for file in partial.iterdir()} if (path / WEIGHTS).exists() else set()
    others = [file.name for file in path.iterdir() if file.name not in ours] if path.is_dir() else [path.name]
    if others:
        raise CheckpointError(f"{path}: holds other files ({', '.join(others[:3])}); give an empty or a new folder")
    shutil.rmtree(former, ignore_errors=True)
    path.rename(former)
    try:
        partial.rename(path)
    except BaseException:
        if not path.exists():
            former.rename(path)
        raise
    shutil.rmtree(former, ignore_errors=True)


def fingerprint(model: PreTrainedModel) -> str:
    """16 hex digits that change with any weight or kept unit."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    digest.update(repr(getattr(model.config, "autodisc", None)).encode())
    return digest.hexdigest()


def resolve(name: str | Path) -> str | Path:
    """A folder inside an installed package for ``package:name/folder``; anything else as it is."""
    if not str(name).startswith(PACKAGE):
        return name
    package, _, folder = str(name).removeprefix(PACKAGE).partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModelError(f"{name}: package '{package}' is not installed; for the demo: pip install 'autodisc[demo]'")
    return Path(found.submodule_search_locations[0]) / folder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No loading bars and reports of transformers on the terminal that our own progress uses."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def _explained(name: str | Path) -> Iterator[None]:
    """Turn what transformers raises while loading into one line with a way out."""
    folder = Path(name)
    if not folder.is_dir() and (folder.is_absolute() or str(name).startswith((".", "~")) or len(folder.parts) > 2):
        raise ModelError(f"{name}: no such folder; give a folder that holds config.json, or a hub name")
    try:
        yield
    except (ModelError, CheckpointError):
        raise
    except (SafetensorError, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{name}: weights cannot be loaded ({_one_line(error, 160)})") from error
    except (OSError, ValueError, KeyError) as error:
        if folder.is_dir():
            raise ModelError(f"{name}: cannot be opened as a model ({_one_line(error, 160)})") from error
        raise ModelError(
            f"{name}: not a local folder, and not to be had from the hub ({_one_line(error, 120)})."
            " Check the name, or download it where there is a network and give the folder."
        ) from error


def _one_line(error: BaseException, length: int) -> str:
    text: Any = " ".join(str(error).split())
    return text if len(text) <= length else text[: length - 1] + "…"
