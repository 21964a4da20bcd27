"""A study's settings: task, teacher, search, distillation and what surrounds them; which may change between calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from autodisc.config.fields import (
    DeviceMap,
    Kind,
    MetricName,
    Section,
    Strategy,
    TrackerName,
    check_device_map,
    check_name,
    check_sparsity,
)
from autodisc.config.searching import OF_SEARCHES, BudgetConfig, DistillationConfig, SearchConfig
from autodisc.errors import ConfigError

DEFAULT_SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85)
DEFAULT_STUDENT = 0.9
DOCSTRINGS = "docstrings"  # the embedded task: which installed library is this docstring sentence from?

# Settings that may change between calls.
FREE = (
    "baseline",
    "cache",
    "reporting",
    "runtime.threads",
    "runtime.checkpoint_minutes",
    "runtime.trackers",
    "search.storage",
    "search.jobs",
    "search.backend",
    "search.heartbeat_s",
    "search.retries",
)
FREE_IN_BASELINE = (*FREE, *OF_SEARCHES)

# A teacher is made before anything of this is known.
FREE_IN_FINETUNING = (*FREE, "name", "student_sparsity", "budget", "student_model", "search", "distillation")


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
    device_map: Annotated[DeviceMap | None, BeforeValidator(check_device_map)] = Field(
        None,
        description="Of a teacher that nothing trains any more and that one device cannot hold: spread it, by"
        " accelerate, over GPUs, then CPU memory, then disk. A mapping of modules to 0, cuda:1, cpu or disk says where"
        " itself. What is cut out of it comes to runtime.device.",
    )


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
        return None if value is None else check_sparsity(value, zero=False)

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
