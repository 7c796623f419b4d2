"""One erasure at a time: the others wait for it, in this process and in others, and nobody waits for the dead."""

import multiprocessing
import os
import signal
import sqlite3
import threading
import time

import numpy as np
import pytest
from tiny import DIM, SPACE, unit

from deploy import Gallery
from deploy.store import connection, store
from deploy.store import turn as turns
from deploy.store.turn import turn
from domains.errors import GalleryError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
processes = multiprocessing.get_context("fork")


@pytest.fixture
def gallery(tmp_path):
    with Gallery.create(tmp_path / "gallery", DIM, SPACE) as made:
        made.add(unit(np.random.default_rng(4), 200, DIM), "c", [str(row) for row in range(200)])
        yield made


@pytest.mark.parametrize("second", ["forget", "drop old", "retain", "open"])
def test_a_second_erasure_waits_for_the_first_however_long_it_takes(gallery, monkeypatch, second):
    """SQLite itself waits for only a moment here; opening leaves the work to whoever is at it."""
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.05)
    rewriting, may_end, order, errors = threading.Event(), threading.Event(), [], []
    real = connection.vacuum

    def slow(db, folder):
        if not rewriting.is_set():
            db.execute("BEGIN IMMEDIATE")  # as VACUUM does
            rewriting.set()
            assert may_end.wait(60)
            db.execute("ROLLBACK")
            order.append("first")
        real(db, folder)

    def work(name, deed):
        try:
            with Gallery.open(gallery.path) as opened:
                deed(opened)
            order.append(name)
        except GalleryError as error:
            errors.append((name, str(error)))

    deeds = {
        "forget": lambda opened: opened.forget([2]),
        "drop old": lambda opened: opened.drop_old(),
        "retain": lambda opened: opened.retain(),
        "open": lambda opened: opened.ids(),
    }
    monkeypatch.setattr(connection, "vacuum", slow)
    if second == "retain":
        monkeypatch.setattr("deploy.gallery.upkeep.expired", lambda *args, **options: [2])
        monkeypatch.setattr("deploy.gallery.upkeep.rules", lambda *args: {"": 3})
        monkeypatch.setattr(Gallery, "_retain_or_warn", lambda self: None)
    threads = [threading.Thread(target=work, args=("a", lambda opened: opened.forget([1])))]
    threads[0].start()
    try:
        assert rewriting.wait(60)
        threads.append(threading.Thread(target=work, args=("b", deeds[second])))
        threads[1].start()
        threads[1].join(60 if second == "open" else 0.5)
    finally:
        may_end.set()
        for thread in threads:
            thread.join(60)
    assert errors == []
    assert (order[0] == "b") == (second == "open")
    assert set(order) == {"a", "b", "first"}
    assert not gallery._store.unwiped()


@pytest.mark.parametrize(
    "came_for",
    {
        "open": lambda opened: opened.ids(),
        "search": lambda opened: opened.search(unit(np.random.default_rng(1), 1, DIM)),
        "add": lambda opened: opened.add(unit(np.random.default_rng(1), 1, DIM), "c", ["new"]),
    }.items(),
    ids=lambda item: item[0],
)
def test_who_came_for_something_else_does_not_wait_to_erase_what_expired(gallery, monkeypatch, came_for):
    monkeypatch.setattr(turns, "AT_MOST", 0.0)
    monkeypatch.setattr("deploy.gallery.gallery.EVERY", -1.0)
    monkeypatch.setattr("deploy.gallery.upkeep.expired", lambda *args: [2])
    monkeypatch.setattr("deploy.gallery.upkeep.rules", lambda *args: {"": 3})
    with turn(gallery.path), Gallery.open(gallery.path) as opened:
        came_for[1](opened)
        assert 2 in opened.ids()
        with pytest.raises(GalleryError, match="has been erasing or copying"):
            opened.retain()
    with Gallery.open(gallery.path) as opened:
        assert 2 not in opened.ids()


@pytest.mark.slow
def test_erasures_of_several_processes_all_succeed(gallery):
    def erase(part):
        with Gallery.open(gallery.path) as opened:
            for number in range(1 + part * 10, 6 + part * 10):
                if opened.forget([number]) != 1:
                    os._exit(3)

    gallery.close()
    children = [processes.Process(target=erase, args=(part,)) for part in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(200)
    assert [child.exitcode for child in children] == [0] * 4
    with Gallery.open(gallery.path) as again:
        assert len(again) == 180
        assert not again._store.unwiped()


def test_somebody_who_empties_the_log_at_the_same_time_is_no_reader(gallery, monkeypatch):
    monkeypatch.setattr(gallery._store, "_busy_seconds", 20.0)
    real, tried = type(gallery._store)._emptied, []

    def first_in_vain(self):
        tried.append(1)
        return real(self) if len(tried) > 3 else False

    monkeypatch.setattr(type(gallery._store), "_emptied", first_in_vain)
    assert gallery.forget([1]) == 1
    assert len(tried) == 4


def test_a_reader_who_ends_in_time_is_waited_for(gallery):
    other = sqlite3.connect(gallery.path / "gallery.db", check_same_thread=False)
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM entry").fetchone()
    ending = threading.Timer(0.5, other.close)
    ending.start()
    assert gallery.forget([1]) == 1
    ending.join()
    assert (gallery.path / "gallery.db-wal").stat().st_size < 20_000


def test_the_turn_of_a_killed_process_is_free(tmp_path):
    pid = os.fork()
    if not pid:
        with turn(tmp_path):
            (tmp_path / "held").touch()
            time.sleep(60)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with turn(tmp_path, wait=False) as mine:
        assert not mine
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with turn(tmp_path, wait=False) as mine:
        assert mine


def test_waiting_ends_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "AT_MOST", 0.1)
    with turn(tmp_path), pytest.raises(GalleryError, match="has been erasing or copying in") as caught, turn(tmp_path):
        pass
    assert "\n" not in str(caught.value)
    with pytest.raises(GalleryError, match=r"can't open .*gone"), turn(tmp_path / "gone"):
        pass


def test_a_file_system_without_such_locks_stops_nobody(tmp_path, monkeypatch):
    def unknown(handle, what):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unknown)
    with turn(tmp_path) as first, turn(tmp_path) as second:
        assert first
        assert second
