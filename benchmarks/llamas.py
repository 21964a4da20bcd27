"""Llama-like causal models with grouped-query attention and random weights, by size, and random text to learn from."""

from __future__ import annotations

import random
from typing import NamedTuple

import datasets
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from autodisc.models.layouts import base_shape
from autodisc.pruning.candidates import Ranking
from autodisc.tasks.data import Task
from autodisc.tasks.metrics import METRICS
from autodisc.tasks.splits import IGNORED, LABELS, Split


class Size(NamedTuple):
    layers: int
    hidden: int
    heads: int
    shared: int  # key-value heads
    neurons: int
    words: int
    tied: bool = True


SIZES = {
    "4M": Size(6, 192, 6, 2, 512, 8_000),
    "20M": Size(8, 384, 6, 2, 1_024, 20_000),
    "100M": Size(12, 768, 12, 4, 2_048, 32_000),
    "300M": Size(24, 1_024, 16, 4, 2_816, 32_000),
    "1B": Size(16, 2_048, 32, 8, 8_192, 128_256),  # of Llama 3.2 and 3.1, from here on
    "3B": Size(28, 3_072, 24, 8, 8_192, 128_256),
    "8B": Size(32, 4_096, 32, 8, 14_336, 128_256, tied=False),
}


def config(name: str) -> LlamaConfig:
    size = SIZES[name]
    return LlamaConfig(
        num_hidden_layers=size.layers,
        hidden_size=size.hidden,
        num_attention_heads=size.heads,
        num_key_value_heads=size.shared,
        head_dim=size.hidden // size.heads,
        intermediate_size=size.neurons,
        vocab_size=size.words,
        tie_word_embeddings=size.tied,
        max_position_embeddings=2_048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def llama(name: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Made on the device, so that a large one is in no other memory."""
    with torch.device(device):
        made: PreTrainedModel = LlamaForCausalLM._from_config(config(name), dtype=dtype)
    return made.eval()


def at_random(model: PreTrainedModel, seed: int) -> Ranking:
    """An order of the units that says nothing: candidates have uneven heads and neurons."""
    L, H, N = base_shape(model.config)
    orders = [[(layer, i) for layer in range(L) for i in range(n)] for n in (H, N)]
    for order in orders:
        random.Random(seed).shuffle(order)
    return Ranking(tuple(orders[0]), tuple(orders[1]), L)


def text(model: PreTrainedModel, rows: int, length: int, *, seed: int) -> Task:
    """Random tokens, each to be told from those before it."""
    V = model.config.vocab_size
    ids = np.random.default_rng(seed).integers(3, V, (rows, length))
    following = np.concatenate([ids[:, 1:], np.full((rows, 1), IGNORED)], axis=1)
    made = datasets.Dataset.from_dict({"input_ids": ids.tolist(), LABELS: following.tolist()})
    counts = np.full(rows, length - 1)
    split = Split("train", made, np.full(rows, length), np.zeros((rows, 1)), f"random-{seed}", counts=counts)
    return Task("random", "causal-lm", METRICS["bits_saved"], None, V, split, split, split, "test", {}, 0)
