"""How time, FLOPs and memory of a search grow with candidates, data, sentence length and model size.

    python benchmarks/growth.py --threads 1
    python benchmarks/growth.py --sweeps candidates length --lengths 16 32 64 --threads 1

Random weights, random words, few steps. Every point is a search in a fresh process, so that its peak memory is its own;
what a sweep does not change stands in ``Point``. The steps of the recovery and the rows of the importance are fixed;
validation is a tenth of train, at most ``VALIDATION`` rows, of which ``trials s`` are. An exponent is the slope of
log(value) over log(x), by least squares: 1 is linear.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from common import Row, in_a_fresh_process, publish
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedTokenizerFast

from autodisc import api
from autodisc.config import RuntimeConfig, make_config
from autodisc.models.checkpoints import save_model
from autodisc.runtime import make_runtime, seeded

VOCABULARY = 4000
VALIDATION = 10_000
# (layers, hidden size) by millions of parameters, embeddings included; 64 channels a head, 4 neurons a channel.
MODELS = {4: (4, 256), 13: (6, 384), 28: (8, 512), 89: (12, 768), 207: (16, 1024), 409: (32, 1024)}
MEASURES = ("seconds", "importance s", "recovery s", "trials s", "TFLOPs", "peak MiB")


@dataclass(frozen=True)
class Point:
    """One search."""

    candidates: int = 4
    rows: int = 2000
    length: int = 32  # words of the longest sentence; the shortest has half
    millions: int = 13
    steps: int = 4
    examples: int = 64  # rows of the importance
    seed: int = 0
    threads: int = 1


def search(point: Point, home: Path) -> Row:
    """Everything made, searched and measured in this process."""
    words = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(VOCABULARY - 2))]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(words), pad_token="[PAD]", unk_token="[UNK]", model_max_length=512
    )
    _write_data(home / "data", words[2:], point)
    layers, width = MODELS[point.millions]
    shape = BertConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        num_labels=2,
    )
    with seeded(point.seed):
        save_model(AutoModelForSequenceClassification.from_config(shape), tokenizer, home / "teacher")
    config = make_config(
        {
            "task": {"name": "random", "metric": "accuracy", "data": str(home / "data"), "max_length": 512},
            "teacher": {"model": str(home / "teacher")},
            "search": {
                "sparsities": np.linspace(0.1, 0.85, point.candidates).round(4).tolist(),
                "recovery": {"steps": point.steps},
                "importance": {"examples": point.examples, "rounds": 2},
            },
            "cache": {"dir": str(home / "cache")},
            "runtime": {"seed": point.seed, "threads": point.threads},
        }
    )
    cost = api.search(config, home / "run")["cost"]
    stages = cost["stages"]
    spent = {f"{name} s": stages[name]["seconds"] for name in ("importance", "recovery", "trials")}
    return {"seconds": cost["seconds"], **spent, "TFLOPs": cost["flops"] / 1e12, "peak MiB": cost["peak_mib"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", nargs="+", choices=("candidates", "rows", "length", "millions"))
    parser.add_argument("--candidates", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--rows", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--lengths", dest="length", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--millions", type=int, nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--point", help=argparse.SUPPRESS)  # one point as JSON, run in this process
    options = parser.parse_args()
    if options.point:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(search(Point(**json.loads(options.point)), Path(folder))))
        return
    fixed = Point(seed=options.seed, threads=options.threads)
    rows: list[Row] = []
    for sweep in options.sweeps or ("candidates", "rows", "length", "millions"):
        values = sorted(getattr(options, sweep))
        found = [_measured(replace(fixed, **{sweep: value})) for value in values]
        rows += [{"sweep": sweep, "x": str(value), **row} for value, row in zip(values, found, strict=True)]
        if len(values) > 1:
            slopes = {name: exponent(values, [row[name] for row in found]) for name in MEASURES}
            rows.append({"sweep": sweep, "x": "exponent", **slopes})
    runtime = make_runtime(RuntimeConfig(seed=options.seed, threads=options.threads))
    publish("growth", rows, runtime, fixed=asdict(fixed))


def exponent(x: list[int], y: list[float]) -> float:
    """The least-squares slope of log(y) over log(x)."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _measured(point: Point) -> Row:
    kernels = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "4096"}  # as the commands have it
    row = in_a_fresh_process(__file__, ["--point", json.dumps(asdict(point))], environment=kernels)
    print(point, row, file=sys.stderr)
    return row


def _tokenizer(words: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def _write_data(folder: Path, words: list[str], point: Point) -> None:
    generator = np.random.default_rng(point.seed)
    folder.mkdir()
    for split, count in (("train", point.rows), ("validation", min(point.rows // 10, VALIDATION)), ("test", 64)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["sentence", "label"])
            for i in range(count):
                length = generator.integers(point.length // 2, point.length + 1)
                table.writerow([" ".join(words[j] for j in generator.integers(len(words), size=length)), i % 2])


if __name__ == "__main__":
    main()
