"""Backups made while others write, and their way back."""

import multiprocessing
import os
import re
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import DIM, SPACE, unit
from typer.testing import CliRunner

from deploy import Gallery
from deploy.gallery import backup as copies
from domains.errors import GalleryError
from reid.commands.gallery import gallery_app

faiss = pytest.importorskip("faiss", reason="FAISS is not installed")


@pytest.fixture
def gallery(tmp_path):
    with Gallery.create(tmp_path / "gallery", DIM, SPACE) as made:
        made.vectors = unit(np.random.default_rng(1), 9)
        made.add(made.vectors, "a", [f"/{number}" for number in range(9)])
        yield made


def write_for_ever(folder):
    rng = np.random.default_rng(os.getpid())
    with Gallery.open(folder) as gallery:
        while True:
            ids = gallery.add(unit(rng, 5), "w", [str(number) for number in range(5)])
            gallery.forget(ids[:5] if rng.random() < 0.3 else [])
            time.sleep(0.01)  # SQLite's locks are not fair: a writer without a pause keeps others out


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_backups_beside_a_writing_process_are_whole(gallery, tmp_path):
    writer = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(gallery.path,))
    writer.start()
    try:
        for number in range(4):
            assert gallery.backup(tmp_path / f"copy{number}") % 5 == 4
    finally:
        writer.kill()
        writer.join()
    for number in range(4):
        with Gallery.open(tmp_path / f"copy{number}") as copy:
            assert len(copy) % 5 == 4
            copy.verify()
            assert copy.search(gallery.vectors[3])[0][0].id == 4


def test_a_backup_is_restored_where_nothing_is(gallery, tmp_path):
    gallery.backup(tmp_path / "copy")
    assert Gallery.restore(tmp_path / "copy", tmp_path / "deep" / "new") == (9, None)
    with Gallery.open(tmp_path / "deep" / "new") as again:
        assert again.ids() == gallery.ids()
        assert again.audit()[-1]["action"] == "restore"
        again.verify()
    with Gallery.open(tmp_path / "copy") as copy:
        assert "restore" not in [record["action"] for record in copy.audit()], "the backup stays as it is"


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        ([], ""),
        (["index.faiss", "index.json", "gallery.db-wal"], ""),
        (["gallery.db"], ""),
        (["holiday.jpg"], "holiday.jpg"),
        (["index.faiss", "notes.txt"], "notes.txt"),
        (["sub/gallery.db"], "sub"),
        ([".hidden"], ".hidden"),
        (None, "is not a folder"),
    ],
)
def test_a_backup_takes_the_place_of_a_gallery_or_of_nothing(gallery, tmp_path, names, refused):
    gallery.backup(tmp_path / "copy")
    target = tmp_path / "target"
    if names is None:
        target.write_text("kept")
    else:
        target.mkdir()
    for name in names or ():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text("kept")
    if refused:
        before = sorted(map(str, tmp_path.rglob("*")))
        with pytest.raises(GalleryError, match=re.escape(refused)) as caught:
            Gallery.restore(tmp_path / "copy", target)
        assert str(target) in str(caught.value)
        assert sorted(map(str, tmp_path.rglob("*"))) == before
    else:
        count, aside = Gallery.restore(tmp_path / "copy", target)
        assert count == 9
        assert sorted(path.name for path in aside.iterdir()) == sorted(names)


def test_a_backup_of_what_can_not_be_written_says_why(gallery, tmp_path):
    with (
        Gallery.open(gallery.path, read_only=True) as still,
        pytest.raises(GalleryError, match=r"can't make a backup: .*gallery can't be written, and it has to record"),
    ):
        still.backup(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_backup_is_restored_in_the_place_of_a_gallery_which_is_kept(gallery, tmp_path):
    gallery.backup(tmp_path / "copy")
    gallery.forget([1, 2])
    gallery.search(gallery.vectors[0])
    gallery.close()
    count, aside = Gallery.restore(tmp_path / "copy", gallery.path)
    assert count == 9
    with Gallery.open(gallery.path) as again:
        assert again.search(gallery.vectors[0])[0][0].id == 1
        assert again.info()["entries"] == 9
    with Gallery.open(aside) as before:
        assert before.ids() == list(range(3, 10))
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted(["copy", "gallery", aside.name])


def test_a_damaged_backup_is_not_restored(gallery, tmp_path):
    gallery.backup(tmp_path / "copy")
    db = sqlite3.connect(tmp_path / "copy" / "gallery.db", isolation_level=None)
    db.execute("UPDATE entry SET camera = 'z' WHERE id = 4")
    db.close()
    with pytest.raises(GalleryError, match="entry 4 of"):
        Gallery.restore(tmp_path / "copy", gallery.path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["copy", "gallery"]
    gallery.verify()


@pytest.mark.parametrize("source", ["nothing", "gallery"])
def test_what_can_not_be_restored_is_refused(gallery, tmp_path, source):
    with pytest.raises(GalleryError, match=r"not a backup|same folder"):
        Gallery.restore(tmp_path / source, gallery.path)
    gallery.verify()


def test_a_rename_that_fails_leaves_the_gallery(gallery, tmp_path, monkeypatch):
    gallery.backup(tmp_path / "copy")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(copies.os, "rename", fail)
    with pytest.raises(GalleryError, match="No space left"):
        Gallery.restore(tmp_path / "copy", gallery.path)
    gallery.verify()


def test_the_commands(gallery, tmp_path):
    gallery.close()
    run = CliRunner().invoke
    assert run(gallery_app, ["backup", str(gallery.path), str(tmp_path / "copy")]).exit_code == 0
    result = run(gallery_app, ["restore", str(tmp_path / "copy"), str(gallery.path)])
    assert result.exit_code == 0, result.output
    assert "9 entries" in result.output
    assert "before-restore" in result.output.replace("\n", "")
    result = run(gallery_app, ["verify", str(gallery.path), "--repair"])
    assert "9 entries, all intact" in result.output
    file = gallery.path / "gallery.db"
    data = bytearray(file.read_bytes())
    data[data.index(b"/7")] ^= 1
    file.write_bytes(data)
    result = run(gallery_app, ["verify", str(gallery.path), "--repair"])
    assert result.exit_code == 1 or "repaired" in result.output


def test_what_is_restored_knows_every_copy_that_an_erasure_does_not_reach(gallery, tmp_path):
    gallery.backup(tmp_path / "b1")
    gallery.backup(tmp_path / "b2")
    gallery.close()
    _, aside = Gallery.restore(tmp_path / "b1", gallery.path)
    with Gallery.open(gallery.path) as again:
        assert again.backups() == sorted(map(str, (tmp_path / "b1", tmp_path / "b2", aside)))
        again.verify()


def test_a_backup_is_known_before_it_is_there(gallery, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def after_the_rename(path):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("deploy.gallery.backup.write_audit", lambda *_, **__: after_the_rename(None))
        with pytest.raises(Killed):
            gallery.backup(tmp_path / "copy")
    assert gallery.backups() == [str(tmp_path / "copy")]


def test_a_backup_that_failed_is_forgotten(gallery, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(GalleryError, match="can't make a backup"):
        gallery.backup(tmp_path / "file" / "copy")
    assert gallery._store.ask("SELECT * FROM backup") == []
    gallery._store.close()
    with Gallery.open(gallery.path) as again:
        again.verify()


def test_a_backup_that_can_not_be_looked_into_counts_as_there(gallery, tmp_path, monkeypatch):
    gallery.backup(tmp_path / "copy")

    def locked(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "lstat", locked)
    assert gallery.backups() == [str(tmp_path / "copy")]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_restoration_whose_renames_fail_leaves_everything_as_it_was(gallery, tmp_path, monkeypatch, failing):
    gallery.backup(tmp_path / "copy")
    gallery.close()
    before, calls, real = sorted(tmp_path.iterdir()), [], os.rename

    def rename(source, target):
        calls.append(source)
        if len(calls) == failing:
            raise OSError(16, "Device or resource busy")
        real(source, target)

    monkeypatch.setattr("deploy.gallery.backup.os", SimpleNamespace(rename=rename))
    with pytest.raises(GalleryError, match="Device or resource busy; nothing was changed"):
        Gallery.restore(tmp_path / "copy", gallery.path)
    assert sorted(tmp_path.iterdir()) == before
    with Gallery.open(gallery.path) as again:
        again.verify()


def test_the_root_folder_is_no_place_for_a_gallery(gallery, tmp_path):
    gallery.backup(tmp_path / "copy")
    with pytest.raises(GalleryError, match="can't itself be a gallery"):
        Gallery.restore(tmp_path / "copy", "/")
