from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from autodisc.models.attention import trainable_attention
from autodisc.runtime import Runtime

STANDARD = ("bert", "distilbert", "electra", "roberta")  # their layers are computed by hand

IDS = {"input_ids": torch.tensor([[2, 8, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}


@pytest.mark.parametrize("family", STANDARD)
def test_a_slow_fused_kernel_is_left_for_training_and_back_after_an_error(tiny, family):
    model = tiny(family)
    expected = model(**IDS).logits
    seen = []

    def train() -> None:
        with trainable_attention(model, Runtime(torch.device("cpu"), "bf16", 1, 0)):
            seen.append(model.config._attn_implementation)
            assert_close(model(**IDS).logits, expected)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert seen == ["eager"]
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(**IDS).logits, expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_in_fp32_the_kernel_stays(tiny, make_runtime, attention):
    model = tiny(attention=attention)
    with trainable_attention(model, make_runtime()):
        assert model.config._attn_implementation == attention
