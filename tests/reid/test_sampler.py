"""P×K sampling is right for any mixture of identities and cameras."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.errors import DataError
from reid.sampler import IdentitySampler


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
            assert max(times.values()) - min(times.get(int(row), 0) for row in own) <= 1, "each crop once before any again"
            first = group[: min(instances, len(set(cameras[own])))]
            assert len(set(cameras[first])) == len(first), "other cameras before the same one again"
        assert np.array_equal(rows, sampler.batch(number)), "a batch is a function of its number"


def test_every_identity_comes_equally_often():
    labels = np.repeat(np.arange(7), [1, 9, 2, 2, 5, 1, 30])
    sampler = IdentitySampler(labels, np.zeros_like(labels), identities=3, instances=2)
    seen = Counter(int(person) for number in range(7 * 10) for person in labels[sampler.batch(number)][::2])
    assert max(seen.values()) - min(seen.values()) <= 0.35 * 30
    assert sum(seen.values()) == 210


def test_batches_differ_and_so_do_seeds():
    labels = np.repeat(np.arange(12), 4)
    one, other = (IdentitySampler(labels, np.zeros_like(labels), identities=4, instances=2, seed=(seed,)) for seed in (0, 1))
    assert not np.array_equal(one.batch(0), one.batch(1))
    assert not np.array_equal(one.batch(0), other.batch(0))


def test_domain_uniform_batches_give_small_domains_their_share():
    labels = np.repeat(np.arange(44), 2)
    groups = [0] * 40 + [1] * 4
    sampler = IdentitySampler(labels, np.zeros_like(labels), identities=4, instances=1, groups=groups)
    small = sum((labels[sampler.batch(number)] >= 40).sum() for number in range(200)) / 800
    assert 0.35 < small < 0.55


def test_too_few_identities_say_what_to_set():
    with pytest.raises(DataError, match=r"needs 8 identities and the domain has 2; set train.identities=2"):
        IdentitySampler(np.array([0, 0, 1]), np.zeros(3, np.int64), identities=8, instances=2)
