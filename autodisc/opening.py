"""Open a workspace: load teacher, tokenizer and task, and refuse, before anything is trained, what does not fit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from autodisc.caches import default_folder
from autodisc.config import Kind, StudyConfig, TaskConfig
from autodisc.costs import Ledger
from autodisc.distillation.schedule import Workshop
from autodisc.errors import AutodiscError, ConfigError, ModelError
from autodisc.models.checkpoints import (
    FINE_TUNED,
    TRAINED_LENGTH,
    TRAINED_TEXTS,
    check_family,
    fingerprint,
    load_model,
    load_model_config,
    load_tokenizer,
    pad_alike,
    refuse_many_labels,
    trained_length,
    trained_texts,
)
from autodisc.models.inference import width
from autodisc.models.latency import longest_input
from autodisc.models.modeling_autodisc import Head, head_of
from autodisc.models.other_student import open_other_student
from autodisc.models.spreading import is_spread
from autodisc.progress import Progress, Silent
from autodisc.pruning.importance import calibration
from autodisc.runtime import Runtime, make_runtime, seeded
from autodisc.tasks.data import Task, find_kind, load_task
from autodisc.workspace import SET_UP, Workspace

HEADS: dict[Kind, Head] = {  # what a model needs to learn a kind of task
    "classification": "sequence",
    "regression": "sequence",
    "tokens": "token",
    "causal-lm": "causal",
}


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
        for each in filter(None, (name, None if finetune else config.student_model)):
            check_family(each, load_model_config(each), head)
        trained = None if finetune else trained_length(load_model_config(name))
        if trained is not None and trained > config.task.max_length:
            progress.say(
                f"texts: cut at {config.task.max_length} tokens (task.max_length), where the teacher was trained on"
                f" {trained}"
            )
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
            other = open_other_student(config.student_model, teacher, tokenizer, runtime)
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
    names = None if head == "causal" else label_names(found)
    if names is not None and len(set(names)) < len(names):
        raise ModelError(
            f"teacher: {config.teacher.model}: two of its classes have the same name (id2label); rename one"
        )
    return names


def label_names(config: Any) -> tuple[str, ...] | None:
    """The classes of a classifier in its own order; None for a regression."""
    if config.num_labels <= 1:
        return None
    if missing := sorted(set(range(config.num_labels)) - set(config.id2label)):
        raise ModelError(
            f"model: id2label of its config names {', '.join(map(str, sorted(config.id2label)))} and not {missing[0]};"
            f" expected the outputs 0 to {config.num_labels - 1}"
        )
    return tuple(config.id2label[i] for i in range(config.num_labels))


def as_trained(task: TaskConfig, config: Any) -> TaskConfig:
    """``task``, where it asks for no ``max_length`` with the one that a model of this configuration was trained at."""
    length = trained_length(config)
    asked = length is None or "max_length" in task.model_fields_set
    return task if asked else task.model_copy(update={"max_length": length})


def settled(config: StudyConfig) -> StudyConfig:
    """``config``, which reads no less of a text than the teacher's training did, unless it says how much."""
    try:
        task = as_trained(config.task, load_model_config(config.teacher.model))
    except AutodiscError:  # said when the teacher is opened, if it still is
        return config
    return config.model_copy(update={"task": task}) if task.max_length > config.task.max_length else config


def cache_folder(config: StudyConfig) -> Path:
    return config.cache.dir or default_folder()
