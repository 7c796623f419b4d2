"""Prototype-based knowledge transfer against plain loops, and what leaves it as it is."""

import math

import numpy as np
import pytest
import torch

from reid.terms.losses import prototype_transfer


def vectors(seed, rows, width=5):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, width)))


def softmax(row):
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def cosine(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True)) / math.sqrt(
        sum(a * a for a in left) * sum(b * b for b in right)
    )


def related(rows, temperature):
    return [softmax([cosine(left, right) / temperature for right in rows]) for left in rows]


def both_relations(centre, drawn, assign, relate):
    rows, old = centre.tolist(), drawn.tolist()
    soft = [softmax([cosine(row, other) / assign for other in old]) for row in rows]
    return related(soft, relate), related(rows, relate)


def divergence(target, found):
    return sum(
        p * math.log(p / q) for wanted, row in zip(target, found, strict=True) for p, q in zip(wanted, row, strict=True)
    ) / len(target)


@pytest.mark.parametrize(("assign", "relate"), [(0.1, 0.1), (0.5, 0.1), (0.1, 1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_prototype_transfer(seed, assign, relate):
    centre, drawn = vectors(seed, 6), vectors((seed, 1), 9)
    wanted = divergence(*both_relations(centre, drawn, assign, relate))
    for detach in (False, True):
        assert prototype_transfer(centre, drawn, assign=assign, relate=relate, detach=detach).item() == pytest.approx(
            wanted, rel=1e-9
        )
    assert prototype_transfer(centre.float(), drawn.float(), assign=assign, relate=relate).item() == pytest.approx(
        wanted, rel=1e-3, abs=1e-5
    )


def test_the_published_temperatures_are_the_default():
    centre, drawn = vectors(0, 6), vectors(1, 9)
    assert prototype_transfer(centre, drawn).item() == prototype_transfer(centre, drawn, assign=0.1, relate=0.1).item()


def test_it_is_zero_where_the_relations_agree():
    crossed = torch.eye(4, 6, dtype=torch.float64)
    assert prototype_transfer(crossed, crossed, assign=0.005).item() == pytest.approx(
        0, abs=1e-9
    )  # each crop belongs to one old identity
    alike = vectors(0, 1).expand(4, 5)
    assert prototype_transfer(alike, vectors(1, 7)).item() == pytest.approx(
        0, abs=1e-9
    )  # all related to all, on both sides


@pytest.mark.parametrize("seed", range(10))
def test_it_is_above_zero_where_they_do_not(seed):
    centre, drawn = vectors(seed, 4), vectors((seed, 1), 6)
    target, found = both_relations(centre, drawn, 0.1, 0.1)
    assert np.abs(np.array(target) - np.array(found)).max() > 1e-3
    assert prototype_transfer(centre, drawn).item() > 1e-6


def test_a_common_rotation_changes_nothing_and_neither_does_length():
    centre, drawn = vectors(0, 6), vectors(1, 9)
    rotation = torch.linalg.qr(vectors(2, 5))[0]
    wanted = prototype_transfer(centre, drawn).item()
    assert prototype_transfer(centre @ rotation, drawn @ rotation).item() == pytest.approx(wanted, rel=1e-9)
    assert prototype_transfer(centre @ rotation, drawn).item() != pytest.approx(wanted, rel=1e-3)
    assert prototype_transfer(centre * torch.rand(6, 1) * 9, drawn * 0.01).item() == pytest.approx(wanted, rel=1e-9)


def test_the_order_of_old_identities_and_of_crops_says_nothing():
    centre, drawn = vectors(0, 6), vectors(1, 9)
    shuffled = prototype_transfer(centre.flip(0), drawn[torch.randperm(9, generator=torch.Generator().manual_seed(0))])
    assert shuffled.item() == pytest.approx(prototype_transfer(centre, drawn).item(), rel=1e-9)


def test_the_gradient_flows_through_both_sides_and_is_right():
    centre, drawn = vectors(0, 4).requires_grad_(), vectors(1, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda c, g: prototype_transfer(c, g, assign=0.5, relate=0.5), (centre, drawn))


def test_detach_stops_the_targets_gradient_and_only_that():
    centre, drawn = vectors(0, 6).requires_grad_(), vectors(1, 9).requires_grad_()
    whole = torch.autograd.grad(prototype_transfer(centre, drawn), (centre, drawn))
    one_side = torch.autograd.grad(prototype_transfer(centre, drawn, detach=True), (centre, drawn), allow_unused=True)
    target = torch.tensor(both_relations(centre.detach(), drawn.detach(), 0.1, 0.1)[0], dtype=torch.float64)
    unit = centre / centre.norm(dim=1, keepdim=True)
    wanted = torch.autograd.grad(-(target * torch.log_softmax(unit @ unit.T / 0.1, 1)).sum() / 6, centre)[0]
    assert torch.allclose(one_side[0], wanted)
    assert one_side[1] is None
    assert not torch.allclose(whole[0], wanted, rtol=1e-2)
    assert whole[1].abs().max() > 0


def test_one_crop_or_one_old_identity_is_no_knowledge_and_no_nan():
    for centre, drawn in ((vectors(0, 1), vectors(1, 9)), (vectors(0, 6).float(), vectors(1, 1).float())):
        centre.requires_grad_()
        loss = prototype_transfer(centre, drawn)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(centre.grad).all()
    assert prototype_transfer(vectors(0, 1), vectors(1, 9)).item() == 0
