"""Weights, gradients and optimizer state of what is trained, in shards over launched processes: torch's FSDP2.

A layer's weights are gathered when the layer is called and let go after it, in the backward pass once more, where the
sum of the processes' gradients is spread over them again. So a process holds, beside one layer, its share of what a
training takes: of fp32 weights, gradients and two moments 16 bytes a parameter over the number of processes. A call of
the model is work of all processes together: each has to make the same calls in the same order, or all wait for ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
from torch.distributed._composable_state import _module_state_mapping
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from autodisc.models.layouts import blocks

MARKS = (REGISTRY_KEY, STATE_KEY, "_is_fsdp_managed_module", "_fsdp_use_orig_params")  # what torch leaves on modules


class Shards:
    """What launched processes do together while a model's weights lie in shards over them."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.device = accelerator.device
        self.first = accelerator.is_main_process
        self.mesh = init_device_mesh(self.device.type, (accelerator.num_processes,))

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return self.sum(float(flag)) > 0

    def sum(self, value: float) -> float:
        total = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total)

    def said(self, value: Any) -> Any:
        """What the first process gives, in all of them."""
        return broadcast_object_list([value])[0]

    def whole(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The whole tensors, gathered one at a time, in the first process's CPU memory; in the others none."""
        found = {}
        for name, tensor in tensors.items():
            gathered = _full(tensor)
            if self.first:
                found[name] = gathered.cpu()
        return found

    def part(self, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """This process's share of a whole tensor, where ``like`` is a share of one of that shape; else all of it."""
        if not isinstance(like, DTensor) or like.shape != tensor.shape:
            return tensor
        shared: torch.Tensor = distribute_tensor(tensor, self.mesh, like.placements, src_data_rank=None)
        return shared

    def received(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of the first process, in all of them, one at a time."""
        described: list[Any] = self.said([(name, tuple(t.shape), t.dtype) for name, t in tensors.items()])
        for name, shape, dtype in described:
            own = tensors[name].to(self.device) if self.first else torch.empty(shape, dtype=dtype, device=self.device)
            dist.broadcast(own, src=0)
            yield name, own


@contextlib.contextmanager
def sharded(model: PreTrainedModel, accelerator: Accelerator, *, asked: bool) -> Iterator[Shards | None]:
    """Weights in shards inside, where that is ``asked`` of several processes; whole again in each outside, and the
    modules as they were. After an error they stay as they are: others may not be there to gather with."""
    if not asked or accelerator.num_processes == 1:
        yield None
        return
    shards = Shards(accelerator)
    for module in [*(block.layer for block in blocks(model)), model]:
        # The model itself too lets its weights go after a call, so that shards are all there is between two calls.
        spread: Any = fully_shard(module, mesh=shards.mesh, reshard_after_forward=True)
        spread.set_gradient_divide_factor(1.0)  # rows are shared out: their gradients add up
        spread.set_force_sum_reduction_for_comms(True)  # gloo cannot divide on the way
    yield shards
    _gather(model)


def _gather(model: PreTrainedModel) -> None:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    made: dict[int, nn.Parameter] = {}  # by what stood there: tied ones stay tied
    places = [(module, name, own) for module in model.modules() for name, own in module._parameters.items()]
    for module, name, own in places:
        if own is not None:
            if id(own) not in made:
                made[id(own)] = nn.Parameter(_full(own), requires_grad=own.requires_grad)
            module._parameters[name] = made[id(own)]
    for module in model.modules():
        _undo(module)


def _full(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    gathered: torch.Tensor = tensor.full_tensor()
    return gathered.detach()


def _undo(module: nn.Module) -> None:
    """What ``fully_shard`` made of a module, undone: torch has no way back of its own."""
    if isinstance(module, FSDPModule):
        kinds: tuple[Any, ...] = type(module).__mro__
        module.__class__ = next(kind for kind in kinds if not issubclass(kind, FSDPModule))
    for name in MARKS:
        vars(module).pop(name, None)
    _module_state_mapping.pop(module, None)
    beside = (
        module._forward_pre_hooks_with_kwargs,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
    )
    for hooks in (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._state_dict_pre_hooks,
        module._load_state_dict_pre_hooks,
        module._load_state_dict_post_hooks,
    ):
        for key in [key for key, hook in hooks.items() if _of_fsdp(hook)]:
            del hooks[key]
            for others in beside:
                others.pop(key, None)


def _of_fsdp(hook: Any) -> bool:
    return str(getattr(getattr(hook, "hook", hook), "__module__", "")).startswith("torch.distributed.fsdp")


def clipped(parameters: list[nn.Parameter], limit: float) -> float:
    """Scale gradients down to a norm of ``limit`` over all processes; the norm that they had."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    return float(_full(norm))
