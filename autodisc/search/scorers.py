"""How a trial gets its candidate: as a slice of the recovered supernet, or cut out alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel

from autodisc.distillation.schedule import Workshop
from autodisc.models.layouts import blocks
from autodisc.models.spreading import is_spread
from autodisc.pruning.candidates import Candidate, Ranking
from autodisc.pruning.supernet import Supernet
from autodisc.search.evaluation import Opened
from autodisc.search.workers import Sendable, opened, packed


@dataclass(frozen=True)
class Slices:
    """The ``recovered`` scorer's candidates; another process makes the supernet again, of its weights."""

    supernet: Supernet

    def __call__(self, candidate: Candidate) -> contextlib.AbstractContextManager[PreTrainedModel]:
        return self.supernet.active(candidate)

    def __reduce__(self) -> tuple[Any, ...]:
        own = blocks(self.supernet.model)
        whole = Candidate(0.0, tuple(block.heads for block in own), tuple(block.neurons for block in own))
        return _slices, (packed(self.supernet.extract(whole)), self.supernet.ranking)


def _slices(model: Any, ranking: Ranking) -> Slices:
    return Slices(Supernet(opened(model), ranking))


@dataclass(frozen=True)
class Cuts(Sendable):
    """The ``pruned`` scorer's candidates, each cut and refitted when first asked for, and kept until ``let_go``.

    They share the teacher's embeddings, half of a small model (surgery.py), and lie in memory side by side, fp32.
    """

    teacher: PreTrainedModel
    ranking: Ranking
    workshop: Workshop
    made: dict[Candidate, PreTrainedModel] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, candidate: Candidate) -> Iterator[PreTrainedModel]:
        if candidate not in self.made:
            self.made[candidate] = self.workshop.cut(self.teacher, self.ranking, candidate)
        yield self.made[candidate]


def beside(scorer: Opened, workshop: Workshop) -> Opened:
    """``scorer`` for another process, which books to ``workshop``."""
    return replace(scorer, workshop=workshop, made={}) if isinstance(scorer, Cuts) else scorer


def one_at_a_time(scorer: Opened) -> bool:
    """Whether its candidates are too large to lie in memory side by side: cuts of a teacher that one device cannot
    hold."""
    return isinstance(scorer, Cuts) and is_spread(scorer.teacher)


def let_go(scorer: Opened) -> None:
    """Free what ``scorer`` holds of candidates that have been evaluated."""
    if isinstance(scorer, Cuts):
        scorer.made.clear()
