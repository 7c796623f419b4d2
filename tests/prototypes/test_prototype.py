"""Distribution prototypes: the law of total variance by loop and by draws, one pass in any order, and what a memory
keeps of them.
"""

import itertools
import math

import numpy as np
import pytest

from domains.errors import ArtefactError
from prototypes import Memory
from prototypes.prototype import DistributionPrototypes, PrototypeStream

PEOPLE, DIM = 4, 6


def crops(seed=0, each=5):
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(PEOPLE * each, DIM))
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    spread = rng.uniform(1e-4, 0.4, (PEOPLE * each, DIM))
    return centre.astype(np.float32), spread.astype(np.float32), rng.permutation(np.arange(PEOPLE * each) % PEOPLE)


def gathered(centre, spread, labels, cuts=()):
    stream = PrototypeStream(PEOPLE, DIM)
    for start, stop in itertools.pairwise((0, *cuts, len(labels))):
        stream.add(centre[start:stop], spread[start:stop], labels[start:stop])
    return stream.finish()


@pytest.mark.parametrize("seed", range(3))
def test_the_law_of_total_variance(seed):
    centre, spread, labels = crops(seed)
    found = gathered(centre, spread, labels)
    assert len(found) == PEOPLE
    for person in range(PEOPLE):
        own = [at for at in range(len(labels)) if labels[at] == person]
        for column in range(DIM):
            mean = sum(float(centre[at, column]) for at in own) / len(own)
            within = sum(float(spread[at, column]) ** 2 for at in own) / len(own)
            between = sum((float(centre[at, column]) - mean) ** 2 for at in own) / len(own)
            assert found.mean[person, column] == pytest.approx(mean, rel=1e-5, abs=1e-7)
            assert found.spread[person, column] == pytest.approx(math.sqrt(within + between), rel=1e-5)


def test_a_prototype_is_the_mean_and_deviation_of_draws_of_its_crops():
    centre, spread, labels = crops()
    found, rng = gathered(centre, spread, labels), np.random.default_rng(9)
    for person in range(PEOPLE):
        own = rng.choice(np.flatnonzero(labels == person), 100_000)
        drawn = centre[own] + spread[own] * rng.standard_normal((len(own), DIM))
        assert np.allclose(found.mean[person], drawn.mean(0), atol=0.01)
        assert np.allclose(found.spread[person], drawn.std(0), rtol=0.015)


@pytest.mark.parametrize("cuts", [(1,), (3, 3, 4, 17), tuple(range(1, 20))])
def test_any_chunks_in_any_order_give_the_same(cuts):
    centre, spread, labels = crops()
    whole, order = gathered(centre, spread, labels), np.random.default_rng(1).permutation(len(labels))
    found = gathered(centre[order], spread[order], labels[order], cuts)
    assert np.allclose(found.mean, whole.mean, rtol=1e-6, atol=1e-9)
    assert np.allclose(found.spread, whole.spread, rtol=1e-6)


def test_one_image_of_an_identity_gives_its_own_gaussian():
    centre, spread, _ = crops(each=1)
    found = gathered(centre, spread, np.arange(PEOPLE))
    assert np.array_equal(found.mean, centre)
    assert np.allclose(found.spread, spread, rtol=1e-5)


def test_equal_crops_leave_no_variance_below_zero():
    centre = np.tile(crops()[0][:1], (3 * PEOPLE, 1))
    found = gathered(centre, np.zeros_like(centre), np.arange(3 * PEOPLE) % PEOPLE)
    assert np.isfinite(found.spread).all()
    assert found.spread.max() < 1e-7


def test_means_are_not_brought_to_unit_length():
    lengths = np.linalg.norm(gathered(*crops()).mean, axis=1)
    assert (lengths < 0.99).all()


def test_an_identity_without_a_crop_is_refused():
    stream = PrototypeStream(3, DIM)
    stream.add(np.ones((2, DIM), np.float32), np.ones((2, DIM), np.float32), np.array([0, 0]))
    with pytest.raises(ValueError, match="2 identities have no crop"):
        stream.finish()


def test_they_come_back_in_half_precision():
    found = gathered(*crops())
    back = DistributionPrototypes.from_arrays(found.to_arrays())
    assert (back.mean.dtype, back.spread.dtype) == (np.float32, np.float32)
    assert np.array_equal(back.mean, found.mean.astype(np.float16))
    assert np.array_equal(back.spread, found.spread.astype(np.float16))
    assert np.allclose(back.mean, found.mean, atol=5e-4)
    again = DistributionPrototypes.from_arrays(back.to_arrays())
    assert np.array_equal(again.mean, back.mean)
    assert np.array_equal(again.spread, back.spread)


def test_an_identity_costs_four_bytes_per_dimension(tmp_path):
    memory = Memory("plaza", "space", gathered(*crops()).to_arrays())
    assert memory.bytes == PEOPLE * 4 * DIM
    memory.write(tmp_path / "memory.safetensors")
    back = DistributionPrototypes.from_arrays(Memory.read(tmp_path / "memory.safetensors").arrays)
    assert np.array_equal(back.mean, gathered(*crops()).mean.astype(np.float16))


def test_a_method_without_prototypes_has_none():
    assert DistributionPrototypes.from_arrays({"style.numbers": np.zeros(3)}) is None


GOOD = np.full((2, 3), 0.5, np.float16)
DAMAGED = [
    ({"prototypes.mean": GOOD}, r"two arrays \[K, D\]"),
    ({"prototypes.spread": GOOD}, r"two arrays \[K, D\]"),
    ({"prototypes.mean": GOOD, "prototypes.spread": GOOD[:1]}, r"\(1, 3\)"),
    ({"prototypes.mean": GOOD[0], "prototypes.spread": GOOD[0]}, r"\(3,\)"),
    ({"prototypes.mean": GOOD * np.nan, "prototypes.spread": GOOD}, "not finite"),
    ({"prototypes.mean": GOOD, "prototypes.spread": GOOD + np.inf}, "not finite"),
    ({"prototypes.mean": GOOD, "prototypes.spread": -GOOD}, "negative deviation"),
]


@pytest.mark.parametrize(("arrays", "said"), DAMAGED)
def test_damaged_arrays_are_refused_in_one_line(arrays, said):
    with pytest.raises(ArtefactError, match=said) as caught:
        DistributionPrototypes.from_arrays(arrays)
    assert "\n" not in str(caught.value)
    assert "restore the memory" in str(caught.value)
