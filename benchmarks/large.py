"""A Llama-like model through the whole of it: importance, a sandwich, extraction, generation; and do kernels agree.

    python benchmarks/large.py --threads 1
    python benchmarks/large.py --size 3B --device cuda --precision bf16 --batch 16 --length 512

Random weights, random text, grouped-query attention; at bf16 the teacher's weights are in bf16, too. Importance: first
order, one round. Sandwich: ``--steps`` steps over sparsities .3, .6 and .9, the teacher running along. FLOPs are
counted (costs.py; of generation 2 for every parameter and token), and their rate stands beside the peak of a square
matrix product that was measured in the same run. Memory is the process's peak, on a GPU torch's. ``agree``: the largest
difference of the logits of a student with uneven heads from eager's, over the largest logit.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import plain
import torch
from common import Row, publish
from llamas import SIZES, at_random, llama, text
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from autodisc.config import DistillationConfig, ImportanceConfig, RecoveryConfig, RuntimeConfig
from autodisc.costs import Cost, Ledger
from autodisc.distillation.schedule import Workshop, recover
from autodisc.pruning.candidates import candidate, nested_candidates
from autodisc.pruning.importance import rank_units
from autodisc.pruning.supernet import extract
from autodisc.runtime import Runtime, make_runtime, seeded

SPARSITIES = (0.3, 0.6, 0.9)
KERNELS = ("sdpa", "flash")
Result = TypeVar("Result")
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="100M")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--batch", type=int, default=2, help="rows")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--generate", type=int, default=32, help="tokens, of each row")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    runtime = make_runtime(
        RuntimeConfig(
            seed=options.seed,
            device=options.device,
            precision=options.precision,
            threads=options.threads,
            checkpointing=options.checkpointing,
        )
    )
    peak = plain.matrix_peak(runtime)
    settings = {name: getattr(options, name) for name in ("size", "batch", "length", "steps", "generate")}
    rows = list(stages(options, runtime, peak))
    settings |= {"checkpointing": options.checkpointing, "matrix_gflops": peak / 1e9}
    publish("large", rows, runtime, **settings)


def stages(options: argparse.Namespace, runtime: Runtime, peak: float) -> Iterator[Row]:
    ledger = Ledger()

    def measured(name: str, work: Callable[[], Result]) -> tuple[Result, Cost]:
        """What it made, and what that cost: all of the wall's seconds, the device's memory."""
        cuda = runtime.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        since = time.perf_counter()
        with ledger.stage(name):
            made = work()
            if cuda:
                torch.cuda.synchronize()
        cost = replace(ledger.stages[name], seconds=time.perf_counter() - since)
        if cuda:
            cost.peak_mib = torch.cuda.max_memory_allocated() / MIB
        return made, cost

    def row(name: str, cost: Cost, model: PreTrainedModel | None = None, **more: float) -> Row:
        found: Row = {
            "stage": name,
            "M parameters": None if model is None else model.num_parameters() / 1e6,
            "s": cost.seconds,
            "tokens/s": cost.tokens / cost.seconds if cost.tokens else None,
            "GFLOP/s": cost.flops / cost.seconds / 1e9 if cost.flops else None,
            "of peak": cost.flops / cost.seconds / peak if cost.flops else None,
            "peak MiB": round(cost.peak_mib),
            **{f"agree {kernel}": more.get(kernel) for kernel in KERNELS},
        }
        print(found, file=sys.stderr)
        return found

    def make() -> PreTrainedModel:
        with seeded(runtime.seed):
            return llama(options.size, runtime.device, torch.bfloat16 if runtime.precision == "bf16" else torch.float32)

    teacher, cost = measured("teacher", make)
    yield row("teacher", cost, teacher)
    task = text(teacher, max(8, 2 * options.batch), options.length, seed=runtime.seed)
    importance = ImportanceConfig(criterion="first-order", rounds=1, batch_size=options.batch, examples=1024)
    ranking, cost = measured(
        "importance", lambda: rank_units(teacher, task, importance, runtime=runtime, ledger=ledger)
    )
    yield row("importance", cost)

    chain = list(nested_candidates(ranking, SPARSITIES).values())
    config = DistillationConfig(batch_size=options.batch)
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(task, runtime, Path(folder), 0.0, ledger=ledger)
        with workshop.teacher(teacher, config) as outputs:
            sandwich = partial(
                recover,
                outputs,
                ranking,
                chain,
                steps=options.steps,
                recovery=RecoveryConfig(sandwich_size=3),
                distillation=config,
                workshop=workshop,
            )
            net, cost = measured("recovery", sandwich)
    theirs = ledger.stages["teacher outputs"]
    cost.flops, cost.tokens = cost.flops + theirs.flops, theirs.tokens  # a token counts once, not for each candidate
    yield row(f"{options.steps} sandwich steps", cost)

    student, cost = measured("extraction", lambda: net.extract(chain[-1]))
    yield row("extraction", cost, student)

    at_half = at_random(teacher, runtime.seed)
    uneven = extract(teacher, at_half, candidate(at_half, 0.5))
    agreement = agree(uneven, options, runtime)
    for name, model in (("teacher", teacher), ("student", student), ("uneven student", uneven)):
        tokens, cost = measured(f"generation, {name}", partial(generate, model, options, runtime))
        cost.tokens, cost.flops = tokens, 2.0 * tokens * model.num_parameters()
        yield row(f"generation, {name}", cost, model, **(agreement if model is uneven else {}))


def agree(model: PreTrainedModel, options: argparse.Namespace, runtime: Runtime) -> Row:
    """The largest difference from eager attention's logits, over the largest logit; None where there is no kernel."""
    generator = torch.Generator().manual_seed(runtime.seed)
    ids = torch.randint(3, model.config.vocab_size, (options.batch, options.length), generator=generator)
    ids = ids.to(runtime.device)

    def logits(attention: str, kernel: SDPBackend | None = None) -> torch.Tensor:
        model.set_attn_implementation(attention)
        with torch.inference_mode(), runtime.autocast(), sdpa_kernel(kernel) if kernel else contextlib.nullcontext():
            found: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float()
        return found

    expected, found = logits("eager"), {"sdpa": logits("sdpa")}
    with contextlib.suppress(RuntimeError):  # this device, or this precision, has none
        found["flash"] = logits("sdpa", SDPBackend.FLASH_ATTENTION)
    return {name: float((each - expected).abs().max() / expected.abs().max()) for name, each in found.items()}


def generate(model: PreTrainedModel, options: argparse.Namespace, runtime: Runtime) -> int:
    """Tokens that were made, greedily, with a cache of keys and values."""
    generator = torch.Generator().manual_seed(runtime.seed)
    given = torch.randint(3, model.config.vocab_size, (options.batch, 16), generator=generator).to(runtime.device)
    with torch.inference_mode(), runtime.autocast():
        made = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            min_new_tokens=options.generate,
            max_new_tokens=options.generate,
        )
    return int(made[:, given.shape[1] :].numel())


if __name__ == "__main__":
    main()
