"""Faults while a gallery is at work: what is damaged never looks whole, and nothing stands in the way of an erasure, an
opening or a search.
"""

import logging
import sqlite3
import threading
import time

import numpy as np
import pytest
from tiny import DIM, SPACE, unit

from deploy import Gallery
from deploy.gallery import upkeep
from deploy.gallery.upgrade import Plan, carry
from deploy.index import Index
from deploy.store import connection, store
from domains.errors import GalleryError
from prototypes.passage import Passage

faiss = pytest.importorskip("faiss", reason="FAISS is not installed")


@pytest.fixture
def gallery(tmp_path):
    with Gallery.create(tmp_path / "gallery", DIM, SPACE, bundle="bundle") as made:
        made.vectors = unit(np.random.default_rng(1), 12)
        made.add(made.vectors, ["a", "b", "SecretCam"] * 4, [f"/{number}" for number in range(12)], label="x")
        yield made


def plan(name="two", seed=2, bundle="other"):
    matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(DIM, DIM)))[0].astype(np.float32)
    return Plan(store.Facts(DIM, name, bundle), Passage(matrix=matrix), ((0.9, 0.1),))


def spoil(gallery, statement):
    """Change rows as a fault of the disk would: without checksum or seal."""
    with sqlite3.connect(gallery.path / "gallery.db") as db:
        db.execute(statement)


# --------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("column", ["label = 'wrong'", "added = 0", "vector = zeroblob(2 * 16)", "origin = 2"])
def test_dropping_old_vectors_never_makes_damage_look_whole(gallery, column):
    carry(gallery._store, plan())
    spoil(gallery, f"UPDATE entry SET {column} WHERE id = 7")
    with pytest.raises(GalleryError, match="entry 7 of"):
        gallery.verify()
    with pytest.raises(GalleryError, match=r"entry 7 is damaged.*forget … 7"):
        gallery.drop_old()
    with pytest.raises(GalleryError, match="entry 7 of"):
        gallery.verify()
    gallery.forget([7])
    assert gallery.drop_old() == 11
    gallery.verify()


@pytest.mark.parametrize("column", ["label", "source", "camera"])
def test_a_text_that_is_no_unicode_any_more_is_a_damaged_entry_like_others(gallery, column):
    spoil(gallery, f"UPDATE entry SET {column} = CAST(x'c3285c' AS TEXT) WHERE id = 5")
    with pytest.raises(GalleryError, match=r"entry 5 of .* is damaged"):
        gallery.search(gallery.vectors[4], k=12)
    with pytest.raises(GalleryError, match=r"entry 5 of gallery\.db is damaged"):
        gallery.verify()
    assert any("entry 5" in line for line in Gallery.repair(gallery.path))
    assert gallery.info()["entries"] == 12
    assert gallery.forget([5]) == 1
    gallery.verify()
    assert len(gallery.search(gallery.vectors[4], k=12)[0]) == 11


def test_a_rule_that_changed_by_itself_is_not_sealed_by_the_next_change(gallery):
    gallery.keep(3000)
    spoil(gallery, "UPDATE retention SET days = 2")
    with pytest.raises(GalleryError, match="facts or rules are corrupted"):
        gallery.add(gallery.vectors[0], "a", "/new")
    with pytest.raises(GalleryError, match="facts or rules are corrupted"):
        Gallery.open(gallery.path)
    assert any("repaired: the gallery's metadata" in line for line in Gallery.repair(gallery.path))
    assert gallery.retention() == {"": 2}, "repaired is what was found; its owner was told"


def test_a_damaged_entry_blocks_no_erasure_where_the_index_has_lists(gallery, monkeypatch, caplog):
    monkeypatch.setattr(type(gallery._keeper), "is_costly", property(lambda self: True))
    spoil(gallery, "UPDATE entry SET label = 'wrong' WHERE id = 9")
    spoil(gallery, "UPDATE entry SET vector = zeroblob(32) WHERE id = 9")
    with caplog.at_level(logging.WARNING, logger="deploy"):
        assert gallery.forget([3]) == 1
    assert "left to the next search" in caplog.text
    assert gallery.forget([9]) == 1
    gallery.verify()


def test_the_name_of_a_camera_goes_with_its_last_entry(gallery):
    gallery.search(gallery.vectors[0])
    gallery._keeper.save()
    gallery.forget(gallery.select(camera="SecretCam"))
    gallery.search(gallery.vectors[0])
    gallery._keeper.save()
    assert {match.camera for match in gallery.search(gallery.vectors[0], k=12)[0]} == {"a", "b"}
    assert [match.id for match in gallery.search(gallery.vectors[1], k=12, camera="b")[0]][:1] == [2]
    for file in gallery.path.iterdir():
        data = file.read_bytes()
        assert b"SecretCam" not in data
        assert "SecretCam".encode("utf-32-le") not in data


def test_cameras_are_numbered_anew_when_entries_go():
    index = Index(DIM, store.State(0, "", 0, 0))
    names = ["a", "b", "c"]
    columns = store.Columns(np.arange(1, 7), np.array([2, 1, 0, 2, 1, 0], np.int32), names, np.zeros(6, np.int64))
    index.extend(columns, [unit(np.random.default_rng(0), 6).astype(np.float16)])
    index.drop_missing(np.array([1, 3, 4, 6]))
    assert [list(index.camera_codes)[code] for code in index.camera] == ["c", "a", "c", "a"]
    assert sorted(index.camera_codes) == ["a", "c"]


# ---------------------------------------------------------------------------------------------------------- a full disk


def full(*_, **__):
    raise GalleryError("the file could not be rewritten; make room and try again")


def test_a_disk_too_full_to_write_the_file_anew_loses_nothing_and_locks_nobody_out(gallery, monkeypatch, caplog):
    gallery.keep(30)
    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "rewrite", full)
        with pytest.raises(
            GalleryError, match=r"2 entries were removed, but their bytes are still in the file: .*make room"
        ):
            gallery.forget([1, 2])
        old = gallery.add(gallery.vectors[0], "a", "/old", time="2020-01-01T00:00:00+00:00")[0]
        with Gallery.open(gallery.path) as again:
            assert old not in again.ids()
            assert len(again.search(gallery.vectors[5], k=12)[0]) == 10
        assert "bytes are still in the file" in caplog.text
        assert gallery._store.unwiped()
    with Gallery.open(gallery.path) as again:
        assert not again._store.unwiped()


def test_the_message_of_a_full_disk_says_what_became_of_the_work(gallery, monkeypatch):
    def full(db, folder):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorname = "SQLITE_FULL"
        raise error

    monkeypatch.setattr(connection, "vacuum", full)
    with pytest.raises(
        GalleryError,
        match=r"the disk is full and the file could not be rewritten, .* needs up to \d+ MiB .*; make room",
    ) as caught:
        gallery.forget([1])
    assert "nothing was changed" not in str(caught.value)
    assert len(gallery) == 11


# --------------------------------------------------------------------------------------------------------- side by side


def test_searches_go_on_while_an_addition_waits_for_another_writer(gallery):
    gallery.search(gallery.vectors[0])
    other = sqlite3.connect(gallery.path / "gallery.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = threading.Thread(target=lambda: gallery.add(gallery.vectors[0], "a", "/late"))
    waiting.start()
    time.sleep(0.2)
    took = []
    for _ in range(5):
        began = time.monotonic()
        gallery.search(gallery.vectors[0])
        took.append(time.monotonic() - began)
    assert waiting.is_alive()
    other.execute("ROLLBACK")
    other.close()
    waiting.join(20)
    assert not waiting.is_alive()
    assert max(took) < 1
    assert len(gallery) == 13


def test_a_writer_that_waits_too_long_says_so(gallery):
    gallery._store._busy_seconds = 0.3
    other = sqlite3.connect(gallery.path / "gallery.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(GalleryError, match="has been writing for over"):
        gallery.add(gallery.vectors[0], "a", "/late")
    other.close()
    assert len(gallery.add(gallery.vectors[0], "a", "/late")) == 1


def test_two_upgrades_at_once_do_not_end_in_each_others_model(gallery, monkeypatch):
    monkeypatch.setattr("deploy.gallery.upgrade.CHUNK", 3)
    with Gallery.open(gallery.path) as second:
        turns = []

        def between(count):
            if not turns:
                turns.append(carry(second._store, plan("three", 3)))

        with pytest.raises(GalleryError, match="upgraded by someone else meanwhile"):
            carry(gallery._store, plan("two", 2), tick=between)
    assert gallery.feature_space == "three"
    gallery.verify()


def test_dropping_old_vectors_during_an_upgrade_stops_it_in_one_line(gallery, monkeypatch):
    carry(gallery._store, plan("two", 2))
    monkeypatch.setattr("deploy.gallery.upgrade.CHUNK", 3)
    with Gallery.open(gallery.path) as second, pytest.raises(GalleryError, match="upgraded by someone else meanwhile"):
        carry(gallery._store, plan("three", 3), tick=lambda count: second.drop_old())
    gallery.verify()


def test_a_space_that_is_come_back_to_has_the_bundle_that_was_named_last(gallery):
    carry(gallery._store, plan("two", 2, "first"))
    upkeep.go_back(gallery._store)
    carry(gallery._store, plan("two", 2, "second"))
    assert str(gallery.bundle) == "second"


@pytest.mark.parametrize("days", [800_000, -1, 10**12, True])
def test_an_age_that_there_is_not_is_refused(gallery, days):
    with pytest.raises(GalleryError, match="an age is 0 to"):
        gallery.older_than(days)


@pytest.mark.parametrize("filters", [{"label": "\ud800"}, {"source": "x\udfff"}, {"camera": "\udc80"}])
def test_filters_that_are_no_unicode_are_refused(gallery, filters):
    with pytest.raises(GalleryError, match="is not valid Unicode"):
        gallery.search(gallery.vectors[0], **filters)
