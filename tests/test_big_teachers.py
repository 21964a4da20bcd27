"""Teachers whose weights are in bf16, or on several devices."""

from __future__ import annotations

import pytest
import torch

from autodisc import api
from autodisc.errors import ConfigError
from autodisc.models.checkpoints import save_model
from autodisc.opening import open_workspace

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


PLACES = {"bert.embeddings": "cpu", "bert.encoder.layer.0": "cpu", "bert.encoder.layer.1": "disk"}
REST = {"bert.pooler": "cpu", "dropout": "cpu", "classifier": "cpu"}
SPREAD = {"device_map": {**PLACES, **REST}}


@pytest.mark.parametrize("scorer", ["recovered", "pruned"])
def test_a_study_of_a_teacher_with_a_layer_on_disk_finds_what_one_of_the_whole_finds(config, tmp_path, scorer):
    found, students = [], []
    for name, teacher in (("whole", {}), ("spread", SPREAD)):
        settings = config(teacher=teacher, search={"scorer": scorer}, cache={"dir": str(tmp_path / name / "cache")})
        found.append(api.search(settings, tmp_path / name / "study"))
        api.distill(tmp_path / name / "study")
        students.append(api.load(tmp_path / name / "study" / "distilled-1" / "student"))
    assert [row["metric"] for row in found[0]["trials"]] == [row["metric"] for row in found[1]["trials"]]
    assert found[0]["teacher"] == found[1]["teacher"]
    assert (tmp_path / "whole/study/ranking.json").exists()
    for (name, mine), theirs in zip(students[0].state_dict().items(), students[1].state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=2e-3, msg=name)
    card = (tmp_path / "spread/study/distilled-1/student/README.md").read_text()
    assert "teacher spread" in card


def test_a_spread_teacher_is_evaluated_and_compared_with_by_the_baselines(config, tmp_path):
    whole = api.evaluate(config())
    assert api.evaluate(config(teacher=SPREAD)) == whole
    assert api.evaluate(config(teacher={"device_map": "auto"}, runtime={"device": "cpu"}))["metric"] == whole["metric"]
    found = api.baseline(config(teacher=SPREAD), "direct", tmp_path / "out")
    assert found["best"] is not None


def test_what_a_spread_teacher_would_cost_is_predicted(config):
    predicted = api.predict_search(config(teacher=SPREAD))["predicted"]
    assert predicted["seconds"] > 0
    assert {"importance", "recovery", "trials"} <= predicted["stages"].keys()


@pytest.mark.parametrize(
    ("pattern", "changes"),
    [
        (
            r"^teacher\.device_map: got 'everywhere'; expected auto, .*, or a mapping",
            {"teacher": {"device_map": "everywhere"}},
        ),
        (r"^teacher\.device_map: got 'tpu'; expected", {"teacher": {"device_map": {"": "tpu"}}}),
        (r"^teacher\.device_map: got '' beside", {"teacher": {"device_map": {"": "cpu", "a": "disk"}}}),
        (r"^teacher\.device_map: got {}; expected", {"teacher": {"device_map": {}}}),
        (r"^teacher\.device_map: contradicts search\.jobs", {"teacher": SPREAD, "search": {"jobs": 2}}),
        (
            r"^teacher\.device_map: contradicts budget\.latency_ms.*budget\.params",
            {"teacher": SPREAD, "budget": {"latency_ms": 2}, "student_sparsity": None},
        ),
    ],
)
def test_what_a_spread_teacher_cannot_do_is_refused_in_one_line(config, pattern, changes):
    with pytest.raises(ConfigError, match=pattern) as refused:
        config(**changes)
    assert "\n" not in str(refused.value)


def test_a_teacher_with_a_map_is_finetuned_as_a_whole(config, furnished):
    from autodisc.models.spreading import is_spread

    made = config(teacher={"model": str(furnished / "encoder"), "finetune": {"epochs": 1}, **SPREAD})
    assert not is_spread(open_workspace(made, finetune=True).teacher)


@pytest.mark.parametrize("name", ["auto", "balanced", "balanced_low_0", "sequential"])
def test_every_way_of_sharing_out_opens_the_same_teacher(config, name):
    spread = open_workspace(config(teacher={"device_map": name}, runtime={"device": "cpu"}))
    assert spread.teacher_fingerprint == open_workspace(config()).teacher_fingerprint


def test_a_teacher_on_disk_in_bf16_is_that_in_memory(config):
    settings = [config(teacher={**BF16, **more}, runtime={"precision": "bf16"}) for more in ({}, SPREAD)]
    whole, spread = map(open_workspace, settings)
    assert whole.teacher_fingerprint == spread.teacher_fingerprint
    assert whole.ranking().layers == spread.ranking().layers
    cut = spread.workshop.cut(spread.teacher, spread.ranking(), spread.student)
    assert {parameter.dtype for parameter in cut.parameters()} == {torch.float32}
    validation = whole.task.validation
    mine, theirs = (space.logits(space.teacher, validation) for space in (whole, spread))
    assert (mine == theirs).all()
