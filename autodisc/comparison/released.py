"""The authors' algorithm, as their code runs it (GeneZC/MiniDisc, arXiv:2205.14570), on this ranking and cache.

Phase 1 trains every candidate in every step, for the whole schedule; after each pass each candidate is evaluated, and
the highest metric + λ·sparsity so far is the assistant, with the weights that it had then. No floor is asked of it.
Phase 2 trains every candidate below the assistant in every step, from its weights and outputs; the student is kept.
What differs from theirs: the teacher is cached, batches hold a budget of tokens, units are ranked on train.
"""

from __future__ import annotations

from dataclasses import dataclass

from autodisc.comparison.cells import Spent
from autodisc.distillation.sandwich import Sandwich
from autodisc.distillation.schedule import STUDENT_PHASE, Distilled, Phase, distill_from, training_settings
from autodisc.distillation.training import steps_for, train
from autodisc.pruning.candidates import chain_from
from autodisc.pruning.supernet import Supernet, extract
from autodisc.search.tradeoff import tradeoff
from autodisc.workspace import Workspace

STAGE = "all candidates"


@dataclass(frozen=True)
class Released:
    assistant: Distilled
    student: Distilled
    searched: Spent  # the ledger's total when the assistant was known


def distill_released(space: Workspace) -> Released:
    workshop, config, ranking = space.workshop, space.config.distillation, space.ranking()
    assistants = list(space.candidates.values())
    nested = [*assistants, space.student]
    supernet = Supernet(extract(space.teacher, ranking, nested[0]), ranking)
    steps = steps_for(workshop.task.train, config.batch_size, config.epochs)
    tops: list[tuple[float, float, int]] = []  # of each evaluation: tradeoff, metric, which assistant

    def evaluate() -> float:
        found = []
        for number, candidate in enumerate(assistants):
            with supernet.active(candidate) as model:
                metric = workshop.metric(model, candidate)
            found.append((tradeoff(metric, candidate.sparsity, space.config.search.lam), metric, number))
        tops.append(max(found, key=lambda top: (top[0], top[2])))
        return tops[-1][0]  # the loop keeps the weights of the highest

    with workshop.teacher(space.teacher, config) as outputs:
        state = train(
            supernet.model,
            Sandwich(
                supernet,
                [outputs],
                nested,
                always=nested,
                size=len(nested),
                config=config,
                runtime=workshop.runtime,
            ),
            workshop.task.train,
            training_settings(config, steps=steps, lr=config.lr),
            task=workshop.task,
            runtime=workshop.runtime,
            stage=STAGE,
            ledger=workshop.ledger,
            progress=workshop.progress,
            evaluate=evaluate,
        )
    evaluated = sum(point["metric"] is not None for point in state.curve)  # since it went back, if it did
    _, metric, number = max(tops[-evaluated:], key=lambda top: top[0])  # the first of equal ones, as the loop keeps
    assistant = Distilled(supernet.extract(assistants[number]), assistants[number], metric)
    total = workshop.ledger.total
    chain = chain_from(assistant.candidate, space.candidates.values(), space.student)[1:]
    phase = Phase(STUDENT_PHASE, space.student, tuple(chain), config.epochs, len(chain))
    student = distill_from(assistant, space.teacher, ranking, phase, config, workshop)
    return Released(assistant, student, Spent(total.seconds, total.flops))
