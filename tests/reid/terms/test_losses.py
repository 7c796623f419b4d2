"""Every loss against a naive loop in plain Python floats."""

import math

import numpy as np
import pytest
import torch

from reid.terms import losses


def draw(seed, rows=9, width=5, classes=4):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=(rows, width)), dtype=torch.float32), torch.tensor(
        rng.integers(0, classes, rows)
    )


def softmax(row):
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def kl(target, found):
    return sum(p * math.log(p / q) for p, q in zip(target, found, strict=True) if p > 0)


def cosine(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True)) / math.sqrt(
        sum(a * a for a in left) * sum(b * b for b in right)
    )


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
    assert losses.batch_hard_triplet(embedding, labels, margin).item() == pytest.approx(
        total / len(rows), rel=1e-4, abs=1e-5
    )


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
    assert losses.logit_distillation(student, teacher, temperature).item() == pytest.approx(
        temperature**2 * total / len(student), rel=1e-4
    )
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


def affinities(rows, temperature=0.1):
    return [softmax([cosine(left, right) / temperature for right in rows]) for left in rows]


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_relation_distillation_in_reverse_asks_that_no_relation_be_made_up(temperature):
    student, teacher = draw(3)[0], draw(4, width=7)[0]
    new, old = affinities(student.double().tolist(), temperature), affinities(teacher.double().tolist(), temperature)
    wanted = sum(kl(target, found) for target, found in zip(new, old, strict=True)) / len(new)
    assert losses.relation_distillation(student, teacher, temperature, reverse=True).item() == pytest.approx(
        wanted, rel=1e-4
    )
    turned_round = losses.relation_distillation(teacher, student, temperature)
    assert losses.relation_distillation(student, teacher, temperature, reverse=True).item() == pytest.approx(
        turned_round.item(), rel=1e-5
    )
    assert losses.relation_distillation(student, teacher, temperature).item() != pytest.approx(wanted, rel=1e-2)
    assert losses.relation_distillation(student, student, reverse=True).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_set_triplet(seed):
    centres, labels = draw(seed, rows=8, classes=3)
    anchors = draw(seed + 10, rows=24)[0]
    anchor_labels = labels.repeat(3)
    total = 0.0
    for anchor, person in zip(anchors.double().tolist(), anchor_labels.tolist(), strict=True):
        positive, negative = 0.0, math.inf
        for centre, other in zip(centres.double().tolist(), labels.tolist(), strict=True):
            distance = math.dist(anchor, centre)
            if person == other:
                positive = max(positive, distance)
            else:
                negative = min(negative, distance)
        total += math.log1p(math.exp(positive - negative))
    assert losses.set_triplet(anchors, anchor_labels, centres, labels).item() == pytest.approx(
        total / len(anchors), rel=1e-4
    )


@pytest.mark.parametrize("seed", range(3))
def test_set_triplet_of_centres_with_themselves_is_the_batch_hard_one(seed):
    embedding, labels = draw(seed)
    assert losses.set_triplet(embedding, labels, embedding, labels).item() == pytest.approx(
        losses.batch_hard_triplet(embedding, labels).item()
    )


def test_in_a_set_triplet_the_own_centre_is_a_positive_and_an_anchor_without_a_negative_counts_as_zero():
    centres = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    anchors = torch.tensor([[0.0, 1.0]], requires_grad=True)
    wanted = math.log1p(math.exp(math.sqrt(2)))
    assert losses.set_triplet(anchors, torch.tensor([0]), centres, torch.tensor([0, 1])).item() == pytest.approx(
        wanted, rel=1e-4
    )
    alone = losses.set_triplet(anchors, torch.tensor([0]), centres, torch.tensor([0, 0]))
    alone.backward()
    assert alone.item() == 0
    assert torch.isfinite(anchors.grad).all()


def rectified(first, second, people, mean, met=None):
    """Methods §4.1, pair by pair; ``met`` counts which case a pair was."""
    size, out = len(people), []

    def threshold(row, i):
        negatives = [row[j] for j in range(size) if people[j] != people[i]]
        positives = [row[j] for j in range(size) if people[j] == people[i] and j != i]
        return max(negatives, default=0.0), min(positives, default=math.inf)

    for i in range(size):
        limits = [threshold(matrix[i], i) for matrix in (first, second)]
        row = []
        for j in range(size):
            values = [first[i][j], second[i][j]]
            same = people[i] == people[j]
            right = [
                i == j or value > highest if same else not value > lowest
                for value, (highest, lowest) in zip(values, limits, strict=True)
            ]
            if all(right):
                row.append(sum(values) / 2 if mean else values[0])
            elif any(right):
                row.append(values[right.index(True)])
            elif same:
                row.append(max(highest for highest, _ in limits))
            else:
                row.append(min(lowest for _, lowest in limits))
            if met is not None:
                met.add((same, *right))
        out.append([value / sum(row) for value in row])
    return out


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 4, 40])
def test_rectified_affinity(classes, mean):
    met = set()
    for seed in range(8):
        first, labels = draw(seed, rows=12, classes=classes)
        second = draw(seed + 50, rows=12)[0]
        old, new = losses.affinity(first, 0.5).exp(), losses.affinity(second, 0.5).exp()
        if seed % 2:  # any rows of probabilities, whose diagonal need not be the largest
            old, new = (torch.softmax(draw(seed + more, rows=12, width=12)[0], 1) for more in (100, 150))
        wanted = rectified(old.double().tolist(), new.double().tolist(), labels.tolist(), mean, met)
        found = losses.rectified_affinity(old, new, labels, mean=mean)
        assert torch.allclose(found, torch.tensor(wanted), atol=1e-6)
        assert torch.allclose(found.sum(1), torch.ones(12), atol=1e-5)
    if classes in (2, 4):
        assert len(met) == 8  # both, the first, the second, neither; of the same identity and of another


def test_affinities_that_are_right_are_left_as_they_are():
    labels = torch.tensor([0, 0, 1, 1])
    tidy = losses.affinity(torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])).exp()
    wrong = losses.affinity(torch.tensor([[1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [1.0, 0.0]])).exp()
    assert torch.allclose(losses.rectified_affinity(tidy, wrong, labels), tidy, atol=1e-6)
    assert torch.allclose(losses.rectified_affinity(tidy, tidy, labels, mean=True), tidy, atol=1e-6)
    assert not torch.allclose(losses.rectified_affinity(wrong, tidy, labels), wrong, atol=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_a_single_teacher_is_corrected_by_its_own_thresholds(seed):
    embedding, labels = draw(seed, rows=10)
    teacher = losses.affinity(embedding, 0.5).exp()
    wanted = torch.zeros(10, 10, dtype=torch.float64)
    for i in range(10):
        highest = max((teacher[i, j].item() for j in range(10) if labels[j] != labels[i]), default=0.0)
        lowest = min((teacher[i, j].item() for j in range(10) if labels[j] == labels[i] and j != i), default=math.inf)
        for j in range(10):
            value = teacher[i, j].item()
            wanted[i, j] = value if i == j else max(value, highest) if labels[i] == labels[j] else min(value, lowest)
    for mean in (False, True):
        found = losses.rectified_affinity(teacher, teacher, labels, mean=mean).double()
        assert torch.allclose(found, wanted / wanted.sum(1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 2]])
def test_the_target_and_its_gradient_stay_finite_without_positives_or_negatives(labels):
    student = draw(0, rows=4)[0].requires_grad_()
    target = losses.rectified_affinity(
        losses.affinity(draw(1, rows=4)[0]).exp(), losses.affinity(student).exp(), torch.tensor(labels)
    )
    loss = losses.affinity_divergence(target, student)
    loss.backward()
    assert torch.isfinite(target).all()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_affinity_divergence(temperature):
    student, target = draw(3)[0], torch.softmax(draw(4, width=9)[0], 1)
    target[0] = torch.eye(9)[4]  # a value of zero counts as zero
    found = affinities(student.double().tolist(), temperature)
    wanted = sum(kl(row, other) for row, other in zip(target.double().tolist(), found, strict=True)) / len(found)
    assert losses.affinity_divergence(target, student, temperature).item() == pytest.approx(wanted, rel=1e-4)
    assert losses.affinity_divergence(
        losses.affinity(student, temperature).exp(), student, temperature
    ).item() == pytest.approx(0, abs=1e-6)


def test_without_anything_to_correct_lstkc_is_relation_distillation():
    student, teacher = draw(3)[0], draw(4, width=7)[0]
    target = losses.rectified_affinity(losses.affinity(teacher).exp(), losses.affinity(student).exp(), torch.arange(9))
    assert losses.affinity_divergence(target, student).item() == pytest.approx(
        losses.relation_distillation(student, teacher).item(), rel=1e-4
    )


def test_embedding_distance():
    student, teacher = draw(3)[0], draw(4)[0]
    wanted = sum(
        1 - cosine(new, old) for new, old in zip(student.double().tolist(), teacher.double().tolist(), strict=True)
    ) / len(student)
    assert losses.embedding_distance(student, teacher).item() == pytest.approx(wanted, rel=1e-5)
    assert losses.embedding_distance(student, student * 3).item() == pytest.approx(0, abs=1e-6)
    assert losses.embedding_distance(student, -student).item() == pytest.approx(2, rel=1e-6)
