"""A pruned model as its family's plain architecture: every removed unit is back, with weights of zero.

It opens by plain ``from_pretrained`` with no code of ours and computes what the pruned model computes (its sums run
over zeros too, in another order: the last bits may differ). It is as large and as slow as an unpruned model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from autodisc.errors import ModelError
from autodisc.models.checkpoints import own_head, unfilled
from autodisc.models.layouts import Port, blocks
from autodisc.models.modeling_autodisc import OWN, FolderError, Kept


@torch.no_grad()
def to_dense(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of ``model`` without a trace of pruning; raises ModelError where its units' places are not known."""
    own = blocks(model)
    if type(model).__name__.removeprefix("Pruned") in OWN:
        raise ModelError(
            f"model: transformers has no {type(model).__name__}, so nothing would open it without our code"
        )
    try:
        kept = Kept.of(model.config)
    except FolderError as error:
        raise ModelError(f"model: {error}") from None
    for number, (block, heads, neurons) in enumerate(zip(own, kept.heads, kept.neurons, strict=True)):
        if (block.heads, block.neurons) != (len(heads), len(neurons)):
            raise ModelError(
                f"model: layer {number} has {block.heads} heads and {block.neurons} neurons, its config says"
                f" {len(heads)} and {len(neurons)}: nobody knows their places. Give a model that autodisc cut."
            )
    config = copy.deepcopy(model.config)
    for name in ("autodisc", "auto_map"):
        if hasattr(config, name):
            delattr(config, name)
    dense = unfilled(config, own_head(model), dtype=model.dtype)
    placed = set()
    for block, full, heads, neurons in zip(own, blocks(dense), kept.heads, kept.neurons, strict=True):
        for part, whole, units in zip(block.sublayers, full.sublayers, (heads, neurons), strict=True):
            for small, large in zip(part.ports, whole.ports, strict=True):
                placed.add(_place(small, large, units))
    done = {name for name, module in dense.named_modules() if module in placed}
    others = {name: v for name, v in model.state_dict().items() if name.rpartition(".")[0] not in done}
    try:
        missing, more = dense.load_state_dict(others, strict=False)
    except RuntimeError as error:
        raise ModelError(f"model: is no plain {config.model_type} ({' '.join(str(error).split())[:160]})") from None
    if strange := [*(name for name in missing if name.rpartition(".")[0] not in done), *more]:
        raise ModelError(f"model: is no plain {config.model_type} ({', '.join(strange[:3])}); nothing to open it by")
    if getattr(model, "generation_config", None) is not None:  # which has a file of its own
        dense.generation_config = copy.deepcopy(model.generation_config)
    return dense.to(model.device).train(model.training)  # type: ignore[arg-type]


def _place(small: Port, large: Port, units: Sequence[int]) -> torch.nn.Module:
    """Give ``large`` the weights of ``small`` at these units, and zeros elsewhere."""
    where = large.indices(units)
    for name, (full, axis) in large.tensors().items():
        full.zero_().index_copy_(axis, where, getattr(small.module, name).to(full))
    if large.sink and large.module.bias is not None:
        large.module.bias.copy_(small.module.bias)
    return large.module
