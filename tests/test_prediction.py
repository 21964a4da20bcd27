"""The arithmetic on given rates, and the predicted FLOPs beside what a search booked."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autodisc import api
from autodisc.config import make_config
from autodisc.costs import COUNTED_BATCHES
from autodisc.models.checkpoints import save_model
from autodisc.prediction import Kernels, Pass, Rate, Rates, Sample, multiply_out
from autodisc.tasks.batches import batches, shapes


def rate(seconds: tuple[float, float], flops: float = 2.0, kernels_mib: float = 1.0) -> Rate:
    """Measured at (4, 10) and (4, 5) tokens; a new shape costs a second, counting a tenth."""
    long, short = (Sample((4, T), s, 1.0, 0.1, flops * 4 * T) for T, s in zip((10, 5), seconds, strict=True))
    return Rate(long, short, kernels_mib)


def same(found: Rate) -> Rates:
    return Rates(found, found, (1.0, 0.1))


def test_seconds_are_a_line_in_the_tokens_and_in_proportion_where_noise_bends_it():
    assert rate((3.0, 2.0)).seconds((4, 20)) == pytest.approx(5.0)
    assert rate((3.0, 2.0)).seconds((2, 10)) == pytest.approx(2.0)
    assert rate((2.0, 3.0)).seconds((4, 20)) == pytest.approx(4.0)  # it fell
    assert rate((3.0, 1.0)).seconds((4, 20)) == pytest.approx(6.0)  # it started below zero


def test_flops_of_a_token_grow_with_the_length():
    long, short = Sample((1, 10), 1.0, 0.0, 0.0, 10 * 30.0), Sample((1, 5), 1.0, 0.0, 0.0, 5 * 20.0)
    assert Rate(long, short).flops((2, 20)) == pytest.approx(2 * 20 * 50.0)


def test_a_candidate_between_the_two_scales_costs_between_them():
    rates = Rates(rate((4.0, 2.0), flops=10.0), rate((2.0, 1.0), flops=2.0), (0.9, 0.1))
    assert rates.at(0.5, lambda each: each.seconds((4, 10))) == pytest.approx(3.0)
    assert rates.at(0.1, lambda each: each.flops((4, 10))) == pytest.approx(80.0)


def test_a_stage_pays_for_every_pass_for_each_new_shape_and_for_the_counted_batches():
    lengths = [10, 10, 5, 10, 5]
    passes = [Pass("trials", "a", same(rate((2.0, 1.0))), 0.5, (4, T)) for T in lengths]
    costs = multiply_out(passes, Kernels(capacity_mib=100.0))["trials"]
    assert costs.tokens == 4 * sum(lengths)
    assert costs.flops == pytest.approx(2 * costs.tokens)
    assert costs.seconds == pytest.approx(3 * 2.0 + 2 * 1.0 + 2 * 1.0 + COUNTED_BATCHES * 0.1)
    assert costs.peak_mib == 2.0


def test_kernels_for_which_there_is_no_room_are_compiled_again():
    kernels = Kernels(capacity_mib=2.0)
    assert [kernels.missing(key, 1.0) for key in "abacb"] == [True, True, False, True, True]
    assert kernels.mib == 2.0


def test_the_planned_shapes_are_those_of_the_batches(make_split):
    split = make_split(70)
    generators = [np.random.default_rng(3) for _ in range(2)]
    made = batches(split, batch_size=8, pad_token_id=0, generator=generators[0])
    planned = shapes(split, 8, generators[1])
    assert [(len(rows), T) for rows, T in planned] == [tuple(b.inputs["input_ids"].shape) for b in made]


@pytest.fixture(scope="module")
def values(tmp_path_factory, tiny, word_tokenizer) -> dict[str, Any]:
    """A study of a tiny teacher that has learnt nothing: it costs as much."""
    home = tmp_path_factory.mktemp("prediction")
    generator = random.Random(1)
    for split, count in (("train", 160), ("validation", 150), ("test", 40)):
        with (home / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["sentence", "label"])
            for i in range(count):
                rows.writerow(
                    [" ".join(f"w{generator.randrange(50)}" for _ in range(generator.randrange(3, 20))), i % 2]
                )
    save_model(tiny(layers=2), word_tokenizer, home / "teacher")
    return {
        "task": {"name": "mine", "metric": "accuracy", "data": str(home)},
        "teacher": {"model": str(home / "teacher")},
        "student_sparsity": 0.8,
        "cache": {"dir": str(home / "cache")},
        "runtime": {"threads": 1, "precision": "fp32"},
    }


RECOVERED = {"sparsities": [0.3, 0.5], "recovery": {"steps": 6}}
PRUNED = {"sparsities": [0.2, 0.4, 0.6], "scorer": "pruned", "examples": 90}


@pytest.mark.parametrize(
    "importance",
    [{"criterion": "fisher"}, {"criterion": "first-order", "rounds": 2}, {"criterion": "magnitude"}],
    ids=["fisher", "first-order", "magnitude"],
)
@pytest.mark.parametrize("search", [RECOVERED, PRUNED], ids=["recovered", "pruned"])
def test_predicted_flops_and_disk_are_within_a_quarter_of_what_a_search_books(values, tmp_path, search, importance):
    config = make_config({**values, "search": {**search, "importance": {"examples": 100, **importance}}})
    predicted = api.predict_search(config)["predicted"]
    booked = api.search(config, tmp_path / "run")["cost"]
    assert predicted["flops"] == pytest.approx(booked["flops"], rel=0.25)
    assert predicted["tokens"] == pytest.approx(booked["tokens"], rel=0.25)
    assert predicted["stages"].keys() == booked["stages"].keys()
    for name, cost in booked["stages"].items():
        assert predicted["stages"][name]["flops"] == pytest.approx(cost["flops"], rel=0.25), name
    if search is RECOVERED:
        supernet = (tmp_path / "run/supernet/model.safetensors").stat().st_size
        outputs = max(path.stat().st_size for path in Path(values["cache"]["dir"]).rglob("hidden.*"))
        assert predicted["stages"]["teacher outputs"]["disk_gib"] * 2**30 == pytest.approx(outputs, rel=0.25)
        assert predicted["stages"]["recovery"]["disk_gib"] * 2**30 == pytest.approx(supernet, rel=0.25)


def test_what_a_budget_takes_is_predicted_too(values):
    budget = {"params": 8000, "latency_ms": 1000.0, "length": 8}
    config = make_config(
        {**values, "student_sparsity": None, "budget": budget, "search": {**PRUNED, "sparsities": [0.2]}}
    )
    assert api.predict_search(config)["predicted"]["stages"]["timing layers"]["seconds"] > 0


def test_the_same_study_is_predicted_the_same_flops_twice(values):
    config = make_config({**values, "search": RECOVERED})
    first, second = (api.predict_search(config)["predicted"] for _ in range(2))
    assert first["flops"] == second["flops"]
