"""What a command opens before it works, and what a record says of it: between the stages and the commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autodisc.config import StudyConfig
from autodisc.costs import Ledger
from autodisc.distillation.schedule import Workshop
from autodisc.errors import StudyError
from autodisc.models.checkpoints import settings_digest
from autodisc.models.inference import evaluation_batch, forward_macs, predict
from autodisc.models.latency import LatencyTable, latency_table
from autodisc.models.layouts import encoder_parameters
from autodisc.models.other_student import OtherStudent
from autodisc.models.reading import Reader, raw, read
from autodisc.pruning.candidates import Candidate, Ranking, all_candidates, candidate, nested_candidates
from autodisc.pruning.ranking_files import ranked
from autodisc.reporting.records import environment, held_out_by, write_record
from autodisc.tasks.answers import scores
from autodisc.tasks.batches import number_of_batches
from autodisc.tasks.data import Split, Task

SET_UP, TEACHER_METRIC = "set-up", "teacher metric"  # stages


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
        if "ranking" not in self.extra:
            self.extra["ranking"], self.extra["ranking_cost"] = ranked(
                self.teacher,
                self.task,
                self.config.search.importance,
                fingerprint=self.teacher_fingerprint,
                cache=self.workshop.cache,
                runtime=self.workshop.runtime,
                ledger=self.ledger,
                progress=self.workshop.progress,
            )
        return self.extra["ranking"]

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

    def environment(self) -> dict[str, Any]:
        runtime = self.workshop.runtime
        return environment(device=str(runtime.device), precision=runtime.precision, threads=runtime.threads)


def size(model: PreTrainedModel) -> dict[str, int]:
    """Parameters, of the encoder and of all, and multiply-accumulates of one sequence of 128 tokens."""
    return {
        "params": encoder_parameters(model),
        "total_params": model.num_parameters(),
        "macs": forward_macs(model),
    }


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
