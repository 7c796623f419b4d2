"""Small pictures of crops: kept only if asked for, erased with their entries, shown where a source is gone."""

import sqlite3

import cv2
import numpy as np
import pytest
from tiny import DIM, SPACE, unit

from deploy import Gallery
from deploy.answers.picture import draw_matches
from deploy.encoder import Encoder
from deploy.gallery import open_or_create
from deploy.gallery.sources import fill, read_sources
from domains.errors import DataError, GalleryError, UsageError

faiss = pytest.importorskip("faiss", reason="FAISS is not installed")


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def gallery(tmp_path):
    with Gallery.create(tmp_path / "gallery", DIM, SPACE, keep_crops=True) as made:
        yield made


def smooth(rng, height, width):
    """A picture that JPEG keeps well."""
    return cv2.resize(rng.integers(0, 256, (4, 3, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def test_pictures_are_kept_small(gallery, rng):
    crops = [smooth(rng, 256, 128), smooth(rng, 40, 20), smooth(rng, 50, 500)]
    gallery.add(unit(rng, 3), "c", ["/0", "/1", "/2"], crops=crops)
    gallery.add(unit(rng, 1), "c", "/3")
    assert [gallery.crop(number).shape for number in (1, 2, 3)] == [(160, 80, 3), (40, 20, 3), (10, 96, 3)]
    assert np.abs(gallery.crop(2).astype(int) - crops[1]).mean() < 8, "and in the right order of colours"
    assert gallery.crop(4) is None
    assert gallery.crop(99) is None
    gallery.verify()


def test_pictures_are_erased_with_their_entries(gallery, rng):
    ids = gallery.add(
        unit(rng, 20),
        "c",
        [str(number) for number in range(20)],
        crops=list(rng.integers(0, 256, (20, 60, 30, 3), np.uint8)),
    )
    pictures = dict(gallery._store.ask("SELECT id, jpeg FROM crop"))
    gallery.forget(ids[:15])
    raw = b"".join(file.read_bytes() for file in gallery.path.iterdir())
    assert [
        number
        for number, blob in pictures.items()
        if any(blob[at : at + 24] in raw for at in range(650, len(blob) - 24, 100))
    ] == ids[15:]
    assert [gallery.crop(number) is None for number in ids] == [True] * 15 + [False] * 5
    gallery.verify()


def test_nothing_is_kept_unless_asked_for(tmp_path, rng):
    with Gallery.create(tmp_path / "plain", DIM, SPACE) as gallery:
        assert not gallery.keeps_crops
        with pytest.raises(GalleryError, match="keeps no pictures"):
            gallery.add(unit(rng, 1), "c", "/0", crops=[smooth(rng, 20, 10)])
        assert len(gallery) == 0


@pytest.mark.parametrize(
    "crops", [[], [np.zeros((4, 4, 3), np.uint8)] * 3, [np.zeros((4, 4), np.uint8)] * 2, [None, None]]
)
def test_wrong_pictures_are_refused(gallery, rng, crops):
    with pytest.raises((GalleryError, DataError)):
        gallery.add(unit(rng, 2), "c", ["/0", "/1"], crops=crops)
    assert len(gallery) == 0


def test_a_backup_holds_them_and_an_upgrade_keeps_them(gallery, tmp_path, rng):
    gallery.add(unit(rng, 1), "c", "/0", crops=[smooth(rng, 30, 15)])
    gallery.backup(tmp_path / "copy")
    with Gallery.open(tmp_path / "copy") as copy:
        assert copy.keeps_crops
        np.testing.assert_array_equal(copy.crop(1), gallery.crop(1))


def test_filled_from_files_and_shown_when_the_files_are_gone(tmp_path, bundle, people):
    encoder = Encoder.load(bundle.folder)
    with open_or_create(tmp_path / "gallery", bundle.folder, keep_crops=True) as gallery:
        filled = fill(gallery, encoder, read_sources(people))
        assert filled.added == 6
        query = cv2.imread(str(next(people.rglob("0.png"))))[..., ::-1].copy()
        matches = gallery.search(encoder([query]))[0]
        there = draw_matches(query, matches, kept=gallery.crop)
        for file in people.rglob("*.png"):
            file.unlink()
        without, kept = draw_matches(query, matches), draw_matches(query, matches, kept=gallery.crop)
    assert np.abs(kept.astype(int) - there).mean() < 12 < np.abs(without.astype(int) - there).mean()
    open_or_create(tmp_path / "other", bundle.folder).close()
    with pytest.raises(UsageError, match="without pictures"):
        open_or_create(tmp_path / "other", bundle.folder, keep_crops=True)


def test_a_damaged_picture_is_named(gallery, rng):
    gallery.add(unit(rng, 1), "c", "/0", crops=[smooth(rng, 30, 15)])
    db = sqlite3.connect(gallery.path / "gallery.db", isolation_level=None)
    db.execute("UPDATE crop SET jpeg = zeroblob(100)")
    db.close()
    for ask in (lambda: gallery.crop(1), gallery.verify):
        with pytest.raises(GalleryError, match="stored crop of entry 1"):
            ask()
