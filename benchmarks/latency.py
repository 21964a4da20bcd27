"""How fast a student really is: teacher and student side by side, in turn, in one process.

    python benchmarks/latency.py --teacher teachers/mrpc --student runs/mrpc/distilled-1/student --threads 1

Random token ids. The models take turns of ``--turn`` calls, so that a noisy machine slows both, while each runs as a
deployed model does, call after call; the first call of a turn, which finds the other's data in the processor's cache,
is not timed. ``--turn 1`` alternates call by call and times every one. The ratio is the median over turns.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from common import missing, publish

from autodisc.config import RuntimeConfig
from autodisc.models.checkpoints import load_model
from autodisc.models.inference import forward_macs
from autodisc.models.latency import random_inputs, settle_on, take_turns
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
    inputs = random_inputs(models["teacher"], options.batch, options.length, runtime.device)

    works = {name: lambda _, model=model: model(**inputs) for name, model in models.items()}
    with torch.inference_mode(), runtime.autocast():
        timings = take_turns(
            works, turns=options.repeats, calls=options.turn, turn_s=math.inf, settle=settle_on(runtime.device)
        )

    rows: list[dict[str, Any]] = []
    sizes = {name: (encoder_parameters(model), forward_macs(model, options.length)) for name, model in models.items()}
    for name in models:
        timing = timings[name]
        rows.append(
            {
                "model": name,
                "median ms": timing.median_ms,
                "min ms": 1e3 * min(timing.calls),
                "max ms": 1e3 * max(timing.calls),
                "encoder parameters": sizes[name][0],
                "of the teacher's": sizes[name][0] / sizes["teacher"][0],
                "MACs a sequence": sizes[name][1],
                "MAC reduction": sizes["teacher"][1] / sizes[name][1],
                "times as fast": timing.times_as_fast(timings["teacher"]),
            }
        )
    publish(
        "latency", rows, runtime, batch=options.batch, length=options.length, turns=options.repeats, turn=options.turn
    )


if __name__ == "__main__":
    main()
