"""The sandwich: one step trains the largest candidate, the smallest, and some between, on shared weights.

(Yu et al. 2019, arXiv:1903.05134; for teacher assistants arXiv:2205.14570.) A sandwich of one candidate is plain
distillation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from autodisc.config import DistillationConfig
from autodisc.distillation.losses import TeacherOutput, Totals, mean_loss
from autodisc.distillation.teacher_cache import TeacherCache
from autodisc.distillation.training import Term
from autodisc.models.layouts import embeddings
from autodisc.pruning.candidates import Candidate
from autodisc.pruning.supernet import Supernet
from autodisc.runtime import Runtime
from autodisc.tasks.batches import Batch


class Sandwich:
    """Objective of the training loop: distil ``guides`` into ``size`` of the candidates a step.

    ``always`` names the candidates of every step; the others are drawn without replacement. The loss is the mean of
    those to each guide; they have the same depths.
    """

    def __init__(
        self,
        supernet: Supernet,
        guides: Sequence[TeacherCache],
        candidates: Sequence[Candidate],
        *,
        always: Sequence[Candidate],
        size: int,
        config: DistillationConfig,
        runtime: Runtime,
    ) -> None:
        self.supernet, self.guides, self.config, self.runtime = supernet, guides, config, runtime
        self.always = list(always)[:size]
        self.others = [c for c in candidates if c not in self.always]
        self.extra = min(size - len(self.always), len(self.others))
        for module in embeddings(supernet.model):
            module.requires_grad_(config.train_embeddings)

    def draw(self, generator: np.random.Generator) -> list[Candidate]:
        if not self.extra:
            return self.always
        picks = generator.choice(len(self.others), self.extra, replace=False)
        return self.always + [self.others[i] for i in picks]

    def terms(self, batch: Batch, totals: Totals, drawn: list[Candidate]) -> Iterator[Term]:
        outputs = [guide(batch) for guide in self.guides]
        mask = batch.inputs["attention_mask"].bool()
        for candidate in drawn:
            kind = (candidate.heads, candidate.neurons)
            yield Term(kind, lambda c=candidate: self._loss(c, batch, outputs, mask, totals) / len(drawn))  # type: ignore[misc]

    def _loss(
        self,
        candidate: Candidate,
        batch: Batch,
        outputs: Sequence[TeacherOutput],
        mask: torch.Tensor,
        totals: Totals,
    ) -> torch.Tensor:
        depths = self.guides[0].depths
        with self.supernet.active(candidate) as model, self.runtime.autocast():
            out = model(**batch.inputs, output_hidden_states=bool(depths))
        states = [out.hidden_states[depth] for depth in depths]
        return mean_loss(out.logits, states, outputs, labels=batch.labels, mask=mask, totals=totals, config=self.config)
