"""The way of vectors from space to space: each step by hand, there and back, and as bytes from elsewhere."""

import io

import numpy as np
import pytest
from numpy.testing import assert_allclose

from prototypes.metric import Metric
from prototypes.passage import PARTS, Passage


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def vectors(count=20, dim=12, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((count, dim)) + 0.5)


def metric(dim=12, seed=0):
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((dim, dim)))[0][:3]
    return Metric((0.4 * vectors(1, dim, seed)[0]), (axes * [[0.9], [0.5], [0.2]]).astype(np.float32))


def matrix(dim=12, seed=0):
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]
    return turn.astype(np.float16).astype(np.float32)


WAYS = {
    "nowhere": Passage("net"),
    "a transport": Passage("net", matrix=matrix()),
    "into a metric": Passage("net", into=metric()),
    "out of a metric": Passage("net", out=metric()),
    "between metrics": Passage("net", out=metric(), into=metric(seed=1)),
    "between networks": Passage("net", out=metric(), matrix=matrix(), into=metric(seed=1)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_each_step_follows_the_one_before(way):
    found = wanted = vectors()
    if way.out is not None:
        wanted = way.out.undone(wanted)
    if way.matrix is not None:
        wanted = unit(wanted @ way.matrix)
    if way.into is not None:
        wanted = way.into(wanted)
    assert_allclose(way(found), wanted, atol=1e-6)
    assert way(found).dtype == np.float32


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_there_and_back_is_where_it_began(way):
    assert_allclose(way.back()(way(vectors())), vectors(), atol=5e-3 if way.matrix is not None else 1e-5)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_bytes_hold_all_of_it_the_same_each_time(way):
    data = way.to_bytes()
    assert data == way.to_bytes()
    read = Passage.from_bytes(data, (12, 12))
    assert read.network == "net"
    assert np.array_equal(read(vectors()), way(vectors()))


def test_a_bare_matrix_is_what_earlier_versions_stored():
    stored = io.BytesIO()
    np.save(stored, matrix().astype(np.float16))
    read = Passage.from_bytes(stored.getvalue(), (12, 12))
    assert (read.network, read.out, read.into) == ("", None, None)
    assert np.array_equal(read.matrix, matrix())


def npz(**arrays):
    stored = io.BytesIO()
    np.savez(stored, **arrays)
    return stored.getvalue()


GOOD = {"network": np.array(["net"]), "into.mean": metric().mean, "into.shrink": metric().shrink}
BAD = {
    "no bytes": b"",
    "half of it": npz(**GOOD)[:200],
    "something else": npz(**GOOD, other=np.zeros(3)),
    "half a metric": npz(network=GOOD["network"], **{"into.mean": GOOD["into.mean"]}),
    "a network that is a number": npz(**GOOD | {"network": np.zeros(1)}),
    "two networks": npz(**GOOD | {"network": np.array(["a", "b"])}),
    "a mean of other dimensions": npz(**GOOD | {"into.mean": np.zeros(11, np.float32)}),
    "a mean on the sphere": npz(**GOOD | {"into.mean": vectors(1)[0]}),
    "a mean that is not finite": npz(**GOOD | {"into.mean": np.full(12, np.nan, np.float32)}),
    "a direction that vanishes": npz(**GOOD | {"into.shrink": vectors(1)}),
    "too many directions": npz(**GOOD | {"into.shrink": np.zeros((13, 12), np.float32)}),
    "float64": npz(**GOOD | {"into.shrink": metric().shrink.astype(np.float64)}),
    "a matrix of other dimensions": npz(**GOOD, matrix=np.zeros((12, 11), np.float16)),
    "a matrix that is not finite": npz(**GOOD, matrix=np.full((12, 12), np.inf, np.float16)),
    "a matrix of float32": npz(**GOOD, matrix=np.eye(12, dtype=np.float32)),
    "a bomb": npz(**GOOD, matrix=np.zeros((4000, 4000), np.float16)),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_bytes_that_are_none_are_refused_in_one_line(data):
    assert Passage.from_bytes(npz(**GOOD), (12, 12)).into is not None
    with pytest.raises(ValueError, match=r"\S") as caught:
        Passage.from_bytes(data, (12, 12))
    assert "\n" not in str(caught.value)


def test_without_a_map_dimensions_stay():
    with pytest.raises(ValueError, match="no map from 12 to 10"):
        Passage.from_bytes(npz(network=GOOD["network"]), (12, 10))
    assert set(GOOD) - {"network"} < set(PARTS)
