from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from autodisc.config import DistillationConfig
from autodisc.distillation.schedule import distill_sandwich
from autodisc.distillation.training import steps_for
from autodisc.errors import TrainingError
from autodisc.models.inference import forward_macs
from autodisc.pruning.candidates import candidate
from autodisc.pruning.supernet import extract
from autodisc.search import baselines
from autodisc.search.baselines import (
    MultiTrial,
    baseline_result,
    chain_from,
    distill_direct,
    fill_cache,
    projected_flops,
    run_maxidisc,
)

CONFIG = DistillationConfig(epochs=1, batch_size=16, lr=1e-3)
POINTS = (0.3, 0.5, 0.7)


@pytest.fixture
def maxidisc(tiny, random_ranking, make_workshop):
    """Run maxidisc over ``points``; (kept pairs, result, workshop)."""
    teacher = tiny(layers=2)
    ranking = random_ranking(teacher)

    def call(study, candidates, *, seed=0, jobs=1, work=MultiTrial, **workshop_settings):
        kept = []
        workshop = make_workshop(seed=seed, **workshop_settings)
        run_maxidisc(
            study,
            work(teacher, ranking, candidates, candidate(ranking, 0.9), CONFIG),
            workshop,
            lambda *pair: kept.append(pair),
            jobs=jobs,
        )
        return kept, baseline_result(study, storage="here"), workshop

    return call


@pytest.fixture
def candidates(tiny, random_ranking):
    ranking = random_ranking(tiny(layers=2))
    return {s: candidate(ranking, s) for s in POINTS}


def test_a_maxidisc_trial_is_the_fixed_distillation_from_the_same_start(
    bench, maxidisc, candidates, tiny, random_ranking, make_workshop, same_weights
):
    teacher = tiny(layers=2)
    ranking = random_ranking(teacher)
    one = {0.7: candidates[0.7]}
    ((assistant, student),), result, _ = maxidisc(bench.open(), one, seed=3)
    chain = chain_from(one[0.7], one.values(), candidate(ranking, 0.9))
    start = extract(teacher, ranking, chain[0])
    expected = distill_sandwich(teacher, start, ranking, chain, CONFIG, make_workshop(seed=3))
    assert same_weights(assistant.model, expected.assistant.model)
    assert same_weights(student.model, expected.student.model)
    assert (result["best"]["assistant_metric"], result["best"]["student_metric"]) == (
        expected.assistant.metric,
        expected.student.metric,
    )


def test_every_assistant_is_tried_once_and_the_best_student_kept(bench, maxidisc, candidates):
    kept, result, workshop = maxidisc(bench.open(), candidates)
    assert [row["sparsity"] for row in result["trials"]] == list(POINTS)
    metrics = [row["student_metric"] for row in result["trials"]]
    assert result["best"]["student_metric"] == max(metrics) == kept[-1][1].metric
    assert sum(row["flops"] for row in result["trials"]) == pytest.approx(workshop.ledger.total.flops)
    assert sum(row["seconds"] for row in result["trials"]) <= workshop.ledger.total.seconds * 1.001


def test_an_interrupted_baseline_runs_only_what_is_left(bench, maxidisc, candidates, make_listener):
    _, whole, all_of_it = maxidisc(bench.open("whole"), candidates)
    with pytest.raises(KeyboardInterrupt):
        maxidisc(bench.open(), candidates, progress=make_listener("maxidisc trials", after=2))
    resumed = bench.open()
    _, result, workshop = maxidisc(resumed, candidates)
    assert [t.state.name for t in resumed.trials] == ["COMPLETE"] * 3
    assert 0 < workshop.ledger.total.flops < all_of_it.ledger.total.flops
    numbers = [(row["sparsity"], row["assistant_metric"], row["student_metric"]) for row in result["trials"]]
    assert numbers == [(row["sparsity"], row["assistant_metric"], row["student_metric"]) for row in whole["trials"]]


@pytest.mark.services  # processes of its own
def test_two_processes_make_what_one_makes_and_what_fails_fails_alone(
    bench, maxidisc, candidates, make_runtime, same_weights
):
    class Failing(MultiTrial):
        def __call__(self, workshop, sparsity):
            if sparsity == 0.5:
                raise TrainingError("the loss is nan")
            return super().__call__(workshop, sparsity)

    whole, expected, alone = maxidisc(bench.open("one"), candidates, work=Failing)
    shutil.rmtree(alone.cache)
    runtime = replace(make_runtime(), threads=2)
    kept, found, workshop = maxidisc(bench.open(), candidates, jobs=2, work=Failing, runtime=runtime)
    names = ("sparsity", "state", "assistant_metric", "student_metric")
    assert [[row[name] for name in names] for row in found["trials"]] == [
        [row[name] for name in names] for row in expected["trials"]
    ]
    assert [row["state"] for row in found["trials"]] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert found["best"]["sparsity"] == kept[-1][0].candidate.sparsity == expected["best"]["sparsity"]
    assert all(same_weights(a.model, b.model) for a, b in zip(kept[-1], whole[-1], strict=True))
    assert workshop.ledger.total.flops == pytest.approx(alone.ledger.total.flops)
    outputs = [own.ledger.stages["teacher outputs"].tokens for own in (workshop, alone)]
    assert outputs[0] == outputs[1]  # made once for all
    assert sum(row["seconds"] or 0 for row in found["trials"]) <= workshop.ledger.total.seconds
    assert workshop.curves.keys() == alone.curves.keys()


def test_a_failed_trial_fails_alone(bench, maxidisc, candidates, monkeypatch):
    def bad(teacher, assistant, ranking, chain, *others):
        if chain[0].sparsity == 0.5:
            raise TrainingError("the loss is nan")
        return distill_sandwich(teacher, assistant, ranking, chain, *others)

    monkeypatch.setattr(baselines, "distill_sandwich", bad)
    _, result, _ = maxidisc(bench.open(), candidates)
    assert [(row["sparsity"], row["state"]) for row in result["trials"]] == [
        (0.3, "COMPLETE"),
        (0.5, "FAIL"),
        (0.7, "COMPLETE"),
    ]
    assert result["best"]["sparsity"] in (0.3, 0.7)


def test_when_all_trials_fail_there_is_no_best(bench, maxidisc, candidates, monkeypatch):
    def bad(*_):
        raise TrainingError("the loss is nan")

    monkeypatch.setattr(baselines, "distill_sandwich", bad)
    kept, result, _ = maxidisc(bench.open(), candidates)
    assert (kept, result["best"], len(result["trials"])) == ([], None, 3)


def test_a_tie_between_students_goes_to_the_sparser_assistant_whose_pair_is_kept(
    bench, maxidisc, candidates, monkeypatch
):
    def tied(*others):
        made = distill_sandwich(*others)
        return replace(made, student=replace(made.student, metric=0.5))

    monkeypatch.setattr(baselines, "distill_sandwich", tied)
    kept, result, _ = maxidisc(bench.open(), candidates)
    assert result["best"]["sparsity"] == kept[-1][0].candidate.sparsity == 0.7


def test_direct_takes_the_compute_of_a_mean_maxidisc_trial(candidates, tiny, random_ranking, make_task, make_workshop):
    teacher = tiny(layers=2)
    ranking = random_ranking(teacher)
    task = make_task(train=48)
    workshop = make_workshop(task)
    student = candidate(ranking, 0.9)
    distilled = distill_direct(teacher, ranking, candidates, student, CONFIG, workshop)
    # Scales .7 .5 .3 and .1. A pass of the sandwich from .7: .7 + .1 + (.5 + .3) / 2; from .5: .5 + .1 + .3; from .3:
    # .3 + .1; and four of the student alone, .1 each.
    ratio = ((0.7 + 0.1 + 0.4) + 0.9 + 0.4 + 3 * 4 * 0.1) / 3 / 0.1
    steps = round(steps_for(task.train, 16, 1) * ratio)
    assert steps == 37
    assert workshop.curves["teacher to student"][-1]["step"] == steps
    assert distilled.candidate == student


def test_direct_and_the_projection_count_a_vocabulary_s_head_which_does_not_shrink(
    tiny, random_ranking, make_task, make_workshop, monkeypatch
):
    teacher = tiny("llama", layers=2, head="causal")
    ranking = random_ranking(teacher)
    train = make_task(train=48).train
    tokens = round(train.tokens / 48)
    assistant, student = candidate(ranking, 0.5), candidate(ranking, 0.9)
    large, small = (
        forward_macs(extract(teacher, ranking, kept), tokens) / forward_macs(teacher, tokens)
        for kept in (assistant, student)
    )
    assert small > 2 * student.scale
    taken = []
    monkeypatch.setattr(baselines, "distill_phase", lambda *_, steps, **__: taken.append(steps))
    distill_direct(teacher, ranking, {0.5: assistant}, student, CONFIG, make_workshop(make_task(train=48)))
    passes = large + small + 4 * small
    assert taken == [steps_for(train, 16, passes / small)]
    projected = projected_flops(teacher, ranking, {0.5: assistant}, student, CONFIG, train)
    assert projected == pytest.approx(2 * forward_macs(teacher, tokens) * 48 * (1 + 3 * passes))


def test_teacher_outputs_are_made_in_halves_where_memory_is_short(candidates, tiny, random_ranking, make_workshop):
    teacher = tiny(layers=2)
    workshop, seen = make_workshop(), []

    def refuse(module, arguments, named):
        seen.append(len(named["input_ids"]))
        if seen[-1] > 4:
            raise MemoryError

    ranking = random_ranking(teacher)
    with teacher.register_forward_pre_hook(refuse, with_kwargs=True):
        fill_cache(MultiTrial(teacher, ranking, candidates, candidate(ranking, 0.9), CONFIG), workshop)
    assert sum(rows for rows in seen if rows <= 4) >= len(workshop.task.train)


def test_a_student_of_another_architecture_stands_in_no_sandwich_of_that_mean_trial(
    candidates, tiny, random_ranking, make_task, make_workshop
):
    teacher, into = tiny(layers=2), tiny("distilbert", layers=1)
    ranking = random_ranking(teacher)
    task = make_task(train=48)
    workshop, student = make_workshop(task), candidate(ranking, 0.9)
    config = CONFIG.model_copy(update={"student_sandwich_size": 3})
    distill_direct(teacher, ranking, candidates, student, config, workshop, into)
    ratio = ((0.7 + 0.1 + 0.4) + 0.9 + 0.4 + 3 * 4 * 0.1) / 3 / 0.1
    assert workshop.curves["teacher to student"][-1]["step"] == round(steps_for(task.train, 16, 1) * ratio)


def test_a_chain_runs_from_the_assistant_to_the_student(candidates, tiny, random_ranking):
    student = candidate(random_ranking(tiny(layers=2)), 0.9)
    assert [c.sparsity for c in chain_from(candidates[0.5], candidates.values(), student)] == [0.5, 0.7, 0.9]
    assert [c.sparsity for c in chain_from(candidates[0.7], candidates.values(), student)] == [0.7, 0.9]
