"""What a command opens before it works, and how its partial results are kept: between the stages and the commands."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autodisc.caches import default_folder
from autodisc.config import Kind, StudyConfig, TaskConfig
from autodisc.costs import Cost, Ledger
from autodisc.distillation.schedule import Workshop
from autodisc.errors import AutodiscError, ConfigError, ModelError, StudyError
from autodisc.files import check_writable, disk_error, write_json
from autodisc.models.checkpoints import (
    FINE_TUNED,
    TRAINED_LENGTH,
    TRAINED_TEXTS,
    check_family,
    fingerprint,
    load_model,
    load_model_config,
    load_tokenizer,
    own_head,
    pad_alike,
    refuse_many_labels,
    resolve,
    settings_digest,
    spaced_words,
    trained_length,
    trained_texts,
)
from autodisc.models.inference import evaluation_batch, forward_macs, predict, width
from autodisc.models.latency import LatencyTable, latency_table, longest_input, random_inputs, settle_on, take_turns
from autodisc.models.layouts import encoder_parameters
from autodisc.models.modeling_autodisc import CODE, Head, head_of
from autodisc.models.reading import Reader, raw, read
from autodisc.models.spreading import is_spread, keeps_no_graph, places
from autodisc.progress import Progress, Silent
from autodisc.pruning.candidates import STANDARD_RATIO, Candidate, Ranking, all_candidates, candidate, nested_candidates
from autodisc.pruning.importance import calibration, rank_units
from autodisc.reporting.model_card import origin_of, write_card
from autodisc.reporting.records import environment, held_out_by, write_record
from autodisc.runtime import Runtime, made_with, make_runtime, seeded
from autodisc.tasks.answers import scores
from autodisc.tasks.batches import number_of_batches
from autodisc.tasks.data import Split, Task, find_kind, load_task

SET_UP, TEACHER_METRIC = "set-up", "teacher metric"  # stages
RANKING_PAID = "ranking"  # in the ledger: by whom the order of the units is paid for
TEXT_TO_TOKENS = ("normalizer", "pre_tokenizer", "post_processor")  # of a tokenizer, beside its vocabulary
HEADS: dict[Kind, Head] = {  # what a model needs to learn a kind of task
    "classification": "sequence",
    "regression": "sequence",
    "tokens": "token",
    "causal-lm": "causal",
}
CARD_SHAPES = ((1, 64), (8, 64))  # batch and length of the latencies in a model's card: some seconds for a base model


@dataclass(frozen=True)
class OtherStudent:
    """A pretrained model of another architecture, with a new head for the task, for the student to start from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase  # the teacher's vocabulary, its own settings
    sparsity: float  # 1 − its encoder's parameters / the teacher's


@dataclass(frozen=True)
class Workspace:
    """A task, a teacher, and everything that measuring with them needs."""

    config: StudyConfig
    task: Task
    teacher: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    workshop: Workshop
    teacher_fingerprint: str
    other: OtherStudent | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def ledger(self) -> Ledger:
        return self.workshop.ledger

    @property
    def candidates(self) -> dict[float, Candidate]:
        """One a sparsity of the grid, the largest first: those that a baseline tries."""
        return nested_candidates(self.ranking(), self.config.assistant_sparsities)

    @property
    def assistants(self) -> list[Candidate]:
        """Every teacher assistant that the study may choose, the least sparse first."""
        return assistants_of(self.config, self.ranking())

    def assistant(self, chosen: Mapping[str, Any]) -> Candidate:
        """The one that a search's result names; StudyError where these settings have none such."""
        point = chosen["sparsity"], chosen.get("balance", 0.0)  # studies did not always have balances
        for each in self.assistants:
            if (each.sparsity, each.balance) == point:
                return each
        raise StudyError(
            f"search: the study chose sparsity {point[0]:g}, balance {point[1]:g}, which these settings do not have;"
            " leave search.sparsities and search.balances as they were"
        )

    @property
    def student(self) -> Candidate:
        return candidate(self.ranking(), self.config.student)

    @property
    def student_model(self) -> PreTrainedModel | None:
        """What a student of another architecture starts from."""
        return None if self.other is None else self.other.model

    def ranking(self) -> Ranking:
        """The removal orders of the teacher's units; kept in the cache, and charged as if made."""
        if "ranking" in self.extra:
            return self.extra["ranking"]
        runtime, importance = self.workshop.runtime, self.config.search.importance
        made_of = [
            self.teacher_fingerprint,
            settings_digest(self.teacher),
            self.task.train.fingerprint,
            importance.model_dump(exclude={"refit"}),
            "head_sparsities",  # rankings did not always have them
            (runtime.seed, runtime.precision, runtime.device.type, runtime.threads, *made_with()),
            *places(self.teacher),
        ]
        path = self.workshop.cache / "ranking" / f"{joblib.hash(made_of)}.json"
        found = cached_ranking(path)
        if found is None:
            before = replace(self.ledger.stages.get("importance", Cost()))  # of a run that was stopped at it
            ranking = rank_units(
                self.teacher,
                self.task,
                importance,
                runtime=runtime,
                ledger=self.ledger,
                progress=self.workshop.progress,
            )
            cost = self.ledger.stages["importance"].since(before)
            self.ledger.pay(RANKING_PAID)
            write_ranking(path, ranking, cost)
        else:
            ranking, cost = found
            self.ledger.charge_once(RANKING_PAID, "importance", cost)
        self.extra["ranking_cost"] = cost
        self.extra["ranking"] = ranking
        return ranking

    @property
    def budgeted_latency(self) -> Callable[[Candidate], float] | None:
        """Predicted ms of a candidate's forward, where a budget limits it."""
        budget = self.config.budget
        return None if budget is None or budget.latency_ms is None else self.latency(budget.batch, budget.length)

    def latency(self, batch: int, length: int) -> Callable[[Candidate], float]:
        """Predicted ms of a candidate's forward; the layers' timings are taken when it is first asked for."""

        def ms(candidate: Candidate) -> float:
            tables: dict[tuple[int, int], LatencyTable] = self.extra.setdefault("latency", {})
            if (batch, length) not in tables:
                with self.workshop.progress.stage("timing layers", None), self.ledger.stage("timing layers"):
                    tables[batch, length] = latency_table(
                        self.teacher, batch=batch, length=length, runtime=self.workshop.runtime
                    )
            return tables[batch, length].ms(candidate.heads, candidate.neurons)

        return ms

    def evaluate(self, model: PreTrainedModel, split: Split) -> dict[str, Any]:
        """Metrics of ``model`` on a split of the task, the floor below them, and how sure they are."""
        return self.scores(self._predict(model, split, read), split)

    def logits(self, model: PreTrainedModel, split: Split) -> np.ndarray:
        """What ``model`` answers on a split of sentences, in its order: (N, V), fp32."""
        return self._predict(model, split, raw)

    def _predict(self, model: PreTrainedModel, split: Split, reader: Reader) -> np.ndarray:
        passes = number_of_batches(split, evaluation_batch(split, self.task))
        with self.workshop.progress.stage(f"evaluating on {split.name}", passes) as bar:
            return predict(
                model,
                split,
                task=self.task,
                runtime=self.workshop.runtime,
                ledger=self.ledger,
                kind=tuple(size(model).items()),
                bar=bar,
                reader=reader,
            )

    def scores(self, predictions: np.ndarray, split: Split) -> dict[str, Any]:
        """What predictions on a split, in its order, are worth."""
        task, seed = self.task, self.config.runtime.seed
        name = task.final_name if split is task.final else split.name
        return scores(predictions, split.labels, task.metric, split=name, seed=seed, classes=task.num_labels)

    def record(self, out: Path, kind: str, strategy: str | None, result: dict[str, Any]) -> Path:
        """Write what this run computed, once, under ``out/records``."""
        return write_record(out, {**self.made(kind, strategy), "result": result, "curves": self.workshop.curves})

    def made(self, kind: str, strategy: str | None) -> dict[str, Any]:
        """What a run's results were made of and with."""
        return {
            "kind": kind,
            "strategy": strategy,
            "config": self.config.model_dump(mode="json"),
            "task": describe_task(self.task) if kind == "finetune" else self.made_task(),
            "teacher": self.made_teacher(),
            "environment": self.environment(),
            "seed": self.config.runtime.seed,
            "cost": self.ledger.as_dict(),
        }

    def made_task(self) -> dict[str, Any]:
        """Of which task, and whether its final split was taken from train and nothing shows that the teacher was not
        trained on it."""
        held_out = self.task.held_out
        doubtful = held_out is not None and not held_out_by(self.config.teacher.model, held_out)
        return {**describe_task(self.task), "final_is_doubtful": doubtful}

    def made_teacher(self) -> dict[str, str]:
        """Of which teacher: its name, its weights' fingerprint and its settings'."""
        settings = settings_digest(self.teacher)
        return {"model": self.config.teacher.model, "fingerprint": self.teacher_fingerprint, "settings": settings}

    def write_cards(self, kind: str, strategy: str | None, models: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """README.md in the folders of ``models``, teacher, assistant and student: those that have a ``path``; returns
        the latencies that it shows."""
        values = {**self.made(kind, strategy), "models": models}
        folders = {role: Path(model["path"]) for role, model in models.items() if "path" in model}
        values["latency"] = self._latencies(folders)
        for role, folder in folders.items():
            own = {**values, "role": role, "has_code": (folder / CODE).is_file()}
            origin = Path(resolve(origin_of(own)))
            write_card(folder, {**own, "origin_folder": origin if origin.is_dir() else None})
        return values["latency"]

    def _latencies(self, folders: dict[str, Path]) -> list[dict[str, Any]]:
        """Median ms of a forward of the teacher and of saved models by its side, at ``CARD_SHAPES``, or as long as all
        have positions for."""
        runtime = self.workshop.runtime
        models = {"teacher": self.teacher, **{role: load_model(folder) for role, folder in folders.items()}}
        for model in models.values():
            model.eval()
            if not is_spread(model):
                model.to(runtime.device)  # type: ignore[arg-type]
        rows = []
        words = min(getattr(model.config, "vocab_size", 0) for model in models.values()) or None
        with self.workshop.progress.stage("timing", None), keeps_no_graph(self.teacher), runtime.autocast():
            limits = [most for most in map(longest_input, models.values()) if most is not None]
            for batch, longest in CARD_SHAPES:
                length = min([longest, *limits])
                inputs = random_inputs(self.teacher, batch, length, runtime.device, words=words)
                works = {role: partial(_call, model, inputs) for role, model in models.items()}
                timed = take_turns(works, turns=3, turn_s=0.2, settle=settle_on(runtime.device))
                count = torch.get_num_threads()
                where = f"{count} thread{'s' * (count > 1)}" if runtime.device.type == "cpu" else runtime.device.type
                spread = ", teacher spread" if is_spread(self.teacher) else ""
                setting = f"torch, {runtime.precision}, {where}, batch {batch}, length {length}{spread}"
                rows.append({"setting": setting, **{role: found.median_ms for role, found in timed.items()}})
        return rows

    def environment(self) -> dict[str, Any]:
        runtime = self.workshop.runtime
        return environment(device=str(runtime.device), precision=runtime.precision, threads=runtime.threads)


def open_workspace(config: StudyConfig, *, progress: Progress | None = None, finetune: bool = False) -> Workspace:
    """Load teacher, tokenizer and task. With ``finetune`` the model gets a new head for the task's classes."""
    progress, ledger = progress or Silent(), Ledger()
    progress.spending(lambda: ledger.total)
    runtime = make_runtime(config.runtime)
    cache = cache_folder(config)
    name = config.teacher.model
    head = HEADS[find_kind(config.task)]
    with ledger.stage(SET_UP), progress.stage(SET_UP, None):
        labels = None if finetune else _known(config, head)
        for each in filter(None, (name, config.student_model)):
            check_family(each, load_model_config(each), head)
        tokenizer = load_tokenizer(name, words=finetune and head == "token")
        task = load_task(
            config.task,
            tokenizer,
            seed=runtime.seed,
            cache_dir=cache / "data",
            label_names=labels,
            texts=() if finetune else trained_texts(load_model_config(name)),
            progress=progress,
        )
        with seeded(runtime.seed):  # a new head starts from the seed
            fresh = task.num_labels if finetune and head != "causal" else None
            teacher = load_model(
                name,
                head=head,
                num_labels=fresh,
                dtype=_weights(config, runtime, finetune),
                device_map=None if finetune else config.teacher.device_map,
                home=runtime.device,
            )
        pad_alike(teacher, tokenizer)
        longest = min(config.task.max_length, tokenizer.model_max_length, longest_input(teacher) or math.inf)
        setattr(teacher.config, TRAINED_LENGTH, longest)  # whatever is made of it is saved with it
        if task.texts:
            setattr(teacher.config, TRAINED_TEXTS, list(task.texts))
        if finetune and task.label_names is not None:
            teacher.config.id2label = dict(enumerate(task.label_names))
            teacher.config.label2id = {label: i for i, label in enumerate(task.label_names)}
        outputs = width(teacher, task)
        if outputs < task.num_labels or (outputs > task.num_labels and head != "causal"):
            raise ModelError(
                f"teacher: {name} has {outputs} outputs, task '{task.name}' needs {task.num_labels}; "
                "give a teacher that was fine-tuned on this task"
            )
        if not is_spread(teacher):
            teacher.to(runtime.device)  # type: ignore[arg-type]
        check_positions(teacher, name, task)
        other = None
        if config.student_model is not None and not finetune:
            other = _other_student(config.student_model, teacher, tokenizer, runtime)
            config = config.with_student(other.sparsity)
            check_positions(other.model, str(config.student_model), task)
        pruning = config.search.importance
        rows = calibration(task, pruning, runtime) if pruning.refit else None
        workshop = Workshop(task, runtime, cache, config.cache.max_gib, rows, ledger, progress)
        return Workspace(config, task, teacher, tokenizer, workshop, fingerprint(teacher), other)


def _weights(config: StudyConfig, runtime: Runtime, finetune: bool) -> torch.dtype:
    """Of the teacher, unless it is trained; raises ConfigError where nothing could multiply them."""
    if config.teacher.dtype == "fp32" or finetune:
        return torch.float32
    if runtime.precision != "bf16":
        raise ConfigError(
            f"teacher.dtype: got bf16, where this device computes in {runtime.precision}; add --precision bf16, or"
            " leave the weights in fp32"
        )
    return torch.bfloat16


def check_positions(model: PreTrainedModel, name: str, task: Task) -> None:
    """Raise ConfigError, before anything is trained, for texts of more tokens than ``model`` has positions."""
    longest = max(int(split.lengths.max()) for split in (task.train, task.validation, task.final, *task.extra.values()))
    most = longest_input(model)
    if most is not None and longest > most:
        raise ConfigError(
            f"task.max_length: {name} has positions for {most} tokens, and a text has {longest}; give {most}"
        )


def _part_of(tokenizer: PreTrainedTokenizerBase, part: str) -> Any:
    found = json.loads(tokenizer.backend_tokenizer.to_str())[part] if tokenizer.is_fast else None
    if part == "post_processor" and isinstance(found, dict):  # of these it uses where a word stands in its text
        return {name: value for name, value in found.items() if name not in ("trim_offsets", "add_prefix_space")}
    return found


def _other_student(
    name: str, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, runtime: Runtime
) -> OtherStudent:
    own = load_tokenizer(name, words=spaced_words(tokenizer))
    if own.get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"student_model: {name} has another vocabulary than the teacher, so their tokens cannot be compared; "
            "give a model that was pretrained with the teacher's tokenizer"
        )
    if apart := [part for part in TEXT_TO_TOKENS if _part_of(own, part) != _part_of(tokenizer, part)]:
        raise ModelError(
            f"student_model: {name} makes other tokens of a text than the teacher ({', '.join(apart)} differ), with"
            " whose it would be trained; give a model with the teacher's tokenizer"
        )
    head = own_head(teacher)
    with seeded(runtime.seed):
        model = load_model(name, head=head, num_labels=None if head == "causal" else teacher.config.num_labels)
    pad_alike(model, own)
    model.config.id2label, model.config.label2id = teacher.config.id2label, teacher.config.label2id
    setattr(model.config, TRAINED_LENGTH, trained_length(teacher.config))
    setattr(model.config, TRAINED_TEXTS, list(trained_texts(teacher.config)))
    if (words := model.config.vocab_size) < min(len(own), teacher.config.vocab_size):
        raise ModelError(f"student_model: {name} has embeddings of {words} tokens, its tokenizer has {len(own)}")
    if head == "causal" and words < teacher.config.vocab_size:
        raise ModelError(
            f"student_model: {name} has logits of {words} tokens, the teacher of {teacher.config.vocab_size}; give one"
            " with as many"
        )
    scale = encoder_parameters(model) / encoder_parameters(teacher)
    if not 0 < scale < 1:
        raise ModelError(
            f"student_model: {name} has {scale:.2f} times the teacher's encoder parameters; give a smaller model"
        )
    return OtherStudent(model.to(runtime.device), own, round(1 - scale, 6))  # type: ignore[arg-type]


def _known(config: StudyConfig, head: Head) -> tuple[str, ...] | None:
    """The classes of a teacher; raises ModelError for one with another head: its weights might fit by chance."""
    found = load_model_config(config.teacher.model)
    own = head_of(found)
    if own not in (None, head):
        raise ModelError(
            f"teacher: {config.teacher.model} is a {FINE_TUNED[own]}, but task '{config.task.name}' is of kind"
            f" {find_kind(config.task)}, which takes a {FINE_TUNED[head]}; give one, or another --kind"
        )
    if head == "sequence":
        refuse_many_labels(config.teacher.model, found)
    return None if head == "causal" else label_names(found)


def _call(model: PreTrainedModel, inputs: dict[str, torch.Tensor], _: int) -> None:
    model(**inputs)


def size(model: PreTrainedModel) -> dict[str, int]:
    """Parameters, of the encoder and of all, and multiply-accumulates of one sequence of 128 tokens."""
    return {
        "params": encoder_parameters(model),
        "total_params": model.num_parameters(),
        "macs": forward_macs(model),
    }


def label_names(config: Any) -> tuple[str, ...] | None:
    """The classes of a classifier in its own order; None for a regression."""
    return tuple(config.id2label[i] for i in range(config.num_labels)) if config.num_labels > 1 else None


def as_trained(task: TaskConfig, config: Any) -> TaskConfig:
    """``task``, where it asks for no ``max_length`` with the one that a model of this configuration was trained at."""
    length = trained_length(config)
    asked = length is None or "max_length" in task.model_fields_set
    return task if asked else task.model_copy(update={"max_length": length})


def describe_task(task: Task) -> dict[str, Any]:
    splits = {"train": task.train, "validation": task.validation, "final": task.final, **task.extra}
    return {
        "name": task.name,
        "kind": task.kind,
        "metric": task.metric.name,
        "label_names": task.label_names,
        "final_split": task.final_name,
        "held_out": task.held_out,
        "examples": {name: len(split) for name, split in splits.items()},
        "tokens": {name: int(split.tokens) for name, split in splits.items()},
        "fingerprints": {name: split.fingerprint for name, split in splits.items()},
    }


def assistants_of(config: StudyConfig, ranking: Ranking) -> list[Candidate]:
    """What a study of such settings may choose of such units."""
    return all_candidates(ranking, config.assistant_sparsities, config.search.balances, student=config.student)


def cache_folder(config: StudyConfig) -> Path:
    return config.cache.dir or default_folder()


def write_ranking(path: Path, ranking: Ranking, cost: Cost) -> None:
    write_json(path, {**asdict(ranking), "cost": vars(cost)})


def read_ranking(path: Path) -> tuple[Ranking, Cost]:
    """The removal orders, and what it cost to find them; StudyError where the file is damaged."""
    found = cached_ranking(path)
    if found is None:
        raise StudyError(
            f"{path}: is damaged, and with it the order that the candidates are of; start afresh beside it with --new"
        )
    return found


def cached_ranking(path: Path) -> tuple[Ranking, Cost] | None:
    """The same; none where it is not there, or damaged."""
    try:
        stored = json.loads(path.read_text())
        heads, neurons = (tuple((int(a), int(b)) for a, b in stored[kind]) for kind in ("heads", "neurons"))
        ratio = stored.get("ratio", STANDARD_RATIO)  # rankings did not always have it, nor what follows
        of_heads = tuple(stored.get("head_sparsities", ()))
        return Ranking(heads, neurons, stored["layers"], ratio, of_heads), Cost(**stored["cost"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def refuse_here(out: Path) -> None:
    """Raise StudyError for the working folder: what is put in its place by a rename, nobody in it would see."""
    if out.resolve() == Path.cwd():
        raise StudyError(f"{out}: is the folder that you are in, which a new one would replace; give --out another")


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A full or read-only disk becomes one line that names the folder, before there is anything to lose if it can."""
    try:
        check_writable(folder)
        yield
    except AutodiscError:
        raise
    except Exception as error:
        found = _kept_from_writing(error)
        if found is None:
            raise
        written = found.filename2 or found.filename or folder  # of a copy or a rename the second one
        raise AutodiscError(
            f"{written}: cannot be written ({found.strerror or found}); what was finished is kept, "
            "free some space or give another folder, and run the same command again"
        ) from error


def _kept_from_writing(error: BaseException) -> OSError | None:
    """What the disk or its rights said, also where another error came of it: Optuna's journal then speaks of a lock."""
    if isinstance(error, OSError):
        return None if isinstance(error, (FileNotFoundError, ConnectionError, TimeoutError)) else error
    return disk_error(error)
