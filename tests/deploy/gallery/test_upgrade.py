"""A gallery carried into another model's space: right, whole at any moment, answering, and able to go back."""

import multiprocessing
import os
import random
import signal
import sqlite3
import threading
import time

import numpy as np
import pytest
from tiny import DIM, SPACE, unit

from deploy import Embeddings, Gallery
from deploy.gallery import upgrade
from deploy.store import Store, store
from deploy.store.audit import read_audit
from deploy.store.row import checksum
from domains.errors import ArtefactError, GalleryError
from prototypes.transport import Transport

faiss = pytest.importorskip("faiss", reason="FAISS is not installed")

SPACES = {"one": SPACE, "two": "bc" * 32, "three": "cd" * 32}


def rotation(seed, dim=DIM):
    return (
        np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0].astype(np.float16).astype(np.float32)
    )


def carried(vectors, *matrices):
    for matrix in matrices:
        vectors = vectors @ matrix
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def bundles(make_bundle):
    made = {}
    for name, source, seed in (("two", "one", 1), ("three", "two", 2)):
        transport = Transport(SPACES[source], SPACES[name], rotation(seed), "ridge", (0.9, 0.5))
        made[name] = make_bundle(name, changes={"feature_space": SPACES[name]}, transport=transport.to_bytes()).folder
    return made


@pytest.fixture
def gallery(tmp_path):
    with Gallery.create(tmp_path / "gallery", DIM, SPACE, bundle="old/bundle") as made:
        yield made


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def fill(gallery, rng, count=20, first=0, camera="c"):
    vectors = unit(rng, count)
    gallery.add(
        vectors,
        camera,
        [f"/crops/{first + number}.png" for number in range(count)],
        label=[f"p{number % 3}" for number in range(count)],
    )
    return vectors


def stored(gallery):
    return np.concatenate([*gallery._store.vectors()]) if len(gallery) else np.empty((0, DIM))


def test_vectors_are_carried_by_the_bundles_transport_and_nothing_else_changes(gallery, rng, bundles):
    vectors, before = fill(gallery, rng), gallery.search(unit(rng, 1), k=20)[0]
    ticks = []
    assert gallery.upgrade(bundles["two"], tick=ticks.append) == 20 == sum(ticks)
    assert gallery.feature_space == SPACES["two"]
    assert gallery.bundle == bundles["two"].absolute()
    wanted = carried(vectors.astype(np.float16).astype(np.float32), rotation(1))
    np.testing.assert_allclose(stored(gallery), wanted, atol=2e-3)
    found = gallery.search(Embeddings(wanted[3], SPACES["two"]), k=20)[0]
    assert found[0].source == "/crops/3.png"
    assert found[0].score == pytest.approx(1, abs=1e-4)
    assert {match.id: (match.camera, match.source, match.label) for match in found} == {
        match.id: (match.camera, match.source, match.label) for match in before
    }
    with pytest.raises(GalleryError, match="use the gallery's bundle"):
        gallery.search(Embeddings(unit(rng, 1), SPACE))
    assert gallery.verify()


PLANS = {"back": (Gallery.plan_back, Gallery.go_back), "drop": (Gallery.plan_drop, Gallery.drop_old)}


@pytest.mark.parametrize("way", PLANS)
@pytest.mark.parametrize("state", ["upgraded", "added since", "damaged", "damaged since", "read only", "new"])
def test_what_is_planned_is_done_or_refused_alike(gallery, rng, bundles, way, state):
    fill(gallery, rng)
    if state != "new":
        gallery.upgrade(bundles["two"])
    if "since" in state:
        fill(gallery, rng, 5, first=20)
    if "damaged" in state:
        number = 22 if "since" in state else 3
        with sqlite3.connect(gallery.path / "gallery.db") as database:
            database.execute("UPDATE entry SET vector = zeroblob(?) WHERE id = ?", (2 * DIM, number))
        database.close()
    before = gallery.generation
    with Gallery.open(gallery.path, read_only=state == "read only") as opened:
        plan, do = PLANS[way]
        answers = []
        for call in (plan, do):
            try:
                answers.append(call(opened))
            except GalleryError as error:
                answers.append(str(error))
            if call is plan:
                assert gallery.generation == before
        planned, done = answers
        if isinstance(done, int):
            assert f" {done} entries" in planned
        else:
            assert planned == done


def test_several_transports_in_a_row_are_one(gallery, rng, bundles):
    vectors = fill(gallery, rng)
    with pytest.raises(GalleryError, match="no transport leads on from feature space abab"):
        gallery.upgrade(bundles["three"])
    plan = gallery.plan_upgrade(bundles["three"], via=[bundles["two"]])
    assert plan.cosine == ((0.9, 0.5), (0.9, 0.5))
    assert "0.810" in plan.lines()[1]
    assert "0.250" in plan.lines()[1]
    gallery.upgrade(bundles["three"], via=[bundles["two"]])
    np.testing.assert_allclose(stored(gallery), carried(vectors, rotation(1), rotation(2)), atol=3e-3)


def test_upgrades_one_after_the_other_start_from_the_first_vectors(gallery, rng, bundles):
    vectors = fill(gallery, rng)
    gallery.upgrade(bundles["two"])
    more = fill(gallery, rng, 5, first=20)
    gallery.upgrade(bundles["three"])
    wanted = np.concatenate([carried(vectors, rotation(1), rotation(2)), carried(more, rotation(2))])
    np.testing.assert_allclose(stored(gallery), wanted, atol=3e-3)
    assert [space["embedded"] for space in gallery.info()["spaces"]] == [20, 5, 0]
    assert [space["present"] for space in gallery.info()["spaces"]] == [False, False, True]


def test_going_back_gives_the_very_vectors_and_carries_what_came_since(gallery, rng, bundles):
    vectors = fill(gallery, rng)
    before = stored(gallery)
    gallery.upgrade(bundles["two"])
    more = fill(gallery, rng, 5, first=20)
    assert gallery.go_back() == 5
    assert gallery.feature_space == SPACE
    assert gallery.bundle.parts[-2:] == ("old", "bundle")
    np.testing.assert_array_equal(stored(gallery)[:20], before)
    np.testing.assert_allclose(stored(gallery)[20:], carried(more, rotation(1).T), atol=3e-3)
    assert gallery.search(vectors[4])[0][0].source == "/crops/4.png"
    with pytest.raises(GalleryError, match="nothing to go back to"):
        gallery.go_back()
    assert gallery.upgrade(bundles["two"]) == 0, "all that was carried once is there still"
    np.testing.assert_allclose(stored(gallery)[20:], more, atol=1e-3)
    gallery.verify()


def test_after_the_old_copy_is_dropped_its_bytes_are_gone_and_there_is_no_way_back(gallery, rng, bundles):
    vectors = fill(gallery, rng)
    gallery.upgrade(bundles["two"])
    present = stored(gallery)
    raw = b"".join(file.read_bytes() for file in gallery.path.iterdir())
    assert vectors[7].astype(np.float16).tobytes() in raw
    assert gallery.drop_old() == 20
    raw = b"".join(file.read_bytes() for file in gallery.path.iterdir())
    assert not any(vector.astype(np.float16).tobytes() in raw for vector in vectors)
    np.testing.assert_array_equal(stored(gallery), present)
    assert gallery.info()["spaces"][0]["embedded"] == 20, "where an entry was embedded is not forgotten"
    with pytest.raises(GalleryError, match="nothing to go back to"):
        gallery.go_back()
    assert gallery.upgrade(bundles["three"]) == 20


def test_a_drop_that_was_killed_before_the_file_was_rewritten_is_finished_at_the_next_open(
    gallery, rng, bundles, monkeypatch
):
    vectors = fill(gallery, rng)
    gallery.upgrade(bundles["two"])
    present = stored(gallery)

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "wipe", killed)
        with pytest.raises(KeyboardInterrupt):
            gallery.drop_old()
    with Gallery.open(gallery.path) as again:
        raw = b"".join(file.read_bytes() for file in gallery.path.iterdir())
        assert not any(vector.astype(np.float16).tobytes() in raw for vector in vectors)
        np.testing.assert_array_equal(stored(again), present)
        assert not again._store.unwiped()
        again.verify()


def test_a_drop_says_if_somebody_keeps_reading(gallery, rng, bundles, monkeypatch):
    fill(gallery, rng)
    gallery.upgrade(bundles["two"])
    gallery.close()
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.2)
    with Gallery.open(gallery.path) as eraser:
        reader = sqlite3.connect(gallery.path / "gallery.db")
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entry").fetchone()
        with pytest.raises(
            GalleryError, match="older vectors of 20 entries were dropped, but another process keeps reading"
        ):
            eraser.drop_old()
        reader.close()
        assert eraser._store.unwiped()


def test_forgotten_entries_are_gone_from_every_space(gallery, rng, bundles):
    fill(gallery, rng)
    gallery.upgrade(bundles["two"])
    present = stored(gallery)
    gallery.forget([4])
    raw = b"".join(file.read_bytes() for file in gallery.path.iterdir())
    assert present[3].tobytes() not in raw
    assert present[4].tobytes() in raw
    gallery.go_back()
    assert 4 not in gallery.ids()


def test_a_second_process_sees_the_new_space_at_its_next_search(gallery, rng, bundles):
    vectors = fill(gallery, rng)
    with Gallery.open(gallery.path) as other:
        other.search(vectors[:1])
        gallery.upgrade(bundles["two"])
        with pytest.raises(GalleryError, match="use the gallery's bundle"):
            other.search(Embeddings(vectors[:1], SPACE))
        with pytest.raises(GalleryError, match="use the gallery's bundle"):
            other.add(Embeddings(vectors[:1], SPACE), "c", ["x"])
        assert other.search(Embeddings(carried(vectors[:1], rotation(1)), SPACES["two"]))[0][0].source == "/crops/0.png"


def test_searches_and_additions_go_on_meanwhile(gallery, rng, bundles, monkeypatch):
    monkeypatch.setattr(upgrade, "CHUNK", 50)
    vectors = fill(gallery, rng, 600)
    done, failures, added = threading.Event(), [], []

    def ask():
        with Gallery.open(gallery.path) as other:
            while not done.is_set():
                try:
                    match = other.search(Embeddings(vectors[:1], SPACE), k=1)[0][0]
                    if match.source != "/crops/0.png":
                        failures.append(match)
                    added.append(
                        other.add(
                            Embeddings(unit(np.random.default_rng(len(added)), 1), SPACE), "c", [f"late {len(added)}"]
                        )[0]
                    )
                except GalleryError as error:
                    if "bundle" not in str(error):
                        failures.append(error)
                    return

    thread = threading.Thread(target=ask)
    thread.start()
    while not added:
        time.sleep(0.01)
    gallery.upgrade(bundles["two"])
    done.set()
    thread.join()
    assert not failures
    assert len(gallery) == 600 + len(added)
    assert len(stored(gallery)) == len(gallery)
    gallery.verify()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
@pytest.mark.parametrize("seed", range(6))
def test_a_kill_leaves_the_old_space_or_the_new_and_the_upgrade_can_go_on(tmp_path, rng, bundles, monkeypatch, seed):
    monkeypatch.setattr(upgrade, "CHUNK", 10)
    with Gallery.create(tmp_path / "gallery", DIM, SPACE) as gallery:
        vectors = fill(gallery, rng, 150)
    moment = random.Random(seed).uniform(0.0, 0.05)

    def work():
        with Gallery.open(tmp_path / "gallery") as opened:
            opened.upgrade(bundles["two"], tick=lambda _: time.sleep(0.002))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    time.sleep(moment)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    after = carried(vectors.astype(np.float16).astype(np.float32), rotation(1))
    with Gallery.open(tmp_path / "gallery") as opened:
        old = opened.feature_space == SPACE
        np.testing.assert_allclose(stored(opened), vectors if old else after, atol=2e-3)
        assert old != any(record["action"] == "upgrade" for record in read_audit(opened._store))
        if old:
            opened.upgrade(bundles["two"])
        np.testing.assert_allclose(stored(opened), after, atol=2e-3)
        assert len(opened) == 150


def test_a_preparation_of_another_upgrade_is_thrown_away(gallery, rng, bundles, make_bundle, monkeypatch):
    fill(gallery, rng)
    monkeypatch.setattr(upgrade, "CHUNK", 5)

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gallery.upgrade(bundles["two"], tick=stop)
    assert gallery.feature_space == SPACE
    other = Transport(SPACE, "ee" * 32, rotation(9), "ridge", (0.9, 0.5))
    gallery.upgrade(make_bundle("other", changes={"feature_space": "ee" * 32}, transport=other.to_bytes()).folder)
    assert gallery._store.ask("SELECT count(*) FROM carried")[0][0] == 20
    assert [space["feature_space"] for space in gallery.info()["spaces"]] == [SPACE, "ee" * 32]


def test_a_bundle_of_the_same_space_or_without_a_transport_is_refused(gallery, rng, make_bundle):
    fill(gallery, rng)
    with pytest.raises(GalleryError, match="nothing to upgrade"):
        gallery.upgrade(make_bundle("same").folder)
    with pytest.raises(GalleryError, match="no transport leads on"):
        gallery.upgrade(make_bundle("bare", changes={"feature_space": "ee" * 32}).folder)


@pytest.mark.parametrize(
    "transport", [Transport(SPACE, "ff" * 32, rotation(1)), Transport(SPACE, "ee" * 32, rotation(1)[:, :5])]
)
def test_a_transport_that_leads_elsewhere_is_refused(make_bundle, transport):
    with pytest.raises(ArtefactError, match="not to that of the bundle's network"):
        make_bundle("wrong", changes={"feature_space": "ee" * 32}, transport=transport.to_bytes()).transport()


def test_a_gallery_of_the_first_schema_opens_and_can_be_upgraded(gallery, rng, bundles):
    vectors = fill(gallery, rng)
    before = gallery.search(vectors[:2], k=5)
    gallery.close()
    with sqlite3.connect(gallery.path / "gallery.db") as db:  # what schemas 2 and 3 added, taken away
        for index in ("entry_label", "entry_camera", "entry_age"):
            db.execute(f"DROP INDEX {index}")
        for table, column in (
            ("gallery", "moves"),
            ("gallery", "base"),
            ("gallery", "crops"),
            ("gallery", "seal"),
            ("entry", "stamp"),
        ):
            db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        db.execute("DROP TABLE crop")
        for number, blob, *origin in db.execute(
            "SELECT id, vector, camera, source, time, utc, label FROM entry"
        ).fetchall():
            db.execute("UPDATE entry SET checksum = ? WHERE id = ?", (checksum(blob, (number, *origin)), number))
        for name in ("space", "carried", "audit", "retention", "backup"):
            db.execute(f"DROP TABLE {name}")
        for table, column in (("gallery", "space"), ("entry", "space"), ("entry", "origin"), ("entry", "added")):
            db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        db.execute("PRAGMA user_version = 1")
    db.close()
    with Gallery.open(gallery.path) as opened:
        assert opened.search(vectors[:2], k=5) == before
        opened.verify()
        assert opened.upgrade(bundles["two"]) == 20


def test_every_erasure_and_upgrade_leaves_a_record_and_the_chain_tells_of_changes(gallery, rng, bundles):
    fill(gallery, rng)
    gallery.forget([1, 2])
    gallery.upgrade(bundles["two"])
    gallery.go_back()
    records = read_audit(gallery._store)
    assert [(record["action"], record["entries"]) for record in records] == [
        ("forget", 2),
        ("upgrade", 18),
        ("go back", 0),
    ]
    store = gallery._store
    for statement in (
        "UPDATE audit SET what = replace(what, '2', '3') WHERE number = 1",
        "DELETE FROM audit WHERE number = 2",
    ):
        store._db.execute("SAVEPOINT trial")
        store._db.execute(statement)
        with pytest.raises(GalleryError, match="audit"):
            read_audit(store)
        store._db.execute("ROLLBACK TO trial")
        store._db.execute("RELEASE trial")
    gallery.verify()
