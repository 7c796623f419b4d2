import pickle

import numpy as np
import pytest

from deploy import Embeddings


@pytest.fixture
def a():
    return Embeddings(np.arange(12).reshape(4, 3), "aa")


@pytest.fixture
def b():
    return Embeddings(np.ones((4, 3)), "bb")


def test_float32_and_named(a):
    assert a.dtype == np.float32
    assert a.feature_space == "aa"
    assert isinstance(a, np.ndarray)


KEPT = {
    "rows": lambda x: x[1:],
    "picked": lambda x: x[[2, 0]],
    "one row": lambda x: x[0],
    "copy": lambda x: x.copy(),
    "mask": lambda x: x[x[:, 0] > 2],
    "scaled": lambda x: x * 2,
    "added to a plain array": lambda x: x + np.ones(3),
    "mean of two": lambda x: (x + x[::-1]) / 2,
    "mean": lambda x: x.mean(axis=0),
    "joined": lambda x: np.concatenate([x, x]),
    "stacked": lambda x: np.vstack((x, x)),
    "taken": lambda x: np.take(x, [1], 0),
    "normalised": lambda x: x / np.linalg.norm(x, axis=1, keepdims=True),
    "sent to another process": lambda x: pickle.loads(pickle.dumps(x)),
    "joined with a plain array": lambda x: np.concatenate([x, np.ones((1, 3))]),
}
LOST = {
    "added": lambda x, y: x + y,
    "subtracted": lambda x, y: y - x,
    "joined": lambda x, y: np.concatenate([x, y]),
    "stacked": lambda x, y: np.vstack((x, y)),
    "new axis": lambda x, y: np.stack([x, y]),
    "where": lambda x, y: np.where(np.ones((4, 3), bool), x, y),
    "into": lambda x, y: np.add(x, y, out=x.copy()),
    "joined with mixed ones": lambda x, y: np.concatenate([x, x + y]),
}


@pytest.mark.parametrize("derive", KEPT.values(), ids=KEPT)
def test_name_is_kept_within_one_space(a, derive):
    assert derive(a).feature_space == "aa"


@pytest.mark.parametrize("combine", LOST.values(), ids=LOST)
def test_name_is_lost_between_spaces(a, b, combine):
    assert combine(a, b).feature_space is None


def test_writing_rows_of_another_space_takes_the_name(a, b):
    a[:2] = a[2:]
    assert a.feature_space == "aa"
    a[0] = b[0]
    assert a.feature_space is None
    a = Embeddings(np.ones((2, 3)), "aa")
    a += b[:2]
    assert a.feature_space is None
    np.testing.assert_array_equal(np.asarray(a), 2)


def test_scores_and_comparisons_are_plain(a, b):
    assert type(a @ b.T) is np.ndarray
    assert type(np.dot(a, b.T)) is np.ndarray or np.dot(a, b.T).feature_space is None
    assert type(a > 1) is np.ndarray
    np.testing.assert_array_equal(a @ b.T, np.asarray(a) @ np.asarray(b).T)
    assert isinstance(a.sum(), np.floating | float)


def test_values_are_numpys(a):
    np.testing.assert_array_equal(a + 1, np.asarray(a) + 1)
    np.testing.assert_array_equal(np.concatenate([a, a]), np.concatenate([np.asarray(a)] * 2))
    assert type(np.asarray(a)) is np.ndarray
