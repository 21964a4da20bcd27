"""What the dashboard is told of a study that runs: who looks on while its trials finish."""

from __future__ import annotations

from pathlib import Path

from autodisc.config import JOURNAL
from autodisc.finished import Finished
from autodisc.models.layouts import blocks
from autodisc.reporting.live import ARTIFACTS, About, Live, decorate
from autodisc.reporting.records import read_records
from autodisc.reporting.summary import summarize
from autodisc.search.assistants import search_result
from autodisc.search.baselines import baseline_result, projected_flops
from autodisc.search.storage import Study, load_study
from autodisc.workspace import Workspace


def show_search(study: Study, space: Workspace, out: Path, *, teacher: float, storage: str) -> Live:
    """``teacher`` is its metric on validation."""
    search = space.config.search
    return Live(
        study,
        _about(space, "autodisc", teacher=teacher),
        out / ARTIFACTS,
        result=lambda: search_result(study, search, storage=storage),
        spent=lambda: space.ledger.stages,
    )


def show_maxidisc(study: Study, space: Workspace, place: Path, *, storage: str) -> Live:
    return Live(
        study,
        _about(space, "maxidisc", teacher=None),
        place / ARTIFACTS,
        result=lambda: baseline_result(study, storage=storage),
        spent=lambda: space.ledger.stages,
    )


def show_finished(space: Workspace, finished: Finished) -> None:
    """Write into the search's study what its distillation came to."""
    recorded = finished.searched.result["storage"]
    own = Path(recorded).name == JOURNAL  # of the folder as it was then; it may have been moved or copied
    study = load_study(finished.searched.result["study"], str(finished.folder / JOURNAL) if own else recorded)
    teacher = finished.searched.result["teacher"]["metric"]
    for summary in summarize(read_records([finished.folder])).studies:
        if summary.studied:
            decorate(study, summary, _about(space, "autodisc", teacher=teacher))


def _about(space: Workspace, strategy: str, *, teacher: float | None) -> About:
    config, task, layers = space.config, space.task, blocks(space.teacher)
    return About(
        name=config.name,
        strategy=strategy,
        task=task.name,
        metric_name=task.metric.name,
        teacher=config.teacher.model,
        teacher_metric=teacher,
        student_sparsity=config.student,
        lam=config.search.lam,
        margin=config.search.margin,
        scorer=config.search.scorer,
        labels=task.label_names or (),
        heads=max(block.heads for block in layers),
        neurons=max(block.neurons for block in layers),
        projected_flops=projected_flops(
            space.teacher,
            space.ranking(),
            space.candidates,
            space.student,
            config.distillation,
            task.train,
            alone=space.other is not None,
        ),
    )
