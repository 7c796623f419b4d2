"""Scores against a plain Python oracle, the properties they must have, and every kind of bad input."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains import scoring
from domains.domain import JUNK, Split
from domains.errors import DataError, UsageError
from domains.scoring import (
    JUNK_QUERY,
    NOT_IN_GALLERY,
    OWN_CAMERA,
    Labels,
    Scores,
    bootstrap_interval,
    bootstrap_mean,
    dropped_queries,
    score_domain,
    score_similarities,
    similarity_blocks,
)

RULES = ("drop", "keep")


def naive(similarity, query, gallery, same_camera):
    """The definition, word by word: filter, sort with Python's stable sort, walk down the list."""
    ap, rank, inp, scored, dropped = [], [], [], [], []
    for q, (pid, camid) in enumerate(zip(query.pids.tolist(), query.camids.tolist(), strict=True)):
        if pid == JUNK:
            dropped.append((q, JUNK_QUERY))
            continue
        listed, removed = [], 0
        for g, (other, camera) in enumerate(zip(gallery.pids.tolist(), gallery.camids.tolist(), strict=True)):
            if other == JUNK:
                continue
            if same_camera == "drop" and other == pid and camera == camid:
                removed += 1
                continue
            listed.append((float(similarity[q, g]), other == pid))
        listed.sort(key=lambda entry: -entry[0])
        ranks = [place for place, (_, match) in enumerate(listed, 1) if match]
        if not ranks:
            dropped.append((q, OWN_CAMERA if removed else NOT_IN_GALLERY))
            continue
        scored.append(q)
        ap.append(sum(found / place for found, place in enumerate(ranks, 1)) / len(ranks))
        rank.append(ranks[0])
        inp.append(len(ranks) / ranks[-1])
    return ap, rank, inp, scored, tuple(dropped)


def check(scores, expected):
    ap, rank, inp, scored, dropped = expected
    np.testing.assert_allclose(scores.ap, ap, rtol=1e-13)
    np.testing.assert_allclose(scores.inp, inp, rtol=1e-13)
    np.testing.assert_array_equal(scores.rank, rank)
    np.testing.assert_array_equal(scores.scored, scored)
    assert scores.dropped == dropped
    assert (scores.ap.dtype, scores.rank.dtype, scores.inp.dtype, scores.scored.dtype) == (
        np.float64,
        np.int64,
        np.float64,
        np.int64,
    )


def labels(rng, count, people, cameras):
    return Labels(rng.integers(JUNK, people, count), rng.integers(0, cameras, count))


def units(rng, count, dim=16):
    values = rng.standard_normal((count, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def corners(rng, count):
    """Unit vectors whose products are exact in any order of summation, with many ties."""
    return rng.choice(np.float32([-0.5, 0.5]), (count, 4))


@pytest.mark.parametrize("many", [scoring.MANY, 0])
@pytest.mark.parametrize("rule", RULES)
def test_equals_the_naive_oracle_with_ties_junk_and_missing_matches(rule, many, monkeypatch):
    monkeypatch.setattr(scoring, "MANY", many)
    compared = dropped = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        query, gallery = labels(rng, rng.integers(1, 9), 6, 3), labels(rng, rng.integers(1, 40), 5, 3)
        similarity = (rng.integers(-3, 4, (len(query), len(gallery))) / 4).astype(np.float32)
        expected = naive(similarity, query, gallery, rule)
        dropped += len(expected[4])
        assert dropped_queries(query, gallery, same_camera=rule) == expected[4]
        if not expected[3]:
            with pytest.raises(DataError, match="queries can be scored"):
                score_similarities(similarity, query, gallery, same_camera=rule)
            continue
        compared += 1
        check(score_similarities(similarity, query, gallery, same_camera=rule), expected)
    assert compared > 200
    assert dropped > 200


@pytest.mark.parametrize("rule", RULES)
def test_features_give_the_oracle_of_their_products(rule):
    for seed in range(60):
        rng = np.random.default_rng(seed)
        query, gallery = labels(rng, 9, 4, 3), labels(rng, 50, 4, 3)
        left, right = corners(rng, 9), corners(rng, 50)
        check(score_domain(left, right, query, gallery, same_camera=rule), naive(left @ right.T, query, gallery, rule))


def test_by_hand():
    query = Labels([7], [0])
    gallery = Labels([7, 1, 7, 7, JUNK, 2], [0, 1, 1, 2, 1, 1])
    similarity = np.float32([[0.9, 0.8, 0.7, 0.1, 0.95, 0.5]])
    scores = score_similarities(similarity, query, gallery)
    assert (scores.rank[0], scores.ap[0], scores.inp[0]) == (2, pytest.approx((1 / 2 + 2 / 4) / 2), 2 / 4)
    assert scores.to_dict() == {"mAP": 50.0, "rank1": 0.0, "rank5": 100.0, "rank10": 100.0, "mINP": 50.0, "queries": 1}
    kept = score_similarities(similarity, query, gallery, same_camera="keep")
    assert (kept.rank[0], kept.ap[0], kept.inp[0]) == (1, pytest.approx((1 + 2 / 3 + 3 / 5) / 3), 3 / 5)


def test_equal_similarities_rank_in_gallery_order():
    query = Labels([1], [0])
    for place in range(4):
        pids = np.zeros(4, np.int64)
        pids[place] = 1
        assert (
            score_similarities(np.zeros((1, 4), np.float32), query, Labels(pids, np.ones(4, np.int64))).rank[0]
            == place + 1
        )


def test_negative_zero_ties_with_zero():
    for many in (scoring.MANY, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scoring, "MANY", many)
            scores = score_similarities(np.float32([[0.0, -0.0, 0.0]]), Labels([1], [0]), Labels([0, 1, 0], [1, 1, 1]))
            assert scores.rank[0] == 2


def test_cmc_counts_queries_up_to_k():
    scores = Scores(np.ones(4), np.array([1, 2, 5, 11]), np.ones(4), np.arange(4))
    assert [scores.cmc(k) for k in (1, 2, 4, 5, 10, 11, 999)] == [25, 50, 50, 75, 75, 100, 100]
    assert (scores.rank1, scores.rank5, scores.rank10, scores.queries) == (25, 75, 75, 4)
    with pytest.raises(UsageError, match="at least 1, got 0"):
        scores.cmc(0)


cases = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 40), st.sampled_from(RULES))


def drawn(case):
    """A case in which every query has a match from another camera, and no two similarities of a row are equal."""
    seed, queries, others, rule = case
    rng = np.random.default_rng(seed)
    query = Labels(rng.integers(0, 5, queries), rng.integers(0, 3, queries))
    extra = labels(rng, others, 6, 3)
    gallery = Labels(np.concatenate([np.arange(5), extra.pids]), np.concatenate([np.full(5, 3), extra.camids]))
    similarity = np.stack([rng.permutation(len(gallery)) for _ in range(queries)]).astype(np.float32)
    return rng, similarity, query, gallery, rule


def same(one, other):
    for name in ("ap", "rank", "inp", "scored"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.dropped == other.dropped


@settings(max_examples=60, deadline=None)
@given(cases)
def test_without_ties_the_gallery_order_does_not_matter(case):
    rng, similarity, query, gallery, rule = drawn(case)
    order = rng.permutation(len(gallery))
    shuffled = score_similarities(
        similarity[:, order], query, Labels(gallery.pids[order], gallery.camids[order]), same_camera=rule
    )
    same(score_similarities(similarity, query, gallery, same_camera=rule), shuffled)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_junk_in_the_gallery_changes_nothing(case):
    rng, similarity, query, gallery, rule = drawn(case)
    noise = rng.uniform(-50, 50, (len(query), 7)).astype(np.float32)
    more = Labels(
        np.concatenate([np.full(7, JUNK), gallery.pids]), np.concatenate([rng.integers(0, 4, 7), gallery.camids])
    )
    with_junk = score_similarities(np.concatenate([noise, similarity], axis=1), query, more, same_camera=rule)
    same(score_similarities(similarity, query, gallery, same_camera=rule), with_junk)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_only_the_order_of_similarities_matters(case):
    _, similarity, query, gallery, rule = drawn(case)
    same(
        score_similarities(similarity, query, gallery, same_camera=rule),
        score_similarities(np.exp2(similarity), query, gallery, same_camera=rule),
    )


@settings(max_examples=40, deadline=None)
@given(cases)
def test_perfect_features_score_one_hundred(case):
    _, _, query, gallery, rule = drawn(case)
    axes = np.eye(6, dtype=np.float32)
    scores = score_domain(axes[query.pids], axes[gallery.pids], query, gallery, same_camera=rule)
    assert scores.to_dict() == {
        "mAP": 100,
        "rank1": 100,
        "rank5": 100,
        "rank10": 100,
        "mINP": 100,
        "queries": len(query),
    }


def test_chunk_and_company_change_no_bit():
    rng = np.random.default_rng(0)
    query, gallery = (
        Labels(rng.integers(0, 9, 300), np.zeros(300, int)),
        Labels(rng.integers(0, 9, 700), np.ones(700, int)),
    )
    left, right = units(rng, 300, 96), units(rng, 700, 96)
    whole = score_domain(left, right, query, gallery)
    for chunk in (1, 7, 128, 129, 300, 10**9):
        same(whole, score_domain(left, right, query, gallery, chunk=chunk))
    products = np.concatenate([block.copy() for _, block in similarity_blocks(left, right)])
    for chunk in (1, 128, 256, 1000):
        blocks = [(start, block.copy()) for start, block in similarity_blocks(left, right, chunk=chunk)]
        assert [start for start, _ in blocks] == list(range(0, 300, -(-chunk // 128) * 128))
        np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), products)
    np.testing.assert_array_equal(next(similarity_blocks(left[:3], right))[1], products[:3])
    np.testing.assert_allclose(products, left.astype(float) @ right.T.astype(float), atol=1e-6)


def peak(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_one_block_and_not_the_matrix(monkeypatch):
    rng = np.random.default_rng(0)
    query, gallery = (
        Labels(rng.integers(0, 400, 600), np.zeros(600, int)),
        Labels(rng.integers(0, 400, 16000), np.ones(16000, int)),
    )
    left, right = units(rng, 600, 8), units(rng, 16000, 8)
    block, matrix = 128 * 16000 * 4, 600 * 16000 * 4
    assert peak(lambda: score_domain(left, right, query, gallery, chunk=128)) < 1.5 * block < matrix / 2
    monkeypatch.setattr(scoring, "BLOCK_BYTES", 2 * block)
    assert peak(lambda: score_domain(left, right, query, gallery)) < 2.75 * block < matrix
    similarity = left @ right.T
    assert peak(lambda: score_similarities(similarity, query, gallery)) < 0.5 * block


def test_inputs_are_left_as_they_were():
    rng = np.random.default_rng(0)
    similarity = rng.standard_normal((5, 30)).astype(np.float32)
    similarity.setflags(write=False)
    pids = np.array([0, 1, 2, 3, JUNK])
    query = Labels(pids, np.zeros(5, int))
    score_similarities(similarity, query, labels(rng, 30, 4, 3))
    pids[0] = 3
    assert query.pids[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        query.pids[0] = 1


def test_any_memory_layout():
    rng = np.random.default_rng(0)
    _, similarity, query, gallery, _ = drawn((3, 8, 30, "drop"))
    expected = score_similarities(similarity, query, gallery)
    same(expected, score_similarities(np.asfortranarray(similarity), query, gallery))
    wide = np.repeat(similarity, 2, axis=1)
    same(expected, score_similarities(wide[:, ::2], query, gallery))
    left, right = units(rng, 8), units(rng, len(gallery))
    same(
        score_domain(left, right, query, gallery),
        score_domain(np.asfortranarray(left), np.asfortranarray(right), query, gallery),
    )


def test_labels_of_a_split():
    split = Split(("a", "b"), np.array([3, JUNK]), np.array([1, 0]))
    made = Labels.from_split(split)
    assert (made.pids.tolist(), made.camids.tolist(), len(made)) == ([3, JUNK], [1, 0], 2)


@pytest.mark.parametrize(
    ("pids", "camids", "message"),
    [
        ([0.5], [0], "pids must be whole numbers"),
        ([True], [0], "pids must be whole numbers"),
        ([[0]], [0], "pids must be whole numbers"),
        ([0], ["a"], "camids must be whole numbers"),
        ([0, 1], [0], "got 2 pids and 1 camids"),
        ([0, -2], [0, 0], "row 1 has -2"),
    ],
)
def test_labels_refuse(pids, camids, message):
    with pytest.raises(DataError, match=message):
        Labels(np.array(pids), np.array(camids))


def two(values=(0, 1)):
    return Labels(np.array(values), np.arange(len(values)))


@pytest.mark.parametrize(
    ("similarity", "message"),
    [
        (np.zeros((2, 3)), r"float32 array \[Q, G\], got float64 \(2, 3\)"),
        (np.zeros((2, 3), np.float16), "got float16"),
        (np.zeros(6, np.float32), r"got float32 \(6,\)"),
        ([[0, 1, 2]], "got list"),
        (np.zeros((3, 3), np.float32), "got 3 rows and 2 labels"),
        (np.zeros((2, 4), np.float32), "one gallery label per gallery row, got 4 rows and 3 labels"),
        (np.float32([[0, 0, 0], [0, np.nan, 0]]), "similarity of query 1 and gallery row 1 is nan"),
        (np.float32([[0, 0, np.inf], [0, 0, 0]]), "similarity of query 0 and gallery row 2 is inf"),
    ],
)
def test_similarities_refused(similarity, message):
    with pytest.raises(DataError, match=message):
        score_similarities(similarity, two(), Labels(np.array([0, 1, 1]), np.array([2, 2, 2])))


def test_a_bad_value_in_an_unscored_row_is_found_too():
    similarity = np.zeros((200, 2), np.float32)
    similarity[190, 1] = -np.inf
    pids = np.zeros(200, int)
    pids[190] = JUNK
    with pytest.raises(DataError, match="query 190 and gallery row 1 is -inf"):
        score_similarities(similarity, Labels(pids, np.zeros(200, int)), Labels(np.array([0, 1]), np.array([1, 1])))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([np.nan, 0], "gallery feature 1 holds NaN or infinity"),
        ([np.inf, 0], "gallery feature 1 holds NaN or infinity"),
        ([0, 0], "gallery feature 1 has length 0 instead of 1"),
        ([3, 4], r"gallery feature 1 has length 5 instead of 1 \(1 such rows\); normalise"),
    ],
)
def test_features_refused(row, message):
    good = np.eye(2, dtype=np.float32)
    bad = good.copy()
    bad[1] = row
    with pytest.raises(DataError, match=message):
        score_domain(good, bad, two(), two())
    with pytest.raises(DataError, match=message.replace("gallery", "query")):
        score_domain(bad, good, two(), two())


def test_features_of_two_models_and_other_types_are_refused():
    good = np.eye(2, dtype=np.float32)
    with pytest.raises(DataError, match="same model, got 2 and 3 values"):
        score_domain(good, np.eye(3, dtype=np.float32), two(), two((0, 1, 2)))
    with pytest.raises(DataError, match="query features must be a float32 array"):
        score_domain(good.astype(float), good, two(), two())
    with pytest.raises(DataError, match="got 2 rows and 3 labels"):
        score_domain(good, good, two((0, 1, 2)), two())
    half = good.astype(np.float16).astype(np.float32) * np.float32(1.001)
    assert score_domain(half, half, two(), Labels([0, 1], [7, 7])).queries == 2


@pytest.mark.parametrize("rule", ["Drop", "", None])
def test_unknown_rule(rule):
    with pytest.raises(UsageError, match='same_camera must be "drop" or "keep"'):
        score_similarities(np.zeros((2, 2), np.float32), two(), two(), same_camera=rule)


def test_chunk_below_one():
    with pytest.raises(UsageError, match="at least 1 query, got 0"):
        score_domain(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), two(), two(), chunk=0)


@pytest.mark.parametrize(
    ("query", "gallery", "message"),
    [
        (
            ([JUNK, JUNK], [0, 0]),
            ([0], [0]),
            "none of the 2 queries can be scored; for 2 of them the query is junk.*give the queries identities",
        ),
        (([5, 5, 0], [0, 0, 0]), ([0], [0]), "for 2 of them its identity is not in the gallery: .*same codes"),
        (([0, 0, 5], [0, 0, 0]), ([0], [0]), 'for 2 of them every gallery crop .* own camera.*same_camera="keep"'),
        (([0], [0]), ([], []), "identity is not in the gallery"),
        (([], []), ([0], [0]), "no queries to score"),
    ],
)
def test_nothing_to_score_says_why(query, gallery, message):
    query, gallery = (Labels(np.array(pids, int), np.array(camids, int)) for pids, camids in (query, gallery))
    with pytest.raises(DataError, match=message) as caught:
        score_similarities(np.zeros((len(query), len(gallery)), np.float32), query, gallery)
    assert "\n" not in str(caught.value)


def naive_bootstrap(per_domain, samples, seed, level):
    rng = np.random.default_rng(seed)
    means = [
        [values[rng.integers(len(values), size=len(values))].mean() for _ in range(samples)] for values in per_domain
    ]
    return np.quantile(np.mean(means, axis=0), [(1 - level) / 2, (1 + level) / 2])


def test_bootstrap_equals_a_loop():
    rng = np.random.default_rng(1)
    values = [rng.random(50), rng.random(7), rng.random(9000)]
    for samples, seed, level in ((200, 0, 0.95), (301, 3, 0.8)):
        how = {"samples": samples, "seed": seed, "level": level}
        np.testing.assert_allclose(bootstrap_mean(values, **how), naive_bootstrap(values, **how))
        np.testing.assert_allclose(bootstrap_interval(values[0], **how), naive_bootstrap(values[:1], **how))


def test_bootstrap_has_the_width_of_the_normal_interval():
    values = np.random.default_rng(2).normal(40, 10, 2500)
    low, high = bootstrap_interval(values, samples=4000)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 50, rel=0.06)
    low, high = bootstrap_mean([values] * 4, samples=4000)
    assert high - low == pytest.approx(1.96 * values.std() / 50, rel=0.06)


def test_bootstrap_is_seeded_and_scales_with_its_values():
    values = np.random.default_rng(3).random(100)
    assert bootstrap_interval(values) == bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    np.testing.assert_allclose(bootstrap_interval(100 * values), 100 * np.array(bootstrap_interval(values)))
    assert bootstrap_interval(np.full(9, 0.25)) == (0.25, 0.25)


@pytest.mark.parametrize("values", [[], [[]], [[1.0], []], [[np.nan]], [[[1.0]]]])
def test_bootstrap_refuses_values(values):
    with pytest.raises(DataError, match="bootstrap interval needs"):
        bootstrap_mean([np.array(value, float) for value in values])


@pytest.mark.parametrize("settings", [{"samples": 0}, {"level": 0}, {"level": 1}, {"level": 95}])
def test_bootstrap_refuses_settings(settings):
    with pytest.raises(UsageError, match="at least 1 sample and a level"):
        bootstrap_interval(np.ones(3), **settings)
