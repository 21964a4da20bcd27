"""Where and how the arithmetic runs: device, precision, threads, seed. Decided once, passed in, recorded."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from autodisc.config import RuntimeConfig
from autodisc.errors import ConfigError


@dataclass(frozen=True)
class Runtime:
    device: torch.device
    precision: str  # "fp32" or "bf16"
    threads: int
    seed: int
    checkpointing: bool = False  # of activations: what is within a layer is computed again in the backward pass

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """bf16 autocast where the precision says so; master weights stay fp32."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def generator(self, *purpose: object) -> np.random.Generator:
        """A random generator of its own for each purpose, so that one stage's draws never shift another's."""
        digest = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
        return np.random.default_rng([self.seed, int.from_bytes(digest, "big")])


def make_runtime(config: RuntimeConfig) -> Runtime:
    """Resolve "auto"; raises ConfigError for a device that is not there."""
    device = _device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if _multiplies_bf16(device) else "fp32"
    return Runtime(device, precision, torch.get_num_threads(), config.seed, config.checkpointing)


def made_with() -> tuple[str, ...]:
    """The versions that decide the bits of what is computed; of everything that is kept to be used again."""
    return tuple(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            launched = os.environ.get("LOCAL_RANK")  # of processes that `accelerate launch` starts, each has its own
            return torch.device("cuda" if launched is None else f"cuda:{launched}")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ConfigError(f"device: got '{name}'; here: auto, {', '.join(there)}") from None
    return device


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Without these instructions bf16 on a CPU is emulated, and slower than fp32.
        with contextlib.suppress(OSError):
            flags = Path("/proc/cpuinfo").read_text()
            return "avx512_bf16" in flags or "amx_bf16" in flags
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory, or the machine's, did not suffice."""
    return isinstance(error, MemoryError) or (isinstance(error, Exception) and should_reduce_batch_size(error))


def free_memory() -> None:
    """Give back what nothing holds any more."""
    clear_device_cache(garbage_collection=True)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generator seeded inside (new classification heads, dropout), and as it was outside."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
