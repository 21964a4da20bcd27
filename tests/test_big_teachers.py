"""Teachers whose weights are in bf16, or on several devices."""

from __future__ import annotations

import pytest
import torch

from autodisc import api
from autodisc.errors import ConfigError
from autodisc.models.checkpoints import save_model
from autodisc.workspace import open_workspace

BF16 = {"dtype": "bf16"}


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny, word_tokenizer):
    """Folders of classifiers, by family."""

    def make(family: str) -> str:
        folder = tmp_path_factory.mktemp("big") / family
        save_model(tiny(family, layers=2), word_tokenizer, folder)
        return str(folder)

    return {family: make(family) for family in ("bert", "llama", "t5")}


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("scorer", ["recovered", "pruned"])
def test_every_candidate_of_a_teacher_in_bf16_is_scored(config, models, tmp_path, family, scorer):
    settings = config(
        teacher={"model": models[family], **BF16},
        search={"scorer": scorer},
        runtime={"precision": "bf16"},
        task={"limit_train": 48},
    )
    found = api.search(settings, tmp_path / "study")
    assert [row["sparsity"] for row in found["trials"]] == [0.25, 0.5, 0.75]
    assert all(0 <= row["metric"] <= 1 for row in found["trials"])


def test_a_student_of_a_teacher_in_bf16_has_weights_in_fp32(config, tmp_path):
    settings = config(teacher=BF16, runtime={"precision": "bf16"})
    assert api.search(settings, tmp_path / "study")["best"] is not None
    api.distill(tmp_path / "study")
    student = api.load(tmp_path / "study" / "distilled-1" / "student")
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


def test_a_teacher_in_bf16_takes_half_the_memory_and_its_finetuning_all_of_it(config, models):
    settings = config(teacher={"model": models["bert"], **BF16}, runtime={"precision": "bf16"})
    teacher = open_workspace(settings).teacher
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.bfloat16}
    trained = open_workspace(settings, finetune=True).teacher
    assert {parameter.dtype for parameter in trained.parameters()} == {torch.float32}


def test_bf16_weights_are_refused_where_fp32_is_computed(config, models):
    with pytest.raises(ConfigError, match=r"^teacher\.dtype: got bf16, .* fp32; add --precision bf16"):
        open_workspace(config(teacher={"model": models["bert"], **BF16}))
