"""Nothing of a gallery or an audit log is written outside its own folder, neither by sorting, undoing, rewriting nor
copying, and a killed process leaves nothing of it.
"""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tiny import unit

from deploy import Gallery
from deploy.store import scratch
from domains.errors import GalleryError

ROOT = Path(__file__).parents[3]
DIM = 512

WORK = """
import sys
from pathlib import Path

import numpy as np

from deploy import Gallery
from deploy.gallery.upgrade import Plan, carry
from deploy.service.audit_log import AuditLog
from deploy.store.store import Facts
from prototypes.passage import Passage

home, deed = Path(sys.argv[1]), sys.argv[2]
if deed == "audit":
    log = AuditLog(home / "gallery.audit.db")
    for number in range(30_000):
        last = log.submit("query", reason="x" * 900, number=number)
    last.result()
    log._db.execute("UPDATE audit SET time = '2000-01-01T00:00:00.000+00:00' WHERE number < 5000")
    from deploy.store.scratch import vacuum
    vacuum(log._db, log.file.parent)
    log.close()
    sys.exit()
if deed == "make":
    rng = np.random.default_rng(1)
    with Gallery.create(home / "gallery", 512, "ab" * 32) as made:
        for part in range(10):
            vectors = rng.normal(size=(2200, 512)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            made.add(vectors, "c", [f"/long/way/to/{part}-{row}.jpg" for row in range(2200)], label="p")
    sys.exit()
with Gallery.open(home / "gallery") as gallery:
    if deed == "forget":
        assert gallery.forget(range(1, 100)) == 99  # what stays is more than SQLite keeps in memory
    elif deed == "drop old":
        same = Passage(matrix=np.eye(512, dtype=np.float32))
        carry(gallery._store, Plan(Facts(512, "cd" * 32, "other"), same, ((0.9, 0.1),)))
        gallery.drop_old()
    elif deed == "backup":
        gallery.backup(home / "backup")
        Gallery.restore(home / "backup", home / "other")
    elif deed == "verify":
        gallery.verify()
        gallery.info()
        gallery._store.rebuild()
"""
DEEDS = ("forget", "drop old", "backup", "verify", "audit")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a gallery of over 20 MB."""
    home = tmp_path_factory.mktemp("whole")
    work(home, "make")
    assert (home / "gallery" / "gallery.db").stat().st_size > 20 * 2**20
    return home


def work(home, deed, *before, **environment):
    """Do something to the gallery in ``home`` in a process of its own."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT), **environment}
    command = [*before, sys.executable, "-c", WORK, str(home), deed]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("deed", DEEDS)
def test_no_file_is_opened_for_writing_outside(whole, tmp_path, deed):
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace may not trace here")
    home = tmp_path / "home"
    shutil.copytree(whole, home)
    calls = "trace=open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mknod"
    trace = tmp_path / "trace"
    work(home, deed, "strace", "-f", "-qq", "-s", "4096", "-e", calls, "-o", str(trace))
    outside = []
    for line in trace.read_text().splitlines():
        writes = re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TMPFILE|\b(creat|mkdir|rename|link|symlink|mknod)\w*\(", line)
        if not writes or re.search(r"= -1 E", line):
            continue
        for path in re.findall(r'"([^"]*)"', line):
            if not Path(path).is_relative_to(home) and not path.startswith(("/dev/", "/proc/")):
                outside.append(line)
    assert outside == []
    assert str(home) in trace.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("place", ["watched", "useless"])
def test_the_systems_temporary_folder_is_neither_needed_nor_touched(whole, tmp_path, deed, place):
    """A file that is made and removed again still shows in the time of its folder."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    shutil.copytree(whole, home)
    elsewhere.mkdir()
    before = elsewhere.stat().st_mtime_ns
    named = str(elsewhere) if place == "watched" else "/proc"  # where nothing can be made
    work(home, deed, SQLITE_TMPDIR=named, TMPDIR=named)
    assert elsewhere.stat().st_mtime_ns == before


@pytest.fixture
def gallery(tmp_path):
    vectors = unit(np.random.default_rng(3), 400, DIM)
    with Gallery.create(tmp_path / "it's a gallery", DIM, "ab" * 32) as made:
        made.add(vectors, "c", [str(row) for row in range(400)])
        yield made


def test_the_copy_of_a_rewrite_has_no_name(gallery, monkeypatch):
    seen = []
    real = scratch.vacuum

    def watched(db, folder):
        db.set_progress_handler(lambda: seen.append(sorted(file.name for file in folder.iterdir())) and None, 1000)
        db.execute("PRAGMA cache_size=1")
        real(db, folder)

    monkeypatch.setattr("deploy.store.connection.vacuum", watched)
    gallery.forget(range(1, 200))
    assert seen
    assert not any(name.startswith("etilqs_") for names in seen for name in names)


def test_leftovers_of_a_killed_rewrite_are_removed_at_the_next_opening(gallery):
    gallery.close()
    (gallery.path / "etilqs_0123456789abcdef").write_bytes(b"rest")
    (gallery.path / "notes.txt").write_text("mine")
    old, young = (gallery.path / f".index.faiss.{number}a1b2c3d.tmp" for number in (0, 1))
    for file in (old, young):
        file.write_bytes(b"vectors")
    os.utime(old, (1e9, 1e9))
    Gallery.open(gallery.path).close()
    assert not list(gallery.path.glob("etilqs_*"))
    assert not old.exists()
    assert young.exists(), "somebody may be writing it"
    assert (gallery.path / "notes.txt").exists()


def test_a_kill_in_the_middle_of_a_rewrite_leaves_only_the_galleries_own_files(gallery):
    if not hasattr(os, "fork"):
        pytest.skip("needs processes that fork")
    gallery.close()
    pid = os.fork()
    if not pid:
        opened = Gallery.open(gallery.path)
        real = opened._store._new_connection

        def dying():
            db = real()
            db.set_progress_handler(lambda: os.kill(os.getpid(), signal.SIGKILL), 3000)
            return db

        opened._store._new_connection = dying
        try:
            opened.forget(range(1, 200))
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    known = {"gallery.db", "gallery.db-wal", "gallery.db-shm"}
    assert {file.name for file in gallery.path.iterdir()} <= known
    with Gallery.open(gallery.path) as again:
        assert again.ids() == list(range(200, 401))
        assert not again._store.unwiped()


@pytest.mark.parametrize(
    ("left", "goes"),
    [
        ("backup of it: .copy.01234567.tmp", True),
        ("to be restored: .NAME.01234567.restored", True),
        ("to be restored: ..NAME.01234567.restored.89abcdef.tmp", True),
        ("somebody's: .copy.tmp", False),
        ("somebody's: .other.01234567.tmp", False),
        ("moved aside: NAME.before-restore-20260101T000000-0123", False),
    ],
)
@pytest.mark.parametrize("holds", ["gallery.db", "model.onnx"])
def test_copies_that_were_never_finished_are_removed(gallery, tmp_path, left, goes, holds):
    gallery.backup(tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy")
    gallery.close()
    folder = tmp_path / left.partition(": ")[2].replace("NAME", gallery.path.name)
    folder.mkdir()
    (folder / holds).write_bytes(b"people")
    Gallery.open(gallery.path, read_only=True).close()
    assert folder.exists()
    Gallery.open(gallery.path).close()
    assert folder.exists() == (not goes or holds != "gallery.db")


def test_a_copy_that_is_being_made_is_left_alone(gallery, tmp_path, monkeypatch):
    copying, may_end, opened = threading.Event(), threading.Event(), []
    real = type(gallery._store).copy

    def slow(self, file):
        real(self, file)
        copying.set()
        assert may_end.wait(60)

    monkeypatch.setattr(type(gallery._store), "copy", slow)
    worker = threading.Thread(target=gallery.backup, args=(tmp_path / "copy",))
    worker.start()
    try:
        assert copying.wait(60)
        Gallery.open(gallery.path).close()
        opened = list(tmp_path.glob(".copy.*.tmp/gallery.db"))
    finally:
        may_end.set()
        worker.join(60)
    assert len(opened) == 1
    assert len(Gallery.open(tmp_path / "copy")) == 400


@pytest.mark.parametrize(
    ("name", "why"),
    [(os.fsdecode(b"g\xff"), "bytes that are not UTF-8"), ("g" * 200 + "/" + "h" * 200, "a path too long for SQLite")],
    ids=["bytes", "long"],
)
def test_where_sqlite_cannot_be_told_the_folder_memory_is_used(tmp_path, monkeypatch, caplog, name, why):
    monkeypatch.setattr(scratch, "LONGEST", 300)
    with Gallery.create(tmp_path / name, DIM, "ab" * 32) as gallery:
        ids = gallery.add(unit(np.random.default_rng(3), 40, DIM), "c", [str(row) for row in range(40)])
        assert gallery.forget(ids[:30]) == 30, why
        assert len(gallery) == 10
    assert "takes place in memory" in caplog.text


def test_an_sqlite_without_the_setting_is_noticed(gallery, monkeypatch, caplog):
    monkeypatch.setattr(scratch, "_point_to", lambda db, folder: False)
    gallery.forget([1, 2])
    assert "takes place in memory" in caplog.text


def test_the_process_wide_setting_is_put_back(gallery, tmp_path):
    (tmp_path / "hers").mkdir()
    with closing(sqlite3.connect(":memory:")) as db:
        before = db.execute("PRAGMA temp_store_directory").fetchone()
        gallery.forget([1])
        assert db.execute("PRAGMA temp_store_directory").fetchone() == before
        db.execute(f"PRAGMA temp_store_directory='{tmp_path / 'hers'}'")
        try:
            gallery.forget([2])
            assert db.execute("PRAGMA temp_store_directory").fetchone() == (str(tmp_path / "hers"),)
        finally:
            db.execute("PRAGMA temp_store_directory=''")


def test_galleries_of_one_process_are_rewritten_side_by_side(tmp_path):
    galleries, errors = [], []
    for name in ("a", "b", "c"):
        made = Gallery.create(tmp_path / name, DIM, "ab" * 32)
        made.add(unit(np.random.default_rng(3), 300, DIM), "c", [str(row) for row in range(300)])
        galleries.append(made)

    def erase(gallery):
        try:
            for number in range(1, 6):
                gallery.forget([number])
        except GalleryError as error:
            errors.append(error)

    threads = [threading.Thread(target=erase, args=(gallery,)) for gallery in galleries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    assert [len(gallery) for gallery in galleries] == [295] * 3
    for gallery in galleries:
        gallery.close()
