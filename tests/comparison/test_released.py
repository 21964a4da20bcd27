"""The authors' algorithm: every candidate every step, the best tradeoff so far, then the second sandwich."""

from __future__ import annotations

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
