"""A pruned model, opened from its folder alone. This file travels in the folder; autodisc uses the same code.

    AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)   (or the head that it has)

needs torch and transformers, not autodisc. ``config.autodisc`` holds per layer the indices of the kept heads and
neurons in the unpruned architecture, and sha256 digests of the folder's files and of its config. A class here gives
its linears those sizes before weights are loaded; what is missing, unexpected, of another shape or of other bytes than
were saved is an error in one line.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

Head = Literal["sequence", "token", "causal", "image"]
SUFFIXES: dict[Head, str] = {  # of classes, transformers' Auto ones too
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "causal": "ForCausalLM",
    "image": "ForImageClassification",
}

FORMAT = 2  # 1 had no digests; such folders open unverified
CONFIG, WEIGHTS, CODE = "config.json", "model.safetensors", "modeling_autodisc.py"
# Says who wrote the file, and computes nothing. ``dtype`` is not among them: from_pretrained loads as it says.
VOLATILE = ("transformers_version", "_name_or_path", "_commit_hash")
HUB = ("cache_dir", "proxies", "local_files_only", "token", "revision", "subfolder")


class FolderError(ValueError):
    """A model's folder is damaged, or its parts do not fit each other."""


@dataclass(frozen=True)
class Layout:
    """Module names of one family. ``layers`` is relative to the base model, the others to one layer."""

    prefix: str  # of transformers' class names
    layers: str
    attention: str  # the module that mixes tokens; its first output is what leaves it
    attention_in: tuple[str, ...]  # rows are heads, head_size rows each
    attention_out: str  # columns are heads
    ffn_in: tuple[str, ...]  # rows are neurons
    ffn_out: str  # columns are neurons
    activation: str
    head_counts: tuple[str, ...] = ()  # attributes of a layer that must equal its number of heads
    head_sizes: tuple[str, ...] = ()  # attributes of a layer that must equal heads * head_size
    config_heads: str = "num_attention_heads"
    config_neurons: str = "intermediate_size"
    config_hidden: str = "hidden_size"
    config_layers: str = "num_hidden_layers"
    config_activation: str = "hidden_act"
    heads: tuple[Head, ...] = ("sequence", "token")

    def class_name(self, head: Head) -> str:
        return self.prefix + SUFFIXES[head]

    def shape(self, config: PreTrainedConfig) -> tuple[int, int, int]:
        """(layers L, heads H, neurons N a layer) of the unpruned architecture."""
        return (
            getattr(config, self.config_layers),
            getattr(config, self.config_heads),
            getattr(config, self.config_neurons),
        )

    def head_size(self, config: PreTrainedConfig) -> int:
        return getattr(config, self.config_hidden) // getattr(config, self.config_heads)

    def declare_heads(self, layer: nn.Module, heads: int, head_size: int) -> None:
        """Make the attributes that state the number of heads true."""
        for names, value in ((self.head_counts, heads), (self.head_sizes, heads * head_size)):
            for name in names:
                parent, _, attribute = name.rpartition(".")
                setattr(layer.get_submodule(parent), attribute, value)


_BERT = Layout(
    prefix="Bert",
    layers="encoder.layer",
    attention="attention.self",
    attention_in=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_out="attention.output.dense",
    ffn_in=("intermediate.dense",),
    ffn_out="output.dense",
    activation="intermediate.intermediate_act_fn",
    head_counts=("attention.self.num_attention_heads",),
    head_sizes=("attention.self.all_head_size",),
)

_DISTILBERT = Layout(
    prefix="DistilBert",
    layers="transformer.layer",
    attention="attention",
    attention_in=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    attention_out="attention.out_lin",
    ffn_in=("ffn.lin1",),
    ffn_out="ffn.lin2",
    activation="ffn.activation",
    head_counts=("attention.n_heads",),
    config_heads="n_heads",
    config_neurons="hidden_dim",
    config_hidden="dim",
    config_layers="n_layers",
    config_activation="activation",
)

LAYOUTS: dict[str, Layout] = {
    "bert": _BERT,
    "roberta": replace(_BERT, prefix="Roberta"),
    "electra": replace(_BERT, prefix="Electra"),
    "distilbert": _DISTILBERT,
}
NAMES: dict[str, tuple[str, Head]] = {
    layout.class_name(head): (family, head) for family, layout in LAYOUTS.items() for head in layout.heads
}


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


class Unitless(nn.Linear):
    """A projection without rows, or without columns: no product is left to run.

    Hooks see what they would see of any linear with no features on one side.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.out_features:
            return x[..., :0]
        # A view of a parameter made in inference mode claims a gradient that it has not; torch's FLOP counter stumbles.
        bias = self.bias if torch.is_grad_enabled() else self.bias.detach()
        return bias.expand(*x.shape[:-1], -1)


class Headless(nn.Module):
    """A self-attention without a head: its unitless projections, of what enters it, and neither scores nor sums."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, _key, _value, *out = (module for module in self.children() if isinstance(module, Unitless))
        B, T = hidden_states.shape[:2]
        # Weights where others give theirs: a layer keeps its place among those that are recorded.
        eager = self.config._attn_implementation == "eager"  # type: ignore[union-attr]
        weights = hidden_states.new_empty(B, 0, T, T) if eager else None
        context = query(hidden_states)  # (B, T, 0)
        return (out[0](context) if out else context), weights

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle finds no class by the name of one that was made."""
        return _remade, (type(self).__bases__[1],), self.__dict__


@functools.cache
def headless(kind: type[nn.Module]) -> type[Headless]:
    """``kind`` without a head: a subclass, since transformers records attentions by their class."""
    return type(f"Headless{kind.__name__}", (Headless, kind), {"__module__": __name__})


def _remade(kind: type[nn.Module]) -> Headless:
    return headless(kind).__new__(headless(kind))


def resize(model: PreTrainedModel, kept: Kept) -> None:
    """Cut each layer's linears to the kept number of units: first rows and columns, for weights to be loaded into.

    A block without units is left as norm(x + output bias), the value that empty products would give to the bit.
    """
    layout = LAYOUTS[model.config.model_type]
    head_size = layout.head_size(model.config)
    layers = model.base_model.get_submodule(layout.layers).children()
    for layer, heads, neurons in zip(layers, kept.heads, kept.neurons, strict=True):
        for sources, sink, width in (
            (layout.attention_in, layout.attention_out, len(heads) * head_size),
            (layout.ffn_in, layout.ffn_out, len(neurons)),
        ):
            for name in sources:
                _cut(layer.get_submodule(name), rows=width)
            _cut(layer.get_submodule(sink), columns=width)
        layout.declare_heads(layer, len(heads), head_size)
        if not heads:
            attention = layer.get_submodule(layout.attention)
            attention.__class__ = headless(type(attention))  # type: ignore[arg-type]
        if not neurons:
            layer.set_submodule(layout.activation, nn.Identity())


def _cut(linear: nn.Module, *, rows: int | None = None, columns: int | None = None) -> None:
    assert type(linear) is nn.Linear, f"a {type(linear).__name__}"
    linear.weight = nn.Parameter(linear.weight.detach()[:rows, :columns].clone())
    linear.bias = nn.Parameter(linear.bias.detach()[:rows].clone())
    linear.out_features, linear.in_features = linear.weight.shape
    if not linear.weight.numel():
        linear.__class__ = Unitless


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
            seal(save_directory, (WEIGHTS, CODE))
        if push_to_hub:  # saves again, elsewhere, and uploads that
            PreTrainedModel.push_to_hub(self, kwargs.pop("repo_id", None) or Path(save_directory).name, **kwargs)


def plain_class(family: str, head: Head) -> type[PreTrainedModel]:
    """transformers' class of a family."""
    module = family.replace("-", "_")
    found: type[PreTrainedModel] = getattr(
        importlib.import_module(f"transformers.models.{module}.modeling_{module}"), LAYOUTS[family].class_name(head)
    )
    return found


@functools.cache
def pruned_class(family: str, head: Head) -> type[Pruned]:
    """The class of pruned models, made when asked for: a folder imports its own family alone.

    Named as its parent, since a pipeline logs an error about a class name that it does not know. With ``_auto_class``
    save_pretrained writes this file and its auto_map.
    """
    parent = plain_class(family, head)
    more = {"__module__": __name__, "_auto_class": f"AutoModel{SUFFIXES[head]}"}
    return type(parent.__name__, (Pruned, parent), more)


def __getattr__(name: str) -> Any:
    """Pruned classes by name, as transformers and pickles ask for them."""
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pruned_class(*NAMES[name])


def head_of(config: PreTrainedConfig) -> Head | None:
    """The head that a saved model has; None where it has none of these."""
    for name in getattr(config, "architectures", None) or ():
        if name in NAMES:
            return NAMES[name][1]
    return None


def adopt(model: PreTrainedModel) -> Pruned:
    """A model of a pruned class with the parameters of ``model``, none copied: to be saved, not run."""
    with torch.device("meta"):
        made = pruned_class(*NAMES[type(model).__name__])(copy.deepcopy(model.config))
    made.load_state_dict(model.state_dict(), strict=True, assign=True)
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
        _compare(where, hub, digests, [CODE])


def verify_tokenizer(where: str | os.PathLike[str], **hub: Any) -> None:
    """Raise FolderError unless the tokenizer's files that were saved with the model are still those."""
    _, digests = _recorded(where, hub)
    if digests is not None:
        _compare(where, hub, digests, [name for name in digests if name not in (CONFIG, WEIGHTS, CODE)])


def _recorded(where: str | os.PathLike[str], hub: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The config's values and its digests."""
    path = _find(where, CONFIG, hub)
    values = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    if not isinstance(values, dict):
        raise FolderError(f"{CONFIG}: expected a JSON object")
    entry = values.get("autodisc")
    if entry is None:
        if CODE.removesuffix(".py") in str(values.get("auto_map")):
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
