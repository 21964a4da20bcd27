"""Fine-tune a pretrained encoder on a task: how a teacher is made where the user has none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch
from transformers import PreTrainedModel

from autodisc.config import FinetuneConfig
from autodisc.distillation.checkpointing import Made
from autodisc.distillation.losses import Totals
from autodisc.distillation.schedule import VALIDATION, Workshop
from autodisc.distillation.training import Term, TrainingSettings, TrainingState, steps_for, train
from autodisc.models.checkpoints import identity
from autodisc.models.inference import predict
from autodisc.models.losses import label_loss
from autodisc.runtime import Runtime
from autodisc.tasks.batches import Batch


class GoldLabels:
    """Objective of the training loop: the task's own labels."""

    def __init__(self, model: PreTrainedModel, runtime: Runtime) -> None:
        self.model, self.runtime = model, runtime

    def draw(self, generator: np.random.Generator) -> None:
        return None

    def terms(self, batch: Batch, totals: Totals, drawn: None) -> Iterator[Term]:
        def loss() -> torch.Tensor:
            with self.runtime.autocast():
                logits = self.model(**batch.inputs).logits
            return label_loss(logits.float(), batch.labels, totals.labels)

        yield Term("teacher", loss)


def finetune_classifier(model: PreTrainedModel, config: FinetuneConfig, workshop: Workshop) -> TrainingState:
    """Train ``model`` in place, with dropout; it ends with the weights of the best epoch on validation."""
    task = workshop.task

    def evaluate() -> float:
        with workshop.ledger.stage(VALIDATION):
            said = predict(model, task.validation, task=task, runtime=workshop.runtime, ledger=workshop.ledger)
            return task.metric.score(said, task.validation.labels)

    settings = TrainingSettings(
        steps=steps_for(task.train, config.batch_size, config.epochs),
        batch_size=config.batch_size,
        lr=config.lr,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        clip=config.clip,
        dropout=True,
    )

    def made_of() -> Made:
        return {**asdict(settings), "start": identity(model), "train": task.train.fingerprint}

    state = train(
        model,
        GoldLabels(model, workshop.runtime),
        task.train,
        settings,
        task=task,
        runtime=workshop.runtime,
        stage="fine-tuning",
        ledger=workshop.ledger,
        progress=workshop.progress,
        evaluate=evaluate,
        states=workshop.states("fine-tuning", made_of),
        tracker=workshop.tracker,
    )
    workshop.curves["fine-tuning"] = state.curve
    return state
