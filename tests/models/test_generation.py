"""A pruned decoder writes, with a cache of keys and values, what the masked one writes."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from autodisc.models.checkpoints import Kept, load, save_model
from autodisc.models.dense import to_dense
from autodisc.pruning.candidates import Candidate
from autodisc.pruning.masks import masked
from autodisc.pruning.supernet import Supernet
from autodisc.pruning.surgery import keep

# The cache is asked for its length by the first layer, which has no head in one of them.
KEPT = {
    "first layer": Kept(heads=((), (0, 2, 3), (1,)), neurons=((), tuple(range(3, 12)), tuple(range(16)))),
    "between": Kept(heads=((0, 2, 3), (), (1,)), neurons=(tuple(range(16)), (), tuple(range(3, 12)))),
    "every layer": Kept(heads=((), (), ()), neurons=(tuple(range(16)),) * 3),
}
NEW = 12


@pytest.fixture
def prompt() -> dict[str, torch.Tensor]:
    """Two of different lengths, padded on the left."""
    ids = torch.tensor([[0, 0, 2, 8], [2, 9, 30, 41]])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def masks_of(kept: Kept) -> list[list[torch.Tensor]]:
    pairs = ((kept.heads, 4), (kept.neurons, 32))
    return [[torch.tensor([float(i in layer) for i in range(n)]) for layer in layers] for layers, n in pairs]


def test_how_it_ends_is_saved_with_it(decoder, tiny, tmp_path):
    model = tiny(decoder, head="causal")
    model.generation_config.eos_token_id = [3, 7]
    cut = keep(model, KEPT["every layer"])
    save_model(cut, None, tmp_path / "pruned")
    save_model(to_dense(cut), None, tmp_path / "dense")
    for folder in ("pruned", "dense"):
        assert load(tmp_path / folder).generation_config.eos_token_id == [3, 7]


def written(model, prompt, **others) -> torch.Tensor:
    """Greedily, never an end."""
    rules = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        return model.generate(**prompt, **rules, **others)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("which", KEPT)
def test_a_pruned_decoder_writes_what_the_masked_one_writes(tiny, prompt, decoder, which, attention):
    model = tiny(decoder, head="causal", attention=attention)
    with masked(model, *masks_of(KEPT[which])):
        expected = written(model, prompt)
    pruned = keep(model, KEPT[which])
    assert expected.shape == (2, 4 + NEW)
    assert torch.equal(written(pruned, prompt), expected)
    assert torch.equal(written(pruned, prompt, use_cache=False), expected)
    beams = written(pruned, prompt, num_beams=2)
    assert torch.equal(beams, written(pruned, prompt, num_beams=2, use_cache=False))


def test_a_loaded_decoder_writes_the_same(tiny, prompt, decoder, tmp_path):
    pruned = keep(tiny(decoder, head="causal"), KEPT["first layer"])
    save_model(pruned, None, tmp_path / "model")
    assert torch.equal(written(load(tmp_path / "model"), prompt), written(pruned, prompt))


def test_every_layer_keeps_its_place_in_the_cache(tiny, prompt, decoder):
    pruned = keep(tiny(decoder, head="causal"), KEPT["every layer"])
    cache = DynamicCache(config=pruned.config)
    with torch.no_grad():
        pruned(**prompt, past_key_values=cache, use_cache=True)
    assert [cache.get_seq_length(layer) for layer in range(3)] == [4, 4, 4]


def test_a_slice_writes_what_is_cut_out(tiny, random_ranking, prompt, decoder):
    model = tiny(decoder, head="causal")
    net = Supernet(model, random_ranking(model))
    candidate = Candidate(0.6, heads=(0, 3, 1), neurons=(0, 9, 16))
    with net.active(candidate) as active:
        found = written(active, prompt)
    assert torch.equal(found, written(net.extract(candidate), prompt))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logits_of_text_given_in_parts_are_those_of_the_whole(tiny, family):
    """Tokens one at a time through the cache; rounding apart."""
    pruned = keep(tiny(family, head="causal"), KEPT["between"])
    ids = torch.randint(4, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    cache, parts = DynamicCache(config=pruned.config), []
    with torch.no_grad():
        for step in ids.split([4, 1, 1, 3], dim=1):
            parts.append(pruned(input_ids=step, past_key_values=cache, use_cache=True).logits)
        torch.testing.assert_close(torch.cat(parts, 1), pruned(input_ids=ids, use_cache=False).logits)


def test_embeddings_that_are_tied_stay_tied(tiny, tmp_path):
    pruned = keep(tiny("llama", head="causal"), KEPT["between"])
    save_model(pruned, None, tmp_path / "model")
    for model in (pruned, load(tmp_path / "model")):
        assert model.lm_head.weight is model.model.embed_tokens.weight
