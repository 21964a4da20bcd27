"""What autodisc is compared with, through the same training loop, teacher cache and ledger.

``maxidisc``  multi-trial search: a trial runs the fixed schedule with its assistant and returns the student's metric
``direct``    no assistant: the student is distilled straight from the teacher, at the mean compute of a maxidisc trial
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.trial import TrialState
from transformers import PreTrainedModel

from autodisc.config import DistillationConfig
from autodisc.distillation.schedule import Distilled, Workshop, distill_phase, distill_sandwich, passes_by_scale
from autodisc.distillation.training import steps_for
from autodisc.pruning.candidates import Candidate, Ranking
from autodisc.pruning.supernet import extract
from autodisc.search.storage import completed, enqueue_missing, run_trials


def run_maxidisc(
    study: optuna.Study,
    teacher: PreTrainedModel,
    ranking: Ranking,
    candidates: Mapping[float, Candidate],
    student: Candidate,
    config: DistillationConfig,
    workshop: Workshop,
    keep: Callable[[Distilled, Distilled], None],
    settled: Callable[[], None],
) -> None:
    """Distil an assistant and a student for every candidate.

    ``keep`` gets each pair that beats those before it; ``settled`` is called after each trial.
    """
    points = sorted(candidates)
    enqueue_missing(study, [{"sparsity": s} for s in points])

    def objective(trial: optuna.Trial) -> float:
        sparsity = trial.suggest_categorical("sparsity", points)
        before = workshop.ledger.total
        chain = chain_from(candidates, sparsity, student)
        start = extract(teacher, ranking, chain[0])
        assistant, distilled = distill_sandwich(teacher, start, ranking, chain, config, workshop)
        after = workshop.ledger.total
        trial.set_user_attr("assistant_metric", assistant.metric)
        trial.set_user_attr("seconds", after.seconds - before.seconds)
        trial.set_user_attr("flops", after.flops - before.flops)
        others = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if all((distilled.metric, sparsity) > (t.value, t.params["sparsity"]) for t in others):  # as the result's best
            keep(assistant, distilled)
        return distilled.metric

    stage = "maxidisc trials"
    with workshop.progress.stage(stage, len(points)) as bar:
        bar.advance(completed(study))
        for succeeded in run_trials(study, objective, len(points)):
            settled()
            bar.advance(int(succeeded))


def distill_direct(
    teacher: PreTrainedModel,
    ranking: Ranking,
    candidates: Mapping[float, Candidate],
    student: Candidate,
    config: DistillationConfig,
    workshop: Workshop,
) -> Distilled:
    """Plain distillation, teacher to student, for as many steps as a mean maxidisc trial's compute pays for."""
    passes = [passes_by_scale(chain_from(candidates, s, student), config.sandwich_size) for s in candidates]
    ratio = sum(passes) / len(passes) / student.scale
    steps = round(steps_for(workshop.task.train, config.batch_size, config.epochs) * ratio)
    start = extract(teacher, ranking, student)
    with workshop.teacher(teacher, config) as outputs:
        return distill_phase(
            start,
            outputs,
            ranking,
            [student],
            target=student,
            stage="teacher to student",
            steps=steps,
            config=config,
            workshop=workshop,
        )


def chain_from(candidates: Mapping[float, Candidate], sparsity: float, student: Candidate) -> list[Candidate]:
    """The assistant of a sparsity, the candidates between, and the student, the largest first."""
    return [candidates[s] for s in sorted(candidates) if s >= sparsity] + [student]


def baseline_result(study: optuna.Study, *, storage: str) -> dict[str, Any]:
    """The study as plain numbers: the best trial by the student's validation metric, and every trial."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    rows = [
        {
            "number": trial.number,
            "state": trial.state.name,
            "sparsity": trial.params.get("sparsity"),
            "assistant_metric": trial.user_attrs.get("assistant_metric"),
            "student_metric": trial.value,
            "seconds": trial.user_attrs.get("seconds"),
            "flops": trial.user_attrs.get("flops"),
        }
        for trial in trials
    ]
    rows.sort(key=lambda row: (row["sparsity"] or 0.0, row["number"]))
    done = [row for row in rows if row["state"] == "COMPLETE"]
    winner = max(done, key=lambda row: (row["student_metric"], row["sparsity"]), default=None)
    return {"best": winner, "trials": rows, "storage": storage, "study": study.study_name}
