"""How large the weights of heads and neurons are: the ranking that needs no example and no pass.

    magnitude(unit) = √ Σ w²     over the weights of every projection that the unit has a part of, without biases

The oldest criterion of structured pruning (Li et al. 2017, arXiv:1608.08710, have Σ |w|). It knows nothing of the task.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from autodisc.errors import TrainingError
from autodisc.models.layouts import Port, blocks
from autodisc.models.spreading import value


def unit_norms(model: PreTrainedModel) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of each layer's heads (H,) and neurons (N,), fp32; raises TrainingError for weights that are not finite."""
    squares = [
        [sum((_squares(port) for port in sublayer.ports), torch.zeros(sublayer.units)) for sublayer in block.sublayers]
        for block in blocks(model)
    ]
    if not all(total.isfinite().all() for layer in squares for total in layer):
        raise TrainingError("importance: a weight of the teacher is not finite; check the teacher")
    heads, neurons = zip(*squares, strict=True)
    return [total.sqrt() for total in heads], [total.sqrt() for total in neurons]


def _squares(port: Port) -> torch.Tensor:
    """Σ w² of each unit (U,)."""
    weight = value(port.module, "weight").detach().float().movedim(port.axis, 0)
    return weight.reshape(port.parts, -1, port.width, weight.shape[1]).square().sum((0, 2, 3)).cpu()
