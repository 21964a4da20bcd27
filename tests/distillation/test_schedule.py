from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import get_linear_schedule_with_warmup

from autodisc.config import DistillationConfig, FinetuneConfig, RecoveryConfig
from autodisc.distillation.finetuning import finetune_classifier
from autodisc.distillation.losses import Totals
from autodisc.distillation.sandwich import Sandwich
from autodisc.distillation.schedule import (
    Distilled,
    distill_from,
    distill_phase,
    distill_sandwich,
    full_passes,
    phases,
    recover,
    recovery_steps,
)
from autodisc.models.layouts import embeddings
from autodisc.pruning.candidates import candidate, nested_candidates
from autodisc.pruning.supernet import Supernet, extract
from autodisc.pruning.surgery import own_memory
from autodisc.tasks.batches import batches, number_of_batches

STANDARD = ("bert", "distilbert", "electra", "roberta")  # their layers are computed by hand

SPARSITIES = (0.3, 0.5, 0.7, 0.9)
CONFIG = DistillationConfig(epochs=2, batch_size=8, lr=1e-3)


def phase(model, ranking, candidates, workshop, config, *, steps=6, stage="toy phase"):
    with workshop.teacher(model, config) as outputs:
        return distill_phase(
            extract(model, ranking, candidates[0]),
            [outputs],
            ranking,
            candidates,
            target=candidates[0],
            stage=stage,
            steps=steps,
            size=config.sandwich_size,
            config=config,
            workshop=workshop,
        )


def plain_distillation(student, teacher, task, runtime, config, *, steps, stage) -> list[float]:
    """Written out: one student, its own optimizer, hidden states from the first layer up and soft labels."""
    for module in embeddings(student):
        module.requires_grad_(False)
    trained = [p for p in student.parameters() if p.requires_grad]
    own_memory(trained)
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr)
    schedule = get_linear_schedule_with_warmup(optimizer, round(config.warmup * steps), steps)
    order = runtime.generator(stage, "order")
    a_pass = number_of_batches(task.train, config.batch_size)
    passes = (
        batch
        for _ in itertools.count()
        for batch in batches(task.train, batch_size=config.batch_size, pad_token_id=0, generator=order)
    )
    losses = []
    for batch in itertools.islice(passes, steps):
        real = batch.inputs["attention_mask"].bool()
        with torch.no_grad():
            target = teacher(**batch.inputs, output_hidden_states=True)
        out = student(**batch.inputs, output_hidden_states=True)
        pairs = zip(out.hidden_states[1:], target.hidden_states[1:], strict=True)
        hidden = [F.mse_loss(mine[real], theirs[real].half().float()) for mine, theirs in pairs]
        if task.kind == "regression":
            prediction = F.mse_loss(out.logits, target.logits)
        else:
            prediction = F.cross_entropy(out.logits, target.logits.softmax(-1))
        # Every example and token weighs the same in a pass, whatever batch it fell into.
        share_of_tokens, share_of_examples = (
            batch.tokens * a_pass / task.train.tokens,
            len(batch) * a_pass / len(task.train),
        )
        loss = (torch.stack(hidden).mean() * share_of_tokens + prediction * share_of_examples) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.clip)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("regression", [False, True], ids=["classes", "regression"])
@pytest.mark.parametrize("family", STANDARD)
def test_a_sandwich_of_one_candidate_is_plain_distillation(
    tiny, random_ranking, make_task, make_workshop, family, regression
):
    task = make_task(regression=regression)
    teacher = tiny(family, num_labels=task.num_labels)
    ranking = random_ranking(teacher)
    small = candidate(ranking, 0.6)
    workshop = make_workshop(task)
    distilled = phase(teacher, ranking, [small], workshop, CONFIG)
    student = extract(teacher, ranking, small)
    expected = plain_distillation(student, teacher, task, workshop.runtime, CONFIG, steps=6, stage="toy phase")
    found = [point["loss"] for point in workshop.curves["toy phase"] if point["metric"] is None]
    assert found == pytest.approx(expected, rel=1e-3)
    assert distilled.candidate == small


def test_a_size_of_one_ignores_the_other_candidates(tiny, random_ranking, make_workshop, same_weights):
    teacher = tiny()
    ranking = random_ranking(teacher)
    chain = list(nested_candidates(ranking, SPARSITIES).values())
    config = CONFIG.model_copy(update={"sandwich_size": 1})
    alone = phase(teacher, ranking, chain[:1], make_workshop(), config)
    among = phase(teacher, ranking, chain, make_workshop(), config)
    assert same_weights(alone.model, among.model)


def test_a_batch_of_eight_is_two_micro_batches_of_four(tiny, random_ranking, make_workshop):
    teacher = tiny()
    ranking = random_ranking(teacher)
    chain = list(nested_candidates(ranking, SPARSITIES).values())
    curves, models = [], []
    for accumulation in (1, 2):
        workshop = make_workshop()
        config = CONFIG.model_copy(update={"accumulation": accumulation})
        models.append(phase(teacher, ranking, chain, workshop, config, steps=3).model)
        curves.append([point["loss"] for point in workshop.curves["toy phase"] if point["metric"] is None])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    for (name, mine), theirs in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        if not name.endswith("key.bias"):  # zero gradient: Adam steps on rounding noise
            assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_frozen_embeddings_stay_bit_identical_and_free_ones_move(tiny, random_ranking, make_workshop, family):
    teacher = tiny(family)
    ranking = random_ranking(teacher)
    chain = list(nested_candidates(ranking, SPARSITIES).values())

    def moved(train_embeddings: bool) -> set[bool]:
        config = CONFIG.model_copy(update={"train_embeddings": train_embeddings})
        model = phase(teacher, ranking, chain, make_workshop(), config).model
        pairs = zip(embeddings(model), embeddings(teacher), strict=True)
        return {
            not torch.equal(mine, theirs)
            for ours, own in pairs
            for mine, theirs in zip(ours.parameters(), own.parameters(), strict=True)
        }

    assert moved(False) == {False}
    assert True in moved(True)


def test_the_fixed_schedule_gives_the_same_bits_for_the_same_seed(tiny, random_ranking, make_workshop, same_weights):
    teacher = tiny()
    ranking = random_ranking(teacher)
    chain = list(nested_candidates(ranking, SPARSITIES).values())
    runs = []
    for seed in (1, 1, 2):
        start = extract(teacher, ranking, chain[0])
        runs.append(distill_sandwich(teacher, start, ranking, chain, CONFIG, make_workshop(seed=seed)))
        assert same_weights(start, extract(teacher, ranking, chain[0]))
    for first, again, other in zip(*((run.assistant, run.student) for run in runs), strict=True):
        assert same_weights(first.model, again.model)
        assert first.metric == again.metric
        assert not same_weights(first.model, other.model)
    assert (runs[0].assistant.candidate, runs[0].student.candidate) == (chain[0], chain[-1])
    assert runs[0].between == ()


def test_a_cut_out_model_has_the_metric_that_chose_it(tiny, random_ranking, make_workshop):
    teacher = tiny()
    ranking = random_ranking(teacher)
    chain = list(nested_candidates(ranking, SPARSITIES).values())
    workshop = make_workshop()
    config = CONFIG.model_copy(update={"assistants": 2})
    made = distill_sandwich(teacher, extract(teacher, ranking, chain[0]), ranking, chain, config, workshop)
    for distilled in (made.assistant, *made.between, made.student):
        assert workshop.metric(distilled.model, distilled.candidate) == distilled.metric


def test_the_schedule_leaves_the_teacher_and_no_assistant_cache_behind(
    tiny, random_ranking, make_workshop, same_weights
):
    teacher = tiny()
    ranking = random_ranking(teacher)
    chain = list(nested_candidates(ranking, SPARSITIES).values())
    workshop = make_workshop()
    distill_sandwich(teacher, extract(teacher, ranking, chain[0]), ranking, chain, CONFIG, workshop)
    assert same_weights(teacher, tiny())
    assert [path.name for path in workshop.cache.iterdir()] == ["teacher"]
    assert list(workshop.curves) == ["teacher to assistant", "assistant to student"]


def test_every_step_trains_the_largest_and_the_smallest_and_others_without_replacement(
    tiny, random_ranking, make_workshop
):
    teacher = tiny()
    ranking = random_ranking(teacher)
    chain = list(nested_candidates(ranking, SPARSITIES).values())
    workshop = make_workshop()

    def drawn(size: int):
        sandwich = Sandwich(
            Supernet(teacher, ranking),
            [workshop.teacher(teacher, CONFIG)],
            chain,
            always=[chain[0], chain[-1]],
            size=size,
            config=CONFIG,
            runtime=workshop.runtime,
        )
        generator = np.random.default_rng(0)
        return [sandwich.draw(generator) for _ in range(30)]

    for size in range(1, 7):
        for step in drawn(size):
            assert len(step) == len(set(step)) == min(size, len(chain))
            assert step[: min(size, 2)] == [chain[0], chain[-1]][:size]
    assert {c for step in drawn(3) for c in step} == set(chain)


def test_recovery_lowers_the_distance_to_the_teacher_for_every_candidate(tiny, random_ranking, make_workshop):
    teacher = tiny()
    ranking = random_ranking(teacher)
    chain = list(nested_candidates(ranking, SPARSITIES).values())
    workshop = make_workshop()

    def distances(supernet) -> list[float]:
        (batch,) = batches(workshop.task.train, batch_size=100, pad_token_id=0, generator=None)
        found = []
        with torch.no_grad():
            target = teacher(**batch.inputs).logits.softmax(-1)
            for c in chain:
                with supernet.active(c) as model:
                    found.append(float(F.cross_entropy(model(**batch.inputs).logits, target)))
        return found

    with workshop.teacher(teacher, CONFIG) as outputs:
        recovered = recover(
            outputs,
            ranking,
            chain,
            steps=30,
            recovery=RecoveryConfig(lr=3e-3),
            distillation=CONFIG,
            workshop=workshop,
        )
    before = distances(Supernet(extract(teacher, ranking, chain[0]), ranking))
    assert all(new < old for new, old in zip(distances(recovered), before, strict=True))
    assert set(workshop.ledger.stages) == {"recovery", "teacher outputs"}


def test_recovery_takes_a_fraction_of_the_steps_of_the_assistants_phase(make_task):
    task = make_task(train=64)  # 8 batches of 8, 2 epochs: 16 steps
    assert recovery_steps(RecoveryConfig(fraction=0.5), CONFIG, task) == 8
    assert recovery_steps(RecoveryConfig(fraction=0.001), CONFIG, task) == 1
    assert recovery_steps(RecoveryConfig(steps=7, fraction=0.5), CONFIG, task) == 7


def scheduled(ranking, chain, size, last, **settings):
    config = DistillationConfig(epochs=2, sandwich_size=size, student_sandwich_size=last, **settings)
    return phases(ranking, chain, config)


def passes_by_scale(scheduled):
    return full_passes(scheduled, lambda candidate: candidate.scale)


def test_passes_by_scale_add_up_both_phases(random_ranking, tiny):
    ranking = random_ranking(tiny())
    chain = list(nested_candidates(ranking, (0.2, 0.4, 0.6, 0.9)).values())
    # Scales .8 .6 .4 .1; a third candidate is .6 or .4, so .5 on average; in phase 2 two of .6 and .4 join .1.
    expected = {
        (3, 3): 2 * (0.8 + 0.1 + 0.5) + 4 * (0.1 + 0.6 + 0.4),
        (2, 2): 2 * (0.8 + 0.1) + 4 * (0.1 + 0.5),
        (3, 1): 2 * (0.8 + 0.1 + 0.5) + 4 * 0.1,
        (1, 1): 2 * 0.8 + 4 * 0.1,
        (9, 9): 2 * (0.8 + 0.1 + 0.6 + 0.4) + 4 * (0.1 + 0.6 + 0.4),
    }
    for (size, last), passes in expected.items():
        assert passes_by_scale(scheduled(ranking, chain, size, last, student_epochs=4)) == pytest.approx(passes)
    bare = [chain[0], chain[-1]]
    assert passes_by_scale(scheduled(ranking, bare, 3, 3)) == pytest.approx(2 * (0.8 + 0.1) + 8 * 0.1)
    longer = scheduled(ranking, bare, 1, 1, assistants=2)  # .8 and √(.8·.1) share two passes, then eight of .1
    assert passes_by_scale(longer) == pytest.approx(0.8 + math.sqrt(0.08) + 8 * 0.1)


def test_the_student_learns_from_its_assistant_and_the_first_teacher(tiny, random_ranking, make_workshop, same_weights):
    teacher = tiny()
    ranking = random_ranking(teacher)
    chain = list(nested_candidates(ranking, SPARSITIES).values())
    assistant = Distilled(extract(teacher, ranking, chain[0]), chain[0], 0.5)
    (batch,) = batches(make_workshop().task.train, batch_size=100, pad_token_id=0, generator=None)
    losses, students = {}, []
    for guides in ("assistant", "both"):
        workshop = make_workshop()
        config = CONFIG.model_copy(update={"student_guides": guides, "student_epochs": 1})
        *_, phase = phases(ranking, chain, config)
        assert (phase.epochs, phase.size, phase.taught) == (1, 1, guides == "both")
        students.append(distill_from(assistant, teacher, ranking, phase, config, workshop).model)
        with workshop.teacher(assistant.model, config) as near, workshop.teacher(teacher, config) as far:
            used = [near, far] if guides == "both" else [near]
            supernet = Supernet(assistant.model, ranking)
            sandwich = Sandwich(
                supernet, used, [chain[-1]], always=[chain[-1]], size=1, config=config, runtime=workshop.runtime
            )
            totals = Totals(labels=float(len(batch)), tokens=float(batch.tokens))
            (term,) = sandwich.terms(batch, totals, [chain[-1]])
            losses[guides] = term.loss()
            alone = Sandwich(
                supernet, [far], [chain[-1]], always=[chain[-1]], size=1, config=config, runtime=workshop.runtime
            )
            (term,) = alone.terms(batch, totals, [chain[-1]])
            losses["teacher"] = term.loss()
    assert losses["both"] != losses["assistant"]
    assert_close(losses["both"], (losses["assistant"] + losses["teacher"]) / 2)
    assert not same_weights(*students)


def test_a_chain_of_assistants_descends_by_equal_ratios_at_the_same_number_of_steps(
    tiny, random_ranking, make_workshop
):
    teacher = tiny()
    ranking = random_ranking(teacher)
    chain = list(nested_candidates(ranking, (0.2, 0.6, 0.95)).values())
    found = scheduled(ranking, chain, 3, 3, assistants=3)
    scales = [phase.target.scale for phase in found]
    assert scales == pytest.approx([0.8, 0.8 * (1 / 16) ** (1 / 3), 0.8 * (1 / 16) ** (2 / 3), 0.05])
    for phase, after in itertools.pairwise(found):
        assert phase.target == phase.candidates[0]
        assert phase.candidates[-1] == chain[-1]
        assert set(after.candidates) < set(phase.candidates)
        assert all(below.fits_in(above) for above, below in itertools.pairwise(phase.candidates))
    assert chain[1] in found[0].candidates

    start = extract(teacher, ranking, chain[0])
    taken = []
    for assistants in (1, 2):
        workshop = make_workshop()
        config = CONFIG.model_copy(update={"assistants": assistants, "epochs": 2})
        made = distill_sandwich(teacher, start, ranking, chain, config, workshop)
        assert len(made.between) == assistants - 1
        taken.append(sum(curve[-1]["step"] for curve in workshop.curves.values()))
        assert list(workshop.curves)[-1] == "assistant to student"
    assert taken[0] == taken[1]


def test_fine_tuning_learns_a_task_that_can_be_learnt(tiny, make_task, make_workshop):
    task = make_task(train=64)
    model, workshop = tiny(layers=2), make_workshop(task)
    before = task.metric.floor(task.validation.labels)
    state = finetune_classifier(model, FinetuneConfig(epochs=6, batch_size=8, lr=3e-3), workshop)
    losses = [point["loss"] for point in state.curve if point["metric"] is None]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert state.best_metric > before
    assert workshop.ledger.stages["fine-tuning"].flops > 0


def test_fine_tuning_fits_a_regression(tiny, make_task, make_workshop):
    task = make_task(train=64, regression=True)
    state = finetune_classifier(
        tiny(layers=2, num_labels=1), FinetuneConfig(epochs=6, batch_size=8, lr=3e-3), make_workshop(task)
    )
    losses = [point["loss"] for point in state.curve if point["metric"] is None]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
