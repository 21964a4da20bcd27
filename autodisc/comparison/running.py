"""Compute the cells of a comparison that are not there yet, several at a time, and go on where one fails.

A job is a run of cells that one process computes one after the other: a search and what is distilled from it, or a cell
alone. First each task is prepared (teacher, rankings, the teacher's outputs), so that no two processes make the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import joblib

from autodisc.comparison.cells import SHARED, Cell, write_failure
from autodisc.comparison.config import ComparisonConfig
from autodisc.comparison.plan import CHAINS, all_cells, recorded
from autodisc.comparison.work import clear, compute, make_teacher, prepare, study_folder
from autodisc.errors import StudyError, TrainingError, UserError, one_line
from autodisc.leases import Lease
from autodisc.progress import Progress, Silent
from autodisc.resuming import alone
from autodisc.search.backends import LOCAL
from autodisc.search.workers import side_by_side

Job = tuple[Cell, ...]


def run(
    config: ComparisonConfig,
    out: Path,
    *,
    jobs: int | None = None,
    backend: str | None = None,
    progress: Progress | None = None,
) -> dict[Cell, str]:
    """Compute what is missing; returns the cells that failed, and why. The same call again goes on, and retries those;
    while another process computes in ``out`` it waits.

    Raises UserError where a record, the data or the teacher is not this comparison's, and LostLeaseError where another
    process has taken over, since this one stood still.
    """
    progress = progress or Silent()
    with alone(out / "running.lease", out, progress) as lease:
        return _run(config, out, lease, jobs or config.compare.jobs, backend or config.compare.backend, progress)


def _run(
    config: ComparisonConfig, out: Path, lease: Lease, jobs: int, backend: str, progress: Progress
) -> dict[Cell, str]:
    cells = all_cells(config, out)
    done = recorded(config, cells, out)
    left = [cell for cell in cells if cell not in done]
    pairs = {(cell.task, cell.seed) for cell in left}
    shared = [cell for cell in cells if cell.kind == SHARED and (cell.task, cell.seed) in pairs]
    by_task = [tuple(cell for cell in shared if cell.task == task) for task in dict.fromkeys(c.task for c in shared)]
    unprepared: set[tuple[str, int]] = set()
    failed: dict[Cell, str] = {}
    with progress.stage("cells", len(cells)) as bar:
        bar.advance(len(done))
        for work, queue in ((_prepare, by_task), (_compute, jobs_of(cell for cell in left if cell.kind != SHARED))):
            ready = [job for job in queue if (job[0].task, job[0].seed) not in unprepared]
            for job, reasons in _outcomes(work, ready, config, out, jobs=jobs, backend=backend):
                for cell, reason in reasons.items():
                    progress.say(f"{cell} failed: {reason}")
                    unprepared |= {(cell.task, cell.seed)} if cell.kind == SHARED else set()
                lease.check()
                failed |= reasons
                new = [cell for cell in job if cell not in reasons and cell not in done]
                bar.advance(len(new))
                for cell in new:
                    progress.say(f"{cell}: computed")
    return failed


def jobs_of(cells: Iterable[Cell]) -> list[Job]:
    """Cells in the order that they are to be started in; a search comes with what is distilled from it."""
    queue: dict[Cell, list[Cell]] = {}
    for cell in cells:
        queue.setdefault(_search_of(cell), []).append(cell)
    return [tuple(job) for job in queue.values()]


def _search_of(cell: Cell) -> Cell:
    """The search that a cell is distilled from, else the cell itself."""
    return replace(cell, kind=next((search for search, kinds in CHAINS.items() if cell.kind in kinds), cell.kind))


def _prepare(config: ComparisonConfig, out: Path, job: Job) -> dict[Cell, str]:
    def work(cell: Cell) -> None:
        make_teacher(config, cell.task, out)
        prepare(config, cell, out)

    return _each(job, out, work)


def _compute(config: ComparisonConfig, out: Path, job: Job) -> dict[Cell, str]:
    def work(cell: Cell) -> None:
        if cell.path(out).exists():  # by a process of this job that was ended before it could say so
            return
        try:
            compute(config, cell, out)
        except StudyError as error:
            if not study_folder(_search_of(cell), out).exists():
                raise
            clear(_search_of(cell), out)  # which a stopped run left, and is no loss
            raise TrainingError(f"{one_line(error, 400)}; it was removed, the same command begins anew") from None

    reasons = _each(job, out, work)
    if not reasons:
        clear(_search_of(job[0]), out)
    return reasons


def _each(job: Job, out: Path, work: Callable[[Cell], None]) -> dict[Cell, str]:
    """Why cells failed, which is recorded; a request that cannot be met as stated ends the run instead."""
    reasons: dict[Cell, str] = {}
    for cell in job:
        try:
            work(cell)
        except UserError:
            raise
        except Exception as error:  # whatever a cell does, the others go on
            text = " ".join(str(error).split())
            reasons[cell] = text if isinstance(error, TrainingError) else f"{type(error).__name__}: {text}"
            write_failure(out, cell, reasons[cell])
    return reasons


def _outcomes(
    work: Callable[[ComparisonConfig, Path, Job], dict[Cell, str]],
    queue: Sequence[Job],
    config: ComparisonConfig,
    out: Path,
    *,
    jobs: int,
    backend: str,
) -> Iterator[tuple[Job, dict[Cell, str]]]:
    """Each job, as it ends, with its failures; a job whose process is ended from outside has failed."""
    if jobs == 1 and backend == LOCAL:
        for job in queue:
            yield job, work(config, out, job)
        return
    threads = config.runtime.threads or 1
    calls = side_by_side(lambda job: joblib.delayed(_apart)(work, config, out, job), queue, jobs, threads, backend)
    for job, found in calls:
        if isinstance(found, TrainingError):
            left = [cell for cell in job if not cell.path(out).exists()] or [job[-1]]
            for cell in left:
                write_failure(out, cell, str(found))
            yield job, dict.fromkeys(left, str(found))
        else:
            yield job, found[0]


def _apart(
    work: Callable[[ComparisonConfig, Path, Job], dict[Cell, str]], config: ComparisonConfig, out: Path, job: Job
) -> tuple[Job, dict[Cell, str]]:
    return job, work(config, out, job)
