"""A frozen teacher that lies on several devices, in CPU memory and on disk: accelerate's hooks bring a module its
inputs, and the weights that wait elsewhere while it runs.

Such weights are on torch's ``meta`` device, with a shape and no numbers, so who wants numbers asks ``value`` or
``state_of``; and modules are called, never written out. ``home`` is where inputs come from, and where logits and
what is cut out of it go.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import dispatch_model
from accelerate.utils import send_to_device
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from autodisc.errors import ModelError

HOOK, HOME = "_hf_hook", "_autodisc_home"
# What accelerate puts on modules and models; a copy that kept them would run, and move, what it was copied from.
HOOKED = (HOOK, "_old_forward", "forward", "to", "cuda", "npu", "xpu", "mlu", "musa", "sdaa", "neuron", "hf_device_map")


def settle(model: PreTrainedModel, home: torch.device) -> PreTrainedModel:
    """A model that ``from_pretrained(device_map=...)`` opened, as all else takes it: an ordinary one where it lies on
    ``home`` as a whole. Raises ModelError where a weight is nowhere to be found."""
    if HOOK not in vars(model):
        vars(model).pop("hf_device_map", None)
        place = next(model.parameters()).device
        if place == _indexed(home):
            return model
        dispatch_model(model, {"": place}, force_hooks=True, skip_keys=model._skip_keys_device_placement)
    setattr(model, HOME, home)
    model.requires_grad_(False)
    for name in model.state_dict():
        _where(model, name)
    return model


def is_spread(model: nn.Module) -> bool:
    return HOOK in vars(model)


def places(model: PreTrainedModel) -> tuple[str, ...]:
    """Of a spread model what lies where, which may decide the last bits; of others nothing."""
    return tuple(f"{name}: {place}" for name, place in _map(model).items()) if is_spread(model) else ()


def moves_weights(model: nn.Module) -> bool:
    """Whether weights come and go while a model runs: made in inference mode, they could never train."""
    return is_spread(model) or isinstance(model, FSDPModule)


def keeps_no_graph(model: nn.Module) -> Any:
    """A context in which nothing is kept for a backward pass."""
    return torch.no_grad() if moves_weights(model) else torch.inference_mode()


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No weight asks for a gradient inside. By name: where weights come and go, others stand there after a pass."""
    before = {name: own.requires_grad for name, own in model.named_parameters(remove_duplicate=False)}
    try:
        model.requires_grad_(False)
        yield
    finally:
        for name, own in model.named_parameters(remove_duplicate=False):
            own.requires_grad_(before[name])


def brought(values: Any, where: torch.device) -> Any:
    """The tensors in ``values``, however nested, on a device."""
    return send_to_device(values, where)


def home(model: PreTrainedModel) -> torch.device:
    """Where a model's inputs come from."""
    found: torch.device | None = vars(model).get(HOME)
    return next(model.parameters()).device if found is None else found


def waits(model: nn.Module) -> bool:
    """Whether some weights are brought when they are needed, and not kept."""
    return is_spread(model) and any(parameter.is_meta for parameter in model.parameters())


def value(module: nn.Module, name: str) -> torch.Tensor:
    """A parameter or buffer of a module itself, with its numbers, wherever they lie."""
    own: torch.Tensor = getattr(module, name)
    if not own.is_meta:
        return own
    found: torch.Tensor = _waiting(module)[name]
    return found.to(own.dtype)


def state_of(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """``state_dict`` by name, one at a time, with numbers: what waits is read as it is asked for."""
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta:
            parent, _, own = name.rpartition(".")
            tensor = value(model.get_submodule(parent), own)
        yield name, tensor


def apart(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a spread model's modules without its hooks, to be trained: what waits has no numbers yet, all else
    is at ``home``. ``bring`` brings the rest."""
    where = home(model)
    memo: dict[int, Any] = {id(vars(module)[HOOK]): None for module in model.modules() if HOOK in vars(module)}
    for module in model.modules():
        for name in HOOKED:
            if name in vars(module):
                memo[id(vars(module)[name])] = None
        for own in (*module._parameters.values(), *module._buffers.values()):
            if own is not None and id(own) not in memo:
                there = own if own.is_meta else own.detach().to(where)
                memo[id(own)] = nn.Parameter(there.detach()) if isinstance(own, nn.Parameter) else there
    made = copy.deepcopy(model, memo)
    for module in made.modules():
        for name in (*HOOKED, HOME):
            vars(module).pop(name, None)
    return made


def bring(made: nn.Module, whole: nn.Module, where: torch.device) -> None:
    """The numbers that a module of ``apart``'s copy lacks, from the same module of the spread model."""
    for (_, own), (_, theirs) in zip(made.named_modules(), whole.named_modules(), strict=True):
        for name, parameter in own._parameters.items():
            if parameter is not None and parameter.is_meta:
                own._parameters[name] = nn.Parameter(value(theirs, name).to(where))
        for name, buffer in own._buffers.items():
            if buffer is not None and buffer.is_meta:
                own._buffers[name] = value(theirs, name).to(where)
    if isinstance(made, PreTrainedModel):
        made.tie_weights()  # those that were brought one by one are not, any more


def _waiting(module: nn.Module) -> Mapping[str, torch.Tensor]:
    hook: Any = vars(module).get(HOOK)
    for each in getattr(hook, "hooks", (hook,)):
        found: Mapping[str, torch.Tensor] | None = getattr(each, "weights_map", None)
        if found is not None:
            return found
    raise ModelError("teacher.device_map: a weight lies nowhere; give a map that names whole layers")


def _where(model: nn.Module, name: str) -> None:
    """Raise ModelError where a weight has no numbers, neither here nor there."""
    parent, _, own = name.rpartition(".")
    module = model.get_submodule(parent)
    if getattr(module, own).is_meta:
        try:
            value(module, own)
        except KeyError:
            raise ModelError(
                f"teacher.device_map: {name} was made anew, and so is not in the file that layers on disk are read"
                " from; give a teacher that was saved whole, or a map without disk for it"
            ) from None


def _map(model: PreTrainedModel) -> dict[str, Any]:
    found: Any = model.hf_device_map
    return dict(found)


def _indexed(device: torch.device) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device
