"""A pruned model, opened from its folder alone. This file and the two that it imports travel in the folder.

    AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)   (or the head that it has)

needs torch and transformers, not autodisc, which uses the same code. ``config.autodisc`` holds per layer the indices of
the kept heads and neurons in the unpruned architecture, and sha256 digests of the folder's files and of its config. A
class here gives its linears those sizes before weights are loaded; what is missing, unexpected, of another shape or of
other bytes than were saved is an error in one line.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from .blocks_autodisc import blocks_of
from .layouts_autodisc import LAYOUTS, NAMES, SUFFIXES, Head

FORMAT = 2  # 1 had no digests; such folders open unverified
CONFIG, WEIGHTS, CODE = "config.json", "model.safetensors", "modeling_autodisc.py"
CODES = (CODE, "blocks_autodisc.py", "layouts_autodisc.py")  # what travels
# Says who wrote the file, and computes nothing. ``dtype`` is not among them: from_pretrained loads as it says.
VOLATILE = ("transformers_version", "_name_or_path", "_commit_hash")
ALIGNMENT = 64  # bytes, of all that torch allocates
HUB = ("cache_dir", "proxies", "local_files_only", "token", "revision", "subfolder")


class FolderError(ValueError):
    """A model's folder is damaged, or its parts do not fit each other."""


@dataclass(frozen=True)
class Kept:
    """Kept units per layer: ascending indices into the unpruned architecture's heads and neurons."""

    heads: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]

    @classmethod
    def everything(cls, config: PreTrainedConfig) -> Kept:
        L, H, N = LAYOUTS[config.model_type].shape(config)
        return cls((tuple(range(H)),) * L, (tuple(range(N)),) * L)

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Kept:
        """What a model's config says is kept; raises FolderError where that cannot be."""
        entry = getattr(config, "autodisc", None)
        if entry is None:
            return cls.everything(config)
        check_format(entry)
        L, H, N = LAYOUTS[config.model_type].shape(config)
        kept = []
        for field, units in (("kept_heads", H), ("kept_neurons", N)):
            layers = entry.get(field)
            if not isinstance(layers, list) or len(layers) != L:
                raise FolderError(f"config.autodisc.{field}: expected one list for each of {L} layers")
            for number, indices in enumerate(layers):
                valid = isinstance(indices, list) and all(type(i) is int and 0 <= i < units for i in indices)
                if not valid or any(a >= b for a, b in itertools.pairwise(indices)):
                    raise FolderError(f"config.autodisc.{field}[{number}]: expected ascending indices in [0, {units})")
            kept.append(tuple(tuple(indices) for indices in layers))
        return cls(*kept)

    def write_to(self, config: PreTrainedConfig) -> None:
        config.autodisc = {
            "format": FORMAT,
            "kept_heads": [list(layer) for layer in self.heads],
            "kept_neurons": [list(layer) for layer in self.neurons],
        }


def check_format(entry: Any) -> None:
    """Raise FolderError unless this version can read what ``config.autodisc`` says."""
    found = entry.get("format") if isinstance(entry, dict) else f"{entry}"
    if type(found) is not int or not 1 <= found <= FORMAT:
        raise FolderError(
            f"config.autodisc.format: got {str(found)[:40]!r}; this version reads 1 to {FORMAT}."
            " Upgrade autodisc, or save it again."
        )
    known = {"format", "kept_heads", "kept_neurons", *(["digests"] if found > 1 else [])}
    if more := sorted(map(str, set(entry) - known)):
        raise FolderError(f"config.autodisc.{more[0][:40]}: unknown in format {found}. Upgrade autodisc.")


def resize(model: PreTrainedModel, kept: Kept) -> None:
    """Cut each layer to the kept number of units: the first ones, for weights to be loaded into.

    A block without units is left as its output bias, the value that empty products would give to the bit.
    """
    for block, heads, neurons in zip(blocks_of(model), kept.heads, kept.neurons, strict=True):
        block.select(range(len(heads)), range(len(neurons)), places=heads)


class Pruned(PreTrainedModel):
    """What a pruned class adds to its family's."""

    def __init__(self, config: PreTrainedConfig) -> None:
        if config.model_type != self.config_class.model_type:  # type: ignore[union-attr]
            raise FolderError(
                f"config.model_type: got '{config.model_type}'; {type(self).__name__} is another family's class"
            )
        if getattr(config, "autodisc", None) is None:
            raise FolderError("config.autodisc: missing; it says which units were kept. Copy the whole folder again.")
        kept = Kept.of(config)
        super().__init__(config)
        resize(self, kept)
        kept.write_to(self.config)  # digests are of files; a model in memory has none

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *args: Any,
        verify: bool = True,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As transformers' own, but strict. ``verify=False`` opens a folder that was changed on purpose."""
        if ignore_mismatched_sizes:
            raise FolderError("ignore_mismatched_sizes: would re-initialise what does not fit; leave it out")
        if verify and pretrained_model_name_or_path is not None:
            verify_model(pretrained_model_name_or_path, **{name: kwargs[name] for name in HUB if name in kwargs})
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path,
            *args,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named below in one line, never ignored
            use_safetensors=True,
            **kwargs,
        )
        for kind in ("mismatched_keys", "missing_keys", "unexpected_keys", "error_msgs"):
            if keys := sorted(key if isinstance(key, str) else str(key[0]) for key in loaded[1].get(kind, ())):
                more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
                raise FolderError(
                    f"{WEIGHTS}: does not fit {CONFIG}: {kind.replace('_', ' ')} {', '.join(keys[:3])[:200]}{more}"
                )
        align(loaded[0])
        return loaded if output_loading_info else loaded[0]

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "",
        **kwargs: Any,
    ) -> None:
        """As transformers' own, with digests, which a push uploads too. Weights are one file, whatever their size."""
        if is_main_process:
            super().save_pretrained(save_directory, state_dict=state_dict, max_shard_size="1000TB", **kwargs)
            seal(save_directory, (WEIGHTS, *CODES))
        if push_to_hub:  # saves again, elsewhere, and uploads that
            PreTrainedModel.push_to_hub(self, kwargs.pop("repo_id", None) or Path(save_directory).name, **kwargs)


def align(model: nn.Module) -> None:
    """Move weights that a file's mapping has off a boundary to where torch would have put them.

    Kernels of some processors round otherwise there: a loaded model would not have exactly the saved logits.
    """
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if not tensor.is_meta and tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


@functools.cache
def _t5_encoder_classifier() -> type[PreTrainedModel]:
    """The encoder of a T5 with a linear head on the mean of its tokens: transformers has none."""
    from transformers.modeling_outputs import SequenceClassifierOutput
    from transformers.models.t5.modeling_t5 import T5EncoderModel, T5PreTrainedModel

    class T5EncoderForSequenceClassification(T5PreTrainedModel):
        _auto_class = "AutoModelForSequenceClassification"
        _keys_to_ignore_on_load_unexpected = ["decoder", "lm_head"]  # noqa: RUF012

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.transformer = T5EncoderModel(config)
            self.dropout = nn.Dropout(config.classifier_dropout)
            self.classifier = nn.Linear(config.d_model, config.num_labels)
            self.post_init()

        def forward(
            self,
            input_ids: torch.Tensor | None = None,
            attention_mask: torch.Tensor | None = None,
            inputs_embeds: torch.Tensor | None = None,
            labels: torch.Tensor | None = None,
            **others: Any,
        ) -> SequenceClassifierOutput:
            out = self.transformer(input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **others)
            states = out.last_hidden_state  # (B, T, C)
            real = torch.ones_like(states[..., :1]) if attention_mask is None else attention_mask[..., None]
            mean = (states * real).sum(1) / real.sum(1).clamp(min=1)
            logits = self.classifier(self.dropout(mean))
            loss = None
            if labels is not None:
                loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
            return SequenceClassifierOutput(
                loss=loss, logits=logits, hidden_states=out.hidden_states, attentions=out.attentions
            )

    T5EncoderForSequenceClassification.__qualname__ = T5EncoderForSequenceClassification.__name__
    return T5EncoderForSequenceClassification


OWN = {"T5EncoderForSequenceClassification": _t5_encoder_classifier}  # classes that transformers has not
PRUNED = {**NAMES, **{f"Pruned{name}": NAMES[name] for name in OWN}}  # class names: (family, head)


def plain_class(family: str, head: Head) -> type[PreTrainedModel]:
    """The class of unpruned models: transformers', or one of ``OWN``."""
    if (name := LAYOUTS[family].class_name(head)) in OWN:
        return OWN[name]()
    module = family.replace("-", "_")
    found: type[PreTrainedModel] = getattr(
        importlib.import_module(f"transformers.models.{module}.modeling_{module}"), name
    )
    return found


@functools.cache
def pruned_class(family: str, head: Head) -> type[Pruned]:
    """The class of pruned models, made when asked for: a folder imports its own family alone.

    Named as its parent, since a pipeline logs an error about a class name that it does not know. With ``_auto_class``
    save_pretrained writes this file and its auto_map.
    """
    parent = plain_class(family, head)
    name = f"Pruned{parent.__name__}" if parent.__name__ in OWN else parent.__name__
    return type(name, (Pruned, parent), {"__module__": __name__, "_auto_class": f"AutoModel{SUFFIXES[head]}"})


def __getattr__(name: str) -> Any:
    """Classes by name, as transformers and pickles ask for them."""
    if name in OWN:
        return OWN[name]()
    if name not in PRUNED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pruned_class(*PRUNED[name])


def head_of(config: PreTrainedConfig) -> Head | None:
    """The head that a saved model has; None where it has none of these."""
    for name in getattr(config, "architectures", None) or ():
        if name in PRUNED:
            return PRUNED[name][1]
    return None


def adopt(model: PreTrainedModel) -> Pruned:
    """A model of a pruned class with the parameters of ``model``, none copied: to be saved, not run."""
    with torch.device("meta"):
        made = pruned_class(*PRUNED[type(model).__name__])(copy.deepcopy(model.config))
    made.load_state_dict(model.state_dict(), strict=True, assign=True)
    made.tie_weights()
    if getattr(model, "generation_config", None) is not None:  # which has a file of its own
        made.generation_config = copy.deepcopy(model.generation_config)
    return made


def seal(folder: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Write digests of the config and of the files ``names`` into the folder's config, beside those it has."""
    path = Path(folder) / CONFIG
    values = json.loads(path.read_text(encoding="utf-8"))
    digests = values["autodisc"].setdefault("digests", {})
    digests |= {CONFIG: _config_digest(values), **{name: _file_digest(Path(folder) / name) for name in names}}
    partial = path.with_name(f".{CONFIG}.partial")
    partial.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def verify_model(where: str | os.PathLike[str], **hub: Any) -> None:
    """Raise FolderError unless config, weights and code (a folder's or a hub's) are what was saved.

    A folder without ``config.autodisc`` and one of format 1 have nothing to compare with.
    """
    values, digests = _recorded(where, hub)
    if digests is None:
        return
    if digests.get(CONFIG) != _config_digest(values):
        raise FolderError(_changed(CONFIG))
    _compare(where, hub, digests, [WEIGHTS])
    if _find(where, CODE, hub):  # without it, the folder opens by autodisc.load
        _compare(where, hub, digests, [name for name in digests if name in CODES])


def verify_tokenizer(where: str | os.PathLike[str], **hub: Any) -> None:
    """Raise FolderError unless the tokenizer's files that were saved with the model are still those."""
    _, digests = _recorded(where, hub)
    if digests is not None:
        _compare(where, hub, digests, [name for name in digests if name not in (CONFIG, WEIGHTS, *CODES)])


def _recorded(where: str | os.PathLike[str], hub: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The config's values and its digests."""
    path = _find(where, CONFIG, hub)
    values = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    if not isinstance(values, dict):
        raise FolderError(f"{CONFIG}: expected a JSON object")
    entry = values.get("autodisc")
    if entry is None:
        whole = set(values.get("architectures") or ()) <= set(OWN)
        if CODE.removesuffix(".py") in str(values.get("auto_map")) and not whole:
            raise FolderError(f"config.autodisc: missing, but {CODE} is to open it. {AGAIN}")
        return values, None
    check_format(entry)
    digests = entry.get("digests")
    if entry["format"] > 1 and not isinstance(digests, dict):
        raise FolderError(f"config.autodisc.digests: missing. {AGAIN}")
    return values, digests


AGAIN = (
    "If that is meant: open it with autodisc.load(path, verify=False), or"
    " from_pretrained(path, trust_remote_code=True, verify=False), and save it again."
)


def _changed(name: str) -> str:
    return f"{name}: not what was saved, damaged or edited since. {AGAIN}"


def _compare(where: str | os.PathLike[str], hub: dict[str, Any], digests: dict[str, Any], names: Iterable[str]) -> None:
    for name in names:
        path = _find(where, name, hub)
        if path is None:
            raise FolderError(f"{name}: missing. Copy the whole folder again.")
        if _file_digest(path) != digests.get(name):
            raise FolderError(_changed(name))


def _find(where: str | os.PathLike[str], name: str, hub: dict[str, Any]) -> str | None:
    found: str | None = cached_file(where, name, _raise_exceptions_for_missing_entries=False, **hub)
    return found


def _config_digest(values: dict[str, Any]) -> str:
    counted = {key: value for key, value in values.items() if key not in VOLATILE}
    counted["autodisc"] = {key: value for key, value in values["autodisc"].items() if key != "digests"}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def _file_digest(path: str | os.PathLike[str]) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
