"""What was acknowledged is there, what was forgotten is nowhere, whoever is killed and whoever else is at work."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import threading
import time

import numpy as np
import pytest
from tiny import DIM, SPACE, unit

from deploy import Gallery
from deploy.gallery import gallery as gallery_module
from deploy.store import store
from domains import artefact
from domains.errors import GalleryError

faiss = pytest.importorskip("faiss", reason="FAISS is not installed")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
processes = multiprocessing.get_context("fork")


@pytest.fixture
def rng():
    return np.random.default_rng(4)


@pytest.fixture
def gallery(tmp_path):
    with Gallery.create(tmp_path / "gallery", DIM, SPACE) as made:
        yield made


def vector_of(name):
    """Return the vector that belongs to a source, so that a mixed-up one is seen."""
    return unit(np.random.default_rng(int(name)), 1)[0]


def add(gallery, names):
    return gallery.add(np.stack([vector_of(name) for name in names]), "c", [str(name) for name in names])


def in_folder(folder, vectors):
    """Positions of those vectors of which any 16 bytes in a row lie in any file below the folder."""
    raw = b"\0".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    found = []
    for position, vector in enumerate(vectors):
        for kind in (np.float16, np.float32):
            data = vector.astype(kind).tobytes()
            if any(data[at : at + 16] in raw for at in range(0, len(data) - 15, 8)):
                found.append(position)
    return sorted(set(found))


# ------------------------------------------------------------------------------------------------------------ the cache


def made_anew(folder, monkeypatch):
    """Whether opening and searching reads the vectors from SQLite rather than from the cache."""
    reads = []
    with monkeypatch.context() as patch:
        real = store.Store.vectors
        patch.setattr(store.Store, "vectors", lambda self, after=0: reads.append(after) or real(self, after))
        with Gallery.open(folder) as opened:
            found = opened.search(vector_of(3), k=3)[0]
    assert found[0].source == "3"
    assert found[0].score == pytest.approx(1, abs=1e-6)
    return bool(reads)


def test_cache_is_used_only_when_it_agrees(gallery, monkeypatch):
    folder = gallery.path
    add(gallery, range(20))
    gallery.close()
    assert not (folder / "index.faiss").exists()
    assert made_anew(folder, monkeypatch)
    assert not made_anew(folder, monkeypatch)
    header, vectors = (folder / "index.json").read_text(), (folder / "index.faiss").read_bytes()

    def changed(**values):
        return json.dumps(json.loads(header) | values)

    for text in (
        "",
        "{",
        "[]",
        "null",
        changed(token="0" * 16),
        changed(count=19),
        changed(generation=2),
        changed(dim=5),
        changed(feature_space="x"),
    ):
        (folder / "index.json").write_text(text)
        assert made_anew(folder, monkeypatch), text
    for data in (
        b"",
        vectors[:-1],
        vectors[:50],
        vectors[:200] + bytes([vectors[200] ^ 1]) + vectors[201:],
        b"x" * len(vectors),
    ):
        (folder / "index.faiss").write_bytes(data)
        assert made_anew(folder, monkeypatch), len(data)
    for name in ("index.json", "index.faiss"):
        (folder / name).unlink()
        assert made_anew(folder, monkeypatch)
    # A file with the right sha256 that FAISS takes, but of another kind.
    flat = faiss.IndexFlatIP(DIM)
    flat.add(np.zeros((20, DIM), np.float32))
    faiss.write_index(flat, str(folder / "index.faiss"))
    manifest = json.loads(header)
    del manifest["id"]
    manifest["files"] = {name: artefact.sha256_file(folder / name) for name in ("index.faiss", "index.npz")}
    (folder / "index.json").write_text(json.dumps({"id": artefact.content_id(manifest), **manifest}))
    assert made_anew(folder, monkeypatch)
    assert not made_anew(folder, monkeypatch)


def test_a_cache_of_the_same_generation_from_another_past_is_not_used(gallery, monkeypatch, tmp_path):
    folder = gallery.path
    add(gallery, range(5))
    gallery.close()
    shutil.copytree(folder, tmp_path / "backup")
    with Gallery.open(folder) as opened:
        add(opened, [3, 11])
        opened.search(vector_of(3))
    for name in ("gallery.db", "gallery.db-wal", "gallery.db-shm"):
        (folder / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup" / "gallery.db", folder)
    with Gallery.open(folder) as opened:
        add(opened, [12, 13])  # generation and count are those of the cache
    assert made_anew(folder, monkeypatch)


def test_verify_repairs_the_index(gallery):
    add(gallery, range(20))
    gallery.search(vector_of(0))
    gallery.close()
    data = bytearray((gallery.path / "index.faiss").read_bytes())
    data[300] ^= 1
    (gallery.path / "index.faiss").write_bytes(data)
    with Gallery.open(gallery.path) as opened:
        assert "rebuilt, because its bytes were changed" in opened.verify()[1]
        assert opened.verify()[1] == "index: agrees with the database"


def test_a_cache_that_can_not_be_written_costs_nothing_but_time(gallery, monkeypatch, caplog):
    add(gallery, range(5))
    gallery.search(vector_of(3))
    monkeypatch.setattr(faiss, "write_index", lambda codes, path: open(path, "wb").close())
    gallery.close()
    assert "not saved" in caplog.text
    assert sorted(file.name for file in gallery.path.iterdir()) == ["gallery.db"]
    monkeypatch.undo()
    assert made_anew(gallery.path, monkeypatch)


# ----------------------------------------------------------------------------------------------------------- forgetting


def test_forgotten_bytes_are_nowhere(tmp_path):
    # Many rounds with rows of different sizes at a dimension where SQLite moves rows between pages: secure_delete alone
    # leaves some behind.
    draw = random.Random(1)
    dim = 128
    alive = {}
    with Gallery.create(tmp_path / "gallery", dim, SPACE) as gallery:
        for round_ in range(12):
            vectors = unit(np.random.default_rng(round_), 60, dim)
            sources = [f"/{'s' * draw.randint(5, 150)}/{round_}-{number}.png" for number in range(60)]
            alive |= dict(zip(gallery.add(vectors, "c", sources), zip(vectors, sources, strict=True), strict=True))
            gallery.search(vectors[:1])
            if round_ % 3 == 0:
                gallery._save_index()
            gone = draw.sample(sorted(alive), draw.randint(1, len(alive) - 1))
            kept = [alive[number][0] for number in sorted(set(alive) - set(gone))]
            assert len(in_folder(gallery.path, kept)) == len(kept)  # the search for bytes does find what is there
            assert gallery.forget(gone) == len(gone)
            erased = [alive.pop(number) for number in gone]
            assert in_folder(gallery.path, [vector for vector, _ in erased]) == []
            raw = b"".join(file.read_bytes() for file in gallery.path.iterdir())
            assert not [source for _, source in erased if source.encode() in raw]
            assert gallery.ids() == sorted(alive)
        last = max(alive)
        gallery.forget([last])
        assert gallery.add(vectors[:1], "c", "x")[0] > last  # an id never means another crop
        assert gallery.forget([last, 10**9]) == 0


def test_what_a_killed_cache_writer_left_goes_too(gallery):
    ids = add(gallery, range(20))
    gallery.search(vector_of(3))
    gallery._save_index()
    shutil.copy(gallery.path / "index.faiss", gallery.path / ".index.faiss.0a1b2c3d.tmp")
    gallery.forget(ids[:4])
    assert in_folder(gallery.path, [vector_of(name) for name in range(4)]) == []


@pytest.mark.parametrize("point", ["before wipe", "in wipe"])
def test_an_erasure_cut_short_is_finished_at_the_next_open(gallery, point):
    ids = add(gallery, range(300))
    gallery.search(vector_of(0))
    gallery.close()

    def die():
        opened = Gallery.open(gallery.path)
        real = store.Store.wipe

        def killed(self):
            if point == "in wipe":
                self._db.execute("VACUUM")
            os.kill(os.getpid(), signal.SIGKILL)

        store.Store.wipe = killed
        opened.forget(ids[:250])
        store.Store.wipe = real

    child = processes.Process(target=die)
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    if point == "before wipe":
        assert in_folder(gallery.path, [vector_of(0)]) == [0]
    with Gallery.open(gallery.path) as opened:
        assert opened.ids() == ids[250:]
        assert in_folder(gallery.path, [vector_of(name) for name in range(250)]) == []
        assert opened.search(vector_of(260), k=1)[0][0].source == "260"


def test_a_reader_that_never_ends_is_reported_and_the_erasure_finished_later(gallery, monkeypatch):
    ids = add(gallery, range(20))
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.2)
    with Gallery.open(gallery.path) as eraser:
        reader = sqlite3.connect(gallery.path / "gallery.db")
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entry").fetchone()
        with pytest.raises(GalleryError, match="another process keeps reading"):
            eraser.forget(ids[:5])
        assert eraser.ids() == ids[5:]
        reader.close()
        assert eraser.forget([]) == 0
        assert in_folder(gallery.path, [vector_of(name) for name in range(5)]) == []


def test_searches_are_answered_while_an_erasure_rewrites_the_file(gallery, monkeypatch):
    """In the same process, from another thread, as a service does; what is being erased is found no more."""
    ids = add(gallery, range(60))
    gallery.search(vector_of(0))
    began, may_end = threading.Event(), threading.Event()
    real = store.Store.rewrite

    def slow(self):
        other = self._new_connection()
        other.execute("BEGIN IMMEDIATE")  # as VACUUM does, which readers need not wait for
        began.set()
        assert may_end.wait(20)
        other.execute("ROLLBACK")
        other.close()
        return real(self)

    monkeypatch.setattr(store.Store, "rewrite", slow)
    eraser = threading.Thread(target=gallery.forget, args=(ids[:5],))
    eraser.start()
    assert began.wait(20)
    asked = threading.Thread(target=lambda: answers.append(gallery.search(vector_of(1), k=60)[0]), daemon=True)
    answers = []
    asked.start()
    asked.join(10)
    answered = list(answers)
    may_end.set()
    eraser.join(20)
    assert answered, "the search had to wait for the erasure"
    assert sorted(match.id for match in answered[0]) == ids[5:]
    assert in_folder(gallery.path, [vector_of(name) for name in range(5)]) == []


def test_erasing_adding_and_searching_at_once_from_threads_of_one_process(gallery):
    ids = add(gallery, range(200))
    faults, done = [], threading.Event()

    def search():
        while not done.is_set():
            try:
                found = gallery.search(vector_of(150), k=3)[0]
                assert found[0].source == "150"
            except Exception as error:
                faults.append(error)

    def put():
        for start in range(1000, 1200, 20):
            try:
                add(gallery, range(start, start + 20))
            except Exception as error:
                faults.append(error)

    threads = [threading.Thread(target=work) for work in (search, search, put)]
    for thread in threads:
        thread.start()
    for start in range(0, 100, 10):
        assert gallery.forget(ids[start : start + 10]) == 10
    threads[2].join(60)
    done.set()
    for thread in threads[:2]:
        thread.join(60)
    assert faults == []
    assert len(gallery) == 300
    assert in_folder(gallery.path, [vector_of(name) for name in range(100)]) == []
    assert "intact" in gallery.verify()[0]


# ------------------------------------------------------------------------------------------------------ other processes


def write_much(folder):
    with Gallery.open(folder) as opened:
        for start in range(100, 400, 10):
            ids = add(opened, range(start, start + 10))
            if start % 50 == 0:
                opened.forget(ids[:1])


def read_much(folder, report):
    wrong = count = 0
    with Gallery.open(folder) as opened:
        end = time.monotonic() + 60
        while time.monotonic() < end and count != 3 + 300 - 6:
            first, second = opened.search(np.stack([vector_of(1), vector_of(2)]), k=1000)
            wrong += first[0].source != "1" or second[0].source != "2" or len(first) < count - 1
            count = len(first)
    report.put((wrong, count))


def test_two_readers_and_a_writer(gallery):
    # Started afresh rather than forked: the readers use FAISS, whose threads do not live through a fork.
    fresh = multiprocessing.get_context("spawn")
    add(gallery, [1, 2, 3])
    report = fresh.Queue()
    everyone = [fresh.Process(target=write_much, args=(gallery.path,))]
    everyone += [fresh.Process(target=read_much, args=(gallery.path, report)) for _ in range(2)]
    for process in everyone:
        process.start()
    assert [report.get(timeout=90) for _ in range(2)] == [(0, 297)] * 2
    for process in everyone:
        process.join(30)
        assert process.exitcode == 0
    assert len(gallery.search(vector_of(1), k=1000)[0]) == 297


def test_a_concurrent_writer_waits(gallery, monkeypatch):
    folder = gallery.path
    holder = sqlite3.connect(folder / "gallery.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    done = []
    thread = threading.Thread(target=lambda: done.append(add(gallery, [1])))
    thread.start()
    time.sleep(0.2)
    assert done == []
    holder.execute("COMMIT")
    holder.close()
    thread.join(30)
    assert done == [[1]]
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.1)
    holder = sqlite3.connect(folder / "gallery.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with Gallery.open(folder) as other:
        with pytest.raises(GalleryError, match="another process has been writing"):
            add(other, [2])
        assert len(other.search(vector_of(1))[0]) == 1  # readers do not wait
        holder.close()
        add(other, [2])
    assert len(gallery) == 2


def test_a_stale_reader_does_not_bring_the_forgotten_back(gallery):
    ids = add(gallery, range(10))
    with Gallery.open(gallery.path) as other:
        other.search(vector_of(0))
        gallery.forget(ids[:5])
    # ``other`` closed with an index from before: it must not have been kept.
    assert in_folder(gallery.path, [vector_of(name) for name in range(5)]) == []
    with Gallery.open(gallery.path) as other:
        assert [match.id for match in other.search(vector_of(0), k=20)[0]] != []
        assert {match.id for match in other.search(vector_of(0), k=20)[0]} == set(ids[5:])


def test_a_full_disk_changes_nothing(gallery):
    ids = add(gallery, range(5))
    pages = gallery._store._pragma("page_count")
    gallery._store._db.execute(f"PRAGMA max_page_count={pages + 1}")
    with pytest.raises(GalleryError, match="full"):
        add(gallery, range(100, 2000))
    assert gallery.ids() == ids
    gallery._store._db.execute("PRAGMA max_page_count=1000000")
    assert add(gallery, [7]) == [6]
    gallery.verify()


def test_a_folder_that_can_not_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(GalleryError, match="can't create a gallery"):
        Gallery.create(tmp_path / "file" / "gallery", DIM, SPACE)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gallery_module.Store, "create", fail)
    with pytest.raises(GalleryError, match="No space left"):
        Gallery.create(tmp_path / "gallery", DIM, SPACE)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
