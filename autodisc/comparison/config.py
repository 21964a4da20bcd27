"""A comparison's settings: a study's, with ``compare`` in place of its one task, teacher, student and seed.

Frozen pydantic models as in ``autodisc.config``; unknown keys are refused with the nearest valid name.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from autodisc.comparison.cells import Cell
from autodisc.config import (
    Backend,
    CacheConfig,
    DistillationConfig,
    RuntimeConfig,
    SearchConfig,
    Section,
    StudyConfig,
    TaskConfig,
    TeacherConfig,
    check_name,
    check_sparsity,
    explained,
    make_config,
    read_yaml,
)
from autodisc.errors import ConfigError

NEEDS: dict[str, tuple[str, ...]] = {  # what each strategy is read off; *: the student through every assistant
    "autodisc": ("search-recovered", "autodisc"),
    "pruned": ("search-pruned", "pruned"),
    "plain": ("search-recovered", "plain"),
    "chain": ("search-recovered", "chain"),
    "balanced-tpe": ("search-balanced-tpe", "balanced-tpe"),
    "balanced-gp": ("search-balanced-gp", "balanced-gp"),
    "released": ("released",),
    "maxidisc": ("*",),
    "maxidisc-tpe": ("*",),
    "direct": ("direct",),
    "rule-2.5x": ("*",),
    "smallest": ("*",),
    "largest": ("*",),
    "random": ("*",),
}
BALANCES = (-0.5, -0.25, 0.0, 0.25, 0.5)  # a second dimension, in as many trials as the grid has sparsities
SEARCHES: dict[str, dict[str, Any]] = {
    "recovered": {"scorer": "recovered"},
    "pruned": {"scorer": "pruned"},
    "balanced-tpe": {"scorer": "recovered", "balances": BALANCES, "sampler": "tpe"},
    "balanced-gp": {"scorer": "recovered", "balances": BALANCES, "sampler": "gp"},
}
FIXED = (
    "sparsities",
    "low",
    "high",
    "step",
    "lam",
    "margin",
    "balances",
    "trials",
    "sampler",
    "prune",
)  # the same for every search
OF_A_STUDY = ("storage", "jobs", "backend")


class ComparedTask(Section):
    """A task and its teacher; what else is given replaces the comparison's."""

    name: str | None = Field(None, pattern=r"^[\w.-]+$", description="In results; none: the task's.")
    task: TaskConfig
    teacher: TeacherConfig = Field(description="With finetune it is made once, of the first seed.")
    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    student_sparsities: tuple[float, ...] | None = Field(None, min_length=1)
    secondary_seeds: int | None = Field(None, ge=0, description="0: neither `secondary` nor `searches` run here.")
    searches: tuple[str, ...] | None = Field(None, description="Those of the comparison's that run here, by name.")

    @field_validator("student_sparsities")
    @classmethod
    def _students(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return values and tuple(check_sparsity(value, zero=False) for value in values)

    @property
    def label(self) -> str:
        return self.name or self.task.name

    @model_validator(mode="after")
    def _folder(self) -> ComparedTask:
        try:
            check_name(self.label)
        except ValueError as error:
            raise ValueError(f"name: {error}") from None
        return self


class CompareSection(Section):
    tasks: tuple[ComparedTask, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="One tells nothing of the next; five do.")
    student_sparsities: tuple[float, ...] = Field((0.9,), min_length=1)
    strategies: tuple[str, ...] = Field(tuple(name for name in NEEDS if not name.startswith("balanced")), min_length=1)
    searches: dict[str, dict[str, Any]] = Field(
        {}, description="More searches for fidelity and frontier: name, then what of `search` it sets otherwise."
    )
    secondary: tuple[str, ...] = Field((), description="Those of `strategies` that `secondary_seeds` limits.")
    secondary_seeds: int | None = Field(
        None, ge=1, description="With how many of a task's seeds, from the first, these and `searches` run; none: all."
    )
    tpe_trials: int | None = Field(None, ge=1, description="Of maxidisc-tpe; none: half of the assistants, rounded up.")
    jobs: int = Field(1, ge=1, description="Processes, each of which computes one cell at a time.")
    backend: Backend = Field("loky", description="Where they run.")
    resamples: int = Field(2000, ge=1, description="Draws of a bootstrap.")

    @field_validator("student_sparsities")
    @classmethod
    def _students(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(check_sparsity(value, zero=False) for value in values)

    @field_validator("strategies", "secondary")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in NEEDS:
                near = difflib.get_close_matches(name, NEEDS, n=1, cutoff=0.5)
                way_out = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(NEEDS)}"
                raise ValueError(f"no strategy '{name}'; {way_out}")
        return tuple(name for name in NEEDS if name in names)

    @model_validator(mode="after")
    def _limited(self) -> CompareSection:
        if left_out := [name for name in self.secondary if name not in self.strategies]:
            raise ValueError(f"secondary: '{left_out[0]}' is not among strategies; add it there")
        if self.secondary and self.secondary_seeds is None and all(e.secondary_seeds is None for e in self.tasks):
            raise ValueError("secondary: limits nothing without secondary_seeds; give how many seeds these run with")
        asked = [name for entry in self.tasks for name in entry.searches or ()]
        if unknown := [name for name in asked if name not in self.searches]:
            raise ValueError(f"tasks: no search '{unknown[0]}'; known: {', '.join(self.searches) or 'none'}")
        return self

    @field_validator("searches")
    @classmethod
    def _searches(cls, searches: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, settings in searches.items():
            if name in SEARCHES or not name.replace("-", "").isalnum():
                raise ValueError(
                    f"'{name}': expected a name of letters, digits and -, other than {', '.join(SEARCHES)}"
                )
            if wrong := [key for key in settings if key in FIXED]:
                raise ValueError(f"'{name}' sets {wrong[0]}, which is the same for every search; set search.{wrong[0]}")
            if wrong := [key for key in settings if key in OF_A_STUDY]:
                raise ValueError(f"'{name}' sets {wrong[0]}, which is of a study alone; remove it")
            importance = settings.get("importance")
            if isinstance(importance, dict) and set(importance) - {"refit"}:
                raise ValueError(
                    f"'{name}' sets importance: the students it is judged by have the comparison's ranking"
                )
        return searches


class ComparisonConfig(Section):
    """All of a comparison; the sections beside ``compare`` are a study's, and are every cell's."""

    name: str = "comparison"
    compare: CompareSection
    search: SearchConfig = SearchConfig()
    distillation: DistillationConfig = DistillationConfig()
    cache: CacheConfig = CacheConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _once(self) -> ComparisonConfig:
        if "seed" in self.runtime.model_fields_set:
            raise ValueError("runtime.seed: contradicts compare.seeds, which has every seed; remove it")
        if "scorer" in self.search.model_fields_set:
            raise ValueError(
                "search.scorer: contradicts compare.strategies, which say it (autodisc, pruned); remove it"
            )
        if alone := [name for name in OF_A_STUDY if name in self.search.model_fields_set]:
            way_out = "remove it" + ("" if alone[0] == "storage" else ", and give compare.jobs or --workers")
            raise ValueError(
                f"search.{alone[0]}: of a study alone, a comparison's searches lie in its own folder; {way_out}"
            )
        grid = self.search.low is None and self.search.balances == (0.0,)
        if not grid or self.search.trials is not None or self.search.prune:
            raise ValueError(
                "search: low, high, balances, trials and prune leave assistants unmeasured; give sparsities alone"
            )
        seen: set[Cell] = set()
        entries: dict[str, ComparedTask] = {}
        for entry in self.compare.tasks:
            first = entries.setdefault(entry.label, entry)
            if (first.task, first.teacher) != (entry.task, entry.teacher):
                raise ValueError(f"compare.tasks: two tasks or teachers are called '{entry.label}'; give one a name")
            for student in self.students_of(entry):
                for seed in self.seeds_of(entry):
                    key = Cell(entry.label, seed, student, "")
                    if key in seen:
                        raise ValueError(f"compare: two cells with the same key, {key.group}")
                    seen.add(key)
        return self

    def seeds_of(self, entry: ComparedTask) -> tuple[int, ...]:
        return self.compare.seeds if entry.seeds is None else entry.seeds

    def students_of(self, entry: ComparedTask) -> tuple[float, ...]:
        return self.compare.student_sparsities if entry.student_sparsities is None else entry.student_sparsities

    @property
    def searches(self) -> dict[str, dict[str, Any]]:
        """Every search that the strategies or the frontier need, by name, with its overrides of ``search``."""
        return {
            name: settings for entry in self.compare.tasks for name, settings in self.searches_with(entry, 0).items()
        }

    def searches_with(self, entry: ComparedTask, number: int) -> dict[str, dict[str, Any]]:
        """Those of the task's seed of that number, from 0."""
        needed = self.needed_with(entry, number)
        own = {name: settings for name, settings in SEARCHES.items() if f"search-{name}" in needed}
        more = self.compare.searches if self._all_with(entry, number) else {}
        return own | {name: more[name] for name in more if entry.searches is None or name in entry.searches}

    def needed_with(self, entry: ComparedTask, number: int) -> set[str]:
        """The kinds of cells that the strategies need with the task's seed of that number, from 0."""
        left_out = () if self._all_with(entry, number) else self.compare.secondary
        return {kind for name in self.compare.strategies if name not in left_out for kind in NEEDS[name]}

    def _all_with(self, entry: ComparedTask, number: int) -> bool:
        limit = self.compare.secondary_seeds if entry.secondary_seeds is None else entry.secondary_seeds
        return limit is None or number < limit

    def study(self, cell: Cell, teachers: Path) -> StudyConfig:
        """The settings of one cell; what a task's ``finetune`` makes lies under ``teachers``."""
        entry = next(entry for entry in self.compare.tasks if entry.label == cell.task)
        teacher = entry.teacher.model_dump()
        if entry.teacher.finetune:
            teacher |= {"model": str(teachers / entry.label), "finetune": None}
        student = max(self.students_of(entry)) if cell.student is None else cell.student
        named = cell.kind.removeprefix("search-") if cell.kind.startswith("search-") else "recovered"
        if cell.kind in SEARCHES:  # what is distilled from a search's choice, by the search's name
            named = cell.kind
        distillation = self.distillation.model_dump()
        if cell.kind == "plain":
            distillation.update(sandwich_size=1, student_sandwich_size=1)
        if cell.kind == "chain":
            distillation["assistants"] = 2
        values = {
            "name": self.name,
            "task": entry.task.model_dump(),
            "teacher": teacher,
            "student_sparsity": student,
            "search": _merged(self.search.model_dump(), {**SEARCHES, **self.compare.searches}[named]),
            "distillation": distillation,
            "cache": self.cache.model_dump(),
            "runtime": {**self.runtime.model_dump(), "seed": cell.seed, "threads": self.runtime.threads or 1},
        }
        found = make_config(values, source=f"compare, {cell.group}")
        if len(found.search.balances) > 1:
            search = found.search.model_copy(update={"trials": len(found.assistant_sparsities)})
            found = found.model_copy(update={"search": search})
        return found

    def studies(self) -> list[StudyConfig]:
        """One for each task, as a user of it alone would have it."""
        return [self.teacher(entry) for entry in self.compare.tasks]

    def teacher(self, entry: ComparedTask) -> StudyConfig:
        """How a task's teacher is made."""
        base = self.study(Cell(entry.label, self.seeds_of(entry)[0], None, "shared"), Path())
        return base.model_copy(update={"teacher": entry.teacher})


def read_comparison(path: Path) -> ComparisonConfig:
    """Read a comparison's YAML; ConfigError says what is wrong with it, also with what only a cell would show."""
    values = read_yaml(path)
    if "compare" not in values:
        raise ConfigError(f"{path}: compare: missing; a study without it is for 'autodisc run'")
    return make_comparison(values, source=str(path))


def make_comparison(values: dict[str, Any], *, source: str = "") -> ComparisonConfig:
    try:
        config = ComparisonConfig.model_validate(values)
    except ValidationError as error:
        raise explained(error, ComparisonConfig, source=source) from None
    for entry in config.compare.tasks:
        for student in config.students_of(entry):
            for name in config.searches or ("recovered",):
                config.study(Cell(entry.label, config.seeds_of(entry)[0], student, f"search-{name}"), Path())
    return config


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, change in changes.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, change) if isinstance(inner, dict) and isinstance(change, dict) else change
    return merged
