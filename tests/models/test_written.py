"""A classifier written out computes what its modules compute."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from autodisc.models.checkpoints import Kept
from autodisc.models.written import Written
from autodisc.pruning.surgery import keep

STANDARD = ("bert", "distilbert", "electra", "roberta")  # their layers are computed by hand

SHAPES = {  # heads and neurons a layer
    "whole": ((4, 4, 4), (32, 32, 32)),
    "uneven": ((3, 1, 2), (16, 9, 24)),
    "without heads below": ((0, 3, 1), (0, 16, 8)),
    "without heads above": ((2, 0, 0), (16, 0, 8)),
    "without attention": ((0, 0, 0), (8, 0, 16)),
    "without units": ((0, 0, 0), (0, 0, 0)),
}


@pytest.fixture(params=["right", "left"])
def batch(request) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 60, (4, 9), generator=generator)
    mask = torch.arange(9)[None] < torch.tensor([9, 4, 7, 1])[:, None]
    if request.param == "left":
        mask = mask.flip(1)
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", STANDARD)
def test_logits_are_the_models_whatever_is_pruned_and_padded(tiny, batch, family, shape):
    model = tiny(family)
    kept = Kept(*(tuple(tuple(range(n)) for n in layers) for layers in SHAPES[shape]))
    model = keep(model, kept)
    with torch.no_grad():
        assert_close(Written(model)(**batch), model(**batch).logits)


def test_token_types_count(tiny, batch):
    model = tiny("bert")
    types = (torch.arange(9)[None] > 3).long().expand(4, 9)
    with torch.no_grad():
        typed = Written(model)(**batch, token_type_ids=types)
        assert_close(typed, model(**batch, token_type_ids=types).logits)
        assert not torch.allclose(typed, Written(model)(**batch))


def test_the_model_itself_stays_as_it_was(tiny, batch):
    model = tiny("roberta")
    before = {name: values.clone() for name, values in model.state_dict().items()}
    Written(model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


@pytest.mark.parametrize("family", STANDARD)
def test_a_model_in_training_stays_in_training(tiny, family):
    model = tiny(family).train()
    assert not any(module.training for module in Written(model).modules())
    assert all(module.training for module in model.modules())


def test_a_family_without_token_types_is_given_a_typed_text(tiny, batch):
    model, types = tiny("distilbert"), torch.ones(4, 9, dtype=torch.long)
    with torch.no_grad():
        assert_close(Written(model)(**batch, token_type_ids=types), model(**batch).logits)
