from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from autodisc.costs import Ledger
from autodisc.distillation.checkpointing import States
from autodisc.distillation.losses import Totals
from autodisc.distillation.training import Term, TrainingSettings, steps_for, train
from autodisc.errors import DivergedError, TrainingError
from autodisc.progress import Silent
from autodisc.tasks.batches import Batch, number_of_batches

SETTINGS = {"batch_size": 8, "lr": 1e-3, "warmup": 0.2, "weight_decay": 0.01, "clip": 1.0}


class Labels:
    """Objective: the gold labels; ``bad_step`` turns the loss of that step into NaN."""

    def __init__(self, model, bad_step: int | None = None) -> None:
        self.model, self.bad_step, self.step = model, bad_step, 0

    def draw(self, generator) -> None:
        self.step += 1

    def terms(self, batch: Batch, totals: Totals, drawn: None) -> Iterator[Term]:
        def loss() -> torch.Tensor:
            value = F.cross_entropy(self.model(**batch.inputs).logits, batch.labels, reduction="sum") / totals.labels
            return value * math.nan if self.step == self.bad_step else value

        yield Term("labels", loss)


@pytest.fixture
def fit(make_task, make_runtime):
    """``fit(model, steps=…, **settings)`` trains on gold labels; the state."""
    task = make_task()

    def call(
        model, *, steps=8, seed=0, evaluate=None, objective=None, ledger=None, states=None, progress=None, **changes
    ):
        return train(
            model,
            objective or Labels(model),
            task.train,
            TrainingSettings(**{"steps": steps, **SETTINGS, **changes}),
            task=task,
            runtime=make_runtime(seed),
            stage="toy training",
            ledger=ledger or Ledger(),
            progress=progress or Silent(),
            evaluate=evaluate,
            states=states,
        )

    return call


def close_weights(a, b) -> None:
    for name, mine in a.state_dict().items():
        if not name.endswith(
            ("key.bias", "k_lin.bias")
        ):  # its gradient is zero: softmax undoes it; Adam steps on noise
            assert_close(
                mine, b.state_dict()[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("parts", [2, 3, 8, 20])
def test_a_batch_of_eight_is_eight_examples_in_any_number_of_micro_batches(tiny, fit, parts):
    whole, split = tiny(), tiny()
    one = fit(whole, steps=3)
    other = fit(split, steps=3, accumulation=parts)
    close_weights(whole, split)
    assert [p["loss"] for p in one.curve] == pytest.approx([p["loss"] for p in other.curve], rel=1e-5)


def test_an_example_weighs_the_same_in_whatever_batch(tiny, fit, make_task):
    model, split = tiny(), make_task().train
    number = number_of_batches(split, 8)
    curve = fit(model, steps=number, lr=0.0).curve
    with torch.no_grad():
        each = [
            F.cross_entropy(model(input_ids=torch.tensor([row["input_ids"]])).logits, torch.tensor([int(label)]))
            for row, label in zip(split.rows, split.labels, strict=True)
        ]
    assert len(curve) == number
    assert sum(point["loss"] for point in curve) / number == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)


def test_the_same_seed_gives_the_same_weights_bit_for_bit(tiny, fit, same_weights):
    models = []
    for seed in (5, 5, 6):
        model = tiny()
        fit(model, seed=seed, dropout=True)
        models.append(model)
    assert same_weights(models[0], models[1])
    assert not same_weights(models[0], models[2])


def test_training_leaves_the_global_generator_alone(tiny, fit):
    before = torch.random.get_rng_state()
    fit(tiny(), dropout=True)
    assert torch.equal(torch.random.get_rng_state(), before)


class BadRow(Labels):
    """The loss is NaN whenever a batch begins with row 5."""

    def terms(self, batch: Batch, totals: Totals, drawn: None) -> Iterator[Term]:
        (term,) = super().terms(batch, totals, drawn)
        yield Term(term.kind, lambda: term.loss() * (math.nan if batch.rows[0] == 5 else 1.0))


def test_a_loss_that_stays_nan_ends_the_training_after_two_lower_rates(tiny, fit, make_listener):
    model, listener = tiny(), make_listener()
    with pytest.raises(
        DivergedError, match=r"toy training: the loss is nan at step \d+; lower lr \(now 0.001; 0.00025"
    ):
        fit(model, objective=BadRow(model), progress=listener, steps=32, batch_size=1)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert [line.split("lr ")[1] for line in listener.said] == ["0.0005", "0.00025"]


@pytest.mark.parametrize("kept", [False, True])
def test_one_nan_goes_back_to_the_last_state_at_half_the_learning_rate(tiny, fit, same_weights, tmp_path, kept):
    model, plain, ledger = tiny(), tiny(), Ledger()
    states = States(tmp_path / "s.safetensors", minutes=0.0) if kept else None
    state = fit(model, objective=Labels(model, bad_step=3), steps=6, ledger=ledger, states=states)
    assert (state.step, state.halvings) == (6, 1)
    since = 3 if kept else 1
    assert (
        ledger.decisions["lr of toy training"] == f"0.0005 from step {since} on: the loss is nan at step 3 with 0.001"
    )
    assert all(torch.isfinite(p).all() for p in model.parameters())
    fit(plain, steps=6, lr=5e-4)
    assert same_weights(model, plain) == (not kept)  # from the start on it is a training at half the rate


def test_a_gradient_that_overflows_is_found_before_it_reaches_the_weights(tiny, fit):
    class Steep(Labels):
        def terms(self, batch, totals, drawn):
            def loss() -> torch.Tensor:
                weight = self.model.classifier.weight
                return (weight.sum() * 0.0).abs().sqrt()  # 0, with an infinite slope times zero: not a number

            yield Term("labels", loss)

    model = tiny()
    with pytest.raises(DivergedError, match="toy training: the gradient's norm is nan at step 1"):
        fit(model, objective=Steep(model))
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_short_memory_makes_smaller_micro_batches_of_the_same_examples(tiny, fit, make_listener, error):
    class Large(Labels):
        def terms(self, batch, totals, drawn):
            if len(batch) > 3:
                raise error
            yield from super().terms(batch, totals, drawn)

    short, plain, ledger, listener = tiny(), tiny(), Ledger(), make_listener()
    fit(short, objective=Large(short), steps=3, ledger=ledger, progress=listener)
    fit(plain, steps=3)
    close_weights(short, plain)
    assert "memory was short" in ledger.decisions["micro-batches of toy training"]
    assert len(listener.said) <= 4  # said when it changes, not at each step


def test_no_memory_for_one_example_is_one_line(tiny, fit):
    class Huge(Labels):
        def terms(self, batch, totals, drawn):
            raise MemoryError

    with pytest.raises(TrainingError, match="toy training: out of memory with one example at a time"):
        fit(tiny(), objective=Huge(None))


def test_the_model_ends_with_the_weights_of_the_best_evaluation(tiny, fit):
    model = tiny()
    metrics, seen = iter([0.2, 0.9, 0.9, 0.4]), []

    def evaluate() -> float:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return next(metrics)

    state = fit(model, steps=14, evaluate=evaluate)  # 32 rows: 4 steps a pass
    assert (state.best_metric, state.best_step) == (0.9, 8)
    assert [(p["step"], p["metric"]) for p in state.curve if p["metric"] is not None] == [
        (4, 0.2),
        (8, 0.9),
        (12, 0.9),
        (14, 0.4),
    ]
    assert all(torch.equal(tensor, seen[1][name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(seen[3]["classifier.weight"], seen[1]["classifier.weight"])


def test_without_an_evaluation_the_model_ends_with_the_last_weights(tiny, fit):
    model = tiny()
    state = fit(model, steps=5)
    assert (state.step, state.best_metric, state.best_weights) == (5, None, None)


def test_frozen_parameters_stay_bit_identical(tiny, fit):
    model = tiny()
    model.bert.embeddings.requires_grad_(False)
    fit(model)
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, tiny().state_dict()[name])
    }
    assert not {name for name in changed if "embeddings" in name}
    assert {name for name, _ in model.named_parameters() if "embeddings" not in name} == changed


def test_dropout_is_on_only_where_it_is_asked_for(tiny, fit):
    def modes(**settings) -> set[bool]:
        model, seen = tiny(), set()
        model.register_forward_hook(lambda module, *_: seen.add(module.training))

        def evaluate() -> float:
            model.eval()
            return 0.0

        fit(model, evaluate=evaluate, **settings)
        return seen

    assert modes(dropout=True) == {True}
    assert modes() == {False}


def test_weight_decay_spares_biases_and_norms(tiny, fit):
    state = fit(tiny())
    decayed, spared = state.optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in spared["params"]} == {1}


def test_the_learning_rate_warms_up_and_falls_to_zero(tiny, fit):
    assert fit(tiny(), steps=10).lr_scheduler.get_last_lr() == [0.0, 0.0]


def test_the_loss_falls_on_a_task_that_can_be_learnt(tiny, fit):
    losses = [point["loss"] for point in fit(tiny(), steps=30, lr=3e-3).curve]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_flops_are_booked_for_every_step_by_its_tokens(tiny, fit, make_task):
    ledger = Ledger()
    fit(tiny(), steps=8, ledger=ledger)
    booked = ledger.stages["toy training"]
    real = 2 * make_task().train.tokens  # 8 steps are two passes
    assert real <= booked.tokens < 1.3 * real
    assert booked.flops > 0
    assert booked.seconds > 0


def test_steps_are_the_batches_of_so_many_passes(make_split):
    split = make_split(33)
    assert number_of_batches(split, 8) == 5
    assert steps_for(split, 8, 3) == 15
    assert steps_for(split, 100, 1) == 1
