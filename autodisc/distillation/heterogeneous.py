"""Distil into a student of another architecture: it shares no weight with its teacher, so it stands in no sandwich.

L = (L_hidden + L_prediction) / 2,  L_hidden over pairs of depths: s of the student, round(s · L_teacher / L_student)

Both read the same tokens. Where their widths differ, a learned projection C_student -> C_teacher stands between the
two of each pair; it is trained along and thrown away (FitNets, arXiv:1412.6550; TinyBERT, arXiv:1909.10351).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from autodisc.config import DistillationConfig
from autodisc.distillation.losses import Totals, hidden_depths, mean_loss
from autodisc.distillation.teacher_cache import TeacherCache
from autodisc.distillation.training import Term
from autodisc.models.inference import model_inputs
from autodisc.models.layouts import base_shape, embeddings
from autodisc.runtime import Runtime, seeded
from autodisc.tasks.batches import Batch

PROJECTIONS = "autodisc_projections"  # a submodule of the student while it is trained


class Pair(NamedTuple):
    """Depths whose hidden states should agree; 0 is the embeddings."""

    student: int
    teacher: int


def depth_pairs(student: PreTrainedModel, teacher: PreTrainedModel, count: int) -> tuple[Pair, ...]:
    """At most ``count`` pairs, evenly spaced in both, the last layers among them; embeddings are each one's own."""
    own, theirs = base_shape(student.config)[0], base_shape(teacher.config)[0]
    depths = hidden_depths(own, count, embeddings_differ=False)
    return tuple(Pair(depth, max(1, round(depth * theirs / own))) for depth in depths)


@contextlib.contextmanager
def projected(
    student: PreTrainedModel, teacher: PreTrainedModel, pairs: Sequence[Pair], runtime: Runtime
) -> Iterator[list[nn.Module]]:
    """One module a pair, from the student's width to the teacher's; parameters of ``student`` inside, gone outside."""
    own, theirs = student.config.hidden_size, teacher.config.hidden_size
    if own == theirs:
        yield [nn.Identity() for _ in pairs]
        return
    with seeded(runtime.seed):
        made = nn.ModuleList(nn.Linear(own, theirs) for _ in pairs).to(runtime.device)
    student.add_module(PROJECTIONS, made)
    try:
        yield list(made)
    finally:
        del student._modules[PROJECTIONS]


class Heterogeneous:
    """Objective of the training loop: the teacher's logits and, projected, its hidden states."""

    def __init__(
        self,
        student: PreTrainedModel,
        guides: Sequence[TeacherCache],
        pairs: Sequence[Pair],
        projections: Sequence[nn.Module],
        *,
        config: DistillationConfig,
        runtime: Runtime,
    ) -> None:
        self.student, self.guides, self.config, self.runtime = student, guides, config, runtime
        self.pairs, self.projections = pairs, projections
        # Where each pair's teacher depth stands among those that are cached.
        self.places = [guides[0].depths.index(pair.teacher) for pair in pairs]
        for module in embeddings(student):
            module.requires_grad_(config.train_embeddings)

    def draw(self, generator: np.random.Generator) -> None:
        return None

    def terms(self, batch: Batch, totals: Totals, drawn: None) -> Iterator[Term]:
        yield Term(("heterogeneous", self.student.config.model_type), lambda: self._loss(batch, totals))

    def _loss(self, batch: Batch, totals: Totals) -> torch.Tensor:
        outputs = [guide(batch) for guide in self.guides]
        with self.runtime.autocast():
            out = self.student(**model_inputs(self.student, batch), output_hidden_states=bool(self.pairs))
            states = [out.hidden_states[pair.student] for pair in self.pairs]
            hidden = [project(state) for project, state in zip(self.projections, states, strict=True)]
        return mean_loss(
            out.logits,
            hidden,
            [o if o.hidden is None else replace(o, hidden=o.hidden[:, :, self.places]) for o in outputs],
            labels=batch.labels,
            mask=batch.inputs["attention_mask"].bool(),
            totals=totals,
            config=self.config,
        )
