"""What pruning gains and costs in each family: a base-size teacher with random weights, its student, their memory.

    python benchmarks/families.py --threads 1
    python benchmarks/families.py --families llama t5 --threads 1

Teacher and student of sparsity .9 (units ranked at random) run side by side through their modules, in turn; in one
thread their time is the processor's, which others on the machine lengthen less than the clock's. Memory is what a
fresh process's peak rises by above the loaded teacher: of importance, first order, over one batch of 8 x 64 tokens,
and of one sandwich step (.6, .9 and one between, distilled from logits and all hidden states, embeddings frozen,
AdamW's moments included). "again" is with activation checkpoints. Published base sizes; llama, mistral, qwen2, qwen3
and gemma, which have none, all get SmolLM2-135M's (30 layers, 576 wide, 9 heads on 3) with 32,000 tokens. A vit reads
images of 224 x 224, 197 tokens, and has no task here that importance could be estimated on.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch
from common import GIVEN_BACK, Row, in_a_fresh_process, publish
from llamas import at_random
from torch.nn import functional as F
from transformers import (
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
    ViTConfig,
    XLMRobertaConfig,
)

from autodisc.config import ImportanceConfig, RuntimeConfig
from autodisc.costs import Ledger
from autodisc.models.latency import random_inputs, take_turns
from autodisc.models.layouts import LAYOUTS, embeddings, encoder_parameters, uncached
from autodisc.models.modeling_autodisc import plain_class
from autodisc.pruning.candidates import candidate, nested_candidates
from autodisc.pruning.importance import estimate_importance
from autodisc.pruning.supernet import Supernet, extract
from autodisc.pruning.surgery import own_memory
from autodisc.runtime import Runtime, make_runtime, seeded
from autodisc.tasks.data import Task
from autodisc.tasks.metrics import METRICS
from autodisc.tasks.splits import Split

ROWS, LENGTH, SPARSITY = 8, 64, 0.9
SMALL: dict[str, Any] = {
    "vocab_size": 32_000,
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "intermediate_size": 1536,
    "pad_token_id": 0,
}
BASE: dict[str, Callable[[], Any]] = {
    "bert": BertConfig,
    "roberta": lambda: RobertaConfig(vocab_size=50_265, max_position_embeddings=514),
    "xlm-roberta": lambda: XLMRobertaConfig(vocab_size=250_002, max_position_embeddings=514),
    "camembert": lambda: CamembertConfig(vocab_size=32_005, max_position_embeddings=514),
    "electra": lambda: ElectraConfig(
        embedding_size=768, hidden_size=768, num_attention_heads=12, intermediate_size=3072
    ),
    "distilbert": DistilBertConfig,
    "deberta-v2": lambda: DebertaV2Config(  # v3-base
        vocab_size=128_100,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
    ),
    "mpnet": MPNetConfig,
    "modernbert": ModernBertConfig,
    "t5": lambda: T5Config(vocab_size=32_128, d_model=768, d_ff=3072, num_layers=12, num_heads=12),
    "gpt2": lambda: GPT2Config(pad_token_id=0),
    "llama": lambda: LlamaConfig(**SMALL),
    "mistral": lambda: MistralConfig(**SMALL),
    "qwen2": lambda: Qwen2Config(**{name: value for name, value in SMALL.items() if name != "head_dim"}),
    "qwen3": lambda: Qwen3Config(**SMALL),
    "gemma": lambda: GemmaConfig(**SMALL),
    "vit": ViTConfig,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=BASE, default=list(BASE))
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)  # one, of one family, in this process
    options = parser.parse_args()
    runtime = make_runtime(RuntimeConfig(seed=options.seed, threads=options.threads, precision="fp32"))
    if options.measure:
        (family,) = options.families
        with seeded(options.seed):
            model = teacher(family)
        print(json.dumps(MEASURES[options.measure](model, runtime, options.turns)))
        return
    rows: list[Row] = []
    for family in options.families:
        row: Row = {"family": family}
        for measure in options.measures:
            row |= _measured(family, measure, options)
        print(row, file=sys.stderr)
        rows.append(row)
    publish("families", rows, runtime, batch=ROWS, length=LENGTH, sparsity=SPARSITY, turns=options.turns)


def _measured(family: str, measure: str, options: argparse.Namespace) -> Row:
    named = {"--families": family, "--measure": measure, "--turns": options.turns, "--seed": options.seed}
    named["--threads"] = options.threads
    environment = {} if measure == "speed" else GIVEN_BACK
    return in_a_fresh_process(__file__, [part for pair in named.items() for part in pair], environment=environment)


def teacher(family: str) -> PreTrainedModel:
    return plain_class(family, LAYOUTS[family].heads[0])._from_config(BASE[family]()).eval()


def speed(model: PreTrainedModel, runtime: Runtime, turns: int) -> Row:
    ranking = at_random(model, runtime.seed)
    student = extract(model, ranking, candidate(ranking, SPARSITY))
    models = {"teacher": model, "student": student}
    clock = time.process_time if runtime.threads == 1 else time.perf_counter
    row: Row = {
        "M parameters": model.num_parameters() / 1e6,
        "M in layers": encoder_parameters(model) / 1e6,
        "student's": encoder_parameters(student) / 1e6,
    }
    for batch in (1, ROWS):
        given = random_inputs(model, batch, LENGTH, runtime.device, seed=runtime.seed)
        works = {name: lambda _, each=each, given=given: each(**given) for name, each in models.items()}
        with torch.inference_mode(), uncached(model), uncached(student):
            timings = take_turns(works, turns=turns, clock=clock)
        row |= {f"{name} {batch} ms": timings[name].median_ms for name in models}
        row[f"faster {batch}"] = timings["student"].times_as_fast(timings["teacher"])
    return row


def importance(model: PreTrainedModel, runtime: Runtime, _: int) -> Row:
    names = ("importance again MiB", "importance MiB")
    if model.main_input_name != "input_ids":
        return dict.fromkeys(names)
    generator = np.random.default_rng(runtime.seed)
    config = ImportanceConfig(criterion="first-order", batch_size=ROWS)

    def estimate(checkpointing: bool, rows: int = ROWS, length: int = LENGTH) -> None:
        tokens = datasets.Dataset.from_dict({"input_ids": generator.integers(5, 10_000, (rows, length)).tolist()})
        split = Split("random", tokens, np.full(rows, length), generator.integers(0, 2, rows), "random")
        task = Task("random", "classification", METRICS["accuracy"], ("0", "1"), 2, split, split, split, "test", {}, 0)
        place = Runtime(runtime.device, runtime.precision, runtime.threads, runtime.seed, checkpointing)
        estimate_importance(model, split, config, task=task, runtime=place, ledger=Ledger())

    estimate(True, 1, 8)  # what is imported and set up once
    return _growth({names[0]: lambda: estimate(True), names[1]: lambda: estimate(False)})


def sandwich(model: PreTrainedModel, runtime: Runtime, _: int) -> Row:
    ranking = at_random(model, runtime.seed)
    wide, *_, narrow = candidates = list(nested_candidates(ranking, (0.6, 0.75, SPARSITY)).values())
    assert narrow.fits_in(wide)
    given = random_inputs(model, ROWS, LENGTH, runtime.device, seed=runtime.seed)

    with torch.no_grad():  # what is imported and set up once
        model(**random_inputs(model, 1, 8, runtime.device))

    def step(checkpointing: bool) -> None:
        supernet = Supernet(extract(model, ranking, wide), ranking, checkpointing=checkpointing)
        for module in embeddings(supernet.model):
            module.requires_grad_(False)
        trained = [parameter for parameter in supernet.model.parameters() if parameter.requires_grad]
        own_memory(trained)
        optimizer = torch.optim.AdamW(trained, fused=True)
        with torch.no_grad(), uncached(model):
            expected = model(**given, output_hidden_states=True)
        for each in candidates:
            with supernet.active(each) as active:
                out = active(**given, output_hidden_states=True)
            losses = [F.mse_loss(*pair) for pair in zip(out.hidden_states[1:], expected.hidden_states[1:], strict=True)]
            (torch.stack(losses).mean() + F.mse_loss(out.logits, expected.logits)).backward()
        optimizer.step()

    return _growth({"sandwich again MiB": lambda: step(True), "sandwich MiB": lambda: step(False)})


def _growth(works: dict[str, Callable[[], None]]) -> Row:
    """By how much each raises the process's peak above what it holds now; the smaller first."""
    ledger = Ledger()
    gc.collect()
    with ledger.stage("before"):
        pass
    for name, work in works.items():
        with ledger.stage(name):
            work()
        gc.collect()
    return {name: round(ledger.stages[name].peak_mib - ledger.stages["before"].peak_mib) for name in works}


MEASURES: dict[str, Callable[[PreTrainedModel, Runtime, int], Row]] = {
    "speed": speed,
    "importance": importance,
    "sandwich": sandwich,
}


if __name__ == "__main__":
    main()
