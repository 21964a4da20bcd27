"""How fast a student really is: teacher and student side by side, in turn, in one process.

    python benchmarks/latency.py --teacher teachers/mrpc --student runs/mrpc/distilled-1/student --threads 1

Random token ids. The models take turns of ``--turn`` calls, so that a noisy machine slows both, while each runs as a
deployed model does, call after call; the first call of a turn, which finds the other's data in the processor's cache,
is not timed. ``--turn 1`` alternates call by call and times every one. The ratio is the median over turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from common import missing, publish

from autodisc.config import RuntimeConfig
from autodisc.models.checkpoints import load_model
from autodisc.models.inference import forward_macs
from autodisc.models.layouts import encoder_parameters
from autodisc.runtime import make_runtime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=8, help="turns")
    parser.add_argument("--turn", type=int, default=8, help="calls")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    options = parser.parse_args()
    if missing(options.teacher, options.student):
        return

    runtime = make_runtime(RuntimeConfig(threads=options.threads, precision=options.precision))
    models = {name: load_model(getattr(options, name)).to(runtime.device) for name in ("teacher", "student")}
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 1000, (options.batch, options.length), generator=generator).to(runtime.device)
    mask = torch.ones_like(ids)

    times: dict[str, list[float]] = {name: [] for name in models}
    turns: dict[str, list[float]] = {name: [] for name in models}  # their medians
    with torch.inference_mode(), runtime.autocast():
        for repeat in range(options.repeats + 1):
            for name, model in models.items():
                calls = []
                for _ in range(options.turn + (options.turn > 1)):
                    since = time.perf_counter()
                    model(input_ids=ids, attention_mask=mask)
                    if runtime.device.type == "cuda":
                        torch.cuda.synchronize()
                    calls.append(time.perf_counter() - since)
                if repeat:  # the first turn picks kernels
                    times[name] += calls[options.turn > 1 :]
                    turns[name].append(statistics.median(calls[options.turn > 1 :]))

    ratios = [t / s for t, s in zip(turns["teacher"], turns["student"], strict=True)]
    rows: list[dict[str, Any]] = []
    sizes = {name: (encoder_parameters(model), forward_macs(model, options.length)) for name, model in models.items()}
    for name in models:
        ordered = sorted(times[name])
        rows.append(
            {
                "model": name,
                "median ms": 1e3 * statistics.median(ordered),
                "min ms": 1e3 * ordered[0],
                "max ms": 1e3 * ordered[-1],
                "encoder parameters": sizes[name][0],
                "of the teacher's": sizes[name][0] / sizes["teacher"][0],
                "MACs a sequence": sizes[name][1],
                "MAC reduction": sizes["teacher"][1] / sizes[name][1],
                "times as fast": 1.0 if name == "teacher" else statistics.median(ratios),
            }
        )
    publish(
        "latency", rows, runtime, batch=options.batch, length=options.length, turns=options.repeats, turn=options.turn
    )


if __name__ == "__main__":
    main()
