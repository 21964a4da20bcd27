"""A model keeps the head that it has: for sequences, for tokens, for the next token."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import transformers
from transformers import BertForMaskedLM

from autodisc.errors import CheckpointError, ModelError
from autodisc.models import modeling_autodisc
from autodisc.models.checkpoints import Kept, load, load_model, save_model
from autodisc.models.dense import to_dense
from autodisc.models.layouts_autodisc import LAYOUTS, SUFFIXES
from autodisc.pruning.surgery import keep
from autodisc.search.workers import opened, packed

IDS = {"input_ids": torch.tensor([[2, 8, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
KEPT = Kept(heads=((0, 2, 3), (), (1,)), neurons=(tuple(range(16)), tuple(range(3, 12)), ()))


PAIRS = [(family, head) for family, layout in LAYOUTS.items() for head in layout.heads]


@pytest.fixture
def tagger(tiny):
    """``tagger(family)``: a token classifier of three classes, pruned."""
    return lambda family: keep(tiny(family, head="token", num_labels=3), KEPT)


@pytest.mark.parametrize(("family", "head"), PAIRS)
@pytest.mark.usefixtures("modules_elsewhere")
def test_a_pruned_model_opens_here_and_elsewhere_with_its_outputs(tiny, same_weights, tmp_path, family, head):
    whole = tiny(family, head=head, num_labels=3)
    model = keep(whole, KEPT)
    save_model(model, None, tmp_path / "model")
    inputs = {"pixel_values": torch.randn(2, 3, 8, 8)} if head == "image" else IDS
    expected = model(**inputs).logits
    elsewhere = getattr(transformers, f"AutoModel{SUFFIXES[head]}")
    again = pickle.loads(pickle.dumps(load(tmp_path / "model")))
    for found in (
        load(tmp_path / "model"),
        load_model(tmp_path / "model", head=head),
        again,
        elsewhere.from_pretrained(tmp_path / "model", trust_remote_code=True),
        copy.deepcopy(model),
    ):
        assert torch.equal(found(**inputs).logits, expected)
        assert same_weights(found, model)
        assert found.num_parameters() == model.num_parameters()  # what is tied counts once
    assert same_weights(opened(pickle.loads(pickle.dumps(packed(model)))), model)
    save_model(whole, None, tmp_path / "whole")
    assert torch.equal(load(tmp_path / "whole")(**inputs).logits, whole(**inputs).logits)


@pytest.mark.parametrize(("family", "head"), [pair for pair in PAIRS if pair != ("t5", "sequence")])
def test_a_dense_model_has_the_pruned_one_s_outputs(tiny, family, head):
    model = keep(tiny(family, head=head), KEPT)
    dense = to_dense(model)
    inputs = {"pixel_values": torch.randn(2, 3, 8, 8)} if head == "image" else IDS
    torch.testing.assert_close(dense(**inputs).logits, model(**inputs).logits)
    assert dense.num_parameters() == tiny(family, head=head).num_parameters()


def test_a_class_that_transformers_has_not_cannot_be_dense(tiny):
    with pytest.raises(ModelError, match="transformers has no T5EncoderForSequenceClassification"):
        to_dense(keep(tiny("t5"), KEPT))


def test_a_t5_checkpoint_gets_a_classifier_on_its_encoder(tiny, tmp_path):
    torch.manual_seed(0)
    whole = transformers.T5ForConditionalGeneration(tiny("t5").config).eval()
    whole.save_pretrained(tmp_path / "t5")
    with pytest.raises(CheckpointError, match="not a fine-tuned classifier, its weights lack classifier"):
        load_model(tmp_path / "t5")
    made = load_model(tmp_path / "t5", num_labels=5)
    assert type(made).__name__ == "T5EncoderForSequenceClassification"
    with torch.no_grad():
        states = whole.encoder(**IDS).last_hidden_state
        expected = made.classifier(states.mean(1))
    torch.testing.assert_close(made(**IDS).logits, expected)
    save_model(made, None, tmp_path / "teacher")
    assert torch.equal(load(tmp_path / "teacher")(**IDS).logits, made(**IDS).logits)


def test_padding_does_not_change_the_mean_of_a_t5_classifier(tiny):
    model = tiny("t5")
    padded = {name: torch.nn.functional.pad(values, (0, 3)) for name, values in IDS.items()}
    torch.testing.assert_close(model(**padded).logits, model(**IDS).logits)


def test_a_language_model_becomes_a_classifier_where_labels_are_asked_for(tiny, tmp_path):
    model = tiny("llama", head="causal")
    save_model(model, None, tmp_path / "llama")
    assert type(load_model(tmp_path / "llama")).__name__ == "LlamaForCausalLM"
    made = load_model(tmp_path / "llama", num_labels=3)
    assert made(**IDS).logits.shape == (1, 3)
    assert torch.equal(made.model.embed_tokens.weight, model.model.embed_tokens.weight)


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
