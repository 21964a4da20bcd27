"""A student of another architecture: what it learns from, and all the way from a search to its folder."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, DistilBertConfig, PreTrainedTokenizerFast

import autodisc
from autodisc import api, exporting
from autodisc.config import DistillationConfig
from autodisc.distillation.heterogeneous import PROJECTIONS, Heterogeneous, depth_pairs, projected
from autodisc.distillation.losses import Totals
from autodisc.distillation.schedule import distill_into
from autodisc.errors import ConfigError, ModelError
from autodisc.models.checkpoints import load_tokenizer, save_model
from autodisc.pruning.candidates import Candidate
from autodisc.tasks.batches import batches

CONFIG = DistillationConfig(batch_size=8, lr=3e-3)


def make_narrow(dim: int = 16, layers: int = 2, labels: int = 2, **others: int):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = AutoModelForSequenceClassification.from_config(
            DistilBertConfig(
                dim=dim,
                n_heads=2,
                hidden_dim=16,
                n_layers=layers,
                pad_token_id=0,
                num_labels=labels,
                **{"vocab_size": 60, **others},
            )
        )
    return made.eval()


@pytest.fixture(scope="module")
def narrow(tmp_path_factory, word_tokenizer) -> Path:
    """The folder of a distilbert of half the teacher's width, whose tokenizer gives no token types."""
    own = PreTrainedTokenizerFast(
        tokenizer_object=copy.deepcopy(word_tokenizer.backend_tokenizer),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=64,
    )
    path = tmp_path_factory.mktemp("narrow") / "student"
    save_model(make_narrow(layers=1), own, path)
    return path


def test_depths_are_paired_evenly_up_to_the_last_layers(tiny):
    four, six, two = (tiny(layers=n) for n in (4, 6, 2))
    assert depth_pairs(four, six, 7) == ((1, 2), (2, 3), (3, 4), (4, 6))
    assert depth_pairs(two, six, 7) == ((1, 3), (2, 6))
    assert depth_pairs(six, two, 3) == ((3, 1), (6, 2))
    assert depth_pairs(two, six, 0) == ()


def test_the_loss_is_that_of_projected_states_and_soft_labels(tiny, make_workshop, make_task):
    workshop = make_workshop(make_task(train=8))
    teacher, student, task = tiny(layers=3), make_narrow(), workshop.task
    pairs = depth_pairs(student, teacher, 7)
    (batch,) = batches(task.train, batch_size=8, pad_token_id=0, generator=None)
    totals = Totals(labels=8.0, tokens=float(batch.tokens))
    with (
        workshop.teacher(teacher, CONFIG, student=student) as outputs,
        projected(student, teacher, pairs, workshop.runtime) as projections,
    ):
        objective = Heterogeneous(student, [outputs], pairs, projections, config=CONFIG, runtime=workshop.runtime)
        (term,) = objective.terms(batch, totals, objective.draw(None))
        with torch.no_grad():
            found = term.loss()
            theirs = teacher(**batch.inputs, output_hidden_states=True)
            own = student(**batch.inputs, output_hidden_states=True)
            real = batch.inputs["attention_mask"].bool()
            distances = [
                F.mse_loss(project(own.hidden_states[s])[real], theirs.hidden_states[t].half().float()[real])
                for project, (s, t) in zip(projections, pairs, strict=True)
            ]
            target = theirs.logits.softmax(-1)
            soft = -(target * own.logits.log_softmax(-1)).sum(-1).mean()
    assert_close(found, (torch.stack(distances).mean() + soft) / 2, rtol=1e-5, atol=1e-6)


def test_equal_widths_need_no_projection(tiny, make_workshop):
    teacher, student = tiny(layers=3), tiny("distilbert", layers=2)
    with projected(student, teacher, depth_pairs(student, teacher, 7), make_workshop().runtime) as projections:
        assert all(not list(module.parameters()) for module in projections)
        assert PROJECTIONS not in dict(student.named_modules())


def test_projections_are_trained_and_gone_afterwards_and_the_model_given_stays(tiny, make_workshop, same_weights):
    workshop, teacher, student = make_workshop(), tiny(layers=3), make_narrow()
    before = copy.deepcopy(student)
    stands_for = Candidate(0.8, (1, 1, 1), (8, 8, 8))
    with workshop.teacher(teacher, CONFIG, student=student) as outputs:
        made = distill_into(student, [outputs], stands_for, stage="s", steps=6, config=CONFIG, workshop=workshop)
    assert same_weights(student, before)
    assert made.candidate == stands_for
    own, first = made.model.state_dict(), before.state_dict()
    assert own.keys() == first.keys()
    changed = {name for name in own if not torch.equal(own[name], first[name])}
    assert changed
    assert not any("embeddings" in name for name in changed)  # frozen unless asked for
    losses = [point["loss"] for point in workshop.curves["s"] if point["loss"] is not None]
    assert losses[-1] < losses[0]


def test_from_a_search_to_students_of_another_architecture(config, narrow, tmp_path, furnished):
    settings = config(student_sparsity=None, student_model=str(narrow), search={"sparsities": [0.25, 0.5]})
    found = api.search(settings, tmp_path / "study")
    made = api.distill(tmp_path / "study")
    loaded = autodisc.load(made["student"]["path"])
    assert loaded.config.model_type == "distilbert"
    assert loaded.config.id2label == autodisc.load(furnished / "teacher").config.id2label
    teacher = autodisc.load(furnished / "teacher")
    count = [
        sum(p.numel() for p in layers.parameters()) for layers in (loaded.distilbert.transformer, teacher.bert.encoder)
    ]
    assert made["student"]["sparsity"] == pytest.approx(1 - count[0] / count[1], abs=1e-6)
    evaluated = api.evaluate(config(teacher={"model": made["student"]["path"]}), "test")
    assert evaluated["metric"] == made["student"]["metric"]
    assert found["best"]["sparsity"] == made["assistant"]["sparsity"]
    listed = exporting.candidates(tmp_path / "study", batch=1, length=8)["student"]
    assert {name: listed[name] for name in ("sparsity", "params", "macs")} == {
        name: made["student"][name] for name in ("sparsity", "params", "macs")
    }
    assert listed["latency_ms"] is None  # it has none of the layers that were timed
    card = (Path(made["student"]["path"]) / "README.md").read_text()
    assert "from a teacher of another architecture" in card
    assert str(tmp_path.parent) not in card
    for strategy in ("maxidisc", "direct"):
        compared = api.baseline(settings, strategy, tmp_path / "study")
        best = autodisc.load(compared["best"]["path"])
        assert best.config.model_type == "distilbert"
        again = api.evaluate(config(teacher={"model": compared["best"]["path"]}))
        assert again["metric"] == compared["best"]["student_metric"]


def test_it_is_exported_with_its_own_tokenizer(config, narrow, tmp_path):
    settings = config(student_sparsity=None, student_model=str(narrow), search={"sparsities": [0.25]})
    api.search(settings, tmp_path / "study")
    made = api.distill(tmp_path / "study")
    for format in ("autodisc", "dense"):
        exporting.export(tmp_path / "study", tmp_path / format, format=format)
        assert load_tokenizer(tmp_path / format).model_input_names == ["input_ids", "attention_mask"]
    exported = exporting.export(tmp_path / "study", tmp_path / "onnx", format="onnx")
    assert exported["metric"] == made["student"]["validation_metric"]
    assert json.loads((tmp_path / "onnx" / "onnx.json").read_text())["inputs"] == ["input_ids", "attention_mask"]


@pytest.mark.services  # processes of its own
def test_two_processes_make_what_one_makes(config, narrow, tmp_path):
    results = []
    for jobs in (1, 2):
        search = {"sparsities": [0.25, 0.5], "jobs": jobs}
        settings = config(student_sparsity=None, student_model=str(narrow), search=search, runtime={"threads": jobs})
        results.append(api.baseline(settings, "maxidisc", tmp_path / str(jobs)))
    one, two = ([(row["sparsity"], row["student_metric"]) for row in result["trials"]] for result in results)
    assert one == two


def test_another_vocabulary_is_refused(config, narrow, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in narrow.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["more"] = 60
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = config(student_sparsity=None, student_model=str(other), search={"sparsities": [0.25]})
    with pytest.raises(ModelError, match=r"^student_model: .* another vocabulary .*; give"):
        api.search(settings, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_another_way_from_text_to_tokens_is_refused(config, narrow, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(narrow, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = config(student_sparsity=None, student_model=str(other), search={"sparsities": [0.25]})
    with pytest.raises(
        ModelError, match=r"^student_model: .* other tokens of a text than the teacher \(normalizer differ\)"
    ):
        api.search(settings, tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"max_position_embeddings": 6}, ConfigError, r"^task\.max_length: .* positions for 6 tokens, .*; give 6$"),
        ({"vocab_size": 30}, ModelError, r"^student_model: .* embeddings of 30 tokens, its tokenizer has 60$"),
    ],
)
def test_one_that_cannot_read_the_texts_is_refused_first(config, narrow, tmp_path, change, error, match):
    save_model(make_narrow(**change), load_tokenizer(narrow), tmp_path / "student")
    settings = config(student_sparsity=None, student_model=str(tmp_path / "student"), search={"sparsities": [0.25]})
    with pytest.raises(error, match=match):
        api.search(settings, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_student_as_large_as_its_teacher_is_refused(config, furnished, tmp_path):
    settings = config(student_sparsity=None, student_model=str(furnished / "encoder"), search={"sparsities": [0.25]})
    with pytest.raises(ModelError, match=r"^student_model: .* has 1\.00 times .*; give a smaller"):
        api.search(settings, tmp_path / "study")


def test_assistants_smaller_than_the_student_are_refused(config, narrow, tmp_path):
    settings = config(student_sparsity=None, student_model=str(narrow), search={"sparsities": [0.95]})
    with pytest.raises(ConfigError, match=r"got 0\.95, at or beyond the student's .* its model's size"):
        api.search(settings, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_it_excludes_a_sparsity(config, narrow):
    with pytest.raises(ConfigError, match="student_sparsity: got one beside student_model"):
        config(student_sparsity=0.9, student_model=str(narrow))
