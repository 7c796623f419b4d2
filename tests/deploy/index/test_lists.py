"""Galleries so large that vectors lie in lists: answers beside exact ones, changes without training anew, the files on
disk.
"""

import json
import shutil

import numpy as np
import pytest
from tiny import SPACE, unit

from deploy import Gallery
from deploy.index import Index, index
from deploy.index.codes import DEPTHS, Codes, Truth
from deploy.service.settings import MAX_TOP
from deploy.store.store import State
from domains import artefact

faiss = pytest.importorskip("faiss", reason="FAISS is not installed")
DIM = 16
EXACT = 600


@pytest.fixture(autouse=True, scope="module")
def few_are_many():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "EXACT_BELOW", EXACT)
        patch.setattr(index, "_QUERIES", 40)
        patch.setattr(index, "_SAMPLE", 20)
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(9)


def people(rng, count, dim=DIM):
    """Clusters of 8, as people are."""
    vectors = unit(rng, -(-count // 8), dim).repeat(8, axis=0)[:count] + 0.25 * unit(rng, count, dim)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[rng.permutation(count)]


@pytest.fixture(scope="module")
def made(few_are_many, tmp_path_factory):
    """A gallery of 3000 with its index files, which no test changes, and its vectors."""
    vectors = people(np.random.default_rng(9), 3000)
    folder = tmp_path_factory.mktemp("lists") / "gallery"
    with Gallery.create(folder, DIM, SPACE) as gallery:
        gallery.add(
            vectors,
            [f"c{number % 3}" if number % 50 else "rare" for number in range(3000)],
            [f"/{number:05d}" for number in range(3000)],
            time=[f"2026-01-{1 + number // 100:02d}T00:00:00Z" for number in range(3000)],
            label=[f"p{number % 700}" for number in range(3000)],
        )
        assert gallery.info()["search"] == "exact"
        gallery.prepare()
    return folder, vectors


@pytest.fixture
def filled(made, tmp_path):
    folder, vectors = made
    shutil.copytree(folder, tmp_path / "gallery")
    with Gallery.open(tmp_path / "gallery") as gallery:
        yield gallery, vectors


def oracle(vectors, ids, query, k, allowed=None):
    stored = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float64)
    scores = stored @ query / np.linalg.norm(stored, axis=1) / np.linalg.norm(query)
    places = np.arange(len(ids)) if allowed is None else np.flatnonzero(allowed)
    order = places[np.lexsort((np.asarray(ids)[places], -scores[places]))][:k]
    return [ids[place] for place in order], scores[order]


def check(matches, wanted):
    assert [match.id for match in matches] == wanted[0]
    np.testing.assert_allclose([match.score for match in matches], wanted[1], atol=1e-6)


def test_lists_are_made_and_say_how_well_they_find(filled):
    gallery, vectors = filled
    gallery.search(vectors[0])
    info = gallery.info()
    assert info["lists"] == 64
    assert info["trained"] == 3000
    assert info["probes"] < 64
    found, wanted = gallery.search(vectors[:200]), gallery.search(vectors[:200], exact=True)
    real = np.mean(
        [len({a.id for a in one} & {b.id for b in two}) / 10 for one, two in zip(found, wanted, strict=True)]
    )
    assert real > 0.9
    assert abs(info["recall"] - real) < 0.06
    known = dict(zip(range(1, 3001), vectors, strict=True))
    for query, matches in zip(vectors[:30], found, strict=False):  # whatever is returned has its exact cosine, in order
        ids = [match.id for match in matches]
        check(matches, oracle(np.stack([known[number] for number in sorted(ids)]), sorted(ids), query, 10))


def test_the_measured_recall_is_that_of_the_search(rng):
    vectors = people(rng, 2000).astype(np.float16)
    codes = Codes.trained(vectors[200:], 32)
    truth = Truth(vectors[:200], np.arange(200), 100)
    for start in range(0, 2000, 300):
        codes.add(vectors[start : start + 300].astype(np.float32))
        truth.see(vectors[start : start + 300].astype(np.float32))
    exact = vectors[:200].astype(np.float32) @ vectors.astype(np.float32).T
    exact[np.arange(200), np.arange(200)] = -2
    wanted = np.argsort(-exact, axis=1)[:, :10]
    assert (np.sort(truth.nearest[:, :10]) == np.sort(wanted)).mean() > 0.995  # but for ties
    codes.measure(truth, 0.9)
    found = codes.search(vectors[100:200].astype(np.float32), 11, codes.lists.probes).rows
    real = np.mean(
        [
            len(set(row.tolist()) - {100 + number} & set(right.tolist())) / 10
            for number, (row, right) in enumerate(zip(found, wanted[100:], strict=True))
        ]
    )
    real = np.mean(
        [len(set(row.tolist()) & set(right.tolist())) / 10 for row, right in zip(found, wanted[100:], strict=True)]
    )
    assert codes.lists.recall == pytest.approx(real, abs=0.01)
    assert codes.lists.recall > 0.8


def spread(rng, count, dim=DIM):
    """Vectors without any order, of which no list holds many neighbours: the hardest case for long answers."""
    return unit(rng, count, dim).astype(np.float16)


@pytest.mark.parametrize("make", [people, spread])
@pytest.mark.parametrize("top", [10, *DEPTHS])
def test_recall_is_measured_up_to_the_longest_answer(tmp_path, rng, monkeypatch, make, top):
    """The recall stated for a number is what searches for that many reach, and no fewer lists are searched between."""
    monkeypatch.setattr(index, "_QUERIES", 150)
    vectors = make(rng, 4000)
    with Gallery.create(tmp_path / "gallery", DIM, SPACE) as gallery:
        gallery.add(vectors, "c", [str(number) for number in range(4000)])
        gallery.prepare()
        lists = gallery._keeper.index.codes.lists
        stated = {10: lists.recall, **{depth.top: depth.recall for depth in lists.deeper}}
        queries = vectors[:150]
        exact = gallery.search(queries, k=top, exact=True)
        found = gallery.search(queries, k=top)
        told = gallery.info()
    real = np.mean(
        [
            len({match.id for match in row} & {match.id for match in right}) / top
            for row, right in zip(found, exact, strict=True)
        ]
    )
    assert stated[top] == pytest.approx(real, abs=0.03)
    assert real > 0.95
    assert [lists.probes_for(k) for k in (1, 10)] == [lists.probes] * 2
    assert (np.diff([lists.probes_for(k) for k in range(1, 300)]) >= 0).all()
    assert told["deeper"] == [depth._asdict() for depth in lists.deeper]
    assert told["deeper"][-1]["top"] == MAX_TOP


def test_lists_of_before_that_were_not_measured_so_far_are_measured_anew(made, tmp_path):
    folder, vectors = made
    folder = shutil.copytree(folder, tmp_path / "gallery")
    manifest = json.loads((folder / "index.json").read_text())
    del manifest["id"], manifest["lists"]["deeper"]
    (folder / "index.json").write_text(json.dumps({"id": artefact.content_id(manifest), **manifest}))
    with Gallery.open(folder) as gallery:
        gallery.search(vectors[0], k=100)
        assert [depth.top for depth in gallery._keeper.index.codes.lists.deeper] == list(DEPTHS)


@pytest.mark.parametrize(
    ("filters", "allowed"),
    [
        ({"camera": "rare"}, lambda number: number % 50 == 0),
        (
            {"camera": "c1", "before": "2026-01-11T00:00:00Z"},
            lambda number: number % 50 and number % 3 == 1 and number < 1000,
        ),
        ({"label": "p5"}, lambda number: number % 700 == 5),
        ({"source": "/001"}, lambda number: 100 <= number < 200),
        ({"source": "/001", "camera": "c2"}, lambda number: 100 <= number < 200 and number % 50 and number % 3 == 2),
        ({"camera": "nobody"}, lambda number: False),
    ],
)
def test_a_filter_that_leaves_few_is_answered_exactly(filled, filters, allowed):
    gallery, vectors = filled
    mask = np.array([bool(allowed(number)) for number in range(3000)])
    assert mask.sum() < EXACT
    for query, matches in zip(vectors[:20], gallery.search(vectors[:20], k=30, **filters), strict=True):
        check(matches, oracle(vectors, list(range(1, 3001)), query, 30, mask))


def test_a_filter_that_leaves_many_looks_at_more_lists(filled):
    gallery, vectors = filled
    mask = np.array([number % 50 != 0 and number % 3 == 1 for number in range(3000)])
    assert mask.sum() > EXACT
    hits = 0
    for query, matches in zip(vectors[:100], gallery.search(vectors[:100], camera="c1"), strict=True):
        assert {match.camera for match in matches} == {"c1"}
        hits += len({match.id for match in matches} & set(oracle(vectors, list(range(1, 3001)), query, 10, mask)[0]))
    assert hits > 900


@pytest.mark.parametrize("k", [1, 700, 5000])
def test_exact_is_exact_and_many_are_as_many_as_asked(filled, k):
    gallery, vectors = filled
    check(gallery.search(vectors[7], k=k, exact=True)[0], oracle(vectors, list(range(1, 3001)), vectors[7], k))
    assert len(gallery.search(vectors[7], k=k)[0]) == min(k, 3000)


def test_too_few_in_the_lists_looked_at_are_looked_for_further(filled):
    # All allowed entries lie on the far side: the lists next to the query hold none of them.
    gallery, vectors = filled
    gallery.search(vectors[0])
    held = gallery._keeper.index
    query = vectors[0].astype(np.float64)
    far = np.argsort(vectors @ query)[:EXACT]
    mask = np.zeros(3000, bool)
    mask[far] = True
    ((ids, scores),) = held.search(query[None], 25, index.Allowed(np.packbits(mask, bitorder="little"), EXACT))
    assert len(ids) == 25
    assert set(ids - 1) <= set(far.tolist())
    assert (np.diff(scores) <= 0).all()


def test_ties_in_lists_are_in_the_order_of_ids(tmp_path, rng):
    vectors = people(rng, 40).repeat(30, axis=0)
    with Gallery.create(tmp_path / "gallery", DIM, SPACE) as gallery:
        ids = gallery.add(vectors, "c", [str(number) for number in range(len(vectors))])
        check(gallery.search(vectors[200], k=60)[0][:30], oracle(vectors, ids, vectors[200], 30))


# -------------------------------------------------------------------------------------------------------------- changes


def test_added_and_forgotten_without_training_anew(filled, rng, monkeypatch):
    gallery, vectors = filled
    gallery.search(vectors[0])
    alive = dict(zip(range(1, 3001), vectors, strict=True))
    with monkeypatch.context() as patch:
        patch.setattr(Codes, "trained", lambda *_: pytest.fail("trained again"))
        for _ in range(3):
            more = people(rng, 70)
            alive |= dict(zip(gallery.add(more, "new", [f"/n{number}" for number in range(70)]), more, strict=True))
            gone = rng.choice(sorted(alive), 400, replace=False).tolist()
            assert gallery.forget(gone) == 400
            for number in gone:
                del alive[number]
            ids, values = sorted(alive), np.stack([alive[number] for number in sorted(alive)])
            for query in more[:5]:
                check(gallery.search(query, k=40, exact=True)[0], oracle(values, ids, query, 40))
            assert len(gallery.search(more[0], k=10**6)[0]) == len(alive)
        gallery._save_index()
    assert gallery.verify()[1] == "index: agrees with the database"


def test_forgetting_without_a_search_leaves_lists_for_the_next_start(filled, monkeypatch):
    gallery, vectors = filled
    gallery.close()
    monkeypatch.setattr(Codes, "trained", lambda *_: pytest.fail("trained again"))
    with Gallery.open(gallery.path) as again:
        again.forget(range(1, 100))
    monkeypatch.setattr(Index, "build", lambda *_: pytest.fail("made from the database"))
    with Gallery.open(gallery.path) as again:
        assert again.info()["index"] == "ready"
        check(again.search(vectors[5], k=9, exact=True)[0], oracle(vectors[99:], list(range(100, 3001)), vectors[5], 9))


def test_four_times_as_many_are_put_into_new_lists(tmp_path, rng):
    with Gallery.create(tmp_path / "gallery", DIM, SPACE) as gallery:
        for turn, (count, trained) in enumerate([(599, None), (1, 600), (1799, 600), (1, 2400)]):
            gallery.add(people(rng, count), "c", [f"/{turn}/{number}" for number in range(count)])
            gallery.search(people(rng, 1))
            assert gallery.info().get("trained") == trained


def test_files_of_an_earlier_state_are_read_and_the_rest_added(filled, rng, monkeypatch):
    gallery, vectors = filled
    gallery.search(vectors[0])
    gallery.close()
    written = (gallery.path / "index.json").read_bytes()
    few = people(rng, 20)
    with Gallery.open(gallery.path) as again:
        more = again.add(few, "new", [f"/n{number}" for number in range(20)])
    monkeypatch.setattr(Index, "build", lambda *_: pytest.fail("made from the database"))
    with Gallery.open(gallery.path) as again:
        check(
            again.search(few[3], k=9, exact=True)[0],
            oracle(np.concatenate([vectors, few]), [*range(1, 3001), *more], few[3], 9),
        )
        assert again.info()["index"] == "ready"
    assert (gallery.path / "index.json").read_bytes() == written, "20 of 3020 are not worth writing all again"
    with Gallery.open(gallery.path) as again:
        again.add(people(rng, 200), "new", [f"/m{number}" for number in range(200)])
        again.search(few[0])
    assert (gallery.path / "index.json").read_bytes() != written


def test_files_of_an_earlier_state_are_not_read_after_an_erasure(filled, rng):
    gallery, vectors = filled
    gallery.search(vectors[0])
    gallery._save_index()
    kept = {name: (gallery.path / name).read_bytes() for name in ("index.json", "index.faiss", "index.npz")}
    gallery.forget([5])
    gallery.close()
    for name, data in kept.items():  # somebody puts the old files back
        (gallery.path / name).write_bytes(data)
    with Gallery.open(gallery.path) as again:
        assert 5 not in {match.id for match in again.search(vectors[4], k=3000, exact=True)[0]}


def test_files_with_lists_that_do_not_fit_are_not_used(filled):
    gallery, vectors = filled
    gallery.search(vectors[0])
    gallery.close()
    folder = gallery.path
    good = json.loads((folder / "index.json").read_text())

    def manifest(**changes):
        body = {key: value for key, value in (good | changes).items() if key != "id"}
        body["files"] = {name: artefact.sha256_file(folder / name) for name in ("index.faiss", "index.npz")}
        (folder / "index.json").write_text(json.dumps({"id": artefact.content_id(body), **body}))

    for changes in (
        {"lists": None},
        {"lists": good["lists"] | {"lists": 7}},
        {"lists": {"lists": 64}},
        {"lists": 3},
        {"count": 2999},
        {"schema": 1},
    ):
        manifest(**changes)
        with Gallery.open(folder) as again:
            check(again.search(vectors[1], k=5, exact=True)[0], oracle(vectors, list(range(1, 3001)), vectors[1], 5))
            assert again.info()["lists"] == 64


def test_removing_from_lists_leaves_rows_in_order(rng):
    vectors = people(rng, 500).astype(np.float16)
    codes = Codes.trained(vectors, 16)
    codes.add(vectors.astype(np.float32))
    keep = rng.random(500) < 0.6
    codes.remove(keep)
    assert len(codes) == keep.sum()
    np.testing.assert_array_equal(codes.vectors(0, len(codes)), vectors[keep])
    np.testing.assert_array_equal(codes.pick(np.arange(len(codes))).astype(np.float16), vectors[keep])
    codes.add(vectors[:10].astype(np.float32))
    np.testing.assert_array_equal(codes.vectors(int(keep.sum()), len(codes)), vectors[:10])


def test_rows_put_into_lists_that_were_made_room_for_are_as_those_that_were_added(rng):
    vectors = people(rng, 2000).astype(np.float16)
    plain, roomy = (Codes.trained(vectors[:1000], 16) for _ in range(2))
    singles = vectors.astype(np.float32)
    places = roomy.places(singles)
    roomy.reserve(places)
    assert len(roomy) == 0
    for start in range(0, 2000, 300):
        plain.add(singles[start : start + 300])
        roomy.add(singles[start : start + 300], places[start : start + 300])
    assert len(roomy) == 2000
    np.testing.assert_array_equal(roomy.vectors(0, 2000), vectors)
    for which in range(16):
        assert (
            roomy.index.invlists.list_size(which)
            == plain.index.invlists.list_size(which)
            == int((places == which).sum())
        )
    for one, two in zip(plain.search(singles[:20], 7, 3), roomy.search(singles[:20], 7, 3), strict=True):
        np.testing.assert_array_equal(one, two)


def test_places_that_are_no_lists_are_refused(rng):
    vectors = people(rng, 500)
    codes = Codes.trained(vectors.astype(np.float16), 4)
    for places in (np.full(500, 4), np.full(500, -1), np.zeros(499, np.int64)):
        with pytest.raises(ValueError, match="one of 4 lists"):
            codes.add(vectors.astype(np.float32), places)


def test_an_empty_index_answers_nothing():
    held = Index(DIM, State(0, "", 0, 0))
    assert held.search(np.eye(DIM)[:2], 3, index.Allowed(None, 0))[0][0].size == 0


@pytest.mark.parametrize("part", ["vectors", "times", "cameras"])
def test_verify_finds_files_that_are_whole_but_wrong(filled, part):
    gallery, vectors = filled
    gallery.search(vectors[0])
    held = gallery._keeper.index
    if part == "vectors":
        keep = np.ones(3000, bool)
        keep[10] = False
        held.codes.remove(keep)
        held.codes.add(vectors[:1].astype(np.float32))
    elif part == "times":
        held.utc[7] += 1
    else:
        held.camera[7] = (held.camera[7] + 1) % 3
    held.kept = None
    gallery._save_index()
    assert "differ" in gallery.verify()[1]
    assert gallery.verify()[1] == "index: agrees with the database"
    check(gallery.search(vectors[1], k=5, exact=True)[0], oracle(vectors, list(range(1, 3001)), vectors[1], 5))
