"""A gallery that can't be written answers all that can be answered, and says of everything else why not."""

import os
import shutil
import sqlite3
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tiny import DIM, SPACE, unit

from deploy import Gallery
from deploy.gallery.upgrade import Plan, carry
from deploy.store.store import Facts
from domains.errors import GalleryError
from prototypes.passage import Passage

pytest.importorskip("faiss", reason="FAISS is not installed")
VECTORS = unit(np.random.default_rng(4), 60, DIM)


@pytest.fixture
def folder(tmp_path):
    """A gallery that was closed in good order, with an index, crops and a backup on record."""
    path = tmp_path / "gallery"
    with Gallery.create(path, DIM, SPACE, keep_crops=True) as made:
        crops = [np.full((32, 16, 3), row, np.uint8) for row in range(60)]
        made.add(VECTORS, "c", [str(row) for row in range(60)], label="p", crops=crops)
        made.backup(tmp_path / "kept")
        made.search(VECTORS[:1])
    return path


@contextmanager
def without_permission(folder):
    """Neither the folder nor its files can be written, not even by root."""
    if os.geteuid():
        kept = {path: path.stat().st_mode for path in (folder, *folder.iterdir())}
        for path in kept:
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield
        for path, mode in kept.items():
            path.chmod(mode)
        return
    paths = [str(path) for path in (*folder.iterdir(), folder)]
    if (
        shutil.which("chattr") is None
        or subprocess.run(["chattr", "+i", *paths], capture_output=True, check=False).returncode
    ):
        subprocess.run(["chattr", "-i", *paths], capture_output=True, check=False)
        pytest.skip("files can't be made immutable here")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", *reversed(paths)], capture_output=True, check=True)


@contextmanager
def on_a_read_only_file_system(folder):
    if os.geteuid() or subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], capture_output=True, check=True)
        yield
    finally:
        subprocess.run(["umount", folder], capture_output=True, check=True)


@contextmanager
def as_asked(folder):
    yield


HOW = {"permission": without_permission, "file system": on_a_read_only_file_system, "asked": as_asked}


@pytest.fixture(params=HOW)
def sealed(request):
    """Make a folder read-only in one of several ways, and open the gallery in it."""

    @contextmanager
    def opened(folder):
        before = content(folder)
        with HOW[request.param](folder):
            with Gallery.open(folder, **({"read_only": True} if request.param == "asked" else {})) as gallery:
                yield gallery
            assert content(folder) == before

    return opened


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "gallery.db-shm"}


def test_everything_that_reads_works(folder, sealed):
    with sealed(folder) as gallery:
        assert gallery.read_only
        assert [match.source for match in gallery.search(VECTORS[7], k=1)[0]] == ["7"]
        assert gallery.search(VECTORS[7], k=1, label="p", source="1")[0][0].source.startswith("1")
        assert gallery.info()["read_only"]
        assert gallery.info()["entries"] == 60
        assert gallery.verify()[:2] == ["gallery.db: 60 entries, all intact", "index: agrees with the database"]
        assert gallery.crop(3).shape == (32, 16, 3)
        assert gallery.select(camera="c") == gallery.ids() == list(range(1, 61))
        assert [record["action"] for record in gallery.audit()] == ["backup"]
        assert len(gallery.backups()) == 1
        assert gallery.retention() == {}
        assert gallery.entries([1])[1].source == "0"


@pytest.mark.parametrize(
    "change",
    {
        "add": lambda gallery, path: gallery.add(VECTORS[0], "c", "new"),
        "add with crops": lambda gallery, path: gallery.add(
            VECTORS[0], "c", "new", crops=[np.zeros((9, 9, 3), np.uint8)]
        ),
        "add_new": lambda gallery, path: gallery.add_new(VECTORS[0], "c", "new"),
        "forget": lambda gallery, path: gallery.forget([1]),
        "forget nobody": lambda gallery, path: gallery.forget([]),
        "keep": lambda gallery, path: gallery.keep(3),
        "drop_old": lambda gallery, path: gallery.drop_old(),
        "carry": lambda gallery, path: carry(
            gallery._store,
            Plan(Facts(DIM, "cd" * 32, None), Passage(matrix=np.eye(DIM, dtype="f4")), ((0.9, 0.1),)),
        ),
        "backup": lambda gallery, path: gallery.backup(path.with_name("another")),
        "rebuild": lambda gallery, path: gallery._store.rebuild(),
        "rewrite": lambda gallery, path: gallery._store.rewrite(),
    }.items(),
    ids=lambda item: item[0],
)
def test_everything_that_changes_says_why_not(folder, sealed, change):
    with sealed(folder) as gallery:
        with pytest.raises(
            GalleryError, match=r"open for reading only, so nothing can be|and it has to record"
        ) as caught:
            change[1](gallery, folder)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
        assert len(gallery) == 60


def test_an_index_that_is_missing_is_built_in_memory(folder, sealed, caplog):
    for file in folder.glob("index.*"):
        file.unlink()
    with sealed(folder) as gallery:
        assert gallery.search(VECTORS[7], k=1)[0][0].source == "7"
        assert "not saved, because it is missing and the gallery can't be written" in gallery.verify()[1]
    assert caplog.text == ""


def test_what_would_be_erased_is_only_reported(folder, sealed, caplog):
    db = sqlite3.connect(folder / "gallery.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    from deploy.store.seal import write_seal

    db.execute("BEGIN")
    db.execute("UPDATE gallery SET unwiped = 1")
    write_seal(db)
    db.execute("COMMIT")
    db.close()
    with sealed(folder) as gallery:
        assert len(gallery) == 60
    assert "an erasure is not finished" in caplog.text


def test_a_log_that_was_left_behind_is_read_or_refused_but_never_ignored(folder, tmp_path, sealed):
    """As after a kill: with the shared index of its readers, or as a copy without it."""
    with Gallery.open(folder) as live:
        live.add(VECTORS[0], "c", "newest")
        for name, files in (
            ("killed", ("gallery.db", "gallery.db-wal", "gallery.db-shm")),
            ("copied", ("gallery.db", "gallery.db-wal")),
        ):
            (tmp_path / name).mkdir()
            for file in files:
                shutil.copy(folder / file, tmp_path / name / file)
    with sealed(tmp_path / "killed") as gallery:
        assert gallery.ids()[-1] == 61
    try:
        with sealed(tmp_path / "copied") as gallery:
            assert gallery.ids()[-1] == 61
    except GalleryError as error:
        assert "not closed in good order" in str(error)  # noqa: PT017 - either outcome is right


def test_changes_by_others_are_seen(folder):
    """A reader that took no locks, as nobody had the gallery open, follows those who come later."""
    with Gallery.open(folder, read_only=True) as reader:
        assert len(reader) == 60
        with Gallery.open(folder) as writer:
            writer.add(VECTORS[0], "c", "newest")
            assert len(reader) == 61
            assert reader.search(VECTORS[0], k=2)[0][1].source == "newest"
            writer.forget([61])
            assert len(reader) == 60
        assert len(reader) == 60


def test_changes_by_others_who_are_gone_are_seen(folder):
    with Gallery.open(folder, read_only=True) as reader:
        assert len(reader) == 60
        with Gallery.open(folder) as writer:
            writer.add(VECTORS[0], "c", "newest")
        assert len(reader) == 61
        with pytest.raises(GalleryError, match="changed while it was read; try again"), reader._store.reading():  # noqa: PT012
            assert reader._store.count() == 61
            with Gallery.open(folder) as writer:
                writer.add(VECTORS[0], "c", "another")
        assert len(reader) == 62


def test_closing_twice_is_no_error(folder):
    reader = Gallery.open(folder, read_only=True)
    reader.close()
    reader.close()
    with pytest.raises(GalleryError, match="the gallery is closed"):
        reader.ids()


def test_a_gallery_of_an_earlier_version_is_refused_in_one_line(folder, sealed):
    db = sqlite3.connect(folder / "gallery.db", isolation_level=None)
    db.execute("PRAGMA user_version=2")
    db.close()
    said = "earlier version and has to be brought up to date, but can't be written"
    with pytest.raises(GalleryError, match=said), sealed(folder):
        pass


def test_a_backup_on_a_read_only_medium_is_restored(folder, tmp_path):
    with on_a_read_only_file_system(tmp_path / "kept"):
        assert Gallery.restore(tmp_path / "kept", tmp_path / "back")[0] == 60
    with Gallery.open(tmp_path / "back") as back:
        back.add(VECTORS[0], "c", "newest")


def test_the_commands_that_read_work_and_the_others_say_why_not(folder, tmp_path):
    typer = pytest.importorskip("typer.testing", reason="the command line is not installed")
    from reid.cli import app

    with without_permission(folder):
        for words, code in ((["info"], 0), (["verify"], 0), (["forget", "--label", "p"], 1)):
            answer = typer.CliRunner().invoke(app, ["gallery", words[0], str(folder), *words[1:]])
            assert answer.exit_code == code, answer.output
            assert answer.exception is None or "open for reading only" in str(answer.exception)


@pytest.fixture
def shared(folder):
    """A copy of the gallery where everybody may read it, looked at by a user who is not root."""
    with tempfile.TemporaryDirectory() as outer:
        Path(outer).chmod(0o755)
        shutil.copytree(folder, Path(outer) / "gallery")
        for path in (Path(outer) / "gallery", *(Path(outer) / "gallery").iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield Path(outer) / "gallery"
        (Path(outer) / "gallery").chmod(0o755)


@contextmanager
def as_nobody():
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def log_of(gallery, make):
    make(gallery / "gallery.db-wal")


UNREADABLE = {
    "a folder that can't be looked into": lambda gallery: gallery.chmod(0o644),
    "a database that can't be read": lambda gallery: (gallery / "gallery.db").chmod(0),
    "a log that can't be read": lambda gallery: log_of(
        gallery, lambda log: (log.write_bytes(b"x" * 100), log.chmod(0))
    ),
    "a log that is a folder": lambda gallery: log_of(gallery, Path.mkdir),
    "a log that is a pipe": lambda gallery: log_of(gallery, os.mkfifo),
    "no database": lambda gallery: (gallery / "gallery.db").unlink(),
    "a database that is a folder": lambda gallery: (
        (gallery / "gallery.db").unlink(),
        (gallery / "gallery.db").mkdir(),
    ),
}


@pytest.mark.parametrize("how", UNREADABLE)
@pytest.mark.parametrize(
    "deed",
    {
        "open": Gallery.open,
        "open to read": lambda path: Gallery.open(path, read_only=True),
        "repair": Gallery.repair,
        "restore from it": lambda path: Gallery.restore(path, path.with_name("back")),
        "restore to it": lambda path: Gallery.restore(path.with_name("kept"), path),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_can_t_be_read_is_said_in_one_line(shared, how, deed):
    if deed[0] == "restore to it":
        shutil.copytree(shared, shared.with_name("kept"))
    UNREADABLE[how](shared)
    with as_nobody(), pytest.raises(GalleryError) as caught:
        deed[1](shared)
    assert "\n" not in str(caught.value)


def test_a_folder_that_can_t_be_listed_answers_but_is_not_described(shared):
    shared.chmod(0o711)
    with as_nobody(), Gallery.open(shared) as gallery:
        assert gallery.search(VECTORS[7], k=1)[0][0].source == "7"
        with pytest.raises(GalleryError, match="can't be listed: Permission denied"):
            gallery.info()
