"""Refined answers against plain definitions; scores stay cosines; nothing depends on who else asks."""

import sqlite3
from contextlib import closing

import numpy as np
import pytest
from tiny import DIM, SPACE, unit

from deploy import Embeddings, Gallery
from deploy.answers.refine import Refinement, best_of, expanded, mean_query, search
from deploy.answers.transitions import Sighting, Transitions
from deploy.match import Match
from domains.errors import DataError, GalleryError, UsageError
from domains.reranking import k_reciprocal
from prototypes.transport import Transport

faiss = pytest.importorskip("faiss", reason="FAISS is not installed")
PEOPLE, EACH = 12, 8


def crowd(rng, people=PEOPLE, each=EACH, noise=0.8):
    centres = np.random.default_rng(5).standard_normal((people, DIM))
    pids = np.repeat(np.arange(people), each)
    values = centres[pids] + noise * rng.standard_normal((len(pids), DIM))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32), pids


@pytest.fixture
def stored():
    return crowd(np.random.default_rng(1))


@pytest.fixture
def gallery(tmp_path, stored):
    vectors, pids = stored
    with Gallery.create(tmp_path / "gallery", DIM, SPACE) as made:
        times = [f"2026-01-01T00:{number % 60:02d}:00Z" if number % 3 else None for number in range(len(pids))]
        made.add(
            vectors,
            ["a", "b", "c", "d"] * (len(pids) // 4),
            [f"/{number}.png" for number in range(len(pids))],
            times,
            [str(pid) for pid in pids],
        )
        yield made


@pytest.fixture
def queries():
    return crowd(np.random.default_rng(2), each=2)[0]


def kept(vectors):
    """Vectors as a gallery keeps them."""
    rounded = vectors.astype(np.float16).astype(np.float32)
    return rounded / np.linalg.norm(rounded, axis=1, keepdims=True)


def ids(matches):
    return [match.id for match in matches]


def agree_on_scores(matches, query, stored):
    wanted = kept(stored)[np.array(ids(matches)) - 1] @ query
    np.testing.assert_allclose([match.score for match in matches], wanted, atol=1e-5)
    assert [match.rank for match in matches] == list(range(1, len(matches) + 1))


def test_without_a_refinement_it_is_the_gallerys_search(gallery, queries):
    assert search(gallery, queries, 7) == gallery.search(queries, 7)
    assert search(gallery, queries, 7, Refinement(), camera="b") == gallery.search(queries, 7, camera="b")
    assert search(gallery, np.empty((0, DIM)), 7, Refinement(rerank=True)) == []


def test_the_gallerys_vectors_are_what_was_stored(gallery, stored):
    numbers, vectors = gallery.vectors([5, 1, 5, 999])
    assert numbers == [1, 5]
    assert vectors.feature_space == SPACE
    np.testing.assert_allclose(np.asarray(vectors), kept(stored[0])[[0, 4]], atol=1e-7)
    assert gallery.vectors([])[1].shape == (0, DIM)


def test_the_gallerys_vectors_after_an_upgrade_are_the_carried_ones(gallery, stored, make_bundle):
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((DIM, DIM)))[0].astype(np.float32)
    transport = Transport(SPACE, "bc" * 32, turn, "ridge", (0.9, 0.5))
    gallery.upgrade(make_bundle("two", changes={"feature_space": "bc" * 32}, transport=transport.to_bytes()).folder)
    late = unit(np.random.default_rng(2), 1)
    (new,) = gallery.add(Embeddings(late, "bc" * 32), "a", ["/late.png"])
    numbers, vectors = gallery.vectors([3, new])
    assert (numbers, vectors.feature_space) == ([3, new], "bc" * 32)
    np.testing.assert_allclose(np.asarray(vectors), np.stack([stored[0][2] @ turn, late[0]]), atol=2e-3)
    query = Embeddings((stored[0][:1] @ turn).astype(np.float32), "bc" * 32)
    assert search(gallery, query, 5, Refinement(rerank=True))[0][0].id == 1
    with pytest.raises(GalleryError, match="in space abab"):
        search(gallery, Embeddings(stored[0][:1], SPACE), 5, Refinement(rerank=True))


def test_a_damaged_entry_is_not_compared(gallery):
    with closing(sqlite3.connect(gallery.path / "gallery.db")) as other, other:
        other.execute("UPDATE entry SET vector = zeroblob(length(vector)) WHERE id = 4")
    with pytest.raises(GalleryError, match=r"entry 4 .* is damaged"):
        gallery.vectors([4])


# ----------------------------------------------------------------------------------------------------------- re-ranking


@pytest.mark.parametrize("depth", [96, 30])
def test_reranking_is_k_reciprocal_among_the_candidates(gallery, stored, queries, depth):
    settings = {"k1": 6, "k2": 3}
    found = search(gallery, queries[:5], 96, Refinement(rerank=True, depth=depth, **settings))
    for query, matches, plain in zip(queries[:5], found, gallery.search(queries[:5], 96), strict=True):
        candidates = np.array(ids(plain[:depth])) - 1
        closeness = k_reciprocal(query[None], kept(stored[0])[candidates], **settings)[0]
        order = candidates[np.argsort(-closeness, kind="stable")] + 1
        assert ids(matches) == [*order, *ids(plain[depth:])]
        assert {match.ranked_by for match in matches} == {"k-reciprocal"}
        agree_on_scores(matches, query, stored[0])


def test_an_answer_does_not_depend_on_who_else_asks(gallery, queries):
    for refinement in (Refinement(rerank=True), Refinement(expand=3), Refinement(expand=2, rerank=True, depth=20)):
        together = search(gallery, queries[:4], 10, refinement)
        assert together == [search(gallery, query, 10, refinement)[0] for query in queries[:4]]


def test_reranking_lifts_right_matches(gallery, stored, queries):
    pids = np.repeat(np.arange(PEOPLE), 2)

    def right(refinement):
        found = search(gallery, queries, EACH, refinement)
        return sum(
            stored[1][match.id - 1] == pid for pid, matches in zip(pids, found, strict=True) for match in matches
        )

    assert right(Refinement(rerank=True, k1=6, k2=3)) > right(None)
    assert right(Refinement(expand=3)) > right(None)


# ------------------------------------------------------------------------------------------------------------ expansion


def test_expansion_asks_again_with_the_weighted_average(gallery, stored, queries):
    for query in queries[:6]:
        plain = gallery.search(query, 3)[0]
        near = kept(stored[0])[np.array(ids(plain)) - 1]
        average = query + sum(max(float(vector @ query), 0) ** 3 * vector for vector in near)
        average /= np.linalg.norm(average)
        np.testing.assert_allclose(expanded(query, near), average, atol=1e-6)
        found = search(gallery, query, 40, Refinement(expand=3, depth=50))[0]
        assert ids(found) == ids(gallery.search(average, 40)[0])
        assert {match.ranked_by for match in found} == {"expansion"}
        agree_on_scores(found, query, stored[0])


def test_only_matches_from_the_least_score_on_are_averaged(gallery, queries):
    for query in queries[:6]:
        best, second = (match.score for match in gallery.search(query, 2)[0])
        assert search(gallery, query, 9, Refinement(expand=5, least=min(best + 1e-3, 1.0))) == gallery.search(query, 9)
        one = search(gallery, query, 9, Refinement(expand=5, least=(best + second) / 2))[0]
        assert ids(one) == ids(search(gallery, query, 9, Refinement(expand=1))[0])


def test_a_plain_average_is_alpha_zero():
    rng = np.random.default_rng(0)
    query, near = unit(rng, 1)[0], unit(rng, 3)
    total = query + near.sum(axis=0)
    np.testing.assert_allclose(expanded(query, near, alpha=0), total / np.linalg.norm(total), atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- together


def test_several_images_as_one_by_their_mean(gallery, stored, queries):
    pair = queries[:2]
    (found,) = search(gallery, pair, 20, Refinement(together="mean"))
    mean = pair.mean(axis=0)
    assert ids(found) == ids(gallery.search(mean / np.linalg.norm(mean), 20)[0])
    agree_on_scores(found, mean, stored[0])
    each = kept(stored[0])[np.array(ids(found)) - 1] @ pair.T
    np.testing.assert_allclose([match.score for match in found], each.mean(axis=1), atol=1e-5)
    assert all(match.score <= greatest + 1e-6 for match, greatest in zip(found, each.max(axis=1), strict=True))
    assert ids(search(gallery, pair[:1], 20, Refinement(together="mean"))[0]) == ids(gallery.search(pair[0], 20)[0])


def test_several_images_as_one_by_the_greatest_cosine(gallery, stored, queries):
    three = queries[:3]
    (found,) = search(gallery, three, 15, Refinement(together="max", depth=15))
    greatest = (kept(stored[0]) @ three.T).max(axis=1)
    assert ids(found) == (np.argsort(-greatest, kind="stable")[:15] + 1).tolist()
    np.testing.assert_allclose([match.score for match in found], np.sort(greatest)[::-1][:15], atol=1e-5)


def test_merging_keeps_each_entry_once_ties_by_id():
    def match(number, score):
        return Match(1, score, number, "/x", "c", None, None)

    merged = best_of([[match(3, 0.5), match(1, 0.4)], [match(1, 0.5), match(2, 0.1)]])
    assert [(found.id, found.score) for found in merged] == [(1, 0.5), (3, 0.5), (2, 0.1)]


def test_images_that_cancel_out_are_no_person(gallery):
    vector = np.eye(DIM, dtype=np.float32)[0]
    with pytest.raises(DataError, match="2 images have nothing in common"):
        search(gallery, np.stack([vector, -vector]), 3, Refinement(together="mean"))
    with pytest.raises(DataError, match="nothing in common"):
        mean_query(np.stack([vector, -vector]))


def test_together_with_expansion_and_reranking(gallery, stored, queries):
    (found,) = search(gallery, queries[:2], 10, Refinement(together="mean", expand=3, rerank=True))
    assert {match.ranked_by for match in found} == {"k-reciprocal"}
    agree_on_scores(found, queries[:2].mean(axis=0), stored[0])


# ---------------------------------------------------------------------------------------------------------- transitions

SEEN = Sighting("a", "2026-01-01T00:30:00+00:00")
RULES = Transitions({("a", "b"): ((0.0, 300.0),), ("b", "a"): ((0.0, 300.0),), ("c", "a"): ((60.0, 600.0),)})


def test_impossible_matches_go_last_or_away_in_their_order(gallery, queries):
    plain = gallery.search(queries[0], 96)[0]
    judged = {match.id: RULES.possible(SEEN, match) for match in plain}
    assert set(judged.values()) == {True, False, None}
    last = search(gallery, queries[0], 96, Refinement(seen=SEEN, transitions=RULES))[0]
    left = [number for number in ids(plain) if judged[number] is not False]
    assert ids(last) == [*left, *(number for number in ids(plain) if judged[number] is False)]
    assert [match.possible for match in last] == [judged[match.id] for match in last]
    gone = search(gallery, queries[0], 96, Refinement(seen=SEEN, transitions=RULES, remove_impossible=True))[0]
    assert ids(gone) == left
    assert [match.rank for match in gone] == list(range(1, len(left) + 1))
    assert {match.possible for match in gone} == {True, None}


def test_entries_without_a_time_and_unknown_pairs_are_not_judged(gallery, queries):
    last = search(gallery, queries[0], 96, Refinement(seen=SEEN, transitions=RULES, rerank=True, k1=6, k2=3))[0]
    assert {match.possible for match in last if match.time is None} == {None}
    assert {match.possible for match in last if match.camera in "ad"} == {None}
    assert {match.ranked_by for match in last} == {"k-reciprocal"}


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "settings",
    [
        {"together": "sum"},
        {"together": "max", "rerank": True},
        {"expand": -1},
        {"depth": 0},
        {"alpha": -1},
        {"alpha": float("nan")},
        {"least": 2},
        {"seen": SEEN},
        {"transitions": RULES},
        {"remove_impossible": True},
    ],
)
def test_refinements_refused(settings):
    with pytest.raises(UsageError):
        Refinement(**settings)


def test_foreign_vectors_and_counts_are_refused(gallery, queries):
    with pytest.raises(GalleryError, match="in space ffff"):
        search(gallery, Embeddings(queries, "ff" * 32), 3, Refinement(rerank=True))
    for together in ("mean", "max"):
        with pytest.raises(GalleryError, match="in space ffff"):
            search(gallery, Embeddings(queries[:2], "ff" * 32), 3, Refinement(together=together))
        with pytest.raises(GalleryError, match="query 1 has length 2"):
            search(gallery, queries[:2] * np.float32([[1], [2]]), 3, Refinement(together=together))
    for k in (0, True, 1.5):
        with pytest.raises(GalleryError, match="k must be a whole number"):
            search(gallery, queries, k, Refinement(rerank=True))
    with pytest.raises(UsageError, match="re-ranking needs"):
        search(gallery, queries, 3, Refinement(rerank=True, k1=0))


def test_what_is_forgotten_or_upgraded_between_two_looks_is_noticed(gallery, queries, monkeypatch):
    plain = ids(gallery.search(queries[0], 96)[0])
    whole = Gallery.vectors

    def after_forgetting(self, numbers):
        self.forget(plain[:1])
        return whole(self, numbers)

    monkeypatch.setattr(Gallery, "vectors", after_forgetting)
    assert set(ids(search(gallery, queries[0], 96, Refinement(rerank=True))[0])) == set(plain[1:])
    monkeypatch.setattr(
        Gallery,
        "vectors",
        lambda self, numbers: (whole(self, numbers)[0], Embeddings(whole(self, numbers)[1], "ee" * 32)),
    )
    with pytest.raises(GalleryError, match="was upgraded meanwhile"):
        search(gallery, queries[0], 9, Refinement(expand=1))


def test_an_empty_gallery_answers_nothing(tmp_path, queries):
    with Gallery.create(tmp_path / "empty", DIM, SPACE) as made:
        assert search(made, queries[:2], 5, Refinement(rerank=True, expand=3)) == [[], []]
        assert search(made, queries[:2], 5, Refinement(together="mean", rerank=True)) == [[]]
        assert search(made, queries[:2], 5, Refinement(together="max")) == [[]]
