"""Every family: masked = sliced = extracted. A new layout is right when this file passes with it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import GPT2Config

from autodisc.errors import ModelError
from autodisc.models.checkpoints import Kept
from autodisc.models.layouts import LAYOUTS, base_shape, blocks, embeddings, encoder_parameters, layout_of
from autodisc.pruning.candidates import Candidate, candidate
from autodisc.pruning.masks import masked
from autodisc.pruning.supernet import Supernet, extract
from autodisc.pruning.surgery import keep

FAMILIES = sorted(LAYOUTS)
# One layer without heads, one without neurons, one with neither whole nor nothing; three different widths.
UNEVEN = Candidate(0.6, heads=(3, 0, 1), neurons=(16, 9, 0))
EVERYTHING = Candidate(0.0, heads=(4, 4, 4), neurons=(32, 32, 32))


@pytest.fixture(params=["right", "left"])
def batch(request) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 60, (4, 9), generator=generator)
    mask = torch.arange(9)[None] < torch.tensor([9, 4, 7, 1])[:, None]
    if request.param == "left":
        mask = mask.flip(1)
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def masks_of(kept: Kept, model) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    _, H, N = base_shape(model.config)
    masks = []
    for layers, units in ((kept.heads, H), (kept.neurons, N)):
        masks.append([torch.tensor([float(i in layer) for i in range(units)]) for layer in layers])
    return masks[0], masks[1]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_masked_and_sliced_and_extracted_models_agree(tiny, random_ranking, batch, family, attention):
    model = tiny(family, attention=attention)
    supernet = Supernet(model, random_ranking(model))
    with torch.no_grad():
        whole = model(**batch).logits
        with masked(model, *masks_of(supernet.kept(UNEVEN), model)) as active:
            expected = active(**batch).logits
        with supernet.active(UNEVEN) as active:
            sliced = active(**batch).logits
        extracted = supernet.extract(UNEVEN)(**batch).logits
    assert not torch.allclose(whole, expected, atol=1e-2)
    assert_close(sliced, expected)
    assert_close(extracted, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_extracted_hidden_states_are_those_of_the_masked_model_at_every_depth(tiny, random_ranking, batch, family):
    model = tiny(family)
    supernet = Supernet(model, random_ranking(model))
    with torch.no_grad():
        with masked(model, *masks_of(supernet.kept(UNEVEN), model)):
            expected = model(**batch, output_hidden_states=True).hidden_states
        extracted = supernet.extract(UNEVEN)(**batch, output_hidden_states=True).hidden_states
    real = batch["attention_mask"].bool()
    assert len(expected) == len(extracted) == 4
    for mine, theirs in zip(extracted, expected, strict=True):
        assert_close(mine[real], theirs[real])


@pytest.mark.parametrize("family", FAMILIES)
def test_training_gradients_of_a_slice_are_those_of_the_extracted_model(tiny, random_ranking, batch, family):
    model = tiny(family)
    supernet = Supernet(model, random_ranking(model))
    extracted = supernet.extract(UNEVEN)
    extracted(**batch).logits.square().sum().backward()
    with supernet.active(UNEVEN) as active:
        loss = active(**batch).logits.square().sum()
    loss.backward()  # outside: the training loop's backward runs after the slice is undone
    for big, small in zip(blocks(supernet.model), blocks(extracted), strict=True):
        rows, columns = small.ffn_out.weight.shape
        # The supernet holds units by importance, the extracted model by index: compare what no order changes.
        assert_close(big.ffn_out.weight.grad.norm(), small.ffn_out.weight.grad.norm())
        assert not big.ffn_out.weight.grad[:rows, columns:].any()
        assert not big.attention_out.weight.grad[:, small.attention_out.weight.shape[1] :].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_sparsity_zero_is_the_teacher_bit_for_bit(tiny, random_ranking, same_weights, batch, family):
    model = tiny(family)
    ranking = random_ranking(model)
    everything = candidate(ranking, 0.0)
    assert everything == EVERYTHING
    for cut in (Supernet(model, ranking).extract(everything), extract(model, ranking, everything)):
        assert same_weights(cut, model)
        assert torch.equal(cut(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_body_that_raises_leaves_the_model_unchanged(tiny, random_ranking, batch, family):
    model = tiny(family)
    supernet = Supernet(model, random_ranking(model))
    with torch.no_grad():
        before, sliced = model(**batch).logits, supernet.model(**batch).logits
        with pytest.raises(KeyboardInterrupt), supernet.active(UNEVEN):
            raise KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt), masked(model, *masks_of(supernet.kept(UNEVEN), model)):
            raise KeyboardInterrupt
        assert torch.equal(model(**batch).logits, before)
        assert torch.equal(supernet.model(**batch).logits, sliced)


def test_a_candidate_that_does_not_fit_is_refused_and_leaves_the_supernet_unchanged(tiny, random_ranking, batch):
    model = tiny()
    supernet = Supernet(model, random_ranking(model))
    before = supernet.model(**batch).logits
    with (
        pytest.raises(ValueError, match="larger than the supernet"),
        supernet.active(Candidate(0, (4, 4, 5), (8,) * 3)),
    ):
        pass
    assert torch.equal(supernet.model(**batch).logits, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_supernet_and_a_cut_leave_the_teacher_untouched(tiny, random_ranking, same_weights, family):
    model = tiny(family)
    copied = copy.deepcopy(model)
    ranking = random_ranking(model)
    supernet = Supernet(model, ranking)
    with supernet.active(UNEVEN):
        supernet.extract(UNEVEN)
    extract(model, ranking, UNEVEN)
    assert same_weights(model, copied)
    assert model.config.to_dict() == copied.config.to_dict()


@pytest.mark.parametrize("family", FAMILIES)
def test_supernet_of_a_pruned_model_gives_the_direct_extraction(tiny, random_ranking, same_weights, batch, family):
    model = tiny(family)
    ranking = random_ranking(model)
    middle, small = candidate(ranking, 0.4), candidate(ranking, 0.8)
    direct = extract(model, ranking, small)
    pruned = extract(model, ranking, middle)
    again = Supernet(pruned, ranking)
    assert same_weights(again.extract(small), direct)
    assert same_weights(extract(pruned, ranking, small), direct)
    assert same_weights(Supernet(again.extract(middle), ranking).extract(small), direct)
    with torch.no_grad(), again.active(small) as active:
        assert_close(active(**batch).logits, direct(**batch).logits)


def test_a_unit_that_the_model_has_lost_cannot_be_kept(tiny, random_ranking):
    model = tiny()
    ranking = random_ranking(model)
    pruned = extract(model, ranking, candidate(ranking, 0.5))
    with pytest.raises(ValueError, match="not in the model"):
        keep(pruned, Kept.everything(model.config))


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_parameters_count_the_layers_alone(tiny, random_ranking, family):
    model = tiny(family)
    ranking = random_ranking(model)
    C, D = 32, 8
    fixed = C + 2 * C + C + 2 * C  # attention's and FFN's output biases, two LayerNorms
    by_hand = sum(
        fixed + h * D * (4 * C + 3) + n * (2 * C + 1) for h, n in zip(UNEVEN.heads, UNEVEN.neurons, strict=True)
    )
    assert encoder_parameters(extract(model, ranking, UNEVEN)) == by_hand
    assert encoder_parameters(model) == 3 * (fixed + 4 * D * (4 * C + 3) + 32 * (2 * C + 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_all_that_runs_before_the_first_layer(tiny, family):
    model = tiny(family)
    of_embeddings = {id(p) for module in embeddings(model) for p in module.parameters()}
    of_layers = {id(p) for block in blocks(model) for p in block.layer.parameters()}
    base = {id(p) for name, p in model.base_model.named_parameters() if "pooler" not in name}
    assert of_embeddings.isdisjoint(of_layers)
    assert of_embeddings | of_layers == base


def test_an_unsupported_family_is_refused_by_name_with_the_supported_ones():
    with pytest.raises(ModelError, match=r"'gpt2'.*bert, distilbert, electra, roberta"):
        layout_of(GPT2Config())
