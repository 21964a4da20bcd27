"""A pruned model as its family's plain architecture: every removed unit is back, with weights of zero.

It opens by plain ``from_pretrained`` with no code of ours and computes what the pruned model computes (its sums run
over zeros too, in another order: the last bits may differ). It is as large and as slow as an unpruned model.
"""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from autodisc.errors import ModelError
from autodisc.models.checkpoints import own_head, unfilled
from autodisc.models.layouts import blocks
from autodisc.models.modeling_autodisc import FolderError, Kept


@torch.no_grad()
def to_dense(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of ``model`` without a trace of pruning; raises ModelError where its units' places are not known."""
    own = blocks(model)
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
    dense = unfilled(config, own_head(model))
    dense.to(model.dtype)  # type: ignore[arg-type]
    placed = set()
    for block, full, heads, neurons in zip(own, blocks(dense), kept.heads, kept.neurons, strict=True):
        columns = [head * full.head_size + i for head in heads for i in range(full.head_size)]
        for small, large in zip(block.attention_in, full.attention_in, strict=True):
            placed.add(_place(small, large, rows=columns))
        placed.add(_place(block.attention_out, full.attention_out, columns=columns))
        for small, large in zip(block.ffn_in, full.ffn_in, strict=True):
            placed.add(_place(small, large, rows=list(neurons)))
        placed.add(_place(block.ffn_out, full.ffn_out, columns=list(neurons)))
    done = {name for name, module in dense.named_modules() if module in placed}
    others = {name: v for name, v in model.state_dict().items() if name.rpartition(".")[0] not in done}
    try:
        missing, more = dense.load_state_dict(others, strict=False)
    except RuntimeError as error:
        raise ModelError(f"model: is no plain {config.model_type} ({' '.join(str(error).split())[:160]})") from None
    if strange := [*(name for name in missing if name.rpartition(".")[0] not in done), *more]:
        raise ModelError(f"model: is no plain {config.model_type} ({', '.join(strange[:3])}); nothing to open it by")
    return dense.to(model.device).train(model.training)  # type: ignore[arg-type]


def _place(
    small: torch.nn.Linear, large: torch.nn.Linear, *, rows: list[int] | None = None, columns: list[int] | None = None
) -> torch.nn.Linear:
    """Give ``large`` the weights of ``small`` at these rows or columns, and zeros elsewhere."""
    where = torch.tensor(columns if rows is None else rows, dtype=torch.long)
    large.weight.zero_().index_copy_(1 if rows is None else 0, where, small.weight.to(large.weight.device))
    bias = small.bias.to(large.bias.device)
    if rows is None:
        large.bias.copy_(bias)
    else:
        large.bias.zero_().index_copy_(0, where, bias)
    return large
