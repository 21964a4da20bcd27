"""The settings of the search and of what it leads to: importance, recovery, trials, a budget, distillation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from autodisc.config.fields import Backend, Count, Examples, Sampler, Section, check_sparsity
from autodisc.urls import public

OF_SEARCHES = (  # settings that no ranking and no student through a given assistant depends on
    *("search.lam", "search.scorer", "search.margin", "search.prune", "search.recovery"),
    *("search.trials", "search.examples", "search.balances", "search.sampler", "search.importance.refit"),
)
SCORED, LEAST_SCORED = 0.1, 1000  # of the rows that the assistant's phase passes over; benchmarks/README.md says why
BATCH, LENGTH = 1, 64  # of which a latency is told: sequences, and tokens of each


class ImportanceConfig(Section):
    """Pruning: the order in which heads and neurons go, found on training examples, and what is made of a cut."""

    criterion: Literal["first-order", "fisher", "magnitude"] = Field(
        "first-order",
        description="first-order: Σ |∂loss/∂mask|, the paper's, the same fraction of heads and neurons; fisher: Δloss"
        " once its layer has made up for it, and of heads and neurons what is cheaper a parameter; magnitude: √Σ w², of"
        " no example. Scorer pruned, which refits its cuts: fisher unless given. A slice is not refitted: first-order"
        " recovers better.",
    )
    examples: int = Field(512, ge=1, description="Training examples, the same in each round.")
    rounds: int | None = Field(
        None, ge=1, description="Of first-order: 1 is the paper, more re-estimate on what remains. None: 4."
    )
    batch_size: int = Field(32, ge=1)
    normalise: bool = Field(
        False, description="Not of fisher: L2 per layer before ranking, as the paper does in its one round."
    )
    least_heads: int = Field(
        1,
        ge=0,
        description="Heads that a layer keeps while other layers have more. 0 is the paper: where heads are few, whole"
        " layers lose theirs, and a student may then never learn what its teacher compares.",
    )
    refit: bool = Field(
        True,
        description="Scorer pruned: refit what is cut to the teacher by least squares on the same examples.",
    )

    @model_validator(mode="after")
    def _of_first_order(self) -> ImportanceConfig:
        if self.criterion == "fisher" and (self.rounds is not None or self.normalise):
            raise ValueError("rounds, normalise: criterion fisher has neither; add criterion: first-order")
        if self.criterion == "magnitude" and self.rounds is not None:
            raise ValueError(
                "rounds: criterion magnitude looks at weights once; remove it, or add criterion: first-order"
            )
        return self


class RecoveryConfig(Section):
    """One short shared sandwich of all candidates, paid once before the first trial."""

    steps: int | None = Field(None, ge=1, description="Optimizer steps; none: from the distillation's budget.")
    fraction: float = Field(
        0.09,
        gt=0,
        le=1,
        description="Where steps is none: this fraction of the steps of the assistant's phase. The search stays under"
        " 5 % of the exhaustive one; 240 steps chose no better on three tasks (studies/glue-minilm).",
    )
    lr: float = Field(1e-4, gt=0)
    sandwich_size: int = Field(
        3, ge=1, description="Candidates a step: largest, smallest, the rest at random; 2 to 8 were not told apart."
    )


class SearchConfig(Section):
    """The study of teacher assistants."""

    sparsities: tuple[float, ...] | None = Field(
        None, description="The grid; none: the default grid below the student."
    )
    low: float | None = Field(None, ge=0, lt=1, description="A range instead of a grid: its lowest sparsity.")
    high: float | None = Field(None, ge=0, lt=1)
    step: float = Field(0.05, gt=0, lt=1, description="The range's step.")
    balances: tuple[float, ...] = Field(
        (0.0,),
        min_length=1,
        description="Between heads and neurons: b keeps 1 + b times as many heads, as far as there are any and the"
        " student's are left, and neurons for the rest of the parameters. With more than one the study has a second"
        " dimension; 0 alone is the paper's.",
    )
    trials: int | None = Field(None, ge=1, description="Total number of trials; none: every point once.")
    sampler: Sampler = Field(
        "tpe", description="What suggests points where `trials` are fewer than a range's, or than several balances'."
    )
    lam: float = Field(0.2, ge=0, description="λ of the tradeoff metric + λ·sparsity; 0.2 is the authors'.")
    scorer: Literal["recovered", "pruned"] = "recovered"
    margin: float = Field(1.0, ge=0, description="Standard errors above the floor from which a candidate is feasible.")
    prune: bool = Field(
        False,
        description="Stop evaluating a candidate that is surely worse than the best. Off: what was stopped has no"
        " metric on all rows, and `report --lam` cannot rank it.",
    )
    examples: Examples = Field(
        None,
        description="Validation rows that a trial is scored on, the same for all, drawn by the seed with labels in"
        " proportion; or all. None: a tenth of the rows that the assistant's phase passes over, at least 1000, and for"
        " F1 and Matthews as many as hold 30 of the rarest class, so that a search stays cheap where train is small"
        " beside validation. What is distilled is measured on all.",
    )
    retries: int = Field(
        1,
        ge=0,
        description="Times that a failed trial is tried again; one that diverged would end the same, and is not.",
    )
    jobs: int = Field(1, ge=1, description="Processes that run trials side by side and share the CPU threads out.")
    backend: Backend = Field("loky", description="Where the processes of `jobs` run.")
    storage: str | None = Field(
        None,
        description="Optuna storage URL, or a journal's path; none: a journal in the study's folder. Given, trials are"
        " taken one at a time, so that `autodisc worker` may take others.",
    )
    heartbeat_s: int = Field(
        10,
        ge=1,
        description="Of a study that several processes work on: seconds between a process's signs of life. What one"
        " was at that misses three is another's; the same for all of them.",
    )
    importance: ImportanceConfig = ImportanceConfig()
    recovery: RecoveryConfig = RecoveryConfig()

    @model_validator(mode="before")
    @classmethod
    def _fisher_where_cuts_are_refitted(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("scorer") == "pruned":
            importance = values.get("importance", {})
            if isinstance(importance, ImportanceConfig):
                importance = importance.model_dump(exclude_unset=True)
            of_order = ("criterion", "rounds", "normalise")
            if isinstance(importance, dict) and not any(name in importance for name in of_order):
                return {**values, "importance": {"criterion": "fisher", **importance}}
        return values

    @model_validator(mode="after")
    def _grid_or_range(self) -> SearchConfig:
        if self.prune and self.sampler == "gp":
            raise ValueError("sampler: gp learns nothing of the candidates that prune stops; take tpe, or prune: false")
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high: give both for a range, or neither")
        if self.low is not None and self.sparsities is not None:
            raise ValueError("sparsities: a grid and a range (low, high) exclude each other")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low: got {self.low}, above high = {self.high}")
        return self

    @property
    def sampled(self) -> bool:
        """Whether fewer trials than there are points are the sampler's to choose; else they are the grid's first."""
        return self.low is not None or len(self.balances) > 1

    @field_validator("balances")
    @classmethod
    def _balances(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        for value in values:
            if not -1 < value <= 1:
                raise ValueError(f"got {value:g}; expected more than -1 (no heads) and at most 1 (twice as many)")
        return tuple(sorted(set(values)))

    @field_serializer("storage")
    def _without_password(self, value: str | None) -> str | None:
        """What is written of these settings, wherever, has no secret."""
        return None if value is None else public(value)

    @field_validator("sparsities")
    @classmethod
    def _sparsities(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if values is None:
            return None
        if not values:
            raise ValueError("got an empty grid; give at least one sparsity")
        for value in values:
            check_sparsity(value)
        return tuple(sorted(set(values)))


class BudgetConfig(Section):
    """What the student may use: the least sparse candidate that meets all of it becomes the student."""

    params: Count | None = Field(None, description="Parameters of the encoder: embeddings and head do not shrink.")
    macs: Count | None = Field(None, description="Multiply-accumulates of one sequence of 128 tokens.")
    latency_ms: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Of a forward in torch on this machine, by its layers' timings."
    )
    batch: int = Field(BATCH, ge=1, description="Of latency_ms: sequences a forward.")
    length: int = Field(LENGTH, ge=1, description="Of latency_ms: tokens a sequence.")

    @model_validator(mode="after")
    def _one_at_least(self) -> BudgetConfig:
        if self.params is None and self.macs is None and self.latency_ms is None:
            raise ValueError("give at least one of params, macs and latency_ms")
        if self.latency_ms is None and (self.batch, self.length) != (BATCH, LENGTH):
            raise ValueError("batch and length say of what latency_ms is; give it too")
        return self


class DistillationConfig(Section):
    """The fixed sandwich distillation, and each trial of the baselines."""

    epochs: int = Field(4, ge=1, description="Passes over train of the assistant's phase; a chain shares them out.")
    student_epochs: int | None = Field(
        None,
        ge=1,
        description="Passes of the last phase, the student's; none: four times `epochs`. Alone it is cheap, and passes"
        " gain it more there than within the assistant.",
    )
    batch_size: int = Field(32, ge=1, description="Examples a step, on average: a batch holds a budget of tokens.")
    accumulation: int = Field(1, ge=1, description="Micro-batches that a step is split into, to save memory.")
    lr: float = Field(2e-4, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1, description="Fraction of the steps.")
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(5.0, gt=0, description="Largest gradient norm; 5 is the authors'.")
    temperature: float = Field(1.0, gt=0)
    hard_label_weight: float = Field(0.0, ge=0, le=1, description="Weight of the gold labels' loss; 0 is the paper.")
    top_k: int = Field(
        64,
        ge=1,
        description="Where a token has more classes than this, as a vocabulary has: the teacher's likeliest are kept,"
        " all others are one class.",
    )
    hidden_depths: int = Field(7, ge=0, description="Evenly spaced depths in the hidden-state loss; 7 is the paper.")
    train_embeddings: bool = False
    sandwich_size: int = Field(
        3, ge=1, description="Candidates a step of the assistant's phase; 1 is plain distillation."
    )
    student_sandwich_size: int = Field(1, ge=1, description="Candidates a step of the last phase; 3 is the paper.")
    student_guides: Literal["assistant", "both"] = Field(
        "both",
        description="Whose outputs the student learns in the last phase: the assistant's (the paper), or the teacher's"
        " too, the mean of both losses (arXiv:2009.08825). The teacher's are kept from the phase before.",
    )
    assistants: int = Field(
        1,
        ge=1,
        le=4,
        description="A chain of so many: the chosen one, then others at equal ratios of scale down to the student. They"
        " share the passes of one out evenly.",
    )

    @property
    def last_epochs(self) -> int:
        """Passes of the student's phase."""
        return 4 * self.epochs if self.student_epochs is None else self.student_epochs


def scored_examples(
    search: SearchConfig, distillation: DistillationConfig, *, train: int, validation: int, least: int = 1
) -> int:
    """How many of the rows of validation a trial is scored on, where train has so many; ``least`` its rarest class
    asks for."""
    asked = search.examples
    if asked is None:
        asked = max(LEAST_SCORED, least, round(SCORED * distillation.epochs * train))
    return validation if asked == "all" else min(asked, validation)
