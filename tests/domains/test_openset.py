"""Open-set metrics against a plain Python oracle, their properties, and bad input."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains import openset, scoring
from domains.domain import JUNK
from domains.errors import DataError, UsageError
from domains.openset import count_pairs, impostor_levels, open_set, pair_blocks
from domains.scoring import Labels, score_domain

RATES = (1.0, 0.5, 0.3, 0.1, 0.01)


def accepted(scores, strangers, rate):
    """Best share of scores under any threshold that lets at most the rate of strangers in; None if not one stranger may
    be let in.
    """
    if rate * len(strangers) < 1 - 1e-9 or not scores:
        return None
    best = 0.0
    for level in [*strangers, -2.0]:
        if sum(score > level for score in strangers) <= rate * len(strangers) + 1e-9:
            best = max(best, sum(score > level for score in scores) / len(scores))
    return 100 * best


def naive(query, gallery, asked, held, rule, fpr, fpir):
    """The definitions, word by word."""
    genuine, impostor, found, nearest, mated = [], [], [], [], 0
    for q in range(len(query)):
        if asked.pids[q] == JUNK:
            continue
        answers, strangers = [], []
        for g in range(len(gallery)):
            if held.pids[g] == JUNK:
                continue
            score = float(query[q] @ gallery[g])
            if held.pids[g] != asked.pids[q]:
                impostor.append(score)
                strangers.append(score)
                answers.append((-score, g, False))
            elif rule == "keep" or held.camids[g] != asked.camids[q]:
                genuine.append(score)
                answers.append((-score, g, True))
        if strangers:
            nearest.append(max(strangers))
        if any(mate for _, _, mate in answers):
            mated += 1
            score, _, mate = min(answers)
            found.append(-score if mate else -3.0)
    tpr = {rate: accepted(genuine, impostor, rate) for rate in fpr}
    return (
        tpr,
        {rate: accepted(found, nearest, rate) for rate in fpir},
        len(genuine),
        len(impostor),
        mated,
        len(nearest),
    )


def labels(rng, count, people, cameras=3):
    return Labels(rng.integers(JUNK, people, count), rng.integers(0, cameras, count))


def corners(rng, count):
    """Unit vectors whose products are exact in any order of summation, with many ties."""
    return rng.choice(np.float32([-0.5, 0.5]), (count, 4))


def units(rng, count, dim=16):
    values = rng.standard_normal((count, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def people(rng, count, identities=6, noise=0.5):
    centres = np.random.default_rng(99).standard_normal((identities, 16))
    pids = rng.integers(0, identities, count)
    values = (centres[pids] + noise * rng.standard_normal((count, 16))).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True), pids


@pytest.mark.parametrize("rule", ["drop", "keep"])
def test_equals_the_definition_with_ties_junk_and_distractors(rule):
    compared = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        asked, held = labels(rng, rng.integers(1, 9), 4), labels(rng, rng.integers(2, 30), 6)
        query, gallery = corners(rng, len(asked)), corners(rng, len(held))
        tpr, detected, genuine, impostor, mated, nonmated = naive(query, gallery, asked, held, rule, RATES, RATES)
        assert count_pairs(asked, held, same_camera=rule) == (genuine, impostor)
        if not genuine or not impostor:
            with pytest.raises(DataError, match="need genuine and impostor pairs"):
                open_set(query, gallery, asked, held, same_camera=rule)
            continue
        compared += 1
        result = open_set(query, gallery, asked, held, same_camera=rule, fpr=RATES, fpir=RATES)
        assert result.tpr == {rate: value if value is None else pytest.approx(value) for rate, value in tpr.items()}
        assert result.dir == {
            rate: value if value is None else pytest.approx(value) for rate, value in detected.items()
        }
        assert (result.pairs, result.mated, result.nonmated) == ((genuine, impostor), mated, nonmated)
    assert compared > 50


def test_by_hand():
    query = np.float32([[1, 0], [0, 1]])
    gallery = np.float32([[1, 0], [0.6, 0.8], [0.8, 0.6], [0, 1]])
    asked, held = Labels([0, 1], [0, 0]), Labels([0, 1, 2, JUNK], [1, 1, 1, 1])
    result = open_set(query, gallery, asked, held, fpr=(0.25, 0.5, 0.2), fpir=(0.5, 1.0, 0.4))
    # genuine 1.0 and 0.8; impostors 0.6, 0.8 (first query), 0.0, 0.6 (second): the second person's own score ties with
    # the first's stranger
    assert result.tpr == {0.25: 100.0, 0.5: 100.0, 0.2: None}
    assert result.dir == {0.5: 100.0, 1.0: 100.0, 0.4: None}
    assert result.to_dict()["dir_at_fpir"] == {"0.5": 100.0, "1": 100.0, "0.4": None}
    assert (result.mated, result.nonmated, result.pairs) == (2, 2, (2, 4))


def test_a_stranger_equal_to_a_mate_is_refused_with_it():
    query, gallery = np.float32([[1, 0]]), np.float32([[1, 0], [1, 0], [0, 1]])
    result = open_set(query, gallery, Labels([0], [0]), Labels([0, 1, 2], [1, 1, 1]), fpr=(0.5,), fpir=(1.0,))
    assert result.tpr == {0.5: 100.0}, "one of two strangers may be let in, and then so may the mate"
    strict = open_set(query, gallery, Labels([0], [0]), Labels([0, 1, 1], [1, 1, 1]), fpr=(0.5,))
    assert strict.tpr == {0.5: 100.0}
    tied = open_set(
        query, np.float32([[1, 0], [1, 0], [1, 0]]), Labels([0], [0]), Labels([0, 1, 2], [1, 1, 1]), fpr=(0.5,)
    )
    assert tied.tpr == {0.5: 0.0}, "both strangers tie with the mate, so none of the three can be accepted"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["drop", "keep"]))
def test_dir_without_a_threshold_is_rank_1_and_rates_grow(seed, rule):
    rng = np.random.default_rng(seed)
    query, asked_pids = people(rng, 20, noise=1.5)
    gallery, held_pids = people(rng, 60, noise=1.5)
    asked, held = Labels(asked_pids, rng.integers(0, 2, 20)), Labels(held_pids, rng.integers(0, 2, 60))
    result = open_set(query, gallery, asked, held, same_camera=rule, fpr=(0.01, 0.1, 1.0), fpir=(0.05, 0.5, 1.0))
    assert result.dir[1.0] == pytest.approx(score_domain(query, gallery, asked, held, same_camera=rule).rank1)
    assert result.tpr[1.0] == 100
    assert list(result.tpr.values()) == sorted(result.tpr.values())
    assert list(result.dir.values()) == sorted(result.dir.values())


def test_junk_changes_nothing():
    rng = np.random.default_rng(0)
    query, asked = people(rng, 20)
    gallery, held = people(rng, 60)
    plain = open_set(query, gallery, Labels(asked, np.zeros(20, int)), Labels(held, np.ones(60, int)))
    more = Labels(np.append(held, [JUNK] * 9), np.ones(69, int))
    asks = Labels(np.append(asked, JUNK), np.zeros(21, int))
    assert open_set(np.concatenate([query, query[:1]]), np.concatenate([gallery, query[:9]]), asks, more) == plain


def test_the_level_is_the_exact_order_statistic_though_scores_crowd_into_few_bins(monkeypatch):
    monkeypatch.setattr(openset, "_BINS", 8)
    rng = np.random.default_rng(1)
    query, gallery = units(rng, 300), units(rng, 40)
    who = Labels(np.arange(300), np.zeros(300, int)), Labels(np.arange(300, 340), np.ones(40, int))

    def blocks():
        return pair_blocks(query, gallery, *who, chunk=1)

    scores = -np.sort(-np.concatenate([block.similarity.copy() for block in blocks()]), axis=None)
    rates = (1 / 12000, 0.001, 0.5, 11999 / 12000, 1.0)
    levels = impostor_levels(blocks, 12000, rates)
    assert levels == [scores[1], scores[12], scores[6000], scores[11999], -np.inf]


def test_pieces_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    query, asked = people(rng, 300, noise=1.5)
    gallery, held = people(rng, 50, noise=1.5)
    who = Labels(asked, np.zeros(300, int)), Labels(held, np.ones(50, int))
    whole = open_set(query, gallery, *who)
    assert open_set(query, gallery, *who, chunk=1) == whole
    monkeypatch.setattr(scoring, "BLOCK_BYTES", 1)
    assert open_set(query, gallery, *who) == whole


def test_the_matrix_of_all_pairs_is_never_held(monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK_BYTES", 2**20)
    rng = np.random.default_rng(0)
    query, gallery = units(rng, 4000), units(rng, 4000)
    who = Labels(np.arange(4000), np.zeros(4000, int)), Labels(np.arange(4000), np.ones(4000, int))
    tracemalloc.start()
    try:
        open_set(query, gallery, *who)
        assert tracemalloc.get_traced_memory()[1] < 0.3 * 4 * 4000 * 4000
    finally:
        tracemalloc.stop()


def test_refusals():
    good, who = np.eye(2, dtype=np.float32), Labels([0, 1], [0, 1])
    for rate in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="a rate must be above 0"):
            open_set(good, good, who, who, fpr=(rate,))
    with pytest.raises(DataError, match="has length 2"):
        open_set(2 * good, good, who, who)
    with pytest.raises(DataError, match="one label per row"):
        open_set(good, good, who, Labels([0, 1, 2], [1, 1, 1]), same_camera="keep")
    with pytest.raises(UsageError, match="same_camera"):
        count_pairs(who, who, same_camera="both")
    assert impostor_levels(lambda: iter(()), 0, []) == []
