from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from autodisc.costs import Cost, Ledger, flop_counter
from autodisc.models.inference import forward_macs
from autodisc.pruning.candidates import Candidate
from autodisc.pruning.supernet import extract


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock that tests set: ``clock[0] = seconds``."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_nested_stages_are_exclusive_and_add_up(clock):
    ledger = Ledger()
    with ledger.stage("outer"):
        clock[0] += 1
        with ledger.stage("inner"):
            clock[0] += 2
            with ledger.stage("innermost"):
                clock[0] += 4
            clock[0] += 8
        clock[0] += 16
        with ledger.stage("inner"):
            clock[0] += 32
    clock[0] += 64  # outside
    assert {name: cost.seconds for name, cost in ledger.stages.items()} == {"outer": 17, "inner": 42, "innermost": 4}
    assert ledger.total.seconds == 63


def test_a_stage_inside_itself_is_counted_once(clock):
    ledger = Ledger()
    with ledger.stage("same"):
        clock[0] += 1
        with ledger.stage("same"):
            clock[0] += 2
        clock[0] += 4
    assert ledger.total.seconds == 7


def test_a_stage_that_raises_is_booked_and_closed(clock):
    ledger = Ledger()

    def work() -> None:
        with ledger.stage("outer"):
            clock[0] += 1
            with ledger.stage("inner"):
                clock[0] += 2
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    with ledger.stage("next"):
        clock[0] += 4
    assert {name: cost.seconds for name, cost in ledger.stages.items()} == {"outer": 1, "inner": 2, "next": 4}


def test_a_linear_layer_costs_two_flops_a_weight_and_token_and_is_multiplied_out():
    layer = torch.nn.Linear(16, 8, bias=False)
    ledger = Ledger()
    counted = []
    with ledger.stage("work"):
        for tokens in (10, 30, 25, 5, 100):
            with ledger.count("linear", tokens):
                layer(torch.zeros(tokens, 16))
            counted.append(ledger.stages["work"].flops)
    assert counted == pytest.approx([2 * 16 * 8 * total for total in (10, 40, 65, 70, 170)])
    assert ledger.stages["work"].tokens == 170


def test_only_the_first_batches_of_a_kind_are_counted():
    layer = torch.nn.Linear(4, 4)
    ledger = Ledger()
    with ledger.stage("work"):
        for _ in range(2):
            with ledger.count("linear", 10):
                layer(torch.zeros(10, 4))
        with ledger.count("linear", 10):
            pass  # computed nothing, and still booked at the kind's rate
        with ledger.count("other", 10):
            pass
    assert ledger.stages["work"].flops == pytest.approx(3 * 2 * 16 * 10)


def test_flops_belong_to_the_innermost_stage():
    ledger = Ledger()
    with ledger.stage("outer"), ledger.stage("inner"), ledger.count("linear", 1):
        torch.nn.Linear(4, 4)(torch.zeros(1, 4))
    assert (ledger.stages["outer"].flops, ledger.stages["inner"].flops) == (0, 32)


def test_a_backward_pass_is_counted():
    layer = torch.nn.Linear(16, 8, bias=False)
    inputs = torch.zeros(10, 16, requires_grad=True)
    with flop_counter() as counter:
        layer(inputs).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 16 * 8 * 10


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
def test_fused_attention_on_a_cpu_is_counted_forward_and_backward(masked):
    B, H, T, D = 2, 3, 32, 8
    query, key, value = (torch.randn(B, H, T, D, requires_grad=True) for _ in range(3))
    mask = torch.zeros(B, 1, T, T) if masked else None
    with flop_counter() as counter:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    one = 2 * B * H * T * T * D  # one of the two products
    assert counter.get_total_flops() == 2 * one
    with flop_counter() as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 5 * one  # scores again, and a gradient of each operand


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_macs_of_a_model_are_those_of_its_products(tiny, random_ranking, attention):
    model = tiny(attention=attention)
    uneven = Candidate(0.6, (3, 0, 1), (16, 9, 0))
    T, C, D = 128, 32, 8
    head = C * C + C * 2  # the pooler and the classifier, on one token
    for cut, heads, neurons in (
        (model, (4, 4, 4), (32, 32, 32)),
        (extract(model, random_ranking(model), uneven), uneven.heads, uneven.neurons),
    ):
        attended = sum(h * D * (4 * C + 2 * T) for h in heads)
        assert forward_macs(cut) == T * (attended + sum(n * 2 * C for n in neurons)) + head


def test_work_from_a_cache_is_charged_to_its_stage():
    ledger = Ledger()
    ledger.charge("importance", Cost(seconds=2, tokens=10, flops=5e9, peak_mib=700))
    ledger.charge("importance", Cost(seconds=1, tokens=5, flops=1e9, peak_mib=300))
    assert ledger.stages["importance"] == Cost(seconds=3, tokens=15, flops=6e9, peak_mib=700)


def test_the_total_is_the_sum_of_the_stages():
    ledger = Ledger()
    ledger.charge("a", Cost(1, 2, 3, 4))
    ledger.charge("b", Cost(10, 20, 30, 3))
    assert ledger.as_dict() == {
        "seconds": 11,
        "tokens": 22,
        "flops": 33,
        "peak_mib": 4,
        "elapsed_s": 11,
        "stages": {
            "a": {"seconds": 1, "tokens": 2, "flops": 3, "peak_mib": 4},
            "b": {"seconds": 10, "tokens": 20, "flops": 30, "peak_mib": 3},
        },
        "decisions": {},
    }


def test_a_stage_notes_its_peak_memory():
    ledger = Ledger()
    with ledger.stage("work"):
        pass
    assert ledger.stages["work"].peak_mib > 10


def test_a_body_can_be_timed_beside_the_stages(clock):
    with Ledger.timed() as took:
        clock[0] += 3
    assert took.seconds == 3


def test_what_another_process_booked_adds_up_and_the_clock_is_told_beside():
    ledger, others = Ledger(), [Ledger(), Ledger()]
    ledger.charge("importance", Cost(5, 1, 1.0, 100))
    ledger.paid["cache"] = np.array([True, False, False])
    for number, other in enumerate(others):
        other.charge("trials", Cost(10, 20, 30.0, 200))
        other.paid["cache"] = np.arange(3) == number
        other.decisions[f"{number}"] = "read"
    ledger.merge(others[0], elapsed_s=10)
    ledger.merge(others[1], elapsed_s=1)
    assert ledger.stages["trials"] == Cost(20, 40, 60.0, 200)
    assert ledger.total.seconds == 25
    assert ledger.as_dict()["elapsed_s"] == 16
    assert ledger.paid["cache"].tolist() == [True, True, False]
    assert ledger.decisions == {"0": "read", "1": "read"}


def test_what_is_found_of_a_kind_is_found_once():
    ledger, calls = Ledger(), []
    assert [ledger.once("a", lambda: calls.append(1) or 7) for _ in range(2)] == [7, 7]
    assert len(calls) == 1
