from __future__ import annotations

import contextlib
import copy
from dataclasses import replace

import optuna
import pytest
import torch
from optuna.trial import TrialState

from autodisc.errors import StudyError, TrainingError
from autodisc.models.inference import forward_macs
from autodisc.models.layouts import encoder_parameters
from autodisc.pruning.candidates import candidate
from autodisc.search import assistants
from autodisc.search.assistants import FLOOR_CONSTRAINT, measure
from autodisc.search.journals import open_storage
from autodisc.search.storage import tell
from autodisc.tasks import batches as batching

GRID = (0.1, 0.3, 0.5, 0.7, 0.85)


def states(study) -> list[str]:
    return [trial.state.name for trial in study.trials]


def test_no_trial_trains_anything(bench):
    before = copy.deepcopy(bench.supernet.model.state_dict())
    bench.run(bench.open())
    assert all(torch.equal(tensor, before[name]) for name, tensor in bench.supernet.model.state_dict().items())
    assert all(p.grad is None for p in bench.supernet.model.parameters())


def test_every_point_of_the_grid_is_visited_once(bench):
    study = bench.open()
    result = bench.run(study)
    assert [row["sparsity"] for row in result["trials"]] == list(GRID)
    assert states(study) == ["COMPLETE"] * 5


def test_more_trials_than_points_are_the_points(bench):
    study = bench.open()
    bench.run(study, trials=9)
    assert sorted(t.params["sparsity"] for t in study.trials) == list(GRID)


def test_a_trial_records_what_it_measured(bench):
    result = bench.run(bench.open(), lam=0.3)
    task = bench.workshop.task
    for row in result["trials"]:
        one = bench.candidates()[row["sparsity"]]
        cut = bench.supernet.extract(one)
        assert row["metric"] == bench.workshop.metric(cut, one)
        assert row["floor"] == task.metric.floor(task.validation.labels)
        assert row["tradeoff"] == pytest.approx(row["metric"] + 0.3 * row["sparsity"])
        assert "error" not in row
        assert row["scale"] == pytest.approx(1 - row["sparsity"])
        assert (row["params"], row["macs"]) == (encoder_parameters(cut), forward_macs(cut))
        assert row["candidate"] == {"heads": list(one.heads), "neurons": list(one.neurons)}
        assert row["seconds"] > 0
    sizes = [(row["params"], row["macs"]) for row in result["trials"]]
    assert sizes == sorted(sizes, reverse=True)


def test_the_choice_is_optunas_own_best_trial(bench):
    study = bench.open()
    best = bench.run(study)["best"]
    assert best["tradeoff"] == study.best_value == max(t.value for t in study.trials)


def test_the_cost_of_the_trials_is_booked(bench):
    bench.run(bench.open())
    stage = bench.workshop.ledger.stages["trials"]
    assert stage.flops > 0
    assert stage.tokens > 5 * bench.workshop.task.validation.tokens


def test_the_same_study_twice_chooses_alike(bench, parts):
    first, again = (bench.run(bench.open(name)) for name in ("one", "two"))
    assert vars(parts(first)) == vars(parts(again))


def test_a_finished_study_runs_nothing_again(bench):
    first = bench.run(bench.open())
    assert bench.run(bench.open(), opened=bench.failing(AssertionError("runs again"))) == first


def test_candidates_side_by_side_measure_what_each_measures_alone(bench):
    result = bench.run(bench.open())
    for row in result["trials"]:
        alone = measure(bench.supernet.active, bench.candidates()[row["sparsity"]], bench.workshop)
        assert vars(alone.score) == {name: row[name] for name in ("sparsity", "metric", "floor", "standard_error")}
        assert (alone.params, alone.macs, alone.examples) == (row["params"], row["macs"], 24)


def test_tokens_are_read_once_for_all_candidates(bench, monkeypatch):
    read = []
    gather = batching._Lists.gather
    monkeypatch.setattr(
        batching._Lists, "gather", lambda self, rows, lengths: read.append(1) or gather(self, rows, lengths)
    )
    measure(bench.supernet.active, bench.candidates()[0.5], bench.workshop)
    once = len(read)
    bench.run(bench.open())
    assert len(read) == 2 * once


def test_an_interrupted_study_goes_on_and_chooses_what_an_uninterrupted_one_chooses(bench, make_listener, parts):
    expected = parts(bench.run(bench.open("whole")))
    bench.run(bench.open(), trials=2)
    with pytest.raises(KeyboardInterrupt):
        bench.run(bench.open(), progress=make_listener("trials", after=3))
    found = bench.open()
    assert states(found).count("COMPLETE") == 2
    assert vars(parts(bench.run(found))) == vars(expected)


def test_a_trial_that_was_interrupted_is_run_again(bench, parts):
    expected = parts(bench.run(bench.open("whole")))
    with pytest.raises(KeyboardInterrupt):
        bench.run(bench.open(), opened=bench.failing(KeyboardInterrupt(), 0.5))
    found = bench.run(bench.open())
    assert vars(parts(found)) == vars(expected)
    assert [row["state"] for row in found["trials"]] == ["COMPLETE"] * 5  # and nothing else is told of


@pytest.mark.parametrize("suggested", [True, False], ids=["after suggesting", "before suggesting"])
def test_a_trial_that_a_killed_run_left_running_is_closed_and_its_point_evaluated_again(bench, parts, suggested):
    expected = parts(bench.run(bench.open("whole")))
    study = bench.open()
    bench.run(study, trials=2)
    study.enqueue_trial({"sparsity": 0.7})
    trial = study.ask()
    if suggested:
        trial.suggest_float("sparsity", 0.1, 0.85)
    resumed = bench.open()
    assert resumed.trials[trial.number].state == TrialState.FAIL
    found = bench.run(resumed)
    assert vars(parts(found)) == vars(expected)
    assert states(resumed).count("COMPLETE") == 5
    assert len(found["trials"]) == 5


def test_a_point_that_was_never_measured_again_is_told_of_as_interrupted(bench):
    study = bench.open()
    bench.run(study, trials=2)
    study.enqueue_trial({"sparsity": 0.7})
    study.ask()
    found = bench.run(bench.open(), trials=2)
    assert [(row["sparsity"], row.get("error")) for row in found["trials"]] == [
        (0.1, None),
        (0.3, None),
        (0.7, "interrupted"),
    ]


def test_two_trials_then_all_is_all(bench, parts):
    expected = parts(bench.run(bench.open("whole")))
    part = bench.run(bench.open(), trials=2)
    assert [row["sparsity"] for row in part["trials"]] == [0.1, 0.3]
    assert vars(parts(bench.run(bench.open()))) == vars(expected)


def test_a_failed_trial_fails_alone(bench, parts):
    whole = bench.run(bench.open("whole"))
    study = bench.open()
    found = bench.run(study, opened=bench.failing(TrainingError("predictions: NaN"), 0.5))
    assert sorted(states(study)) == ["COMPLETE"] * 4 + ["FAIL"] * 2  # tried twice, told of once
    (failed,) = (row for row in found["trials"] if row["state"] == "FAIL")
    assert (failed["sparsity"], failed["tradeoff"], failed["feasible"]) == (0.5, None, None)
    assert "predictions: NaN" in failed["error"]
    assert [row["sparsity"] for row in found["trials"] if row["state"] == "COMPLETE"] == [0.1, 0.3, 0.7, 0.85]
    assert vars(parts(bench.run(bench.open()))) == vars(parts(whole))  # and is tried again when asked again


def test_a_candidate_whose_logits_are_not_finite_fails_alone(bench):
    @contextlib.contextmanager
    def opened(candidate):
        with bench.supernet.active(candidate) as model:
            bias = model.classifier.bias.detach()
            before = bias.clone()
            bias.fill_(float("nan") if candidate.sparsity == 0.3 else 0.0)
            try:
                yield model
            finally:
                bias.copy_(before)

    study = bench.open()
    found = bench.run(study, opened=opened)
    assert [row["state"] for row in found["trials"]] == ["COMPLETE", "FAIL", *["COMPLETE"] * 3]
    assert len(study.trials) == 5  # it would end the same, and is not tried again


def test_a_study_whose_trials_all_fail_ends(bench):
    study = bench.open()
    assert bench.run(study, opened=bench.failing(TrainingError("predictions: NaN")), retries=0)["best"] is None
    assert states(study) == ["FAIL"] * 5


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_failed_trial_is_tried_again_so_often_and_each_reason_kept(bench, retries):
    study = bench.open()
    bench.run(study, opened=bench.failing(TrainingError("its process was ended"), 0.5), retries=retries)
    failed = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert len(failed) == 1 + retries
    assert all(trial.user_attrs["error"] == "its process was ended" for trial in failed)
    assert states(study).count("COMPLETE") == 4


def test_a_trial_that_fails_once_is_measured_after_all(bench, parts):
    tries = []

    @contextlib.contextmanager
    def opened(candidate):
        tries.append(candidate.sparsity)
        if candidate.sparsity == 0.5 and tries.count(0.5) == 1:
            raise TrainingError("its process was ended")
        with bench.supernet.active(candidate) as model:
            yield model

    found = bench.run(bench.open(), opened=opened)
    assert vars(parts(found)) == vars(parts(bench.run(bench.open("whole"))))


@pytest.mark.parametrize("kill_at", [1, 4, 11, 12, 13])
def test_a_sampled_study_that_was_stopped_visits_the_points_of_one_that_was_not(bench, kill_at):
    points = tuple(round(0.2 + 0.025 * i, 6) for i in range(25))
    settings = {"low": 0.2, "high": 0.8, "step": 0.025, "trials": 14}
    expected = bench.run(bench.open("whole"), points=points, **settings)
    told = []

    def die(study, trial, outcome):
        told.append(trial)
        if len(told) == kill_at:
            raise KeyboardInterrupt
        tell(study, trial, outcome)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assistants, "tell", die)
        with pytest.raises(KeyboardInterrupt):
            bench.run(bench.open(), points=points, **settings)
    found = bench.run(bench.open(), points=points, **settings)
    visited = [[(row["sparsity"], row["metric"]) for row in result["trials"]] for result in (expected, found)]
    assert visited[0] == visited[1]
    assert len(visited[0]) == 14


def test_a_bad_set_up_stops_the_study(bench):
    study = bench.open()
    with pytest.raises(RuntimeError, match="out of memory"):
        bench.run(study, opened=bench.failing(RuntimeError("out of memory"), 0.5))
    assert states(study) == ["FAIL"] * 5  # they were all under way


def test_another_configuration_is_refused_with_what_differs(bench):
    bench.run(bench.open(teacher="t"))
    with pytest.raises(StudyError, match=r"another configuration \(teacher: t -> u\)") as caught:
        bench.open(teacher="u")
    assert "\n" not in str(caught.value)


def test_a_study_from_before_a_setting_goes_on_where_the_setting_is_the_defaults(bench):
    bench.run(bench.open())
    bench.open(came=1, defaults={"came": 1, "gone": 2})
    with pytest.raises(StudyError, match=r"came: 1 -> 2"):
        bench.open(came=2, defaults={"came": 1})


def test_when_all_are_infeasible_nothing_is_chosen_and_optuna_agrees(bench):
    study = bench.open()
    result = bench.run(study, margin=1000.0)
    assert result["best"] is None
    assert not any(row["feasible"] for row in result["trials"])
    for trial in study.trials:
        assert trial.state == TrialState.COMPLETE
        assert trial.constraints[FLOOR_CONSTRAINT] > 0
    with pytest.raises(ValueError, match="feasible"):
        _ = study.best_trial


def test_a_metric_exactly_at_the_floor_is_infeasible_for_optuna_too(bench, monkeypatch):
    monkeypatch.setattr(type(bench.workshop.task.metric), "floor", lambda self, labels: 0.5)
    monkeypatch.setattr(type(bench.workshop.task.metric), "score", lambda *_: 0.5)
    study = bench.open()
    assert bench.run(study, margin=0.0)["best"] is None
    with pytest.raises(ValueError, match="feasible"):
        _ = study.best_trial


@pytest.mark.parametrize("lam", [0.0, 0.05, 1.0])
def test_ranking_again_from_the_trials_equals_a_fresh_run_under_that_lambda(bench, parts, lam):
    study = bench.open()
    bench.run(study, lam=0.2)
    again = assistants.search_result(study, bench.config(lam=lam), storage="here")
    fresh = bench.run(bench.open("fresh"), lam=lam)
    assert vars(parts(again)) == vars(parts(fresh))


RANGE = {"low": 0.2, "high": 0.8, "step": 0.15}
POINTS = (0.2, 0.35, 0.5, 0.65, 0.8)


def test_a_range_visits_every_point_where_trials_allow(bench):
    study = bench.open()
    result = bench.run(study, points=POINTS, **RANGE)
    assert [row["sparsity"] for row in result["trials"]] == pytest.approx(POINTS)
    assert states(study) == ["COMPLETE"] * 5


def test_a_range_with_fewer_trials_is_sampled_on_its_points_alike_for_a_seed(bench, make_runtime):
    points = tuple(round(0.2 + 0.05 * i, 6) for i in range(13))
    settings = {"low": 0.2, "high": 0.8, "step": 0.05, "trials": 5}
    runs = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        bench.workshop = replace(bench.workshop, runtime=make_runtime(seed))
        result = bench.run(bench.open(name), points=points, **settings)
        runs.append([row["sparsity"] for row in sorted(result["trials"], key=lambda row: row["number"])])
    assert runs[0] == runs[1] != runs[2]
    assert all(len(set(run)) == 5 and set(run) <= set(points) for run in runs)


def test_a_sampler_that_visits_all_points_but_one_repeats_none(bench):
    for sampler in ("tpe", "gp"):
        found = bench.run(bench.open(sampler), points=(0.3, 0.7), balances=(-0.5, 0.5), trials=3, sampler=sampler)
        assert len({(row["sparsity"], row["balance"]) for row in found["trials"]}) == 3


def test_a_sampled_range_counts_its_trials_in_total_and_goes_on_with_other_points(bench):
    points = tuple(round(0.2 + 0.05 * i, 6) for i in range(13))
    settings = {"low": 0.2, "high": 0.8, "step": 0.05}
    first = bench.run(bench.open(), points=points, trials=3, **settings)
    study = bench.open()
    found = bench.run(study, points=points, trials=6, **settings)
    assert len(found["trials"]) == 6
    suggested = [t.params["sparsity"] for t in study.trials]
    assert suggested[3:] != suggested[:3]
    assert [row for row in found["trials"] if row["number"] < 3] == first["trials"]


@pytest.mark.parametrize(("name", "kind"), [("tpe", optuna.samplers.TPESampler), ("gp", optuna.samplers.GPSampler)])
def test_the_sampler_is_the_one_that_is_said(bench, name, kind):
    study = bench.open()
    found = bench.run(study, balances=(-0.5, 0.0, 0.5), trials=6, sampler=name)
    assert isinstance(study.sampler, kind)
    assert len({(row["sparsity"], row["balance"]) for row in found["trials"]}) == 6
    made = {(c.sparsity, c.balance): c for c in bench.balanced(GRID, (-0.5, 0.0, 0.5))}
    for row in found["trials"]:
        assert row["candidate"]["heads"] == list(made[row["sparsity"], row["balance"]].heads)


def test_every_balance_of_every_sparsity_is_visited_once_and_measured_as_its_slice(bench):
    study = bench.open()
    found = bench.run(study, points=(0.3, 0.7), balances=(-0.5, 0.0, 0.5))
    expected = [(s, b) for s in (0.3, 0.7) for b in (0.0, -0.5, 0.5)]
    assert [(row["sparsity"], row["balance"]) for row in found["trials"]] == expected
    assert [(t.params["sparsity"], t.params["balance"]) for t in study.trials] == expected
    for row, (sparsity, balance) in zip(found["trials"], expected, strict=True):
        one = candidate(bench.supernet.ranking, sparsity, balance=balance, student=0.9)
        assert row["metric"] == bench.workshop.metric(bench.supernet.extract(one), one)
        assert row["candidate"] == {"heads": list(one.heads), "neurons": list(one.neurons)}
    kept = {row["balance"]: sum(row["candidate"]["heads"]) for row in found["trials"] if row["sparsity"] == 0.7}
    assert kept[-0.5] < kept[0.0] < kept[0.5]
    best = found["best"]
    assert best["tradeoff"] == study.best_value
    assert best["balance"] == study.best_trial.user_attrs["balance"]


def test_one_balance_is_the_study_of_sparsities_alone(bench):
    study = bench.open()
    bench.run(study)
    assert all(set(t.params) == {"sparsity"} for t in study.trials)


@pytest.mark.parametrize("sampler", [None, "tpe", "gp"])
def test_a_study_killed_between_its_two_suggestions_visits_what_one_that_was_not_does(bench, monkeypatch, sampler):
    settings = {"points": (0.3, 0.5, 0.7), "balances": (-0.5, 0.0, 0.5)}
    if sampler is not None:
        settings |= {"trials": 6, "sampler": sampler}
    whole = bench.run(bench.open("whole"), **settings)
    suggest, left = assistants._suggest, [7]

    def killed(trial, name, points, **others):
        left[0] -= 1
        if left[0] == 1 and name == "balance":
            raise KeyboardInterrupt
        return suggest(trial, name, points, **others)

    monkeypatch.setattr(assistants, "_suggest", killed)
    with pytest.raises(KeyboardInterrupt):
        bench.run(bench.open("cut"), **settings)
    left[0] = 1000
    study = bench.open("cut")
    found = bench.run(study, **settings)
    assert "WAITING" not in states(study)

    def visited(result):
        return sorted((row["sparsity"], row["balance"], row["metric"]) for row in result["trials"])

    assert visited(found) == visited(whole)


def test_one_point_is_a_study_of_one_trial(bench):
    result = bench.run(bench.open(), points=(0.5,))
    assert [row["sparsity"] for row in result["trials"]] == [0.5]
    assert result["best"]["sparsity"] == 0.5


def test_a_storage_that_cannot_be_had_is_one_line(tmp_path):
    with pytest.raises(StudyError, match=r"search\.storage: 'nosuch://x' cannot be opened") as caught:
        open_storage("nosuch://x")
    assert "\n" not in str(caught.value)
