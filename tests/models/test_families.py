"""Every family: masked = sliced = extracted. A new layout is right when this file passes with it."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, DebertaV2Config, GPT2Config, Phi3Config

from autodisc.errors import ModelError
from autodisc.models.checkpoints import Kept
from autodisc.models.inference import forward_macs, saved_macs
from autodisc.models.layouts import base_shape, blocks, embeddings, encoder_parameters, layout_of, unit_ratio
from autodisc.pruning.candidates import Candidate, candidate
from autodisc.pruning.masks import masked
from autodisc.pruning.supernet import Supernet, extract
from autodisc.pruning.surgery import keep

# One layer without heads, one without neurons, one with neither whole nor nothing; three different widths.
UNEVEN = Candidate(0.6, heads=(3, 0, 1), neurons=(16, 9, 0))
REVERSED = Candidate(0.6, heads=(0, 1, 3), neurons=(0, 9, 16))  # t5 makes its position bias in the first layer
EVERYTHING = Candidate(0.0, heads=(4, 4, 4), neurons=(32, 32, 32))


def masks_of(kept: Kept, model) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    _, H, N = base_shape(model.config)
    masks = []
    for layers, units in ((kept.heads, H), (kept.neurons, N)):
        masks.append([torch.tensor([float(i in layer) for i in range(units)]) for layer in layers])
    return masks[0], masks[1]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_masked_and_sliced_and_extracted_models_agree(tiny, random_ranking, inputs_of, any_family, attention):
    model = tiny(any_family, attention=attention)
    supernet, inputs = Supernet(model, random_ranking(model)), inputs_of(model)
    with torch.no_grad():
        whole = model(**inputs).logits
        for candidate in (UNEVEN, REVERSED):
            with masked(model, *masks_of(supernet.kept(candidate), model)) as active:
                expected = active(**inputs).logits
            with supernet.active(candidate) as active:
                sliced = active(**inputs).logits
            extracted = supernet.extract(candidate)(**inputs).logits
            assert not torch.allclose(whole, expected, atol=1e-2)
            assert_close(sliced, expected)
            assert_close(extracted, expected)


def test_hidden_states_of_slices_and_cuts_are_those_of_the_masked_model_at_every_depth(
    tiny, random_ranking, inputs_of, any_family
):
    model = tiny(any_family)
    supernet, inputs = Supernet(model, random_ranking(model)), inputs_of(model)
    with torch.no_grad():
        with masked(model, *masks_of(supernet.kept(UNEVEN), model)):
            expected = model(**inputs, output_hidden_states=True).hidden_states
        with supernet.active(UNEVEN) as active:
            sliced = active(**inputs, output_hidden_states=True).hidden_states
        extracted = supernet.extract(UNEVEN)(**inputs, output_hidden_states=True).hidden_states
    real = inputs.get("attention_mask", torch.ones(expected[0].shape[:2])).bool()
    assert len(expected) == len(sliced) == len(extracted) == 4
    for mine, also, theirs in zip(sliced, extracted, expected, strict=True):
        assert_close(mine[real], theirs[real])
        assert_close(also[real], theirs[real])


def test_the_attention_kernels_agree_on_what_is_cut_out(tiny, random_ranking, inputs_of, any_family):
    eager, fused = (tiny(any_family, attention=kernel) for kernel in ("eager", "sdpa"))
    cuts = [extract(model, random_ranking(model), UNEVEN) for model in (eager, fused)]
    with torch.no_grad():
        assert_close(*(cut(**inputs_of(cut)).logits for cut in cuts))


def test_sparsity_zero_is_the_teacher_bit_for_bit(tiny, random_ranking, same_weights, inputs_of, any_family):
    model = tiny(any_family)
    ranking = random_ranking(model)
    everything = candidate(ranking, 0.0)
    assert everything == EVERYTHING
    for cut in (Supernet(model, ranking).extract(everything), extract(model, ranking, everything)):
        assert same_weights(cut, model)
        assert torch.equal(cut(**inputs_of(model)).logits, model(**inputs_of(model)).logits)


def test_a_body_that_raises_leaves_the_model_unchanged(tiny, random_ranking, inputs_of, any_family):
    model = tiny(any_family)
    supernet, batch = Supernet(model, random_ranking(model)), inputs_of(model)
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


def test_a_supernet_and_a_cut_leave_the_teacher_untouched(tiny, random_ranking, same_weights, any_family):
    model = tiny(any_family)
    copied = copy.deepcopy(model)
    ranking = random_ranking(model)
    supernet = Supernet(model, ranking)
    with supernet.active(UNEVEN):
        supernet.extract(UNEVEN)
    extract(model, ranking, UNEVEN)
    assert same_weights(model, copied)
    assert model.config.to_dict() == copied.config.to_dict()


def test_supernet_of_a_pruned_model_gives_the_direct_extraction(
    tiny, random_ranking, same_weights, inputs_of, any_family
):
    model = tiny(any_family)
    batch = inputs_of(model)
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


def test_the_ratio_is_of_the_parameters_that_heads_and_neurons_bring(tiny, any_family):
    model = tiny(any_family)
    layers = blocks(model)
    heads, neurons = [block.heads for block in layers], [block.neurons for block in layers]
    whole, none = encoder_parameters(model, heads, neurons), [0] * len(layers)
    brought = [whole - encoder_parameters(model, *left) for left in ((none, neurons), (heads, none))]
    assert unit_ratio(layers) == pytest.approx(brought[0] / brought[1])


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "roberta", "camembert", "xlm-roberta"])
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


def test_parameters_and_products_of_a_cut_are_known_before_it_is_made(tiny, random_ranking, any_family):
    model = tiny(any_family)
    for each in (UNEVEN, EVERYTHING, REVERSED):
        cut = extract(model, random_ranking(model), each)
        assert encoder_parameters(model, each.heads, each.neurons) == encoder_parameters(cut)
        assert forward_macs(model) - saved_macs(model, each.heads, each.neurons) == forward_macs(cut)


def test_embeddings_are_all_that_runs_before_the_first_layer(tiny, any_family):
    model = tiny(any_family)
    of_embeddings = {id(p) for module in embeddings(model) for p in module.parameters()}
    of_layers = {id(p) for block in blocks(model) for p in block.layer.parameters()}
    behind = re.compile(r"pooler|(encoder\.)?(final_norm|final_layer_norm|ln_f|norm|layernorm)\.")
    base = {id(p) for name, p in model.base_model.named_parameters() if not behind.match(name)}
    assert of_embeddings.isdisjoint(of_layers)
    assert of_embeddings | of_layers == base


def test_a_family_without_a_layout_is_refused_by_name_with_the_supported_ones():
    with pytest.raises(ModelError, match=r"'phi3'.*bert, camembert, .* xlm-roberta.*layouts.py says how"):
        layout_of(Phi3Config())


@pytest.mark.parametrize(
    "config",
    [DebertaV2Config(conv_kernel_size=3), GPT2Config(add_cross_attention=True), BertConfig(is_decoder=True)],
    ids=["deberta", "gpt2", "bert"],
)
def test_a_configuration_with_modules_or_masks_that_no_layout_covers_is_refused(config):
    with pytest.raises(ModelError, match=r"(conv_kernel_size=3|(add_cross_attention|is_decoder)=True) has modules"):
        layout_of(config)
