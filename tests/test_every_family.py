"""From fine-tuning to a student that opens, for families whose layers run through their modules."""

from __future__ import annotations

import copy

import pytest
import torch

import autodisc
from autodisc import api
from autodisc.config import make_config
from autodisc.models.checkpoints import load_tokenizer, save_model
from autodisc.models.layouts import blocks

# qwen2 is not among them: transformers opens the toy tokenizer, beside a model of it, as one of byte pairs.
FAMILIES = ("llama", "t5", "camembert", "deberta-v2", "mpnet", "modernbert", "gpt2", "mistral", "qwen3", "gemma")
DECODERS = ("llama", "gpt2", "mistral", "qwen3", "gemma")


@pytest.fixture
def study(furnished, tiny, word_tokenizer, tmp_path):
    """``study(family)`` -> the settings of a run whose teacher is still to be fine-tuned."""

    def make(family: str, **changes):
        tokenizer = copy.deepcopy(word_tokenizer)
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        if family in DECODERS:  # theirs have none
            tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
        model = tiny(family, layers=2)
        with torch.no_grad():
            for parameter in model.parameters():  # nearer to what a model starts from
                parameter.mul_(0.3 if parameter.dim() > 1 else 1)
        if tokenizer.pad_token is None:
            model.config.pad_token_id = None
        save_model(model, tokenizer, tmp_path / "encoder")
        assert load_tokenizer(tmp_path / "encoder").pad_token is not None
        return {
            "task": {"name": "mine", "metric": "accuracy", "data": str(furnished / "data")},
            "teacher": {
                "model": str(tmp_path / "encoder"),
                "finetune": {"epochs": 8, "batch_size": 16, "lr": 3e-3},
            },
            "cache": {"dir": str(tmp_path / "cache")},
            "student_sparsity": 0.5,
            "search": {
                "sparsities": [0.1, 0.25],
                "importance": {"examples": 32},
                "recovery": {"steps": 6, "lr": 3e-3},
            },
            "distillation": {"epochs": 3, "student_epochs": 3, "batch_size": 32, "lr": 3e-3},
            "runtime": {"threads": 1, "precision": "fp32", **changes},
        }

    return make


@pytest.mark.parametrize("family", [FAMILIES[0], *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES[1:])])
def test_a_run_makes_a_teacher_an_assistant_and_a_student(study, tmp_path, family):
    result = api.run(make_config(study(family, checkpointing=family == "llama")), tmp_path / "study")
    assert result["finetune"]["metric"] > 0.75
    found = result["distill"]["student"]
    student = autodisc.load(found["path"])
    assert sum(block.heads for block in blocks(student)) == 4
    tokenizer = load_tokenizer(found["path"])
    inputs = tokenizer(["good w1 w2", "w1 bad"], padding=True, return_tensors="pt")
    assert inputs["attention_mask"].tolist() == [[1] * 5, [1] * 4 + [0]]
    with torch.no_grad():
        assert student(**inputs).logits.argmax(1).tolist() == [1, 0]
