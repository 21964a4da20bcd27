"""Every setting, once: its type, unit, default and reason.

Frozen pydantic models; unknown keys are refused with the nearest valid name; a study's YAML holds
overrides only. There is no default for the teacher or the data: they are the experiment.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from autodisc.errors import ConfigError
from autodisc.files import write_text
from autodisc.urls import public

Kind = Literal["classification", "regression", "tokens", "causal-lm"]
MetricName = Literal[
    "accuracy",
    "f1",
    "f1_macro",
    "accuracy_f1",
    "matthews",
    "pearson",
    "spearman",
    "pearson_spearman",
    "entity_f1",
    "word_accuracy",
    "bits_saved",
]
BINARY: tuple[MetricName, ...] = ("f1", "accuracy_f1")  # defined by a positive class, 1
Strategy = Literal["maxidisc", "direct"]
Sampler = Literal["tpe", "gp"]  # of Optuna
OF_SEARCHES = (  # settings that no ranking and no student through a given assistant depends on
    *("search.lam", "search.scorer", "search.margin", "search.prune", "search.recovery"),
    *("search.trials", "search.examples", "search.balances", "search.sampler", "search.importance.refit"),
)
SCORED, LEAST_SCORED = 0.1, 1000  # of the rows that the assistant's phase passes over; benchmarks/README.md says why
FEWEST_SCORED = 10  # that may be asked for: fewer have no standard error
TrackerName = Literal["tensorboard", "mlflow", "wandb"]
DEFAULT_SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85)
DEFAULT_STUDENT = 0.9
BATCH, LENGTH = 1, 64  # of which a latency is told: sequences, and tokens of each
CONFIG, JOURNAL = "config.yaml", "journal.log"  # in a study's folder: its configuration, its Optuna storage
DOCSTRINGS = "docstrings"  # the embedded task: which installed library is this docstring sentence from?


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _count(value: Any) -> Any:
    """A number as tables print it: 1.2M is 1200000."""
    if isinstance(value, str) and value[-1:] in _PREFIXES:
        with contextlib.suppress(ValueError, OverflowError):
            return round(float(value[:-1]) * _PREFIXES[value[-1]])
    return value


_PREFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
Count = Annotated[int, BeforeValidator(_count), Field(ge=1)]


def _examples(value: Any) -> Any:
    count = _count(value)
    if isinstance(count, str) and count.isdecimal():
        count = int(count)
    if count is None or count == "all" or (isinstance(count, int) and count >= FEWEST_SCORED):
        return count
    raise ValueError(f"got {value!r}; expected a number of rows, at least {FEWEST_SCORED}, or all")


Examples = Annotated[Annotated[int, Field(ge=FEWEST_SCORED)] | Literal["all"] | None, BeforeValidator(_examples)]


def check_name(value: str) -> str:
    """``value``, which names a folder or a part of one; raises ValueError where it could lead out of it."""
    if value in ("", ".", "..") or not value.isprintable() or "/" in value or "\\" in value:
        raise ValueError(f"got {value!r}; expected a name without / and \\, since folders are named after it")
    return value


def _backend(value: str) -> str:
    if not re.fullmatch(r"loky|ray|dask://[^\s/@]+:\d+", value):
        raise ValueError(f"got {value!r}; expected loky (processes here), dask://HOST:PORT or ray")
    return value


Backend = Annotated[str, AfterValidator(_backend)]  # of joblib


def _device_map(value: Any) -> Any:
    if value is None or value in get_args(Spreading):
        return value
    places = r"cpu|disk|mps|\d+|cuda(:\d+)?"
    if isinstance(value, dict) and value and all(isinstance(name, str) for name in value):
        if "" in value and len(value) > 1:
            raise ValueError("got '' beside other names; it names the whole model. Name every module, or '' alone")
        wrong = [place for place in value.values() if not re.fullmatch(places, str(place))]
        if not wrong:
            return {name: int(place) if str(place).isdigit() else place for name, place in value.items()}
        value = wrong[0]
    raise ValueError(
        f"got {value!r}; expected {', '.join(get_args(Spreading))}, or a mapping of all modules' names to 0, cuda:1,"
        " cpu or disk"
    )


Spreading = Literal["auto", "balanced", "balanced_low_0", "sequential"]  # of accelerate: by what fits where
DeviceMap = Spreading | dict[str, int | str]


class TaskConfig(Section):
    """What is learned."""

    name: str = Field(description="A GLUE task's name, 'docstrings', or any name with a metric and data.")
    kind: Kind | None = Field(
        None,
        description="tokens: a tag for each word; causal-lm: the next token. None: by the metric, else by the files"
        " (.conll: tokens, .txt: causal-lm), else classification.",
    )
    data: Path | None = Field(None, description="Folder with train, validation[, test] files; none: the hub (GLUE).")
    hub: str | None = Field(None, description="OWNER/NAME of a data set on the hub, in place of data.")
    metric: MetricName | None = Field(None, description="Larger is better; a GLUE name brings its own.")
    text: str | None = Field(
        None, description="Column of the (first) sentence, of the words (tokens) or the text (causal-lm)."
    )
    text_pair: str | None = Field(None, description="Column of the second sentence, where there is one.")
    label: str = Field("label", description="Column of the label, or of the words' tags; tokens knows tags, ner_tags.")
    max_length: int = Field(128, ge=8, description="Tokens; longer inputs are truncated. causal-lm: of a block.")
    limit_train: int | None = Field(None, ge=1, description="Use this many training rows, drawn by the seed.")
    held_out: float = Field(
        0.1,
        gt=0,
        lt=0.5,
        description="Part of train for the final figure where test has no labels; set aside first.",
    )

    _name = field_validator("name")(check_name)

    @model_validator(mode="after")
    def _one_source(self) -> TaskConfig:
        if self.data is not None and self.hub is not None:
            raise ValueError(f"data: contradicts hub ({self.hub}), which is where the rows would come from; give one")
        return self


class FinetuneConfig(Section):
    """How a teacher is made where the user has none. Defaults: the recipe measured on MiniLM-L6."""

    epochs: int = Field(3, ge=1)
    batch_size: int = Field(32, ge=1)
    lr: float = Field(8e-5, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1, description="Fraction of the steps.")
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0, description="Largest gradient norm.")


class TeacherConfig(Section):
    model: str = Field(description="Folder or hub name of a fine-tuned model; of a pretrained one with `finetune`.")
    finetune: FinetuneConfig | None = None
    dtype: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Of the weights of a teacher that nothing trains any more: bf16 is half the memory, and wants"
        " runtime.precision bf16. What is trained keeps its weights in fp32.",
    )
    device_map: Annotated[DeviceMap | None, BeforeValidator(_device_map)] = Field(
        None,
        description="Of a teacher that nothing trains any more and that one device cannot hold: spread it, by"
        " accelerate, over GPUs, then CPU memory, then disk. A mapping of modules to 0, cuda:1, cpu or disk says where"
        " itself. What is cut out of it comes to runtime.device.",
    )


class ImportanceConfig(Section):
    """Pruning: the order in which heads and neurons go, found on training examples, and what is made of a cut."""

    criterion: Literal["first-order", "fisher"] = Field(
        "first-order",
        description="first-order: Σ |∂loss/∂mask|, the paper's, the same fraction of heads and neurons; fisher: Δloss"
        " once its layer has made up for it, and of heads and neurons what is cheaper a parameter. Scorer pruned, which"
        " refits its cuts: fisher unless given. A slice is not refitted: first-order recovers better.",
    )
    examples: int = Field(512, ge=1, description="Training examples, the same in each round.")
    rounds: int | None = Field(
        None, ge=1, description="Of first-order: 1 is the paper, more re-estimate on what remains. None: 4."
    )
    batch_size: int = Field(32, ge=1)
    normalise: bool = Field(
        False, description="Of first-order: L2 per layer before ranking, as the paper does in its one round."
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
        return self


class RecoveryConfig(Section):
    """One short shared sandwich of all candidates, paid once before the first trial."""

    steps: int | None = Field(None, ge=1, description="Optimizer steps; none: from the distillation's budget.")
    fraction: float = Field(
        0.09, gt=0, le=1, description="Where steps is none: this fraction of the steps of the assistant's phase."
    )
    lr: float = Field(1e-4, gt=0)
    sandwich_size: int = Field(3, ge=1, description="Candidates a step: largest, smallest, the rest at random.")


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
            check_sparsity("sparsities", value)
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


class BaselineConfig(Section):
    strategies: tuple[Strategy, ...] = ("maxidisc", "direct")


class CacheConfig(Section):
    """Teacher outputs and tokenised data."""

    dir: Path | None = Field(None, description="None: $AUTODISC_CACHE, else ~/.cache/autodisc.")
    max_gib: float = Field(8.0, ge=0, description="Largest teacher cache; beyond it the teacher runs again. 0: never.")


class RuntimeConfig(Section):
    seed: int = Field(0, ge=0)
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 autocast where the hardware multiplies bf16, else fp32."
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; none: torch's choice.")
    checkpointing: bool = Field(
        False,
        description="In training, and in the first-order importance, keep of a layer what enters it alone, and compute"
        " it again in the backward pass: a third more work, the memory of one layer. For models that do not fit.",
    )
    checkpoint_minutes: float = Field(
        5.0,
        ge=0,
        description="Between two states of a training on disk, and always one at its end; 0: after every step. One of"
        " MiniLM-L6 has 165 MiB and took 0.9 s (a shared Xeon).",
    )
    trackers: tuple[TrackerName, ...] = Field(
        (), description="Who is told of losses, metrics, trials and costs; each is an extra of its own."
    )


class ReportingConfig(Section):
    """What a record keeps for people to look at."""

    examples: int = Field(
        8, ge=0, le=50, description="Texts kept on which student and teacher differ. 0: none, where texts are private."
    )


class StudyConfig(Section):
    """Everything a study needs; `studies/<name>/config.yaml` overrides these defaults."""

    name: str = "study"
    task: TaskConfig
    teacher: TeacherConfig
    student_sparsity: float | None = Field(
        None, description="Fraction of heads and of neurons that the student loses; 0.9 where there is no budget."
    )
    budget: BudgetConfig | None = Field(None, description="In place of student_sparsity, which the search then finds.")
    student_model: str | None = Field(
        None,
        description="In place of both: a pretrained model of another architecture with the teacher's vocabulary; its"
        " encoder's parameters over the teacher's are its scale.",
    )
    search: SearchConfig = SearchConfig()
    distillation: DistillationConfig = DistillationConfig()
    baseline: BaselineConfig = BaselineConfig()
    cache: CacheConfig = CacheConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    reporting: ReportingConfig = ReportingConfig()

    _name = field_validator("name")(check_name)

    @field_validator("student_sparsity")
    @classmethod
    def _student(cls, value: float | None) -> float | None:
        return None if value is None else check_sparsity("student_sparsity", value, zero=False)

    @model_validator(mode="before")
    @classmethod
    def _sparsity_or_budget(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = [name for name in ("student_sparsity", "budget", "student_model") if values.get(name) is not None]
        if not given:
            return {**values, "student_sparsity": DEFAULT_STUDENT}
        if len(given) > 1:
            raise ValueError(
                f"{given[0]}: got one beside {given[1]}; each says what the student is. Give one of the two"
            )
        return values

    @model_validator(mode="after")
    def _spread_teacher_is_one_process_s(self) -> StudyConfig:
        if self.teacher.device_map is None:
            return self
        if self.budget is not None and self.budget.latency_ms is not None:
            raise ValueError(
                "teacher.device_map: contradicts budget.latency_ms, whose layers are timed on one device; give"
                " budget.params or macs, or leave the map out"
            )
        if self.search.jobs > 1 or self.search.backend != "loky":
            raise ValueError(
                "teacher.device_map: contradicts search.jobs and search.backend, whose processes would each be sent the"
                " teacher; leave them out, or join by 'autodisc worker', which opens its own"
            )
        return self

    @model_validator(mode="after")
    def _below_student(self) -> StudyConfig:
        if self.student_sparsity is not None:
            for value in self.assistant_sparsities:
                if value >= self.student:
                    raise ValueError(
                        f"search.sparsities: got {value}, at or beyond the student's {self.student}; a teacher"
                        f" assistant lies between teacher and student. Remove it, or make the student sparser."
                    )
        return self

    @property
    def student(self) -> float:
        """The student's sparsity; a budget's, or a model's, has to be found first, see ``with_student``."""
        if self.student_sparsity is None:
            raise ValueError("student_sparsity: the student has not been found yet")
        return self.student_sparsity

    def with_student(self, sparsity: float) -> StudyConfig:
        """These settings with the sparsity that was found; raises ConfigError where an assistant is beyond."""
        found = self.model_copy(update={"student_sparsity": sparsity})
        why = "the least sparse that meets the budget" if self.budget is not None else "which its model's size comes to"
        beyond = [value for value in found.assistant_sparsities if value >= sparsity]
        if beyond:
            raise ConfigError(
                f"search.sparsities: got {beyond[0]:g}, at or beyond the student's {sparsity:g}, {why}; a teacher"
                " assistant lies between teacher and student. Remove it, or give less."
            )
        return found

    @property
    def assistant_sparsities(self) -> tuple[float, ...]:
        """The points that the study may visit, ascending."""
        search = self.search
        if search.low is not None and search.high is not None:
            count = int((search.high - search.low) / search.step + 1e-9) + 1
            return tuple(round(search.low + i * search.step, 6) for i in range(count))
        if search.sparsities is not None:
            return search.sparsities
        return tuple(s for s in DEFAULT_SPARSITIES if s < self.student) or (self.student / 2,)


def check_sparsity(field: str, value: float, *, zero: bool = True) -> float:
    """``value``, a removed fraction in [0, 1) ((0, 1) where ``zero`` is false); raises ValueError otherwise."""
    if 0.0 < value < 1.0 or (zero and value == 0.0):
        return value
    hint = f" For {value:g} % removed write {value / 100:g}." if 1.0 < value < 100.0 else ""
    raise ValueError(f"got {value:g}; expected a removed fraction in {'[' if zero else '('}0, 1).{hint}")


def make_config(values: dict[str, Any], *, source: str = "") -> StudyConfig:
    """A validated configuration; raises ConfigError, one line, naming the field and the nearest valid key."""
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        raise explained(error, StudyConfig, source=source) from None


class _Budgeted(Section):
    budget: BudgetConfig


def make_budget(values: dict[str, Any]) -> BudgetConfig:
    """A budget alone; ConfigError says of it what it would say of a study's."""
    try:
        return _Budgeted.model_validate({"budget": values}).budget
    except ValidationError as error:
        raise explained(error, _Budgeted) from None


def explained(error: ValidationError, model: type[BaseModel], *, source: str = "") -> ConfigError:
    """What is wrong with settings of ``model``, in one line."""
    prefix = f"{source}: " if source else ""
    items = error.errors()
    inside = {item["loc"][:depth] for item in items for depth in range(len(item["loc"]))}  # what holds it only follows
    return ConfigError(prefix + "; ".join(_explain(dict(item), model) for item in items if item["loc"] not in inside))


def read_config(path: Path) -> StudyConfig:
    """Read a study's YAML. Relative paths in it are relative to the working folder."""
    return make_config(read_yaml(path), source=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a study's YAML") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    return values


def write_config(config: StudyConfig, path: Path) -> None:
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def differences(ours: StudyConfig | dict[str, Any], theirs: StudyConfig, *, ignore: tuple[str, ...] = ()) -> list[str]:
    """Fields that differ, as ``search.lam: 0.2 -> 0.1``; names in ``ignore`` and below them are left out.

    ``ours`` may be what a record holds: a setting that it lacks, of an earlier version, had its default.
    """
    right = flatten(theirs.model_dump(mode="json"))
    if isinstance(ours, dict):
        plain = StudyConfig(task=TaskConfig(name="plain"), teacher=TeacherConfig(model=""), student_sparsity=None)
        left = {**flatten(plain.model_dump(mode="json")), **flatten(ours)}
    else:
        left = flatten(ours.model_dump(mode="json"))
    return [
        f"{key}: {left.get(key)} -> {right.get(key)}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key) and not any(key == name or key.startswith(name + ".") for name in ignore)
    ]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level: ``{"search": {"lam": 0.2}}`` is ``{"search.lam": 0.2}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _explain(item: dict[str, Any], model: type[BaseModel]) -> str:
    field = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        valid = _valid_keys(item["loc"][:-1], model)
        near = difflib.get_close_matches(str(item["loc"][-1]), valid, n=1, cutoff=0.5)
        way_out = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(valid)}"
        return f"{field}: unknown setting; {way_out}"
    if item["type"] == "missing":
        return f"{field}: missing; it has no default, since it is the experiment"
    if not field or item["type"] == "value_error":
        return f"{field}: {message}" if field else message
    return f"{field}: got {item['input']!r}; {message[0].lower()}{message[1:]}"


def _valid_keys(location: tuple[Any, ...], section: type[BaseModel]) -> list[str]:
    for part in location:
        if isinstance(part, int):  # of a list, whose members have been looked up
            continue
        annotation = section.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(section.model_fields)
