"""The values that a report is made of: frozen, without formatting, the same for page, Markdown and terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from autodisc.reporting.answers import Answers
from autodisc.search.tradeoff import Score


@dataclass(frozen=True)
class Choice:
    """A teacher assistant as the tradeoff chose it, under one λ."""

    lam: float
    sparsity: float
    metric: float
    floor: float
    standard_error: float
    tradeoff: float
    balance: float = 0.0  # between heads and neurons


@dataclass(frozen=True)
class TrialRow:
    """One candidate of the study; a failed one has an error and no numbers, one stopped early those of its size."""

    number: int
    state: str
    sparsity: float | None
    metric: float | None
    floor: float | None
    standard_error: float | None
    tradeoff: float | None  # under the λ that is shown, not necessarily the recorded one
    feasible: bool | None
    scale: float | None
    params: int | None
    macs: int | None
    seconds: float | None
    heads: tuple[int, ...]  # kept, by layer
    neurons: tuple[int, ...]
    error: str | None
    stopped_at: int | None = None  # examples seen when it was surely worse than the best
    stopped_metric: float | None = None  # on those
    balance: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether there is nothing to rank."""
        return self.metric is None or self.sparsity is None

    def is_of(self, choice: Choice | None) -> bool:
        """Whether this is the candidate that was chosen."""
        return choice is not None and (self.sparsity, self.balance) == (choice.sparsity, choice.balance)


@dataclass(frozen=True)
class BaselineTrialRow:
    """One trial of a multi-trial baseline; metrics are validation's."""

    strategy: str
    number: int
    state: str
    sparsity: float | None
    assistant_metric: float | None
    student_metric: float | None
    seconds: float | None
    flops: float | None
    params: int | None
    error: str | None

    @property
    def failed(self) -> bool:
        return self.student_metric is None


@dataclass(frozen=True)
class StrategyRow:
    """What a strategy's student reached and what it cost; ``metric`` is the final split's."""

    name: str
    metric: float | None = None
    standard_error: float | None = None
    split: str | None = None
    validation_metric: float | None = None
    assistant_sparsity: float | None = None
    seconds: float | None = None
    flops: float | None = None
    seconds_share: float | None = None  # of maxidisc's
    flops_share: float | None = None
    assistant_balance: float | None = None


@dataclass(frozen=True)
class CostRow:
    """One stage of one strategy. A phase is the command that the stage ran in: search, distill or baseline."""

    strategy: str
    phase: str
    stage: str
    seconds: float
    flops: float
    tokens: int
    peak_mib: float


@dataclass(frozen=True)
class Curve:
    """Loss by step, and the metric at those steps where it was measured."""

    strategy: str
    stage: str
    steps: tuple[int, ...]
    losses: tuple[float | None, ...]
    metric_steps: tuple[int, ...]
    metrics: tuple[float, ...]


@dataclass(frozen=True)
class Shares:
    """Cost relative to maxidisc's; none where one of the two was not run."""

    search_seconds: float | None = None
    search_flops: float | None = None
    schedule_seconds: float | None = None
    schedule_flops: float | None = None


@dataclass(frozen=True)
class StudySummary:
    """One study with the baselines that share its task, data, teacher and student sparsity."""

    name: str
    task: str
    metric_name: str
    student_sparsity: float
    scorer: str | None
    margin: float
    studied: bool  # whether a search is among the records
    recorded: Choice | None  # what the study chose
    reranked: Choice | None  # what another λ would choose, where one was asked for
    lam: float | None  # the λ that tradeoffs are shown under
    asked_lam: float | None
    floor: float | None
    split: str | None
    teacher_metric: float | None
    strategies: tuple[StrategyRow, ...]
    trials: tuple[TrialRow, ...]
    baseline_trials: tuple[BaselineTrialRow, ...]
    shares: Shares
    costs: tuple[CostRow, ...]
    curves: tuple[Curve, ...]
    answers: Answers = field(default_factory=Answers)  # of the newest distillation's models
    assistant_metric: float | None = None  # distilled, on validation
    seed: int | None = None
    teacher_feasible: bool | None = None  # whether the teacher itself left the floor; none: it was not told
    projected_flops: float | None = None  # of maxidisc, reckoned by the search before any of it was run
    headline: str = ""
    verdict: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()
    configuration: tuple[tuple[str, str], ...] = ()

    def strategy(self, name: str) -> StrategyRow | None:
        return next((row for row in self.strategies if row.name == name), None)

    @property
    def shown(self) -> Choice | None:
        """The choice under the λ that is shown."""
        return self.recorded if self.asked_lam is None else self.reranked


@dataclass(frozen=True)
class Summary:
    studies: tuple[StudySummary, ...]


def scored(rows: Sequence[TrialRow]) -> list[tuple[TrialRow, Score]]:
    """The candidates that can be ranked, as the tradeoff takes them."""
    return [
        (row, Score(row.sparsity, row.metric, row.floor, row.standard_error))
        for row in rows
        if row.sparsity is not None
        and row.metric is not None
        and row.floor is not None
        and row.standard_error is not None
    ]
