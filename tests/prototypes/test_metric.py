"""A site's statistics and the metrics made of them, against their definitions written out."""

from itertools import combinations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from domains.errors import ArtefactError, ConfigError
from prototypes.memory import Memory
from prototypes.metric import (
    FACTORS,
    MEAN,
    Metric,
    SiteStatistics,
    pairs_of_crops,
    sites_from_bytes,
    sites_to_bytes,
)
from prototypes.renewal import renewed
from prototypes.transport import Transport


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def vectors(count, dim, seed=0, offset=1.0):
    """Unit vectors around a common direction, as those of a site are."""
    rng = np.random.default_rng(seed)
    return unit(rng.standard_normal((count, dim)) + offset * np.eye(dim)[0])


def site(dim=16, *, people=10, crops=4, seed=0, rank=30):
    found = vectors(people * crops, dim, seed)
    pairs = pairs_of_crops(np.repeat(np.arange(people), crops), np.zeros(people * crops, np.int64))
    return SiteStatistics.of(found, found[pairs[:, 0]] - found[pairs[:, 1]], people, rank=rank)


# ---------------------------------------------------------------------------------------------------------------- pairs


def every_pair(people, cameras):
    """By definition: all pairs of one person, of different cameras where the person has such."""
    found = []
    for person in np.unique(people):
        rows = np.flatnonzero(people == person)
        pairs = list(combinations(rows, 2))
        across = [(one, other) for one, other in pairs if cameras[one] != cameras[other]]
        found += across or pairs
    return {frozenset(map(int, pair)) for pair in found}


def as_sets(pairs):
    return [frozenset(map(int, pair)) for pair in pairs]


@pytest.mark.parametrize("seed", range(8))
def test_without_a_limit_pairs_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    people, cameras = rng.integers(0, 6, 40), rng.integers(0, 1 + seed % 4, 40)
    found = as_sets(pairs_of_crops(people, cameras, limit=10**6))
    assert len(found) == len(set(found))
    assert set(found) == every_pair(people, cameras)


@pytest.mark.parametrize("limit", [1, 5, 20])
def test_a_person_adds_no_more_pairs_than_the_limit_each_of_them_one_of_the_definition(limit):
    rng = np.random.default_rng(limit)
    people, cameras = rng.integers(0, 4, 100), rng.integers(0, 3, 100)
    found = pairs_of_crops(people, cameras, limit=limit)
    sets = as_sets(found)
    assert len(set(sets)) == len(sets)
    assert set(sets) <= every_pair(people, cameras)
    assert np.bincount(people[found[:, 0]]).tolist() == [limit] * 4


def test_each_pair_is_drawn_as_often_as_any_other():
    people, cameras = np.zeros(7, np.int64), np.array([0, 0, 1, 1, 1, 2, 2])
    wanted = every_pair(people, cameras)
    drawn = [pair for seed in range(2000) for pair in as_sets(pairs_of_crops(people, cameras, limit=4, seed=seed))]
    counts = np.array([drawn.count(pair) for pair in wanted])
    assert counts.sum() == 8000
    assert abs(counts - 8000 / len(wanted)).max() < 5 * (8000 / len(wanted)) ** 0.5


def test_singletons_have_no_pair_and_the_same_seed_gives_the_same_pairs():
    assert pairs_of_crops(np.arange(5), np.zeros(5, np.int64)).shape == (0, 2)
    assert pairs_of_crops(np.zeros(0, np.int64), np.zeros(0, np.int64)).shape == (0, 2)
    people, cameras = np.repeat([3, 8], 50), np.tile([0, 1], 50)
    assert np.array_equal(pairs_of_crops(people, cameras, seed=4), pairs_of_crops(people, cameras, seed=4))
    assert not np.array_equal(pairs_of_crops(people, cameras, seed=4), pairs_of_crops(people, cameras, seed=5))


def test_a_person_of_a_hundred_thousand_crops_takes_no_list_of_all_pairs():
    rows = pairs_of_crops(np.zeros(100_000, np.int64), np.r_[np.zeros(99_999, np.int64), 1], limit=20)
    assert len(rows) == 20
    assert (rows == 99_999).any(1).all()


# ----------------------------------------------------------------------------------------------------------- statistics


def naive_covariance(found, people, cameras):
    """Half the mean of the outer products of differences, over all pairs and both ways round, at trace 1."""
    total = np.zeros((found.shape[1],) * 2)
    pairs = [tuple(pair) for pair in every_pair(people, cameras)]
    for one, other in pairs:
        for difference in (found[one] - found[other], found[other] - found[one]):
            total += np.outer(difference, difference).astype(np.float64) / (4 * len(pairs))
    return total / np.trace(total)


@pytest.mark.parametrize(("count", "dim"), [(40, 8), (12, 64), (6, 300)])
def test_at_full_rank_the_covariance_is_that_of_the_definition(count, dim):
    rng = np.random.default_rng(count)
    found, people, cameras = vectors(count, dim), rng.integers(0, 3, count), rng.integers(0, 2, count)
    pairs = pairs_of_crops(people, cameras, limit=10**6)
    statistics = SiteStatistics.of(found, found[pairs[:, 0]] - found[pairs[:, 1]], 24, rank=dim)
    assert_allclose(statistics.covariance, naive_covariance(found, people, cameras), atol=1e-6)
    assert_allclose(statistics.mean, 0.5 * 24 / 32 * found.mean(0), atol=1e-6)
    assert len(statistics.factors) <= min(len(pairs), dim)


def test_what_the_kept_eigenvectors_leave_of_the_trace_is_spread_evenly():
    found = vectors(60, 16)
    people, cameras = np.repeat(np.arange(15), 4), np.zeros(60, np.int64)
    pairs = pairs_of_crops(people, cameras, limit=10**6)
    statistics = SiteStatistics.of(found, found[pairs[:, 0]] - found[pairs[:, 1]], 15, rank=3)
    values, axes = np.linalg.eigh(naive_covariance(found, people, cameras))
    kept = (axes[:, -3:] * values[-3:]) @ axes[:, -3:].T
    assert statistics.factors.shape == (3, 16)
    assert_allclose(statistics.covariance, kept + (1 - values[-3:].sum()) / 16 * np.eye(16), atol=1e-6)
    assert_allclose(np.trace(statistics.covariance), 1, atol=1e-6)


def test_a_site_takes_31_kilobytes_and_comes_back_from_its_arrays():
    statistics = site(512, people=40, rank=30)
    arrays = statistics.to_arrays()
    assert sum(array.nbytes for array in arrays.values()) == 31 * 512 * 2
    read = SiteStatistics.from_arrays(arrays)
    assert read is not None
    assert_allclose(read.covariance, statistics.covariance, atol=1e-4)
    assert_allclose(read.mean, statistics.mean, atol=1e-3)
    assert SiteStatistics.from_arrays({"prototypes.mean": np.zeros((2, 4))}) is None


def test_no_row_tells_of_one_person_alone():
    """Without any one person, statistics of forty hardly change: they are pooled over people."""
    found, people = vectors(160, 16), np.repeat(np.arange(40), 4)
    cameras = np.zeros(160, np.int64)

    def of(rows):
        pairs = pairs_of_crops(people[rows], cameras[rows])
        return SiteStatistics.of(found[rows], found[rows][pairs[:, 0]] - found[rows][pairs[:, 1]], 40).covariance

    everyone = of(np.arange(160))
    assert max(np.abs(of(np.flatnonzero(people != person)) - everyone).max() for person in range(40)) < 0.02


@pytest.mark.parametrize(
    ("found", "differences"),
    [
        (np.zeros((0, 4), np.float32), np.ones((1, 4), np.float32)),
        (vectors(3, 4), np.zeros((0, 4), np.float32)),
        (vectors(3, 4), np.zeros((2, 4), np.float32)),
    ],
)
def test_without_a_difference_there_are_no_statistics(found, differences):
    with pytest.raises(ValueError, match=r"at least one embedding|two crops of one person that differ"):
        SiteStatistics.of(found, differences, 3)


BAD = {
    "no factors": {MEAN: np.zeros(4)},
    "no mean": {FACTORS: np.zeros((2, 4))},
    "a mean with rows": {MEAN: np.zeros((1, 4)), FACTORS: np.zeros((2, 4))},
    "other dimensions": {MEAN: np.zeros(4), FACTORS: np.zeros((2, 5))},
    "no dimension": {MEAN: np.zeros(0), FACTORS: np.zeros((2, 0))},
    "not a number": {MEAN: np.array([0, np.nan, 0, 0]), FACTORS: np.zeros((2, 4))},
    "infinite": {MEAN: np.zeros(4), FACTORS: np.full((2, 4), np.inf)},
    "a mean of length 1": {MEAN: np.array([1.0, 0, 0, 0]), FACTORS: np.zeros((2, 4))},
    "a trace above 1": {MEAN: np.zeros(4), FACTORS: np.ones((2, 4))},
}


@pytest.mark.parametrize("arrays", BAD.values(), ids=BAD.keys())
def test_malformed_arrays_are_an_error_in_one_line(arrays):
    with pytest.raises(ArtefactError, match="statistics") as caught:
        SiteStatistics.from_arrays(arrays)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- metrics


def root_of_inverse(matrix):
    values, axes = np.linalg.eigh(matrix)
    return (axes * values**-0.5) @ axes.T


def naive(mean, covariance, share, found):
    """``unit((x - m)(share S + (1 - share) I / D)^(-1/2))``."""
    dim = len(mean)
    return unit((found - mean) @ root_of_inverse(share * covariance + (1 - share) / dim * np.eye(dim)))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.9])
@pytest.mark.parametrize("dim", [8, 100])
def test_the_own_metric_is_that_of_the_definition(dim, share):
    statistics, asked = site(dim), vectors(9, dim, 7)
    wanted = naive(statistics.mean, statistics.covariance, share, asked)
    assert_allclose(Metric.own(statistics, share=share)(asked), wanted, atol=1e-5)


def test_pooled_and_mixed_metrics_are_those_of_their_definitions():
    sites, asked = [site(24, seed=seed) for seed in range(3)], vectors(9, 24, 7)
    mean = np.mean([one.mean for one in sites], 0)
    pool = np.mean([one.covariance for one in sites], 0)
    assert_allclose(Metric.pooled(sites, share=0.3)(asked), naive(mean, pool, 0.3, asked), atol=1e-5)
    mix = (0.25 * sites[1].covariance + 0.05 * pool) / 0.3
    assert_allclose(
        Metric.mixed(sites[1], sites, share=0.3, pooled=0.05)(asked), naive(mean, mix, 0.3, asked), atol=1e-5
    )


def test_one_site_alone_is_its_own_pool():
    statistics, asked = site(), vectors(5, 16, 1)
    for metric in (Metric.pooled([statistics]), Metric.mixed(statistics, [statistics])):
        assert_allclose(metric(asked), Metric.own(statistics)(asked), atol=1e-6)


def test_directions_in_which_people_differ_count_less():
    """Where one direction holds all that changes within people, crops that differ there come closer."""
    noise = np.eye(8, dtype=np.float32)[1]
    statistics = SiteStatistics(np.zeros(8, np.float32), noise[None])
    metric = Metric.own(statistics, share=0.9)
    base = np.eye(8, dtype=np.float32)
    crops = unit(np.stack([base[0], base[0] + noise, base[0] + 0.5 * base[2]]))
    before, after = crops @ crops.T, metric(crops) @ metric(crops).T
    assert before[0, 1] < before[0, 2]
    assert after[0, 1] > after[0, 2]


@pytest.mark.parametrize("dim", [4, 64, 512])
@pytest.mark.parametrize("kind", ["own", "pooled", "mixed"])
def test_a_metric_can_be_undone(kind, dim):
    sites = [site(dim, seed=seed) for seed in range(2)]
    metric = {
        "own": lambda: Metric.own(sites[0]),
        "pooled": lambda: Metric.pooled(sites),
        "mixed": lambda: Metric.mixed(sites[0], sites),
    }[kind]()
    found = vectors(50, dim, 9)
    mapped = metric(found)
    assert_allclose(np.linalg.norm(mapped, axis=1), 1, atol=1e-6)
    assert_allclose(metric.undone(mapped), found, atol=2e-6)
    assert_allclose(metric(metric.undone(found)), found, atol=2e-6)  # also vectors that no image gave


def test_undone_from_half_precision_vectors_keep_their_order():
    """Scores in another metric, reached from fp16 vectors, are those of embedding again within fp16."""
    first, second = Metric.own(site(512, people=40)), Metric.own(site(512, people=40, seed=3))
    held, asked = vectors(500, 512, 5), vectors(20, 512, 6)
    moved = second(first.undone(first(held).astype(np.float16).astype(np.float32)))
    assert np.abs(moved @ second(asked).T - second(held) @ second(asked).T).max() < 1e-3


def test_the_matrix_is_symmetric_and_positive_with_no_eigenvalue_above_one():
    for metric in (Metric.own(site(32)), Metric.pooled([site(32, seed=seed) for seed in range(4)])):
        assert_allclose(metric.matrix, metric.matrix.T, atol=1e-6)
        values = np.linalg.eigvalsh(metric.matrix.astype(np.float64))
        assert 0 < values[0] <= values[-1] <= 1 + 1e-5


def test_a_pool_of_nobody_and_of_other_networks_is_refused():
    for wrong in (
        lambda: Metric.pooled([]),
        lambda: Metric.mixed(site(), []),
        lambda: Metric.pooled([site(8), site()]),
    ):
        with pytest.raises(ConfigError, match="at least one, all of one network"):
            wrong()


# ----------------------------------------------------------------------------------------------------------- transports


def rotation(dim, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0].astype(np.float32)


def test_carried_through_a_rotation_the_metric_gives_the_same_scores():
    statistics, turn = site(24), rotation(24, 1)
    held, asked = vectors(30, 24, 2), vectors(6, 24, 3)
    before = Metric.own(statistics)(asked) @ Metric.own(statistics)(held).T
    carried = Metric.own(statistics.carried(turn))
    assert_allclose(carried(asked @ turn) @ carried(held @ turn).T, before, atol=1e-5)


def test_carried_statistics_are_those_of_the_definition():
    statistics = site(12, rank=12)
    matrix = rotation(12, 1) + 0.2 * np.random.default_rng(2).standard_normal((12, 12)).astype(np.float32)
    carried = statistics.carried(matrix)
    wanted = matrix.T @ statistics.covariance @ matrix
    assert_allclose(carried.covariance, wanted / np.trace(wanted), atol=1e-5)
    mean = statistics.mean @ matrix
    assert_allclose(carried.mean, mean * np.linalg.norm(statistics.mean) / np.linalg.norm(mean), atol=1e-5)


def test_a_map_that_stretches_leaves_the_mean_inside_the_sphere():
    statistics = SiteStatistics(0.999 * np.eye(4, dtype=np.float32)[0], 0.5 * np.eye(4, dtype=np.float32)[:1])
    carried = statistics.carried(100 * np.eye(4, dtype=np.float32))
    assert SiteStatistics.from_arrays(carried.to_arrays()) is not None
    assert_allclose(carried.covariance, statistics.covariance, atol=1e-5)
    with pytest.raises(ArtefactError, match="can't be carried"):
        statistics.carried(np.eye(5, dtype=np.float32))


def test_a_memory_carries_its_statistics_with_its_prototypes():
    statistics = site(16)
    rng = np.random.default_rng(1)
    prototypes = {"prototypes.mean": rng.random((3, 16)), "prototypes.spread": rng.random((3, 16))}
    memory = Memory("north", "a", {**statistics.to_arrays(), **prototypes, "style.statistics": np.zeros((4, 3))})
    turns = [Transport("a", "b", rotation(16, 1)), Transport("b", "c", rotation(16, 2))]
    found = renewed(memory, turns)
    assert found.feature_space == "c"
    wanted = statistics.carried(turns[0].matrix).carried(turns[1].matrix)
    assert_allclose(SiteStatistics.from_arrays(found.arrays).covariance, wanted.covariance, atol=1e-3)
    wanted = memory.arrays["prototypes.mean"] @ turns[0].matrix @ turns[1].matrix
    assert_allclose(found.arrays["prototypes.mean"], wanted, atol=5e-3)
    bare = Memory("south", "a", statistics.to_arrays())
    assert renewed(bare, turns).feature_space == "c"
    assert set(renewed(bare, turns).arrays) == {MEAN, FACTORS}
    assert renewed(bare, []) is bare


def test_statistics_of_sites_come_back_from_bytes_in_half_precision():
    sites = {f"site {rank}": site(rank=rank, seed=rank) for rank in (30, 4)}  # one has fewer eigenvectors
    data = sites_to_bytes(sites)
    found = sites_from_bytes(data, list(sites), 16, limit=2**20)
    assert list(found) == list(sites)
    for name, one in found.items():
        assert (one.mean.dtype, one.factors.dtype) == (np.float32, np.float32)
        np.testing.assert_array_equal(one.mean, sites[name].mean.astype(np.float16))
        np.testing.assert_array_equal(one.factors, sites[name].factors.astype(np.float16))
    for names, dim, limit in ((["one"], 16, 2**20), (list(sites), 17, 2**20), (list(sites), 16, 2**10)):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            sites_from_bytes(data, names, dim, limit=limit)
