"""The options of the commands: each stands for one setting of a study, and is validated where every setting is.

An option's text goes to the configuration as it is, over the study's YAML where one is given; so a wrong
value is refused in one place, by the field's name. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autodisc.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from autodisc.config import StudyConfig
    from autodisc.progress import Progress

Command = Callable[..., None]


@dataclass(frozen=True)
class Setting:
    """An option that stands for the setting ``key``."""

    flag: str
    key: str
    metavar: str
    help: str
    panel: str

    @property
    def name(self) -> str:
        return self.flag.lstrip("-").replace("-", "_")


def _panel(panel: str, *rows: tuple[str, str, str, str]) -> tuple[Setting, ...]:
    return tuple(Setting(flag, key, metavar, text, panel) for flag, key, metavar, text in rows)


TASK = _panel(
    "Task and data",
    ("--task", "task.name", "NAME", "A GLUE task's name, docstrings, or any name with --metric and --data."),
    (
        "--kind",
        "task.kind",
        "NAME",
        "classification, regression, tokens (a tag a word), causal-lm; by metric or files unless given.",
    ),
    (
        "--data",
        "task.data",
        "DIR",
        "Folder with train, validation and perhaps test: .csv, .jsonl, .parquet; .conll for tokens, .txt for text.",
    ),
    ("--hub", "task.hub", "OWNER/NAME", "A data set on the hub, in place of --data."),
    ("--metric", "task.metric", "NAME", "Larger is better; a GLUE name brings its own."),
    ("--text", "task.text", "COLUMN", "Column of the (first) sentence, of the words, or of the text."),
    ("--text-pair", "task.text_pair", "COLUMN", "Column of the second sentence."),
    ("--label", "task.label", "COLUMN", "Column of the label, or of the words' tags."),
    ("--max-length", "task.max_length", "N", "Tokens; longer inputs are truncated."),
)
LIMIT_TRAIN = _panel(
    "Task and data",
    ("--limit-train", "task.limit_train", "N", "Use N training rows, drawn by the seed."),
)
DEVICE_MAP = (
    "--device-map",
    "teacher.device_map",
    "NAME",
    "auto, balanced, balanced_low_0, sequential: spread it over GPUs, CPU memory and disk.",
)
TEACHER = _panel(
    "Models",
    ("--teacher", "teacher.model", "DIR", "Folder or hub name of the fine-tuned teacher."),
    DEVICE_MAP,
)
STUDENT = _panel(
    "Models",
    (
        "--student-sparsity",
        "student_sparsity",
        "FRACTION",
        "What the student loses of heads and of neurons; 0.9 unless given, or a budget's to find.",
    ),
    ("--student", "student_model", "DIR", "In its place: a smaller pretrained model of another architecture."),
)
BUDGET = _panel(
    "Budget",
    ("--max-params", "budget.params", "N", "The encoder's parameters at most: 1066000, or 1.1M."),
    ("--max-macs", "budget.macs", "N", "Multiply-accumulates of a sequence of 128 tokens at most: 200M."),
    ("--max-latency-ms", "budget.latency_ms", "MS", "A forward on this machine at most, predicted from its layers."),
    ("--budget-batch", "budget.batch", "N", "Of that latency: sequences a forward; 1 unless given."),
    ("--budget-length", "budget.length", "N", "Of that latency: tokens a sequence; 64 unless given."),
)
MODEL = _panel("Models", ("--model", "teacher.model", "DIR", "Folder or hub name of the model."))
SPREAD_MODEL = MODEL + _panel("Models", DEVICE_MAP)
GRID = _panel(
    "Search",
    ("--sparsities", "search.sparsities", "S,S,…", "The teacher assistants to consider, below the student."),
    ("--low", "search.low", "S", "A range instead of a grid: its lowest sparsity."),
    ("--high", "search.high", "S", "The range's highest sparsity."),
    ("--step", "search.step", "S", "The range's step."),
    (
        "--criterion",
        "search.importance.criterion",
        "NAME",
        "What ranks units: first-order, fisher (scorer pruned's) or magnitude.",
    ),
    ("--importance-rounds", "search.importance.rounds", "N", "Of first-order; 1 is the paper's, 4 unless given."),
    ("--workers", "search.jobs", "N", "Processes that run trials side by side: a GPU each, or a share of the threads."),
    ("--backend", "search.backend", "NAME", "Where they run: loky (here), dask://HOST:PORT or ray."),
)
SEARCH = GRID + _panel(
    "Search",
    ("--lam", "search.lam", "λ", "Weight of the sparsity in metric + λ·sparsity."),
    ("--scorer", "search.scorer", "NAME", "recovered (one shared recovery) or pruned (no training at all)."),
    ("--recovery-steps", "search.recovery.steps", "N", "Steps of the shared recovery."),
    ("--trials", "search.trials", "N", "Number of trials; every point once unless given."),
    ("--storage", "search.storage", "URL", "Optuna storage that `worker` can join; a journal in --out unless given."),
)
DISTILLATION = _panel(
    "Training",
    ("--epochs", "distillation.epochs", "N", "Passes over train of the assistant's phase."),
    ("--student-epochs", "distillation.student_epochs", "N", "Passes of the student's phase; four times --epochs."),
    ("--batch-size", "distillation.batch_size", "N", "Examples a step, on average."),
    ("--lr", "distillation.lr", "RATE", "Largest learning rate."),
    ("--sandwich-size", "distillation.sandwich_size", "N", "Candidates a step; 1 is plain distillation."),
    ("--assistants", "distillation.assistants", "N", "A chain of so many on the way to the student."),
)
FINETUNING = _panel(
    "Training",
    ("--epochs", "teacher.finetune.epochs", "N", "Passes over train."),
    ("--batch-size", "teacher.finetune.batch_size", "N", "Examples a step, on average."),
    ("--lr", "teacher.finetune.lr", "RATE", "Largest learning rate."),
)
RUNTIME = _panel(
    "Runtime",
    ("--seed", "runtime.seed", "N", "Decides every random draw."),
    ("--device", "runtime.device", "NAME", "auto, cpu, cuda, cuda:1, mps."),
    ("--precision", "runtime.precision", "NAME", "auto, fp32 or bf16."),
    ("--threads", "runtime.threads", "N", "CPU threads."),
    ("--track", "runtime.trackers", "NAME,…", "tensorboard, mlflow or wandb: tell it of losses, metrics and trials."),
    ("--cache-dir", "cache.dir", "DIR", "Where tokens and teacher outputs are kept."),
)
# What may differ on a machine that joins a search.
HERE = tuple(
    setting
    for setting in (*TASK, *TEACHER, *RUNTIME)
    if setting.name in ("data", "teacher", "device_map", "device", "precision", "threads", "cache_dir")
)
LISTS = ("search.sparsities", "runtime.trackers")
# What to say where a setting without a default is missing, by command line.
_REQUIRED = {"task.name": "--task NAME", "teacher.model": "the model's folder"}

OUTPUT = "Output"
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object; events, a line each, on stderr.", rich_help_panel=OUTPUT)
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the results are kept.")]
New = Annotated[
    bool, typer.Option("--new", help="Start afresh in the next free folder beside it.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.", rich_help_panel=OUTPUT)]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks and warnings.", rich_help_panel=OUTPUT)]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Start from a study's YAML.", rich_help_panel="Any setting"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, such as search.margin=2; may be repeated.",
        rich_help_panel="Any setting",
    ),
]


@dataclass(frozen=True)
class Request:
    """What a command line asks for beside the command's own parameters."""

    settings: Mapping[str, str]
    sets: tuple[str, ...]
    file: Path | None
    json: bool
    quiet: bool

    def config(self, base: Path | None = None) -> StudyConfig:
        """The study's YAML (``base``, else --config), then the options, then every --set; validated and checked."""
        from autodisc.config import make_config, read_yaml

        path = base or self.file
        values = read_yaml(path) if path else {}
        for key, text in self.settings.items():
            _put(values, key, [part.strip() for part in text.split(",")] if key in LISTS else text)
        for text in self.sets:
            _put(values, *_parsed(text))
        for key, way_out in _REQUIRED.items():
            section, _, name = key.partition(".")
            if not (isinstance(values.get(section), dict) and values[section].get(name)):
                raise ConfigError(f"{key}: missing; it has no default, since it is the experiment. Give {way_out}.")
        config = make_config(values, source=str(path) if path else "")
        check_inputs(config)
        return config

    def progress(self, folder: Path | None = None, command: str = "") -> Progress:
        """What is told while the command works; in ``folder`` too, for ``autodisc status``."""
        from autodisc.reporting.terminal import terminal_progress

        progress = terminal_progress(quiet=self.quiet, json=self.json)
        if folder is None:
            return progress
        from autodisc.reporting.status import Noted

        return Noted(progress, folder, command)


def takes(*settings: Setting, config_file: bool = True, with_sets: bool = True) -> Callable[[Command], Command]:
    """Give a command these options, and the common ones, in place of its first parameter, a Request."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(**given: Any) -> None:
            texts = {s.key: value for s in settings if (value := given.pop(s.name)) is not None}
            sets, file = tuple(given.pop("sets", None) or ()), given.pop("config", None)
            given.pop("debug")  # main reads it
            command(Request(texts, sets, file, given.pop("json"), given.pop("quiet")), **given)

        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        options = [_parameter(s.name, Annotated[str | None, _option(s)]) for s in settings]
        common: dict[str, Any] = {"json": Json, "quiet": Quiet, "debug": Debug}
        if with_sets:
            common = {"sets": Overrides, **common}
        if config_file:
            common = {"config": ConfigFile, **common}
        off = {"json": False, "quiet": False, "debug": False}
        options += [_parameter(name, kind, off.get(name)) for name, kind in common.items()]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*own, *options]]
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return decorate


def check_inputs(config: StudyConfig) -> None:
    """What can be seen without opening anything: refused in a second, before torch is imported."""
    from autodisc.distillation.tracking import check_installed
    from autodisc.tasks.data import find_metric
    from autodisc.tasks.sources import find_files

    check_installed(config.runtime.trackers)
    find_metric(config.task)
    if config.task.data is not None:
        find_files(config.task.data, config.task.name)
    check_model(config.teacher.model)
    if config.student_model is not None:
        check_model(config.student_model, "student_model")


def check_model(name: str, field: str = "teacher.model") -> None:
    """A folder that is not there is refused; anything else may be a name on the hub."""
    folder = Path(name)
    if not name.startswith("package:") and not folder.is_dir() and not (folder.suffix == ".gguf" and folder.is_file()):
        if folder.exists():
            raise ModelError(f"{field}: {name} is a file; expected a folder that holds config.json")
        inside = len(folder.parts) == 2 and folder.parent.is_dir()  # else OWNER/NAME on the hub
        if inside or folder.is_absolute() or len(folder.parts) > 2 or name.startswith((".", "~")):
            raise ModelError(f"{field}: {name}: no such folder; expected one that holds config.json")


def check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise DataError(f"--out: {out} is a file; give a folder")


def place_of(out: Path, config: StudyConfig, *, new: bool) -> Path:
    """Where the results go: ``out``, or with ``new`` a free folder beside it, which is said."""
    check_folder(out)
    if not new:
        return out
    if config.search.storage is not None:
        raise ConfigError("--new: in search.storage a study goes by its name; give --out DIR and --set name=NAME")
    from autodisc.resuming import next_free

    free = next_free(out)
    print(f"new: {free}", file=sys.stderr)
    return free


def _parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _option(setting: Setting) -> Any:
    return typer.Option(setting.flag, metavar=setting.metavar, help=setting.help, rich_help_panel=setting.panel)


def _parsed(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set: got '{text}'; expected KEY=VALUE, such as search.lam=0.1")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set: {key}: '{value}' is not valid YAML; put quotes around a text") from None


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        inner = values.get(section)
        values[section] = dict(inner) if isinstance(inner, dict) else {}
        values = values[section]
    values[name] = value
