from __future__ import annotations

import pytest

from autodisc.reporting.records import read_records
from autodisc.reporting.rows import StrategyRow
from autodisc.reporting.summary import summarize
from autodisc.reporting.tables import trial_table
from autodisc.reporting.verdict import compare


def _one(*folders, lam=None):
    (study,) = summarize(read_records(folders), lam=lam).studies
    return study


def test_a_study_is_summarised_with_its_baselines(whole):
    study = _one(whole)
    assert [row.name for row in study.strategies] == ["teacher", "autodisc", "maxidisc", "direct"]
    assert study.recorded.sparsity == 0.8
    assert "sparsity 0.8" in study.verdict[0]
    assert "within noise" in study.verdict[1]
    assert study.strategy("autodisc").seconds == pytest.approx(83 + 288)


def test_shares_of_cost_are_relative_to_maxidisc(whole):
    study = _one(whole)
    maxi, ours = study.strategy("maxidisc"), study.strategy("autodisc")
    assert maxi.seconds_share == 1.0
    assert study.shares.schedule_flops == pytest.approx(ours.flops / maxi.flops)
    assert study.shares.search_seconds == pytest.approx(83 / maxi.seconds)


def test_a_missed_target_is_listed_against_autodisc(whole):
    study = _one(whole)
    assert study.shares.schedule_seconds > 0.2
    assert any("whole schedule" in text and "wall time" in text for text in study.against)
    assert not any(text.startswith("The search:") for text in study.against)


def test_direct_better_than_autodisc_is_listed_against_it(whole):
    assert any("direct" in text and "better student" in text for text in _one(whole).against)


@pytest.mark.parametrize(("metric", "listed"), [(0.79, True), (0.81, False)])
def test_a_student_that_keeps_less_than_half_of_its_teacher_is_listed(make, tmp_path, metric, listed):
    distilled = make.distill()
    teacher, floor = distilled["result"]["teacher"], make.search()["result"]["trials"][0]["floor"]
    distilled["result"]["student"]["validation_metric"] = metric
    study = _one(make.write(tmp_path, make.search(), distilled))
    kept = (metric - floor) / (teacher["validation_metric"] - floor)
    assert (kept < 0.5) == listed
    assert any(f"the student keeps {100 * kept:.1f} %" in text for text in study.against) == listed


def test_another_lambda_ranks_the_recorded_trials_again(whole):
    study = _one(whole, lam=0.0)
    assert study.recorded.sparsity == 0.8
    assert study.reranked.sparsity == 0.4  # the highest metric
    assert study.shown is study.reranked
    assert all(row.tradeoff == row.metric for row in study.trials)
    assert "λ = 0.2" in study.verdict[0]
    assert "λ = 0" in study.verdict[1]
    assert "sparsity 0.4" in study.verdict[1]


def test_another_lambda_never_makes_an_infeasible_candidate_feasible(whole):
    assert _one(whole, lam=100.0).reranked.sparsity == 0.8  # 0.85 is sparser, but at the floor


def test_the_recorded_lambda_repeats_the_recorded_choice(whole):
    study = _one(whole, lam=0.2)
    assert study.reranked == study.recorded
    assert "stays at sparsity 0.8" in study.verdict[1]


def test_all_infeasible_says_so_and_what_to_do(make, tmp_path):
    make.write(tmp_path, make.search([make.trial(0, 0.7, 0.761), make.trial(1, 0.8, 0.760)]))
    study = _one(tmp_path)
    assert study.recorded is None
    assert "No candidate left the floor" in study.verdict[0]
    assert "--recovery-steps" in study.verdict[0]


@pytest.mark.parametrize("trials", [[], ["failed"], ["failed", "complete"], ["complete"]])
def test_studies_of_few_or_failed_trials_are_summarised(make, tmp_path, trials):
    rows = [make.trial(i, 0.7, 0.82) if t == "complete" else make.failed(i, 0.6) for i, t in enumerate(trials)]
    make.write(tmp_path, make.search(rows))
    study = _one(tmp_path, lam=0.1)
    assert (study.recorded is not None) == ("complete" in trials)
    assert study.verdict
    assert any("failed" in text for text in study.against) == ("failed" in trials)


def test_only_a_baseline_is_shown_as_such(make, tmp_path):
    make.write(tmp_path, make.baseline())
    study = _one(tmp_path)
    assert "No study of teacher assistants" in study.verdict[0]
    assert [row.name for row in study.strategies] == ["maxidisc"]


def test_only_a_finetuned_teacher_is_shown(make, tmp_path):
    result = {"path": "/t", "metric": 0.9, "metrics": {"accuracy": 0.9}, "floor": 0.5, "split": "test"}
    make.write(tmp_path, make.record("finetune", None, result, make.cost(finetune=(60.0, 1e12))))
    study = _one(tmp_path)
    assert study.strategy("teacher").metric == 0.9
    assert [row.stage for row in study.costs] == ["finetune"]


def test_a_baseline_in_another_folder_joins_the_study_of_the_same_data(make, tmp_path):
    make.write(tmp_path / "a", make.search(), make.distill())
    make.write(tmp_path / "b", make.baseline())
    assert _one(tmp_path / "a", tmp_path / "b").strategy("maxidisc") is not None


def test_another_teacher_is_another_study(make, tmp_path):
    make.write(tmp_path / "a", make.search())
    make.write(tmp_path / "b", make.baseline(teacher={"model": "/other", "fingerprint": "ee"}))
    assert len(summarize(read_records([tmp_path / "a", tmp_path / "b"])).studies) == 2


def test_two_studies_take_the_baseline_of_their_own_seed(make, tmp_path):
    make.write(tmp_path / "a", make.search(), make.baseline(metric=0.7))
    make.write(tmp_path / "b", make.search(seed=1), make.baseline(metric=0.6, seed=1))
    found = summarize(read_records([tmp_path / "a", tmp_path / "b"])).studies
    assert [study.strategy("maxidisc").metric for study in found] == [0.7, 0.6]


def test_another_metric_is_another_study(make, tmp_path):
    other = make.baseline()
    other["task"]["metric"] = "f1"
    make.write(tmp_path, make.search(), make.distill(), other)
    found = summarize(read_records([tmp_path])).studies
    assert [(study.metric_name, [row.name for row in study.strategies]) for study in found] == [
        ("accuracy_f1", ["teacher", "autodisc"]),
        ("f1", ["maxidisc"]),
    ]


def test_without_a_search_every_seed_and_every_teacher_is_shown(make, tmp_path):
    folders = [make.write(tmp_path / str(i), make.baseline(seed=i, metric=0.7 + i / 100)) for i in range(3)]
    found = summarize(read_records(folders)).studies
    assert [(study.seed, study.strategy("maxidisc").metric) for study in found] == [(0, 0.7), (1, 0.71), (2, 0.72)]
    make.write(tmp_path / "d", make.baseline("direct", seed=1))
    found = summarize(read_records([folders[0], tmp_path / "d"])).studies
    assert [(study.seed, [row.name for row in study.strategies]) for study in found] == [
        (0, ["maxidisc"]),
        (1, ["direct"]),
    ]
    for name in ("one", "two"):
        result = {"path": f"/t/{name}", "metric": 0.9, "metrics": {"accuracy": 0.9}, "floor": 0.5, "split": "test"}
        make.write(tmp_path / name, make.record("finetune", None, result, make.cost(finetune=(60.0, 1e12))))
    assert len(summarize(read_records([tmp_path / "one", tmp_path / "two"])).studies) == 2


def test_a_teacher_that_does_not_leave_the_floor_is_the_reason(make, tmp_path):
    collapsed = make.search([make.trial(0, 0.5, 0.76)])
    collapsed["result"]["teacher"] |= {"metric": 0.76, "feasible": False}
    make.write(tmp_path, collapsed)
    assert "The teacher, with 0.760, does not leave it either" in _one(tmp_path).verdict[0]


def test_runs_on_unlike_machines_are_told(make, tmp_path):
    other = make.baseline()
    other["environment"]["threads"] = 8
    make.write(tmp_path, make.search(), other)
    assert any("threads 2 against 8" in text for text in _one(tmp_path).caveats)


@pytest.mark.parametrize(
    ("ours", "word"), [(0.80, "within noise"), (0.82, "within noise"), (0.90, "better"), (0.70, "worse")]
)
def test_a_difference_below_two_combined_standard_errors_is_noise(ours, word):
    left = StrategyRow("autodisc", ours, 0.01, "test")
    assert compare(left, StrategyRow("direct", 0.80, 0.01, "test")).endswith(word)


def test_students_of_different_splits_are_not_compared():
    left = StrategyRow("autodisc", 0.8, 0.01, "test")
    assert compare(left, StrategyRow("direct", 0.8, 0.01, "validation")) is None


def test_a_candidate_that_was_stopped_early_is_told_of_and_neither_ranked_nor_called_failed(make, tmp_path):
    stopped = {
        **make.trial(7, 0.3, 0.7),
        "state": "PRUNED",
        **dict.fromkeys(("metric", "floor", "standard_error", "tradeoff", "feasible")),
        "stopped": {"metric": 0.7, "floor": 0.5, "standard_error": 0.02, "examples": 640},
    }
    study = _one(make.write(tmp_path, make.search([make.trial(0, 0.5, 0.8), stopped])), lam=0.0)
    assert study.reranked.sparsity == 0.5
    (text,) = (text for text in study.against if "stopped early" in text)
    assert text.startswith("1 candidate ")
    assert not any("failed" in text for text in study.against)
    (row,) = (row for row in trial_table(study).rows if row[0] == "0.3")
    assert row[-1] == "stopped early: 0.700 on 640 examples"


def test_the_class_that_f1_is_of_is_named(make, tmp_path):
    named = make.search()
    named["task"]["label_names"] = ["spam", "ham"]
    assert ("positive class", "ham") in _one(make.write(tmp_path / "one", named)).provenance
    assert "positive class" not in dict(_one(make.write(tmp_path / "two", make.search())).provenance)


def test_a_final_split_that_the_teacher_may_have_seen_is_a_caveat(make, tmp_path):
    doubtful = make.search()
    doubtful["task"]["final_is_doubtful"] = True
    for name, record, told in (("one", make.search(), False), ("two", doubtful, True)):
        make.write(tmp_path / name, record)
        assert any("may have been trained on it" in text for text in _one(tmp_path / name).caveats) == told
