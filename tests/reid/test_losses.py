"""Every loss against a naive loop in plain Python floats."""

import math

import numpy as np
import pytest
import torch

from reid import losses


def draw(seed, rows=9, width=5, classes=4):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=(rows, width)), dtype=torch.float32), torch.tensor(rng.integers(0, classes, rows))


def softmax(row):
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def kl(target, found):
    return sum(p * math.log(p / q) for p, q in zip(target, found, strict=True) if p > 0)


def cosine(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True)) / math.sqrt(sum(a * a for a in left) * sum(b * b for b in right))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_cross_entropy(seed, smoothing):
    logits, labels = draw(seed)
    total = 0.0
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        for column, probability in enumerate(softmax(row)):
            wanted = smoothing / len(row) + (1 - smoothing) * (column == label)
            total -= wanted * math.log(probability)
    assert losses.cross_entropy(logits, labels, smoothing).item() == pytest.approx(total / len(labels), rel=1e-5)


def test_distances_are_euclidean_and_have_a_finite_gradient_at_zero():
    left, right = draw(5)[0], draw(6, rows=4)[0]
    wanted = [[math.dist(a, b) for b in right.double().tolist()] for a in left.double().tolist()]
    assert torch.allclose(losses.pairwise_distance(left, right), torch.tensor(wanted), atol=1e-5)
    whole = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    losses.pairwise_distance(whole, whole.detach()).sum().backward()
    assert torch.isfinite(whole.grad).all()


@pytest.mark.parametrize("margin", [None, 0.0, 0.3, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_batch_hard_triplet(seed, margin):
    embedding, labels = draw(seed)
    rows, people = embedding.double().tolist(), labels.tolist()
    total = 0.0
    for i, anchor in enumerate(rows):
        positive, negative = 0.0, math.inf
        for j, other in enumerate(rows):
            distance = math.dist(anchor, other)
            if people[i] == people[j]:
                positive = max(positive, distance)
            else:
                negative = min(negative, distance)
        gap = positive - negative
        total += math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin)
    assert losses.batch_hard_triplet(embedding, labels, margin).item() == pytest.approx(total / len(rows), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("margin", [None, 0.3])
def test_triplet_gradients_stay_finite_for_equal_crops_and_a_single_identity(margin):
    embedding = torch.ones(4, 3, requires_grad=True)
    for labels in (torch.tensor([0, 0, 1, 1]), torch.zeros(4, dtype=torch.long)):
        loss = losses.batch_hard_triplet(embedding, labels, margin)
        (gradient,) = torch.autograd.grad(loss, embedding)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
    assert losses.batch_hard_triplet(embedding, torch.zeros(4, dtype=torch.long), margin).item() == 0


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_logit_distillation(temperature):
    student, teacher = draw(1)[0], draw(2)[0]
    total = sum(
        kl(softmax([v / temperature for v in old]), softmax([v / temperature for v in new]))
        for new, old in zip(student.double().tolist(), teacher.double().tolist(), strict=True)
    )
    assert losses.logit_distillation(student, teacher, temperature).item() == pytest.approx(temperature**2 * total / len(student), rel=1e-4)
    turned_round = losses.logit_distillation(teacher, student, temperature).item()
    assert losses.logit_distillation(student, teacher, temperature).item() != pytest.approx(turned_round)
    assert losses.logit_distillation(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-6)


def test_relation_distillation():
    student, teacher = draw(3)[0], draw(4, width=7)[0]

    def relations(rows):
        return [softmax([cosine(left, right) / 0.1 for right in rows]) for left in rows]

    new, old = relations(student.double().tolist()), relations(teacher.double().tolist())
    wanted = sum(kl(target, found) for target, found in zip(old, new, strict=True)) / len(new)
    assert losses.relation_distillation(student, teacher, 0.1).item() == pytest.approx(wanted, rel=1e-4)
    turned = student @ torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))[0] * 3
    assert losses.relation_distillation(turned, student).item() == pytest.approx(0, abs=1e-5)


def test_relations_do_not_underflow_in_half_precision():
    embedding = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]).bfloat16()
    assert torch.isfinite(losses.affinity(embedding, 0.01)).all()
