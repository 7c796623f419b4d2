"""Galleries of earlier schemas open, answer as they did, and gain what came later."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from deploy import Gallery
from deploy.store.tables import APPLICATION, SCHEMA
from domains.errors import GalleryError

faiss = pytest.importorskip("faiss", reason="FAISS is not installed")
DUMP = Path(__file__).parent / "schema2.sql"
"""A gallery of schema 2 as it was written: upgraded once, entry 2 forgotten, a rule for camera a."""


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "gallery"
    folder.mkdir()
    db = sqlite3.connect(folder / "gallery.db", isolation_level=None)
    db.execute(f"PRAGMA application_id={APPLICATION}")
    db.executescript(DUMP.read_text())
    db.execute("PRAGMA user_version=2")
    db.close()
    return folder


def vector(number, folder):
    db = sqlite3.connect(folder / "gallery.db")
    blob = db.execute("SELECT vector FROM entry WHERE id = ?", (number,)).fetchone()[0]
    db.close()
    return np.frombuffer(blob, np.float16).astype(np.float32)


def test_a_gallery_of_schema_2_answers_as_it_did(old):
    query = vector(5, old)
    with Gallery.open(old) as gallery:
        assert gallery._store.ask("PRAGMA user_version")[0][0] == SCHEMA
        assert gallery.ids() == [1, 3, 4, 5, 6]
        found = gallery.search(query / np.linalg.norm(query), k=9)[0]
        assert [match.id for match in found] == [5, 6, 4, 1, 3]
        assert [match.score for match in found] == pytest.approx([1.0, 0.3035, 0.211, 0.1464, -0.1928], abs=1e-3)
        assert (found[-1].label, found[-1].time) == ("ben", "2026-02-01T00:00:00+01:00")
        assert gallery.retention() == {"a": 30000}
        assert [record["action"] for record in gallery.audit()] == ["upgrade", "keep", "forget"]
        assert len(gallery.verify()) == 3
        assert not gallery.keeps_crops
        assert gallery.crop(1) is None


def test_old_and_new_entries_live_together(old):
    query = vector(5, old)
    with Gallery.open(old) as gallery:
        new = gallery.add((query / np.linalg.norm(query))[None], "c", ["/new"])
        assert new == [7]
        assert [match.id for match in gallery.search(query / np.linalg.norm(query), k=2)[0]] == [5, 7]
        gallery.go_back()
        gallery.verify()
        assert gallery.drop_old() > 0
        gallery.verify()
        gallery.forget([1, 7])
        gallery.verify()
    with Gallery.open(old) as gallery:
        assert gallery.ids() == [3, 4, 5, 6]


def test_damage_in_an_old_entry_is_found(old):
    with Gallery.open(old):
        pass
    db = sqlite3.connect(old / "gallery.db", isolation_level=None)
    db.execute("UPDATE entry SET camera = 'z' WHERE id = 4")
    db.close()
    with Gallery.open(old) as gallery, pytest.raises(GalleryError, match="entry 4 of"):
        gallery.verify()


def test_opened_twice_at_once_it_is_migrated_once(old):
    with Gallery.open(old) as one, Gallery.open(old) as two:
        assert one.ids() == two.ids()
        two.verify()
