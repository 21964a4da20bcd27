"""A loop that is stopped anywhere, and started again, ends in the bits of one that was not."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
from collections.abc import Iterator

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from autodisc.costs import Ledger, resume_ledger, save_ledger
from autodisc.distillation.checkpointing import Keeping, States, states
from autodisc.distillation.losses import Totals
from autodisc.distillation.training import Term, TrainingSettings, train
from autodisc.errors import StudyError
from autodisc.progress import Silent
from autodisc.tasks.batches import Batch

STEPS = 10  # 32 rows by 8: two passes and a half


class Killed(BaseException):
    """Ends a training where nothing is kept."""


class Labels:
    """Objective: the gold labels; every step also draws a number, which scales its loss."""

    def __init__(self, model, kill_at: int | None = None, signals: tuple[int, ...] = ()) -> None:
        self.model, self.kill_at, self.signals = model, kill_at, signals
        self.drawn: list[float] = []

    def draw(self, generator) -> float:
        self.drawn.append(float(generator.random()))
        if len(self.drawn) == self.kill_at:
            if not self.signals:
                raise Killed
            for number in self.signals:
                os.kill(os.getpid(), number)
        return self.drawn[-1]

    def terms(self, batch: Batch, totals: Totals, drawn: float) -> Iterator[Term]:
        def loss() -> torch.Tensor:
            logits = self.model(**batch.inputs).logits
            return drawn * F.cross_entropy(logits, batch.labels, reduction="sum") / totals.labels

        yield Term("labels", loss)


@pytest.fixture
def fit(make_task, make_runtime, tiny):
    """``fit(states, evaluated, kill_at=…)``: train a new model with dropout; model, state and objective."""
    task = make_task()

    def call(states=None, *, evaluated=True, kill_at=None, signals=(), ledger=None, **changes):
        model = tiny()
        model.bert.embeddings.requires_grad_(False)
        objective = Labels(model, kill_at, signals)

        def evaluate() -> float:
            model.eval()
            return float(model.classifier.weight.detach().sum())

        settings = {"steps": STEPS, "batch_size": 8, "lr": 1e-2, "warmup": 0.2, "weight_decay": 0.01, "clip": 1.0}
        state = train(
            model,
            objective,
            task.train,
            TrainingSettings(**{**settings, "dropout": True, **changes}),
            task=task,
            runtime=make_runtime(),
            stage="toy",
            ledger=ledger or Ledger(),
            progress=changes.pop("progress", None) or Silent(),
            evaluate=evaluate if evaluated else None,
            states=states,
        )
        return model, state, objective

    return call


@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize("minutes", [0.0, 60.0])
@pytest.mark.parametrize("kills", [(1,), (5,), (10,), (2, 3, 1, 2)])
def test_a_training_killed_anywhere_ends_in_the_same_bits(tmp_path, fit, same_weights, kills, minutes, evaluated):
    whole, expected, _ = fit(evaluated=evaluated)
    path = tmp_path / "toy.safetensors"
    for kill_at in kills:
        with pytest.raises(Killed):
            fit(States(path, minutes=minutes), evaluated=evaluated, kill_at=kill_at)
    assert path.exists() == (minutes == 0.0 and any(kill > 1 for kill in kills))
    model, state, objective = fit(States(path, minutes=minutes), evaluated=evaluated)
    assert same_weights(model, whole)
    assert state.curve == expected.curve
    assert (state.best_metric, state.best_step) == (expected.best_metric, expected.best_step)
    done = 0 if minutes else sum(kill - 1 for kill in kills)
    assert len(objective.drawn) == STEPS - done  # no step is done twice
    assert len(list(tmp_path.iterdir())) == 1


def test_a_finished_training_is_read_and_not_trained_again(tmp_path, fit, same_weights):
    path = tmp_path / "toy.safetensors"
    model, state, _ = fit(States(path, minutes=60.0))
    again, same, objective = fit(States(path))
    assert objective.drawn == []
    assert same_weights(again, model)
    assert same.curve == state.curve
    with safe_open(path, framework="pt") as file:
        assert not [name for name in file.keys() if not name.startswith("best.")]  # noqa: SIM118


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_training_after_the_step_with_its_state_kept(tmp_path, fit, same_weights, number):
    path, before = tmp_path / "toy.safetensors", signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        fit(States(path, minutes=60.0), kill_at=4, signals=(number,))
    assert signal.getsignal(number) is before
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["autodisc"])["step"] == 4
    model, _, objective = fit(States(path, minutes=60.0))
    assert len(objective.drawn) == STEPS - 4
    assert same_weights(model, fit()[0])


def test_a_second_signal_ends_a_training_at_once(tmp_path, fit):
    path = tmp_path / "toy.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(States(path, minutes=60.0), kill_at=4, signals=(signal.SIGINT, signal.SIGTERM))
    assert not list(tmp_path.iterdir())


def test_a_state_made_of_something_else_is_refused_with_what_differs(tmp_path, fit):
    path = tmp_path / "toy.safetensors"
    with pytest.raises(Killed):
        fit(States(path, made_of={"teacher": "abc", "lr": 1}), kill_at=3)
    before = path.read_bytes()
    with pytest.raises(StudyError, match=r"made of something else \(teacher: abc -> abd\).*--new"):
        fit(States(path, made_of={"teacher": "abd", "lr": 1}))
    assert path.read_bytes() == before


def test_another_version_of_torch_is_another_state(tmp_path, fit, monkeypatch):
    path = tmp_path / "toy.safetensors"
    with pytest.raises(Killed):
        fit(States(path), kill_at=3)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    with pytest.raises(StudyError, match=r"numpy: .* -> 9\.9; torch: .* -> 9\.9"):
        fit(States(path))


@pytest.mark.parametrize("kept", [0, 7, 200, -1])
def test_a_state_that_was_cut_off_is_said_and_the_training_starts_again(tmp_path, fit, same_weights, kept):
    path = tmp_path / "toy.safetensors"
    with pytest.raises(Killed):
        fit(States(path), kill_at=3)
    path.write_bytes(path.read_bytes()[:kept])
    damaged = States(path)
    model, _, objective = fit(damaged)
    assert str(path) in damaged.damaged
    assert len(objective.drawn) == STEPS
    assert same_weights(model, fit()[0])


def test_a_full_disk_leaves_the_last_state(tmp_path, fit, monkeypatch):
    path = tmp_path / "toy.safetensors"
    with pytest.raises(Killed):
        fit(States(path), kill_at=3)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            fit(States(path))
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_what_was_spent_is_booked_before_each_state_and_lost_work_is_added(tmp_path, fit, make_runtime):
    whole = Ledger()
    fit(evaluated=False, ledger=whole)
    keeping = Keeping(tmp_path / "unfinished", 60.0, tmp_path / "ledger.json")

    def run(minutes: float, **others) -> Ledger:
        ledger = Ledger()
        resume_ledger(ledger, keeping.ledger)
        kept = Keeping(keeping.folder, minutes, keeping.ledger)
        of = states(kept, "toy", dict, runtime=make_runtime(), ledger=ledger)
        with contextlib.suppress(Killed):
            fit(of, evaluated=False, ledger=ledger, **others)
        return ledger

    for kill_at in (4, 3):
        run(0.0, kill_at=kill_at)  # a state after each step: nothing is lost
    once = run(60.0).stages["toy"]
    assert (once.tokens, once.flops) == (whole.stages["toy"].tokens, whole.stages["toy"].flops)

    keeping.remove()
    save_ledger(whole, keeping.ledger)  # all of it was spent, and lost
    twice = run(60.0).stages["toy"]
    assert (twice.tokens, twice.flops) == (2 * once.tokens, 2 * once.flops)


def test_another_process_books_beside_its_states(tmp_path, make_runtime):
    keeping = Keeping(tmp_path / "trial", 0.0, tmp_path / "ledger.json", process=os.getpid() + 1)
    of = states(keeping, "toy", dict, runtime=make_runtime(), ledger=Ledger())
    of._book()
    assert (tmp_path / "trial" / "ledger.json").exists()
    assert not keeping.ledger.exists()


def test_tied_weights_that_are_trained_are_the_best_ones_after_a_stop(tmp_path, tiny, make_task, make_runtime):
    """Embeddings and the head of a language model are one parameter with two names."""
    task = make_task()

    class Loss(Labels):
        def terms(self, batch: Batch, totals: Totals, drawn: float) -> Iterator[Term]:
            yield Term("mean", lambda: self.model(**batch.inputs).logits.square().mean())

    evaluations = itertools.count()  # the first is the best

    def fit(states=None, kill_at=None):
        model = tiny("llama", head="causal")
        assert model.lm_head.weight is model.model.embed_tokens.weight
        settings = TrainingSettings(STEPS, batch_size=8, lr=1e-2, warmup=0.2, weight_decay=0.01, clip=1.0)
        train(
            model,
            Loss(model, kill_at),
            task.train,
            settings,
            task=task,
            runtime=make_runtime(),
            stage="toy",
            ledger=Ledger(),
            progress=Silent(),
            evaluate=lambda: -next(evaluations),
            states=states,
        )
        return model.lm_head.weight

    whole = fit()
    path = tmp_path / "toy.safetensors"
    evaluations = itertools.count()
    with pytest.raises(Killed):
        fit(States(path, minutes=0.0), kill_at=8)
    assert torch.equal(fit(States(path, minutes=0.0)), whole)
