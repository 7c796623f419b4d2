"""Where an embedding lies among the learned ones."""

import numpy as np
import pytest

from domains.errors import DataError
from reid.network.h_embedding import h_embedding


def test_an_h_embedding_lies_nearer_to_what_helps_more_and_repeats_with_its_seed():
    learned = np.random.default_rng(0).random((3, 32)).astype(np.float32)
    found, again = (h_embedding(learned, [0.7, 0.2, 0.1], seed=3) for _ in range(2))
    away = np.linalg.norm(found.vector - learned, axis=1)
    np.testing.assert_allclose(away, found.scale * np.exp(-np.array([0.7, 0.2, 0.1])), atol=3 * found.residual + 1e-3)
    assert away[0] < away[1] < away[2]
    np.testing.assert_array_equal(found.vector, again.vector)
    assert not np.array_equal(
        h_embedding(learned, [0.7, 0.2, 0.1], seed=4).vector, found.vector
    )  # the solution is not unique


def test_one_learned_domain_gives_a_distance_of_exp_minus_one():
    learned = np.zeros((1, 32), np.float32)
    found = h_embedding(learned, [1.0], seed=0)
    assert found.scale == 1
    assert np.linalg.norm(found.vector) == pytest.approx(np.exp(-1), abs=0.01)


def test_an_h_embedding_of_mismatched_shapes_is_refused():
    with pytest.raises(DataError, match="H-embedding needs"):
        h_embedding(np.zeros((2, 32)), [1.0], seed=0)
