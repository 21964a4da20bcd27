"""What a budget leads to: pure arithmetic, counts that need no model to run, and a study that can go on."""

from __future__ import annotations

import optuna
import pytest

from autodisc.config import BudgetConfig, make_budget
from autodisc.errors import ConfigError, StudyError
from autodisc.models.inference import forward_macs
from autodisc.models.layouts import encoder_parameters
from autodisc.pruning.candidates import candidate
from autodisc.pruning.supernet import extract
from autodisc.search import students as module
from autodisc.search.budgets import Use, allowed, grid, least_sparse, meets, over, said, say
from autodisc.search.journals import open_storage
from autodisc.search.students import fingerprint, known_student, run_students, students, uses_of

USES = [Use(s, round(1000 * (1 - s)), round(5000 * (1 - s)), 10 * (1 - s)) for s in (0.2, 0.4, 0.6, 0.8)]


def test_a_part_is_exceeded_by_what_is_used_less_what_is_allowed():
    assert over(USES[0], {"params": 700, "macs": 4000}) == {"params": 100, "macs": 0}
    assert not meets(USES[0], {"params": 799})
    assert meets(USES[0], {"params": 800, "macs": 4000})  # exactly what is allowed is allowed


@pytest.mark.parametrize(
    ("limits", "sparsity"),
    [
        ({"params": 10_000}, 0.2),
        ({"params": 650}, 0.4),
        ({"params": 650, "macs": 1500}, 0.8),
        ({"params": 650, "latency_ms": 4.5}, 0.6),
    ],
)
def test_the_least_sparse_that_meets_every_part_is_taken(limits, sparsity):
    assert least_sparse(USES, limits, of="student").sparsity == sparsity
    assert least_sparse(USES[::-1], limits, of="student").sparsity == sparsity


def test_latency_need_not_fall_with_sparsity():
    uneven = [Use(0.2, 8, 8, 4.0), Use(0.4, 6, 6, 2.0), Use(0.6, 4, 4, 3.0)]
    assert least_sparse(uneven, {"latency_ms": 3.5}, of="student").sparsity == 0.4


def test_where_none_meets_it_the_nearest_is_named_with_what_it_uses():
    with pytest.raises(ConfigError) as caught:
        least_sparse(USES, {"params": 100, "latency_ms": 9.0}, of="student")
    message = str(caught.value)
    assert message.startswith("budget: no student meets it; the nearest, of sparsity 0.8, uses 200 of 100 encoder")
    assert "\n" not in message


def test_a_grid_has_both_ends_and_the_hundredths_between():
    assert grid(0.3, 0.33) == (0.3, 0.31, 0.32, 0.33)
    assert grid(0.125, 0.15) == (0.125, 0.13, 0.14, 0.15)
    assert grid(0.5, 0.5) == (0.5,)
    assert len(grid(0.01, 0.99)) == 99


def test_what_is_used_is_said_with_its_unit_and_of_what_the_latency_is():
    budget = make_budget({"params": "1.2k", "latency_ms": 3, "batch": 8})
    assert say(USES[0], allowed(budget)) == "800 of 1,200 encoder parameters, 8 of 3 ms"
    found = {**vars(USES[0]), "budget": budget.model_dump()}
    assert said(found) == "800 of 1,200 encoder parameters, 8 of 3 ms (batch 8, length 64)"


@pytest.mark.parametrize("family", ["bert", "electra", "distilbert"])
def test_counts_without_a_run_are_those_of_the_extracted_model(tiny, random_ranking, family):
    teacher = tiny(family)
    ranking = random_ranking(teacher)
    for each in (candidate(ranking, sparsity) for sparsity in (0.0, 0.37, 0.8, 0.98)):
        (use,) = uses_of(teacher, [each], None)
        cut = extract(teacher, ranking, each)
        assert (use.params, use.macs) == (encoder_parameters(cut), forward_macs(cut))


def test_counts_of_a_pruned_teacher_are_those_of_what_is_cut_from_it(tiny, random_ranking):
    ranking = random_ranking(tiny())
    teacher = extract(tiny(), ranking, candidate(ranking, 0.3))
    each = candidate(ranking, 0.6)
    (use,) = uses_of(teacher, [each], None)
    assert use.macs == forward_macs(extract(tiny(), ranking, each))


@pytest.fixture(autouse=True)
def _fewer_students(monkeypatch):
    """A trial is a dozen writes to a journal: every twentieth will do."""
    monkeypatch.setattr(module, "POINTS", tuple(round(0.05 * i, 2) for i in range(1, 20)))


@pytest.fixture(scope="module")
def found(tiny, random_ranking):
    """A teacher, its ranking, and a budget that half of it meets."""
    teacher = tiny(layers=2)
    budget = BudgetConfig(params=encoder_parameters(teacher) // 2, macs=forward_macs(teacher), latency_ms=50.0)
    return teacher, random_ranking(teacher), budget


def milliseconds(each) -> float:
    return sum(each.heads) + sum(each.neurons) / 2


def open_students(folder, found, **changes):
    teacher, ranking, budget = found
    uses, best = students(teacher, ranking, budget, milliseconds)
    made_of = {**fingerprint("t", ranking, budget), **changes}
    return run_students("toy-student", f"{folder}/j.log", made_of, uses, budget), best, made_of


def test_the_studys_best_trial_is_the_least_sparse_within_the_budget(found, tmp_path):
    chosen, best, _ = open_students(tmp_path, found)
    assert chosen == best
    study = optuna.load_study(study_name="toy-student", storage=open_storage(f"{tmp_path}/j.log"))
    assert len(study.trials) == 19
    trial = study.best_trial
    assert trial.user_attrs["sparsity"] == best.sparsity
    assert trial.value == pytest.approx(1 - best.sparsity)
    assert set(trial.constraints) == {"params", "macs", "latency_ms"}
    limits = allowed(found[2])
    for trial in study.trials:
        use = Use(*(trial.user_attrs[name] for name in ("sparsity", "params", "macs", "latency_ms")))
        assert trial.constraints == pytest.approx(over(use, limits))
        assert trial.params["sparsity"] == pytest.approx(use.sparsity)
    assert not any(
        all(excess <= 0 for excess in trial.constraints.values()) and trial.user_attrs["sparsity"] < best.sparsity
        for trial in study.trials
    )


def test_an_interrupted_study_goes_on_and_a_finished_one_is_not_run_again(found, tmp_path, monkeypatch):
    storage, budget = f"{tmp_path}/j.log", found[2]
    told = module.tell

    def stop(study, trial, value):
        told(study, trial, value)
        if trial.number == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "tell", stop)
        with pytest.raises(KeyboardInterrupt):
            open_students(tmp_path, found)
    made_of = fingerprint("t", found[1], budget)
    assert known_student("toy-student", storage, made_of) is None
    chosen, best, made_of = open_students(tmp_path, found)
    assert chosen == best
    assert known_student("toy-student", storage, made_of) == best
    assert known_student("toy-student", storage, {**made_of, "teacher": "other"}) is None
    assert known_student("another", storage, made_of) is None


def test_another_budget_under_the_same_name_is_refused(found, tmp_path):
    open_students(tmp_path, found)
    with pytest.raises(StudyError, match="exists with another configuration"):
        open_students(tmp_path, found, budget={"params": 1})


def test_asking_for_a_student_makes_no_file(tmp_path):
    assert known_student("toy", f"{tmp_path}/none/j.log", {}) is None
    assert not list(tmp_path.iterdir())


def test_a_budget_that_the_teacher_meets_is_refused(found):
    teacher, ranking, _ = found
    with pytest.raises(ConfigError, match="the teacher itself meets it"):
        students(teacher, ranking, BudgetConfig(params=10**9), None)


def test_a_budget_that_no_student_meets_is_refused(found):
    teacher, ranking, _ = found
    with pytest.raises(ConfigError, match=r"no student meets it; the nearest, of sparsity 0\.95"):
        students(teacher, ranking, BudgetConfig(latency_ms=1e-9), lambda each: 1.0 + milliseconds(each))
