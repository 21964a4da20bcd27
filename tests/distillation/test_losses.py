"""Each loss against a plain reference written here, row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from autodisc.config import DistillationConfig
from autodisc.distillation.losses import (
    Likeliest,
    TeacherOutput,
    Totals,
    distillation_loss,
    hidden_depths,
    hidden_loss,
    prediction_loss,
    soft_cross_entropy,
)
from autodisc.models.losses import label_count, label_loss
from autodisc.tasks.splits import IGNORED

LENGTHS = (5, 2, 7, 1)
B, T, DEPTHS, C, V = 4, 7, 3, 6, 3


@pytest.fixture
def drawn():
    """(student logits, student hidden, teacher logits, teacher hidden (B, T), mask, labels), random."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    mask = torch.arange(T)[None] < torch.tensor(LENGTHS)[:, None]
    labels = torch.tensor([0, 2, 1, 1])
    return random(B, V), list(random(DEPTHS, B, T, C)), random(B, V), random(DEPTHS, B, T, C), mask, labels


def by_token(hidden: torch.Tensor) -> torch.Tensor:
    """(DEPTHS, B, T, C) -> (B, T, DEPTHS, C)."""
    return hidden.permute(1, 2, 0, 3)


def reference_hidden(student, teacher, lengths=LENGTHS) -> float:
    squares = [
        float((student[d][b, t, c] - teacher[d][b, t, c]) ** 2)
        for d in range(DEPTHS)
        for b in range(len(lengths))
        for t in range(lengths[b])
        for c in range(C)
    ]
    return math.fsum(squares) / len(squares)


def reference_soft(student, teacher, temperature) -> float:
    total = 0.0
    for row, target in zip(student.double().numpy(), teacher.double().numpy(), strict=True):
        p = np.exp(target / temperature) / np.exp(target / temperature).sum()
        q = np.exp(row / temperature) / np.exp(row / temperature).sum()
        total -= (p * np.log(q)).sum() * temperature**2
    return total / len(student)


def loss_of(drawn, *, config=None, rows=slice(None), totals=None, pad=0) -> torch.Tensor:
    logits, hidden, teacher_logits, teacher_hidden, mask, labels = drawn
    hidden = [F.pad(states[rows], (0, 0, 0, pad), value=9.0) for states in hidden]
    teacher = TeacherOutput(teacher_logits[rows], by_token(F.pad(teacher_hidden[:, rows], (0, 0, 0, pad))))
    return distillation_loss(
        logits[rows],
        hidden,
        teacher=teacher,
        labels=labels[rows],
        mask=F.pad(mask[rows], (0, pad)),
        totals=totals or Totals(B, sum(LENGTHS)),
        config=config or DistillationConfig(),
    )


def test_the_hidden_loss_is_the_mean_square_over_real_tokens_only(drawn):
    _, student, _, teacher, mask, _ = drawn
    found = hidden_loss(student, by_token(teacher), mask, sum(LENGTHS))
    assert float(found) == pytest.approx(reference_hidden(student, teacher), rel=1e-5)
    student = [states.masked_fill(~mask[..., None], 1e6) for states in student]
    assert_close(hidden_loss(student, by_token(teacher), mask, sum(LENGTHS)), found)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_prediction_loss_is_the_soft_cross_entropy_at_a_temperature(drawn, temperature):
    student, _, teacher, _, _, _ = drawn
    found = soft_cross_entropy(student, teacher, temperature, B)
    assert float(found) == pytest.approx(reference_soft(student, teacher, temperature), rel=1e-5)


def test_the_soft_cross_entropy_is_least_where_student_and_teacher_agree(drawn):
    teacher = drawn[2]
    student = teacher.clone().requires_grad_()
    soft_cross_entropy(student, teacher, 2.0, B).backward()
    assert_close(student.grad, torch.zeros(B, V), atol=1e-6, rtol=0)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_whole_is_half_hidden_half_prediction_and_a_part_of_gold_labels(drawn, weight):
    student, hidden, teacher, teacher_hidden, _, labels = drawn
    config = DistillationConfig(temperature=2.0, hard_label_weight=weight)
    soft = (reference_hidden(hidden, teacher_hidden) + reference_soft(student, teacher, 2.0)) / 2
    log_q = torch.log_softmax(student.double(), -1)
    hard = -math.fsum(float(log_q[b, label]) for b, label in enumerate(labels)) / B
    assert float(loss_of(drawn, config=config)) == pytest.approx((1 - weight) * soft + weight * hard, rel=1e-5)


def test_without_hidden_states_the_prediction_loss_stands_alone(drawn):
    student, _, teacher, _, mask, labels = drawn
    found = distillation_loss(
        student,
        [],
        teacher=TeacherOutput(teacher, None),
        labels=labels,
        mask=mask,
        totals=Totals(B, sum(LENGTHS)),
        config=DistillationConfig(),
    )
    assert float(found) == pytest.approx(reference_soft(student, teacher, 1.0), rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_regression_takes_the_squared_error_of_the_output(drawn, weight):
    student, hidden, teacher, teacher_hidden, mask, _ = drawn
    labels = torch.tensor([0.5, -1.0, 2.0, 0.0])
    found = distillation_loss(
        student[:, :1],
        hidden,
        teacher=TeacherOutput(teacher[:, :1], by_token(teacher_hidden)),
        labels=labels,
        mask=mask,
        totals=Totals(B, sum(LENGTHS)),
        config=DistillationConfig(hard_label_weight=weight, temperature=3.0),
    )
    output = sum(float(student[b, 0] - teacher[b, 0]) ** 2 for b in range(B)) / B
    gold = sum(float(student[b, 0] - labels[b]) ** 2 for b in range(B)) / B
    soft = (reference_hidden(hidden, teacher_hidden) + output) / 2
    assert float(found) == pytest.approx((1 - weight) * soft + weight * gold, rel=1e-5)
    assert float(label_loss(student[:, :1], labels, B)) == pytest.approx(gold, rel=1e-5)


def test_padding_does_not_change_the_loss(drawn):
    assert_close(loss_of(drawn, pad=11), loss_of(drawn))


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_micro_batches_add_up_to_the_whole(drawn, cut):
    config = DistillationConfig(hard_label_weight=0.2)
    parts = [loss_of(drawn, config=config, rows=rows) for rows in (slice(cut), slice(cut, None))]
    assert_close(sum(parts), loss_of(drawn, config=config))


@pytest.mark.parametrize(
    ("layers", "count", "frozen", "trained"),
    [
        (6, 7, (1, 2, 3, 4, 5, 6), (0, 1, 2, 3, 4, 5, 6)),
        (12, 7, (2, 4, 6, 8, 10, 12), (0, 2, 4, 6, 8, 10, 12)),
        (2, 7, (1, 2), (0, 1, 2)),
        (6, 2, (6,), (0, 6)),
        (6, 1, (6,), (6,)),
        (6, 0, (), ()),
    ],
)
def test_depths_are_evenly_spaced_and_leave_out_frozen_embeddings(layers, count, frozen, trained):
    assert hidden_depths(layers, count, embeddings_differ=False) == frozen
    assert hidden_depths(layers, count, embeddings_differ=True) == trained


WORDS, K = 40, 6  # of a vocabulary, and how many of them are kept


@pytest.fixture
def spoken():
    """(student, teacher) logits (B, T, WORDS), and the labels (B, T) of tokens."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, WORDS, (B, T), generator=generator)
    labels[torch.arange(T)[None] >= torch.tensor(LENGTHS)[:, None]] = IGNORED
    labels[0, 2] = IGNORED  # a word's second token
    student, teacher = (2 * torch.randn(B, T, WORDS, generator=generator) for _ in range(2))
    return student, teacher, labels


def reference_likeliest(student, teacher, labels, k, temperature) -> float:
    total, count = 0.0, 0
    for b, t in (labels != IGNORED).nonzero().tolist():
        p = np.exp(teacher[b, t].double().numpy() / temperature)
        q = np.exp(student[b, t].double().numpy() / temperature)
        p, q = p / p.sum(), q / q.sum()
        top = np.argsort(-p)[:k]
        total += sum(p[i] * math.log(p[i] / q[i]) for i in top)
        rest = 1 - p[top].sum(), 1 - q[top].sum()
        total += rest[0] * math.log(rest[0] / rest[1]) if rest[0] > 1e-9 else 0.0
        count += 1
    return total * temperature**2 / count


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("k", [1, K, WORDS - 1])
def test_of_a_vocabulary_all_but_the_likeliest_are_one_class(spoken, k, temperature):
    student, teacher, labels = spoken
    said, count = Likeliest.of(teacher, k, temperature), float((labels != IGNORED).sum())
    assert_close(said.log_probabilities.exp().sum(-1), torch.ones(B, T))
    found = prediction_loss(student, said, labels, temperature=temperature, count=count)
    assert float(found) == pytest.approx(reference_likeliest(student, teacher, labels, k, temperature), rel=1e-4)


def test_merging_classes_never_adds_divergence_and_keeping_all_has_the_cross_entropys_gradient(spoken):
    student, teacher, labels = spoken
    student.requires_grad_(True)

    def loss(said):
        return prediction_loss(student, said, labels, temperature=2.0, count=10.0)

    values = [loss(Likeliest.of(teacher, k, 2.0)).item() for k in (1, 3, K, 20, WORDS)]
    assert values == sorted(values)
    assert values[0] >= 0
    for said in (Likeliest.of(student.detach(), K, 2.0), Likeliest.of(student.detach(), WORDS, 2.0)):
        assert loss(said).item() == pytest.approx(0.0, abs=1e-5)
    (whole,) = torch.autograd.grad(loss(Likeliest.of(teacher, WORDS, 2.0)), student)
    (dense,) = torch.autograd.grad(loss(teacher), student)
    assert_close(whole, dense, rtol=1e-4, atol=1e-6)


def test_tokens_without_a_label_are_of_no_account(spoken):
    student, teacher, labels = spoken
    other = student.clone()
    other[labels == IGNORED] += 5.0
    for said in (teacher, Likeliest.of(teacher, K, 1.0)):
        one, two = (prediction_loss(s, said, labels, temperature=1.0, count=7.0) for s in (student, other))
        assert_close(one, two)
    assert_close(label_loss(student, labels, 7.0), label_loss(other, labels, 7.0))
    real = labels != IGNORED
    gold = F.cross_entropy(student[real], labels[real])
    assert_close(label_loss(student, labels, label_count(labels)), gold)


@pytest.mark.parametrize("k", [K, WORDS])
def test_micro_batches_of_tokens_add_up_to_the_whole(spoken, k):
    student, teacher, labels = spoken
    totals, config = Totals(int((labels != IGNORED).sum()), sum(LENGTHS)), DistillationConfig(hard_label_weight=0.3)

    def loss(rows: slice) -> torch.Tensor:
        said = teacher[rows] if k == WORDS else Likeliest.of(teacher[rows], k, 1.0)
        return distillation_loss(
            student[rows],
            [],
            teacher=TeacherOutput(said, None),
            labels=labels[rows],
            mask=labels[rows] != IGNORED,
            totals=totals,
            config=config,
        )

    assert_close(loss(slice(1)) + loss(slice(1, 3)) + loss(slice(3, None)), loss(slice(None)))
