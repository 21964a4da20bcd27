"""The zero-padded export: the same function, a plain architecture, and no trace of us."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch.testing import assert_close
from transformers import AlbertConfig, AlbertForSequenceClassification, AutoConfig, AutoModelForSequenceClassification

from autodisc.errors import ModelError
from autodisc.models.checkpoints import load, load_model, save_model
from autodisc.models.dense import to_dense
from autodisc.models.layouts import LAYOUTS, blocks
from autodisc.pruning.candidates import Candidate
from autodisc.pruning.supernet import extract

UNEVEN = Candidate(0.6, heads=(3, 0, 1), neurons=(16, 9, 0))
IDS = {
    "input_ids": torch.tensor([[2, 8, 9, 3], [2, 7, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
}


@pytest.fixture
def cut(tiny, random_ranking):
    def made(family="bert"):
        model = tiny(family, num_labels=3)
        return extract(model, random_ranking(model), UNEVEN)

    return made


@pytest.mark.parametrize("family", sorted(set(LAYOUTS) - {"vit", "t5"}))
def test_a_dense_model_opens_by_transformers_alone_with_the_pruned_model_s_logits(cut, tmp_path, family):
    small = cut(family)
    save_model(small, None, tmp_path / "pruned")
    for name, model in (("of a cut", small), ("of a folder", load(tmp_path / "pruned"))):
        to_dense(model).save_pretrained(tmp_path / name)
        plain, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / name, output_loading_info=True)
        assert type(plain).__module__.startswith("transformers.models.")
        assert not any(report.values())
        assert_close(plain(**IDS).logits, small(**IDS).logits)
        assert [(block.heads, block.neurons) for block in blocks(plain)] == [(4, 32)] * 3
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert not {"autodisc", "auto_map"} & config.keys()
        assert not (tmp_path / name / "modeling_autodisc.py").exists()


def test_a_dense_model_saved_here_is_a_plain_one(cut, tmp_path):
    small = cut()
    save_model(to_dense(small), None, tmp_path / "dense")
    assert sorted(path.name for path in (tmp_path / "dense").iterdir()) == ["config.json", "model.safetensors"]
    assert_close(load_model(tmp_path / "dense")(**IDS).logits, small(**IDS).logits)
    assert not hasattr(AutoConfig.from_pretrained(tmp_path / "dense"), "autodisc")


def test_units_lie_where_they_were_in_the_teacher_and_the_rest_is_zero(tiny, cut):
    teacher, dense = tiny(num_labels=3), to_dense(cut())
    for full, padded in zip(blocks(teacher), blocks(dense), strict=True):
        for whole, part in ((full.attention_out, padded.attention_out), (full.ffn_in[0], padded.ffn_in[0])):
            kept = part.weight != 0
            assert torch.equal(part.weight[kept], whole.weight[kept])
    assert (blocks(dense)[0].attention_out.weight != 0).any(0).sum() == 3 * 8
    assert not blocks(dense)[1].attention_out.weight.any()


def test_an_unpruned_model_is_dense_already(tiny, same_weights):
    model = tiny()
    dense = to_dense(model)
    assert same_weights(dense, model)
    assert dense is not model


def test_the_pruned_model_is_left_alone(cut, same_weights):
    small = cut()
    before = copy.deepcopy(small)
    to_dense(small.train())
    assert same_weights(small, before)
    assert small.config.to_dict() == before.config.to_dict()
    assert to_dense(small).training


def test_half_precision_stays(cut):
    assert {p.dtype for p in to_dense(cut().bfloat16()).parameters()} == {torch.bfloat16}


def refused(model, pattern):
    with pytest.raises(ModelError, match=pattern) as caught:
        to_dense(model)
    assert "\n" not in str(caught.value)


def test_a_cut_that_was_not_recorded_is_refused(cut):
    small = cut()
    del small.config.autodisc
    refused(small, "layer 0 has 3 heads and 16 neurons, its config says 4 and 32")


def test_kept_units_that_cannot_be_are_refused(cut):
    small = cut()
    small.config.autodisc["kept_heads"][0] = [0, 1, 7]
    refused(small, r"kept_heads\[0\]: expected ascending indices")


def test_another_head_than_the_family_s_is_refused(cut):
    small = cut()
    small.classifier = torch.nn.Sequential(torch.nn.Linear(32, 3))
    refused(small, r"is no plain bert \(classifier")


def test_a_classifier_of_another_size_is_refused(cut):
    small = cut()
    small.classifier = torch.nn.Linear(32, 5)
    refused(small, "is no plain bert .*size mismatch")


def test_a_quantised_model_is_refused(cut):
    small = cut()
    setattr(small.bert.encoder.layer[0].output, "dense", torch.nn.Identity())  # noqa: B010
    refused(small, "output.dense is a Identity, not a Linear")


def test_a_family_without_a_layout_is_refused():
    config = AlbertConfig(vocab_size=8, embedding_size=8, hidden_size=8, num_attention_heads=1, intermediate_size=8)
    refused(AlbertForSequenceClassification(config), "family 'albert' has no layout")
