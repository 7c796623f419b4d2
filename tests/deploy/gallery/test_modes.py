"""A gallery and its bundle are read by their owner only, whatever the umask: every file, at every rewrite."""

import os
import stat

import numpy as np
import pytest
from modes import readable, umask, watched
from tiny import DIM, SPACE, embed, graph, unit

from deploy import Gallery
from deploy.bundle import revise_bundle
from prototypes.transport import fit_transport

pytest.importorskip("faiss", reason="FAISS is not installed")

MASKS = [0o000, 0o002, 0o022, 0o077]


def fill(gallery, count=40):
    return gallery.add(
        unit(np.random.default_rng(count), count),
        camera=[f"c{number % 2}" for number in range(count)],
        source=[f"{number}.png" for number in range(count)],
        time=["2026-11-01T08:00:00+00:00"] * count,
    )


@pytest.mark.parametrize("mask", MASKS, ids=oct)
def test_all_that_is_done_to_a_gallery(tmp_path, monkeypatch, make_bundle, projection, golden_crops, mask):
    outer = tmp_path / "outer"
    outer.mkdir(mode=0o700)
    turned = projection @ np.linalg.qr(np.random.default_rng(5).normal(size=(DIM, DIM)))[0]
    crops = np.random.default_rng(6).integers(0, 256, (400, *golden_crops.shape[1:]), np.uint8)
    transport = fit_transport(embed(crops, projection), embed(crops, turned), source=SPACE, target="cd" * 32)
    with umask(mask), watched(monkeypatch, outer) as found:
        new = make_bundle(
            "outer/new",
            model=graph(turned),
            embeddings=embed(golden_crops, turned),
            changes={"feature_space": "cd" * 32},
            transport=transport.to_bytes(),
        )
        with Gallery.create(outer / "gallery", DIM, SPACE, keep_crops=True) as gallery:
            ids = fill(gallery)
            assert (outer / "gallery" / "gallery.db-wal").exists()
            assert readable(outer) == []
            gallery.search(unit(np.random.default_rng(1), 1), k=3)
        assert (outer / "gallery" / "index.faiss").exists()
        with Gallery.open(outer / "gallery") as gallery:
            gallery.forget(ids[:5])
            gallery.backup(outer / "backup")
            gallery.upgrade(new.folder)
            gallery.go_back()
            gallery.upgrade(new.folder)
            gallery.drop_old()
            gallery.keep(36500)
            gallery.verify()
            assert readable(outer) == []
        Gallery.restore(outer / "backup", outer / "gallery")
        Gallery.repair(outer / "gallery")
        with Gallery.open(outer / "gallery") as gallery:
            gallery.prepare()
            assert readable(outer) == []
        revise_bundle(new.folder, {"licences": {"data": "own"}})
    assert readable(outer) == []
    assert found == set()
    assert len(list(outer.iterdir())) == 4  # bundle, gallery, backup, and the gallery before it was restored


@pytest.mark.parametrize("mask", MASKS, ids=oct)
def test_missing_folders_above_are_made_for_the_owner_only(tmp_path, mask):
    with umask(mask):
        with Gallery.create(tmp_path / "a" / "b" / "gallery", DIM, SPACE) as gallery:
            gallery.backup(tmp_path / "c" / "d" / "backup")
        Gallery.restore(tmp_path / "c" / "d" / "backup", tmp_path / "e" / "f" / "gallery")
    made = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert len(made) == 9
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660, 0o644])
def test_what_its_owner_opened_stays_open(tmp_path, mode):
    folder = tmp_path / "gallery"
    with Gallery.create(folder, DIM, SPACE) as gallery:
        fill(gallery)
    (folder / "gallery.db").chmod(mode)
    with umask(0o077), Gallery.open(folder) as gallery:
        fill(gallery, 80)
        gallery.search(unit(np.random.default_rng(1), 1), k=3)
        beside = {file.name for file in folder.iterdir() if stat.S_IMODE(file.stat().st_mode) == mode}
        assert beside >= {"gallery.db", "gallery.db-wal", "gallery.db-shm"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {mode}
    assert (folder / "index.json").exists()


def test_a_bundle_that_was_opened_stays_open_when_it_is_revised_and_signed(bundle, tmp_path):
    pytest.importorskip("cryptography", reason="signatures need the package cryptography")
    from deploy.bundle.signature import make_key

    make_key(tmp_path / "key")
    for path in (bundle.folder, *bundle.folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for number in range(2):
        with umask(0o077):
            revise_bundle(bundle.folder, {"licences": {"data": f"{number}"}}, key=tmp_path / "key")
        assert {stat.S_IMODE(file.stat().st_mode) for file in bundle.folder.iterdir()} == {0o644}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write in another's name")
def test_what_root_writes_stays_its_owners(tmp_path, bundle):
    folder = tmp_path / "gallery"
    with Gallery.create(folder, DIM, SPACE) as gallery:
        fill(gallery)
    for made in (folder, bundle.folder):
        for path in (made, *made.iterdir()):
            os.chown(path, 4242, 4343)
    with Gallery.open(folder) as gallery:
        fill(gallery, 80)
        gallery.search(unit(np.random.default_rng(1), 1), k=3)
    revise_bundle(bundle.folder, {"licences": {"data": "own"}})
    for made in (folder, bundle.folder):
        assert {(file.stat().st_uid, file.stat().st_gid) for file in made.iterdir()} == {(4242, 4343)}
    assert (folder / "index.faiss").exists()
