"""Re-ranking against the definition written with sets, and the properties that follow from it."""

import tracemalloc

import numpy as np
import pytest

from domains import reranking, scoring
from domains.errors import DataError, UsageError
from domains.reranking import k_reciprocal
from domains.scoring import Labels, score_similarities


def naive(query, gallery, k1, k2, weight):
    """Zhong et al. (CVPR 2017) in sets and dense float64 rows."""
    crops = np.concatenate([query, gallery]).astype(np.float64)
    count = len(crops)
    squared = ((crops[:, None] - crops[None]) ** 2).sum(axis=2)
    distance = squared / np.where(squared.max(axis=1) > 0, squared.max(axis=1), 1)[:, None]
    ranking = [sorted(range(count), key=lambda g, p=p: squared[p, g]) for p in range(count)]

    def n(p, k):
        return set(ranking[p][: k + 1])

    def r(p, k):
        return {g for g in n(p, k) if p in n(g, k)}

    def expanded(p):
        core = r(p, k1)
        out = set(core)
        for q in core:
            candidate = r(q, int(np.around(k1 / 2)))
            if len(core & candidate) * 3 > 2 * len(candidate):
                out |= candidate
        return out

    v = np.zeros((count, count))
    for p in range(count):
        for g in expanded(p):
            v[p, g] = np.exp(-distance[p, g])
        v[p] /= v[p].sum()
    if k2 > 1:
        v = np.stack([np.mean([v[g] for g in ranking[p][:k2]], axis=0) for p in range(count)])
    out = np.empty((len(query), len(gallery)))
    for p in range(len(query)):
        for g in range(len(gallery)):
            other = v[len(query) + g]
            jaccard = 1 - np.minimum(v[p], other).sum() / np.maximum(v[p], other).sum()
            out[p, g] = -((1 - weight) * jaccard + weight * distance[p, len(query) + g])
    return out


def people(rng, count, identities=6, dim=12, noise=0.5):
    centres = np.random.default_rng(99).standard_normal((identities, dim))
    pids = rng.integers(0, identities, count)
    values = (centres[pids] + noise * rng.standard_normal((count, dim))).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True), pids


@pytest.mark.parametrize(
    ("k1", "k2", "weight"), [(20, 6, 0.3), (7, 3, 0.3), (6, 1, 0.5), (5, 2, 0.0), (3, 9, 0.1), (1, 1, 0.3)]
)
def test_equals_the_definition(k1, k2, weight):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        query, _ = people(rng, rng.integers(1, 12), noise=rng.uniform(0.2, 1.5))
        gallery, _ = people(rng, rng.integers(20, 50), noise=rng.uniform(0.2, 1.5))
        result = k_reciprocal(query, gallery, k1=k1, k2=k2, weight=weight)
        assert (result.dtype, result.shape) == (np.float32, (len(query), len(gallery)))
        np.testing.assert_allclose(result, naive(query, gallery, k1, k2, weight), atol=3e-6)


def test_equal_distances_rank_in_row_order():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        query, gallery = (rng.choice(np.float32([-0.5, 0.5]), (count, 4)) for count in (4, 30))
        np.testing.assert_allclose(
            k_reciprocal(query, gallery, k1=6, k2=3), naive(query, gallery, 6, 3, 0.3), atol=3e-6
        )


@pytest.mark.parametrize("sizes", [(1, 1), (1, 3), (3, 1), (2, 5)])
def test_fewer_crops_than_neighbours(sizes):
    rng = np.random.default_rng(0)
    query, gallery = people(rng, sizes[0])[0], people(rng, sizes[1])[0]
    np.testing.assert_allclose(k_reciprocal(query, gallery), naive(query, gallery, 20, 6, 0.3), atol=3e-6)


def test_a_crop_is_its_own_first_neighbour_though_lengths_are_rounded():
    crops = np.float32([[1.004, 0], [0.998 * 0.997, 0.998 * (1 - 0.997**2) ** 0.5]])
    assert crops[0] @ crops[1] > crops[1] @ crops[1]
    assert reranking._neighbours(crops, 2)[0].tolist() == [[0, 1], [1, 0]]


def test_identical_crops_are_finite():
    query = np.tile(np.float32([1, 0]), (3, 1))
    result = k_reciprocal(query, np.tile(query, (4, 1)), k1=2, k2=2)
    assert np.isfinite(result).all()
    assert result.min() >= -1
    assert result.max() <= 0


def test_all_weight_on_the_original_distance_keeps_the_ranking():
    rng = np.random.default_rng(0)
    query, gallery = people(rng, 5)[0], people(rng, 60)[0]
    np.testing.assert_array_equal(np.argsort(-k_reciprocal(query, gallery, weight=1)), np.argsort(-(query @ gallery.T)))


def test_it_lifts_the_score_where_neighbours_agree():
    rng = np.random.default_rng(0)
    query, query_pids = people(rng, 40, identities=12, noise=0.9)
    gallery, gallery_pids = people(rng, 300, identities=12, noise=0.9)
    who = Labels(query_pids, np.zeros(40, int)), Labels(gallery_pids, np.ones(300, int))
    before, after = score_similarities(query @ gallery.T, *who), score_similarities(k_reciprocal(query, gallery), *who)
    assert after.mAP > before.mAP + 5


def test_pieces_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    query, gallery = people(rng, 20)[0], people(rng, 300)[0]
    expected = k_reciprocal(query, gallery)
    monkeypatch.setattr(reranking, "SLAB", 7)
    monkeypatch.setattr(scoring, "BLOCK_BYTES", 1)
    np.testing.assert_array_equal(k_reciprocal(query, gallery), expected)


def test_memory_stays_below_one_square_matrix(monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK_BYTES", 2**20)
    monkeypatch.setattr(reranking, "SLAB", 256)
    rng = np.random.default_rng(0)
    query, gallery = people(rng, 50, identities=100)[0], people(rng, 2500, identities=100)[0]
    tracemalloc.start()
    try:
        k_reciprocal(query, gallery, k1=10, k2=3)
        assert tracemalloc.get_traced_memory()[1] < 0.5 * 4 * 2550**2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "settings", [{"k1": 0}, {"k2": 0}, {"weight": -0.1}, {"weight": 1.1}, {"weight": float("nan")}]
)
def test_settings_refused(settings):
    with pytest.raises(UsageError, match="re-ranking needs"):
        k_reciprocal(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), **settings)


def test_features_refused():
    good = np.eye(2, dtype=np.float32)
    with pytest.raises(DataError, match="query feature 0 has length 2"):
        k_reciprocal(2 * good, good)
    with pytest.raises(DataError, match="gallery feature 1 holds NaN"):
        k_reciprocal(good, np.float32([[1, 0], [0, np.nan]]))
    with pytest.raises(DataError, match="float32"):
        k_reciprocal(good.astype(float), good)
    for query, gallery in ((good[:0], good), (good, good[:0])):
        with pytest.raises(DataError, match="at least one query and one gallery"):
            k_reciprocal(query, gallery)
