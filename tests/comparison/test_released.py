"""The authors' algorithm: every candidate every step, the best tradeoff so far, then the second sandwich."""

from __future__ import annotations

import math

from autodisc.comparison import released
from autodisc.comparison.cells import Cell
from autodisc.comparison.released import distill_released
from autodisc.distillation.sandwich import Sandwich
from autodisc.opening import open_workspace


def test_the_assistant_is_the_best_tradeoff_of_all_passes_with_its_weights_of_then(config, tmp_path, monkeypatch):
    settings = config(distillation={"epochs": 3}).study(Cell("mine", 0, 0.9, "released"), tmp_path)
    space = open_workspace(settings)
    seen: list[tuple[float, float]] = []
    drawn: list[int] = []

    def noted(metric, sparsity, lam):
        seen.append((metric + lam * sparsity, sparsity))
        return metric + lam * sparsity

    class Watched(Sandwich):
        def draw(self, generator):
            found = super().draw(generator)
            drawn.append(len(found))
            return found

    monkeypatch.setattr(released, "tradeoff", noted)
    monkeypatch.setattr(released, "Sandwich", Watched)
    made = distill_released(space)
    assert len(seen) == 3 * 3  # assistants, passes
    assert set(drawn) == {4}  # they and the student, every step
    best = max(value for value, _ in seen)
    own = made.assistant
    assert own.metric + settings.search.lam * own.candidate.sparsity == best
    assert space.workshop.metric(own.model, own.candidate) == own.metric
    assert space.workshop.metric(made.student.model, space.student) == made.student.metric
    total = space.ledger.total
    assert 0 < made.searched.flops < total.flops


def test_what_was_evaluated_before_the_training_went_back_is_not_chosen(config, tmp_path, monkeypatch):
    settings = config(distillation={"epochs": 2}).study(Cell("mine", 0, 0.9, "released"), tmp_path)
    space = open_workspace(settings)
    broken, seen = [], []

    class Broken(Sandwich):
        def terms(self, batch, totals, drawn):
            once = math.nan if seen and not broken else 1.0  # after the first pass
            broken.extend([True] * (once != 1.0))
            for kind, loss in super().terms(batch, totals, drawn):
                yield kind, lambda loss=loss: loss() * once

    def high_at_first(metric, sparsity, lam):
        value = 9.0 if not seen else metric + lam * sparsity
        seen.append((value, sparsity))
        return value

    monkeypatch.setattr(released, "tradeoff", high_at_first)
    monkeypatch.setattr(released, "Sandwich", Broken)
    made = distill_released(space)
    assert broken
    assert len(seen) == 3 + 2 * 3  # assistants: in the pass that was given up, and in two
    _, best = max(seen[3:])
    assert seen[0][1] != best
    assert made.assistant.candidate.sparsity == best
