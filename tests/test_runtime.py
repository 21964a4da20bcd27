from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from autodisc.config import RuntimeConfig
from autodisc.runtime import make_runtime


@pytest.mark.parametrize(("generation", "precision"), [(7, "fp32"), (8, "bf16")])
def test_a_gpu_that_only_emulates_bf16_computes_in_fp32(monkeypatch, generation, precision):
    cuda = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_properties": lambda _: SimpleNamespace(major=generation),
        "_check_bf16_tensor_supported": lambda _: True,  # as a T4 answers
    }
    for name, said in cuda.items():
        monkeypatch.setattr(torch.cuda, name, said)
    assert make_runtime(RuntimeConfig(threads=torch.get_num_threads())).precision == precision
