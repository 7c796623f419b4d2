import json
import sqlite3
import threading
from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import DIM, SPACE, unit

from deploy import Embeddings, Gallery
from deploy.gallery import open_or_create
from deploy.store.entry import instant
from domains.errors import DeviceError, GalleryError, ReidError, UsageError

faiss = pytest.importorskip("faiss", reason="FAISS is not installed")


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def gallery(tmp_path):
    with Gallery.create(tmp_path / "gallery", DIM, SPACE) as made:
        yield made


def names(count, first=0):
    return [f"/crops/{first + number}.png" for number in range(count)]


def oracle(stored, ids, query, k, allowed=None):
    """Cosine of the fp16 vectors in float64, one pair at a time; ties by id."""
    scored, exact = [], stored.astype(np.float64)
    rounded = (exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)).astype(
        np.float16
    )  # as the gallery does, bit for bit
    for number, vector in zip(ids, rounded.astype(np.float64), strict=True):
        if allowed is None or allowed[ids.index(number)]:
            exact = query.astype(np.float64)
            scored.append((-(vector * exact).sum() / np.linalg.norm(vector) / np.linalg.norm(exact), number))
    scored.sort()
    return [(number, -score) for score, number in scored[:k]]


def same(matches, wanted):
    assert [match.id for match in matches] == [number for number, _ in wanted]
    np.testing.assert_allclose([match.score for match in matches], [score for _, score in wanted], atol=1e-12)
    assert [match.rank for match in matches] == list(range(1, len(wanted) + 1))


# -------------------------------------------------------------------------------------------------------------- answers


def test_round_trip(gallery, rng):
    vectors = unit(rng, 3)
    ids = gallery.add(
        vectors,
        camera=["c1", "c2", "c2"],
        source=names(3),
        time=["2026-01-31T12:00:00+01:00", None, "2026-01-31T11:30:00Z"],
        label="Ann",
    )
    assert ids == [1, 2, 3]
    assert all(type(number) is int for number in ids)
    assert gallery.ids() == ids
    assert len(gallery) == 3
    best = gallery.search(vectors[:1], k=1)[0][0]
    assert (best.rank, best.id, best.source, best.camera, best.time, best.label) == (
        1,
        1,
        "/crops/0.png",
        "c1",
        "2026-01-31T12:00:00+01:00",
        "Ann",
    )
    assert best.score == pytest.approx(1, abs=1e-6)
    assert list(best.to_dict())[:7] == ["rank", "score", "id", "source", "camera", "time", "label"]
    assert (best.verdict, best.ranked_by, best.possible) == (None, "cosine", None)
    assert json.loads(json.dumps(best.to_dict())) == best.to_dict()


@pytest.mark.parametrize("count", [1, 2, 9, 200])
@pytest.mark.parametrize("k", [1, 3, 500])
def test_order_is_exact(gallery, rng, count, k):
    vectors = unit(rng, count)
    ids = gallery.add(vectors, camera="c", source=names(count))
    queries = unit(rng, 4)
    for query, matches in zip(queries, gallery.search(queries, k=k), strict=True):
        same(matches, oracle(vectors, ids, query, k))


def test_near_and_exact_ties_are_in_the_order_of_ids(gallery, rng):
    # Thousands of vectors closer to each other than float32 sums can tell, in groups of equal ones: what FAISS proposes
    # is wrong.
    base = unit(rng, 1)[0].astype(np.float64)
    groups = base + rng.normal(scale=2e-4, size=(40, DIM))
    vectors = groups[rng.integers(0, 40, 3000)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = gallery.add(vectors, camera="c", source=names(3000))
    same(gallery.search(base, k=120)[0], oracle(vectors, ids, base, 120))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_filters_are_part_of_the_search(tmp_path_factory, data):
    count = data.draw(st.integers(0, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    vectors = unit(rng, count)
    cameras = data.draw(st.lists(st.sampled_from("abc"), min_size=count, max_size=count))
    hours = data.draw(st.lists(st.one_of(st.none(), st.integers(0, 23)), min_size=count, max_size=count))
    times = [None if hour is None else f"2026-01-01T{hour:02d}:00:00{'+02:00' if hour % 2 else 'Z'}" for hour in hours]
    camera = data.draw(st.sampled_from([None, "a", "b", "unknown"]))
    after = data.draw(st.sampled_from([None, "2026-01-01T05:00:00Z"]))
    before = data.draw(st.sampled_from([None, "2026-01-01T18:00:00+01:00"]))
    k = data.draw(st.integers(1, 50))
    allowed = [
        (camera is None or seen == camera)
        and (after is None or (time is not None and instant(time) >= instant(after)))
        and (before is None or (time is not None and instant(time) < instant(before)))
        for seen, time in zip(cameras, times, strict=True)
    ]
    query = unit(rng, 1)
    with Gallery.create(tmp_path_factory.mktemp("g") / "gallery", DIM, SPACE) as gallery:
        ids = gallery.add(vectors, camera=cameras, source=names(count), time=times)
        found = gallery.search(query, k=k, camera=camera, after=after, before=before)[0]
    same(found, oracle(vectors, ids, query[0], k, allowed))


def test_a_rare_camera_is_found_among_many(gallery, rng):
    # Filtering the best k afterwards would find nothing: the camera's entries are the least similar of all.
    query = unit(rng, 1)[0]
    vectors = unit(rng, 2000) * 0.1 + query
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    gallery.add(vectors, camera="common", source=names(2000))
    far = gallery.add(unit(rng, 3), camera="rare", source=names(3, 2000))
    assert {match.id for match in gallery.search(query, k=10, camera="rare")[0]} == set(far)


def test_empty_gallery_and_no_query(gallery, rng):
    assert gallery.search(unit(rng, 2), k=3) == [[], []]
    gallery.add(unit(rng, 2), "c", names(2))
    assert gallery.search(np.empty((0, DIM)), k=3) == []
    assert gallery.search([], k=3) == []
    assert gallery.add(np.empty((0, DIM), np.float32), "c", []) == []
    assert gallery.info()["generation"] == 1
    assert gallery.search(unit(rng, 1), k=3, camera="nobody") == [[]]


def test_search_sees_what_was_added_and_forgotten_since(gallery, rng):
    vectors = unit(rng, 60)
    ids = []
    for start in range(0, 60, 10):
        ids += gallery.add(vectors[start : start + 10], "c", names(10, start))
        same(gallery.search(vectors[0], k=100)[0], oracle(vectors[: start + 10], ids, vectors[0], 100))
    assert gallery.forget(ids[:7]) == 7
    same(gallery.search(vectors[0], k=100)[0], oracle(vectors[7:], ids[7:], vectors[0], 100))
    more = gallery.add(vectors[:7], "c", names(7))
    assert more == list(range(61, 68))
    same(
        gallery.search(vectors[0], k=5)[0],
        oracle(np.concatenate([vectors[7:], vectors[:7]]), ids[7:] + more, vectors[0], 5),
    )


def test_one_vector_and_one_value(gallery, rng):
    vector = unit(rng, 1)[0]
    assert gallery.add(vector, "c", "/a.png") == [1]
    assert gallery.add(vector.tolist(), "c", ["/b.png"]) == [2]
    assert [match.source for match in gallery.search(vector)[0]] == ["/a.png", "/b.png"]


def test_stored_vectors_are_scaled_to_unit_length(gallery, rng):
    vector = unit(rng, 1)[0]
    gallery.add(np.stack([vector * 1.009, vector * 0.991]), "c", names(2))
    assert [match.score for match in gallery.search(vector * 1.005)[0]] == pytest.approx([1, 1], abs=1e-6)
    assert max(match.score for match in gallery.search(vector)[0]) <= 1


# ------------------------------------------------------------------------------------------------------------- refusals


def test_wrong_vectors_are_refused(gallery, rng):
    good = unit(rng, 3)
    nan, infinite, long, short = (good.copy() for _ in range(4))
    nan[1, 2] = np.nan
    infinite[2, 0] = np.inf
    long[1] *= 1.02
    short[0] = 0
    for bad, message in (
        (nan, "1 has a value that is not finite"),
        (infinite, "2 has a value"),
        (long, "1 has length 1.02"),
        (short, "0 has length 0,"),
        (good[:, :5], r"\[N, 24\], got float32 \[3, 5\]"),
        (good[None], "got float32"),
        (good.astype(str), "must be numbers"),
        (good.astype(complex), "must be numbers"),
        (good.astype(bool), "must be numbers"),
        ([[1.0], [1.0, 2.0]], "one array"),
        (np.float32(1), "must be numbers"),
        (Embeddings(good, "cd" * 32), "in space cdcd.*upgrade"),
        (Embeddings(good, None), "mixed spaces"),
        (np.full((3, DIM), 1e200), "length"),
    ):
        with pytest.raises(GalleryError, match=message) as caught:
            gallery.add(bad, "c", names(len(np.atleast_1d(np.asarray(bad, object)))))
        assert "\n" not in str(caught.value)
        with pytest.raises(GalleryError, match=message):
            gallery.search(bad)
    assert len(gallery) == 0
    gallery.add(Embeddings(good, SPACE), "c", names(3))


@pytest.mark.parametrize(
    "texts",
    [
        {"camera": ""},
        {"camera": None},
        {"camera": "  "},
        {"camera": "x" * 257},
        {"camera": ["a"]},
        {"camera": 3},
        {"camera": b"c1"},
        {"camera": ["a", None]},
        {"camera": "a\nb"},
        {"camera": "a\0"},
        {"camera": "\udc80"},
        {"source": "only one"},
        {"source": ["a"]},
        {"source": ["a", ""]},
        {"source": ["a", "x" * 4097]},
        {"source": None},
        {"source": 7},
        {"time": "yesterday"},
        {"time": "2026-01-31T12:00:00"},
        {"time": "2026-01-31"},
        {"time": "2026-13-31T12:00:00Z"},
        {"time": ["2026-01-31T12:00:00Z"]},
        {"time": 5},
        {"time": "2026-01-31T12:00:00Z" + " " * 60},
        {"label": ""},
        {"label": "x" * 257},
        {"label": [1, 2]},
    ],
    ids=lambda texts: str(texts)[:40].encode("ascii", "replace").decode(),
)
def test_wrong_texts_are_refused(gallery, rng, texts):
    with pytest.raises(GalleryError) as caught:
        gallery.add(unit(rng, 2), **({"camera": "c", "source": ["a", "b"]} | texts))
    assert "\n" not in str(caught.value)
    assert len(gallery) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"k": 0},
        {"k": -1},
        {"k": 1.5},
        {"k": True},
        {"k": None},
        {"camera": 5},
        {"after": "noon"},
        {"before": "2026-01-01"},
    ],
)
def test_wrong_questions_are_refused(gallery, rng, options):
    with pytest.raises(GalleryError):
        gallery.search(unit(rng, 1), **options)


def test_time_span_that_is_none(gallery, rng):
    with pytest.raises(GalleryError, match="swap"):
        gallery.search(unit(rng, 1), after="2026-01-01T12:00:00Z", before="2026-01-01T13:00:00+02:00")


@pytest.mark.parametrize("ids", [["1"], [0], [-1], [1.0], [True], [2**63], [None]])
def test_wrong_ids_are_refused(gallery, ids):
    with pytest.raises(GalleryError, match="an id"):
        gallery.forget(ids)


def test_extreme_times_compare(gallery, rng):
    times = [
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59.999999-14:00",
        "1969-12-31T23:59:59.9Z",
        "2026-06-01T12:00:00.5+05:30",
    ]
    gallery.add(unit(rng, 4), "c", names(4), time=times)
    found = gallery.search(unit(rng, 1), after="1969-12-31T23:59:59.9Z", before="2026-06-01T06:30:00.500001Z")[0]
    assert sorted(match.time for match in found) == sorted(times[2:])
    assert (gallery.info()["first"], gallery.info()["last"]) == (times[0], times[1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"dim": 0},
        {"dim": True},
        {"dim": 1.0},
        {"dim": 10**6},
        {"feature_space": ""},
        {"feature_space": None},
        {"feature_space": "a\n"},
    ],
)
def test_wrong_galleries_are_not_made(tmp_path, wrong):
    with pytest.raises(GalleryError):
        Gallery.create(tmp_path / "gallery", **({"dim": DIM, "feature_space": SPACE} | wrong))
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------- the folder


def test_create_and_open(tmp_path, rng):
    with pytest.raises(GalleryError, match="not a gallery"):
        Gallery.open(tmp_path / "gallery")
    with Gallery.create(tmp_path / "gallery ü?#%", DIM, SPACE, bundle="some/bundle") as gallery:
        assert gallery.bundle.is_absolute()
        assert gallery.bundle.parts[-2:] == ("some", "bundle")
        bundle = gallery.bundle
    with pytest.raises(GalleryError, match="already exists"):
        Gallery.create(gallery.path, DIM, SPACE)
    with Gallery.open(str(gallery.path)) as again:
        assert (again.dim, again.feature_space, again.bundle) == (DIM, SPACE, bundle)
    with Gallery.create(tmp_path / "other", DIM, SPACE) as other, pytest.raises(GalleryError, match="--bundle"):
        _ = other.bundle


def test_open_or_create(tmp_path, bundle, make_bundle, rng):
    with pytest.raises(UsageError, match="--bundle"):
        open_or_create(tmp_path / "gallery")
    with open_or_create(tmp_path / "gallery", bundle.folder) as made:
        made.add(unit(rng, 1), "c", names(1))
        assert (made.dim, made.feature_space, made.bundle) == (DIM, SPACE, bundle.folder)
    for named in (None, bundle.folder):
        with open_or_create(tmp_path / "gallery", named) as opened:
            assert len(opened) == 1
    with pytest.raises(GalleryError, match="different model"):
        open_or_create(tmp_path / "gallery", make_bundle("other", changes={"feature_space": "ef" * 32}).folder)


def test_what_is_no_gallery_is_refused(tmp_path, gallery):
    folder = tmp_path / "wrong"
    folder.mkdir()
    file = folder / "gallery.db"
    gallery.close()
    good = (gallery.path / "gallery.db").read_bytes()
    with closing(sqlite3.connect(tmp_path / "foreign.db")) as db:
        db.execute("CREATE TABLE gallery(dim)")
    newer = bytearray(good)
    newer[60:64] = (99).to_bytes(4, "big")
    rng = np.random.default_rng(0)
    for data in (
        b"",
        b"no database at all" * 100,
        good[:100],
        (tmp_path / "foreign.db").read_bytes(),
        bytes(newer),
        rng.bytes(8192),
    ):
        file.write_bytes(data)
        with pytest.raises(GalleryError) as caught:
            Gallery.open(folder)
        assert "\n" not in str(caught.value)


def test_mutated_databases_never_crash(tmp_path, gallery, rng):
    vectors = unit(rng, 40)
    gallery.add(vectors, "c", names(40))
    gallery.close()
    good = (gallery.path / "gallery.db").read_bytes()
    refused, lines = 0, []
    for _ in range(60):
        data = bytearray(good)
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(256)
        (gallery.path / "gallery.db").write_bytes(
            data[: rng.integers(100, len(data) + 1)] if rng.random() < 0.3 else data
        )
        for extra in gallery.path.glob("gallery.db-*"):
            extra.unlink()
        try:
            with Gallery.open(gallery.path) as opened:
                assert len(opened.search(vectors[:2], k=3)) == 2
                opened.verify()
        except ReidError as error:
            refused += 1
            lines.append(str(error))
    assert refused > 10
    assert not [line for line in lines if "\n" in line]


def test_verify_finds_a_flipped_bit_in_a_vector_or_a_text(gallery, rng):
    vectors = unit(rng, 20)
    gallery.add(vectors, "camera-one", names(20))
    assert gallery.verify()[0] == "gallery.db: 20 entries, all intact"
    gallery.close()
    good = (gallery.path / "gallery.db").read_bytes()
    rows = [vector.astype(np.float16).tobytes() for vector in vectors]
    for at in (good.index(rows[11]) + 3, good.index(b"camera-one/crops/4.png", good.index(rows[4])) + 3):
        (gallery.path / "gallery.db").write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        (gallery.path / "index.json").unlink(missing_ok=True)
        with Gallery.open(gallery.path) as opened:
            for ask in (opened.verify, lambda: opened.search(vectors[:1])):
                with pytest.raises(GalleryError, match=r"entry (5|12) of .* (is|are) damaged"):
                    ask()
            opened.forget([5, 12])
            assert len(opened.verify()) == 3


def test_info(gallery, rng):
    gallery.add(
        unit(rng, 3), camera=["b", "a", "b"], source=names(3), label=["x", None, None], time="2026-01-01T00:00:00Z"
    )
    info = gallery.info()
    assert {
        key: info[key]
        for key in ("entries", "dim", "feature_space", "bundle", "generation", "cameras", "labelled", "first", "last")
    } == {
        "entries": 3,
        "dim": DIM,
        "feature_space": SPACE,
        "bundle": None,
        "generation": 1,
        "cameras": {"a": 1, "b": 2},
        "labelled": 1,
        "first": "2026-01-01T00:00:00Z",
        "last": "2026-01-01T00:00:00Z",
    }
    assert info["bytes"] > 3 * 2 * DIM
    assert "it is missing" in info["index"]
    json.dumps(info)
    gallery.search(unit(rng, 1))
    gallery.close()
    with Gallery.open(gallery.path) as again:
        assert again.info()["index"] == "ready"


def test_closed(gallery, rng):
    gallery.close()
    for ask in (
        lambda: gallery.search(unit(rng, 1)),
        lambda: gallery.add(unit(rng, 1), "c", "s"),
        gallery.ids,
        gallery.info,
        lambda: gallery.forget([1]),
    ):
        with pytest.raises(GalleryError, match="closed"):
            ask()
    gallery.close()


def test_faiss_is_needed_for_searching_only(gallery, rng, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    gallery.add(unit(rng, 2), "c", names(2))
    assert gallery.forget([1]) == 1
    assert gallery.ids() == [2]
    assert gallery.info()["entries"] == 1
    with pytest.raises(DeviceError, match=r"pip install 'lifelong-reid\[cpu\]'"):
        gallery.search(unit(rng, 1))


def test_threads_may_share_a_gallery(gallery, rng):
    vectors = unit(rng, 80)
    wrong = []

    def work(start):
        try:
            for at in range(start, start + 20, 4):
                ids = gallery.add(vectors[at : at + 4], "c", names(4, at))
                if [gallery.search(vectors[at + i], k=1)[0][0].id for i in range(4)] != ids:
                    wrong.append(at)
        except BaseException as error:  # shown by the assertion
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 80, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(gallery) == 80


def test_what_is_there_already_is_left_out_once_it_is_asked_for(tmp_path):
    vectors = unit(np.random.default_rng(0), 4)
    with Gallery.create(tmp_path / "once", DIM, SPACE) as gallery:
        assert gallery.add_new(vectors, "a", ["x", "y", "x", "z"]) == [1, 2, None, 3]
        assert gallery.add_new(vectors, "a", ["x", "n", "z", "n"], time=None) == [None, 4, None, None]
        assert gallery.add_new(vectors[:1], "a", "x", time="2026-01-01T00:00:00Z") == [5]
        assert gallery.add(vectors[:1], "a", "x") == [6]
        assert gallery.entries([3])[3].source == "z"
        gallery.verify()
