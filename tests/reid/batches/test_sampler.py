"""P×K sampling is right for any mixture of identities and cameras."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.errors import DataError
from reid.batches.sampler import IdentitySampler


@st.composite
def domains(draw):
    counts = draw(st.lists(st.integers(1, 6), min_size=2, max_size=9))
    labels = np.repeat(np.arange(len(counts)), counts)
    cameras = np.array([draw(st.integers(0, 3)) for _ in labels])
    order = np.array(draw(st.permutations(range(len(labels)))))
    return labels[order], cameras[order]


@settings(max_examples=60, deadline=None)
@given(domains(), st.integers(1, 5), st.integers(0, 3), st.data())
def test_a_batch_holds_p_identities_with_k_crops_each(domain, instances, seed, data):
    labels, cameras = domain
    identities = data.draw(st.integers(2, len(np.unique(labels))))
    sampler = IdentitySampler(labels, cameras, identities=identities, instances=instances, seed=(seed,))
    for number in range(4):
        rows = sampler.batch(number)
        assert rows.shape == (identities * instances,)
        groups = rows.reshape(identities, instances)
        people = labels[groups]
        assert (people == people[:, :1]).all(), "the crops of an identity lie side by side"
        assert len(set(people[:, 0])) == identities, "no identity twice"
        for group in groups:
            own = np.flatnonzero(labels == labels[group[0]])
            times = Counter(group.tolist())
            assert max(times.values()) - min(times.get(int(row), 0) for row in own) <= 1, (
                "each crop once before any again"
            )
            first = group[: min(instances, len(set(cameras[own])))]
            assert len(set(cameras[first])) == len(first), "other cameras before the same one again"
        assert np.array_equal(rows, sampler.batch(number)), "a batch is a function of its number"


def counts(classes, identities, batches, seed):
    """How often each identity comes, which owns 1 to 30 crops."""
    labels = np.repeat(np.arange(classes), [1 + 7 * number % 30 for number in range(classes)])
    sampler = IdentitySampler(labels, np.zeros_like(labels), identities=identities, instances=2, seed=(seed,))
    seen = np.zeros(classes, int)
    for number in range(batches):
        seen[labels[sampler.batch(number)][::2]] += 1
    return seen


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
def test_full_rounds_of_whole_batches_show_every_identity_equally_often(identities, batches, rounds, seed):
    assert (counts(identities * batches, identities, batches * rounds, seed) == rounds).all()


@pytest.mark.parametrize(("classes", "identities"), [(7, 3), (20, 16), (17, 16), (50, 16)])
def test_rounds_that_run_on_into_the_next_are_even_on_average(classes, identities):
    seen = np.array([counts(classes, identities, classes * 10 // identities, seed) for seed in range(30)])
    wanted = (classes * 10 // identities) * identities / classes
    assert np.abs(seen - wanted).max() <= 6, "no identity is starved within ten rounds"
    assert np.abs(seen.mean(0) - wanted).max() < 1, "and none is preferred"


def test_batches_can_be_asked_for_in_any_order():
    labels = np.repeat(np.arange(11), 3)
    forwards, backwards = (IdentitySampler(labels, np.zeros_like(labels), identities=4, instances=2) for _ in range(2))
    wanted = [forwards.batch(number).tolist() for number in range(40)]
    assert [backwards.batch(number).tolist() for number in reversed(range(40))] == wanted[::-1]


def test_batches_differ_and_so_do_seeds():
    labels = np.repeat(np.arange(12), 4)
    one, other = (
        IdentitySampler(labels, np.zeros_like(labels), identities=4, instances=2, seed=(seed,)) for seed in (0, 1)
    )
    assert not np.array_equal(one.batch(0), one.batch(1))
    assert not np.array_equal(one.batch(0), other.batch(0))


def test_domain_uniform_batches_give_small_domains_their_share():
    labels = np.repeat(np.arange(44), 2)
    groups = [0] * 40 + [1] * 4
    sampler = IdentitySampler(labels, np.zeros_like(labels), identities=4, instances=1, groups=groups)
    small = sum((labels[sampler.batch(number)] >= 40).sum() for number in range(200)) / 800
    assert 0.35 < small < 0.55


def test_domains_of_equal_size_get_equal_shares_and_no_identity_comes_twice():
    labels = np.repeat(np.arange(30), 2)
    groups = [0] * 10 + [1] * 10 + [2] * 10
    sampler = IdentitySampler(labels, np.zeros_like(labels), identities=6, instances=2, groups=groups)
    batches = np.stack([labels[sampler.batch(number)][::2] for number in range(300)])
    assert all(len(set(row.tolist())) == 6 for row in batches)
    shares = np.bincount(batches.ravel() // 10) / batches.size
    assert np.abs(shares - 1 / 3).max() < 0.04


def test_one_crop_of_each_domain_at_a_time_is_uniform_over_domains_of_any_size():
    """With a single identity drawn per batch nothing is used up, so the shares are exactly even."""
    labels = np.arange(52)
    groups = [0] * 40 + [1] * 10 + [2] * 2
    sampler = IdentitySampler(labels, np.zeros_like(labels), identities=1, instances=1, groups=groups)
    drawn = np.array(groups)[[sampler.batch(number)[0] for number in range(1500)]]
    assert np.abs(np.bincount(drawn) / 1500 - 1 / 3).max() < 0.05


def test_too_few_identities_say_what_to_set():
    with pytest.raises(DataError, match=r"needs 8 identities and the domain has 2; set train.identities=2"):
        IdentitySampler(np.array([0, 0, 1]), np.zeros(3, np.int64), identities=8, instances=2)
