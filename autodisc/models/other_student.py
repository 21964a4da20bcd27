"""A student of another architecture: a pretrained model with the teacher's vocabulary, and a new head for the task."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from autodisc.errors import ModelError
from autodisc.models.checkpoints import (
    TRAINED_LENGTH,
    TRAINED_TEXTS,
    load_model,
    load_tokenizer,
    own_head,
    pad_alike,
    spaced_words,
    trained_length,
    trained_texts,
)
from autodisc.models.layouts import encoder_parameters
from autodisc.runtime import Runtime, seeded

TEXT_TO_TOKENS = ("normalizer", "pre_tokenizer", "post_processor")  # of a tokenizer, beside its vocabulary


@dataclass(frozen=True)
class OtherStudent:
    """A pretrained model of another architecture, with a new head for the task, for the student to start from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase  # the teacher's vocabulary, its own settings
    sparsity: float  # 1 − its encoder's parameters / the teacher's


def open_other_student(
    name: str, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, runtime: Runtime
) -> OtherStudent:
    """Load ``name``; raises ModelError where its tokens or size are not those of a student of ``teacher``."""
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


def _part_of(tokenizer: PreTrainedTokenizerBase, part: str) -> Any:
    found = json.loads(tokenizer.backend_tokenizer.to_str())[part] if tokenizer.is_fast else None
    if part == "post_processor" and isinstance(found, dict):  # of these it uses where a word stands in its text
        return {name: value for name, value in found.items() if name not in ("trim_offsets", "add_prefix_space")}
    return found
