"""What a command opens: how much of a text is read, and teachers whose configs say more than is needed."""

from __future__ import annotations

import json
import shutil

import pytest

from autodisc import api
from autodisc.errors import ModelError
from autodisc.finished import open_finished
from autodisc.models.checkpoints import load_model, load_tokenizer, save_model
from autodisc.opening import open_workspace


def test_a_model_is_evaluated_on_texts_as_long_as_it_was_trained_on(config, furnished, tmp_path, monkeypatch):
    shorter = config(
        task={"max_length": 8},
        teacher={"model": str(furnished / "encoder"), "finetune": {"epochs": 1, "batch_size": 32, "lr": 3e-3}},
    )
    api.finetune(shorter, tmp_path / "teacher")
    lengths = []

    def opened(config, **options):
        lengths.append(config.task.max_length)
        return open_workspace(config, **options)

    monkeypatch.setattr(api, "open_workspace", opened)
    model = {"model": str(tmp_path / "teacher")}
    api.evaluate(config(teacher=model))
    api.evaluate(config(teacher=model, task={"max_length": 9}))
    assert lengths == [8, 9]
    longer = open_workspace(config(teacher=model, task={"max_length": 500}))
    assert longer.teacher.config.trained_length == 64  # its tokenizer reads no more


def test_a_study_reads_no_less_of_a_text_as_its_teacher_did_unless_told_otherwise(
    config, furnished, tmp_path, make_listener
):
    listener = make_listener()
    teacher = load_model(furnished / "teacher")
    teacher.config.trained_length = 200
    save_model(teacher, load_tokenizer(furnished / "teacher"), tmp_path / "teacher")
    model = {"model": str(tmp_path / "teacher")}
    api.search(config(teacher=model), tmp_path / "out", progress=listener)
    assert open_finished(tmp_path / "out").config.task.max_length == 200
    assert not [line for line in listener.said if "max_length" in line]
    assert api.search(config(teacher=model), tmp_path / "out")["best"] is not None  # the same study
    api.search(config(teacher=model, task={"max_length": 8}), tmp_path / "shorter", progress=listener)
    assert [line for line in listener.said if "max_length" in line] == [
        "texts: cut at 8 tokens (task.max_length), where the teacher was trained on 200"
    ]


def test_a_teacher_is_searched_whatever_its_config_has_it_say_beside_its_logits(config, furnished, tmp_path):
    shutil.copytree(furnished / "teacher", tmp_path / "teacher")
    file = tmp_path / "teacher/config.json"
    said = {"output_attentions": True, "output_hidden_states": True, "return_dict": False}
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    api.search(config(teacher={"model": str(tmp_path / "teacher")}), tmp_path / "out")
    assert api.distill(tmp_path / "out")["student"]["metric"] > 0.5


@pytest.mark.parametrize(
    ("names", "said"),
    [({"1": "bad", "2": "good"}, "names 1, 2 and not 0"), ({"0": "good", "1": "good"}, "same name")],
)
def test_a_teacher_whose_outputs_are_named_otherwise_is_refused(config, furnished, tmp_path, names, said):
    shutil.copytree(furnished / "teacher", tmp_path / "teacher")
    file = tmp_path / "teacher/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"id2label": names}))
    with pytest.raises(ModelError, match=said):
        api.search(config(teacher={"model": str(tmp_path / "teacher")}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
