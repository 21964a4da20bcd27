"""A model keeps the head that it has: for sequences, for tokens, for the next token."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch
from transformers import AutoModelForTokenClassification, BertForMaskedLM

from autodisc.errors import CheckpointError, ModelError
from autodisc.models import modeling_autodisc
from autodisc.models.checkpoints import Kept, load, load_model, save_model
from autodisc.models.dense import to_dense
from autodisc.models.modeling_autodisc import LAYOUTS, plain_class
from autodisc.pruning.surgery import keep
from autodisc.search.workers import opened, packed

IDS = {"input_ids": torch.tensor([[2, 8, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
KEPT = Kept(heads=((0, 2, 3), (), (1,)), neurons=(tuple(range(16)), tuple(range(3, 12)), ()))


@pytest.fixture
def tagger(tiny):
    """``tagger(family)``: a token classifier of three classes, pruned."""

    def make(family):
        config = copy.deepcopy(tiny(family).config)
        config.num_labels = 3
        return keep(plain_class(family, "token")._from_config(config).eval(), KEPT)

    return make


@pytest.mark.parametrize("family", [name for name, layout in LAYOUTS.items() if "token" in layout.heads])
def test_a_pruned_token_classifier_opens_here_and_elsewhere_with_its_outputs(
    tagger, same_weights, tmp_path, monkeypatch, family
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    model = tagger(family)
    save_model(model, None, tmp_path / "tagger")
    expected = model(**IDS).logits
    assert expected.shape == (1, 4, 3)
    elsewhere = AutoModelForTokenClassification.from_pretrained(tmp_path / "tagger", trust_remote_code=True)
    for found in (load(tmp_path / "tagger"), load_model(tmp_path / "tagger", head="token"), elsewhere):
        assert torch.equal(found(**IDS).logits, expected)
    assert same_weights(opened(pickle.loads(pickle.dumps(packed(model)))), model)
    torch.testing.assert_close(to_dense(model)(**IDS).logits, expected)


def test_a_pruned_model_with_another_head_is_refused(tagger, tiny, tmp_path):
    save_model(tagger("bert"), None, tmp_path / "tagger")
    with pytest.raises(CheckpointError, match="pruned as a fine-tuned token classifier, not a fine-tuned classifier"):
        load_model(tmp_path / "tagger", head="sequence")


def test_a_head_that_a_family_has_not_is_refused_by_name(tiny, tmp_path):
    save_model(tiny(), None, tmp_path / "model")
    with pytest.raises(ModelError, match=r"a bert model has no image head here; it has sequence, token"):
        load_model(tmp_path / "model", head="image")


def test_an_encoder_gets_a_new_head_for_tokens(tiny, tmp_path):
    save_model(tiny().bert, None, tmp_path / "model")
    made = load_model(tmp_path / "model", head="token", num_labels=5)
    assert made(**IDS).logits.shape == (1, 4, 5)
    assert torch.equal(made.bert.embeddings.word_embeddings.weight, tiny().bert.embeddings.word_embeddings.weight)


def test_a_model_with_none_of_the_heads_cannot_be_saved_pruned(tiny, tmp_path):
    model = keep(BertForMaskedLM(tiny().config), KEPT)
    with pytest.raises(ModelError, match="a BertForMaskedLM has none of the heads"):
        save_model(model, None, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_no_class_is_none(tiny):
    with pytest.raises(AttributeError, match="no attribute 'NobodyForCausalLM'"):
        modeling_autodisc.NobodyForCausalLM  # noqa: B018
