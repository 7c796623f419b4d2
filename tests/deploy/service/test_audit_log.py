"""The audit log: chained, durable, erased by age, and what happens when somebody meddles with it."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from clocks import SetClock
from modes import readable, umask

from deploy.service.audit_log import AuditLog, audit_log_of
from domains.errors import GalleryError


@pytest.fixture
def journal(tmp_path):
    made = AuditLog(tmp_path / "a.audit.db")
    yield made
    made.close()


@pytest.fixture
def clock(monkeypatch):
    return SetClock(monkeypatch)


def fill(journal, count, action="query"):
    return [journal.submit(action, token="desk", reason=f"case {number}").result() for number in range(count)]


def pass_days(clock, journal, days):
    """Let time pass, a week at a time, in a service that ages its log by a longer rule."""
    for _ in range(days // 7 + 1):
        clock.move(7)
        journal.erase(365)


def test_records_are_numbered_chained_and_read_back(journal):
    assert fill(journal, 5) == [1, 2, 3, 4, 5]
    records = journal.read()
    assert [record["reason"] for record in records] == [f"case {number}" for number in range(5)]
    assert journal.check() == 5
    before = "0" * 64
    for record, (when, text) in zip(
        records, sqlite3.connect(journal.file).execute("SELECT time, what FROM audit"), strict=True
    ):
        before = hashlib.sha256(f"{before}\n{when}\n{text}".encode()).hexdigest()  # the gallery's rule, said again
        assert record["hash"] == before
    assert journal.head() == (5, before)
    assert [record["number"] for record in journal.read(after=2, limit=2)] == [3, 4]


def test_many_writers_share_transactions_and_lose_nothing(journal):
    with ThreadPoolExecutor(16) as pool:
        numbers = list(pool.map(lambda number: journal.submit("query", n=number).result(), range(400)))
    assert sorted(numbers) == list(range(1, 401))
    assert journal.check() == 400


@pytest.mark.parametrize(
    "meddle",
    [
        "UPDATE audit SET what = replace(what, 'case 3', 'case 4') WHERE number = 4",
        "UPDATE audit SET time = 'x' WHERE number = 2",
        "DELETE FROM audit WHERE number = 3",
        "DELETE FROM audit WHERE number = 1",
        "UPDATE audit SET hash = 'x' WHERE number = 5",
        "INSERT INTO audit SELECT 9, time, what, hash FROM audit WHERE number = 5",
        "UPDATE base SET number = 1",
    ],
)
def test_meddling_is_noticed(journal, meddle):
    fill(journal, 5)
    other = sqlite3.connect(journal.file, isolation_level=None)
    other.execute(meddle)
    with pytest.raises(GalleryError, match=r"record \d+ of the audit log"):
        journal.check()


def test_missing_newest_records_show_against_a_kept_head(journal):
    fill(journal, 5)
    head = journal.head()
    sqlite3.connect(journal.file, isolation_level=None).execute("DELETE FROM audit WHERE number > 3")
    assert journal.check() == 3
    assert journal.head() != head


def test_old_records_are_erased_and_the_chain_goes_on(clock, journal):
    fill(journal, 3)
    for _ in range(5):
        clock.move(7)
        fill(journal, 1, "later")
    secret = "case 1"
    assert journal.check() == 8
    seal = journal.read()[2]["hash"]
    assert journal.erase(30) == 3
    assert [record["number"] for record in journal.read()] == [4, 5, 6, 7, 8, 9]
    assert journal.read()[-1] | {"hash": "", "time": ""} == {
        "number": 9,
        "time": "",
        "action": "erase audit",
        "records": 3,
        "days": 30,
        "through": 3,
        "seal": seal,
        "hash": "",
    }
    assert journal.check() == 6
    assert journal.erase(30) == 0
    for file in journal.file.parent.glob("a.audit.db*"):
        assert secret.encode() not in file.read_bytes()
    assert fill(journal, 1) == [10]


def test_it_goes_on_after_it_was_closed(tmp_path):
    for round_ in range(3):
        journal = AuditLog(tmp_path / "a.db")
        fill(journal, 2)
        assert journal.check() == 2 * (round_ + 1)
        journal.close()


def test_what_is_no_audit_log(tmp_path):
    (tmp_path / "x").write_text("something else that is long enough to be looked at" * 100)
    with pytest.raises(GalleryError, match="can't be opened"):
        AuditLog(tmp_path / "x")
    sqlite3.connect(tmp_path / "y").execute("CREATE TABLE t(a)")
    with pytest.raises(GalleryError, match="not an audit log"):
        AuditLog(tmp_path / "y")


def test_a_full_disk_is_an_error_for_each_caller_and_not_the_end(journal):
    fill(journal, 1)
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    answers = [journal.submit("query", reason="x" * 200) for _ in range(500)]
    with pytest.raises(GalleryError, match="can't be written"):
        [answer.result() for answer in answers]
    journal._db.execute("PRAGMA max_page_count = 100000")
    fill(journal, 1)
    journal.check()


def test_it_lies_beside_the_gallery(tmp_path):
    assert audit_log_of(tmp_path / "gallery") == tmp_path / "gallery.audit.db"
    assert audit_log_of(tmp_path / "gallery" / "") == tmp_path / "gallery.audit.db"


def _write(path, pipe):
    journal = AuditLog(path)
    number = 0
    while True:
        pipe.send(journal.submit("query", n=number).result())
        number += 1


@pytest.mark.parametrize("rounds", [5, pytest.param(200, marks=pytest.mark.nightly)])
def test_what_was_acknowledged_outlives_a_kill(tmp_path, rounds):
    acknowledged = 0
    for _ in range(rounds):
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=_write, args=(tmp_path / "a.db", theirs))
        child.start()
        acknowledged = max(acknowledged, ours.recv())
        time.sleep(random.random() * 0.05)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        while ours.poll():
            acknowledged = max(acknowledged, ours.recv())
    journal = AuditLog(tmp_path / "a.db")
    assert journal.check() >= acknowledged > 0
    journal.close()


def test_a_log_that_was_locked_too_long_fails_who_waited_and_serves_who_comes_next(journal):
    journal._db.execute("PRAGMA busy_timeout=50")
    other = sqlite3.connect(journal.file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    given_up, waiting = journal.submit("query", n=1), journal.submit("query", n=2)
    given_up.cancel()
    with pytest.raises(GalleryError, match="can't be written"):
        waiting.result(10)
    other.execute("ROLLBACK")
    other.close()
    assert journal.submit("query", n=3).result(10) == 1
    assert journal._writer.is_alive()


def test_an_erasure_whose_rewrite_fails_is_recorded_and_finished_by_the_next(clock, journal):
    fill(journal, 300)
    pass_days(clock, journal, 30)

    class Full:
        def __init__(self, db):
            self.db = db

        def execute(self, statement, *values):
            if statement == "VACUUM":
                raise sqlite3.OperationalError("database or disk is full")
            return self.db.execute(statement, *values)

        def __getattr__(self, name):
            return getattr(self.db, name)

    real, journal._db = journal._db, Full(journal._db)
    with pytest.raises(GalleryError, match=r"300 old records .* are erased, but the file can't be rewritten"):
        journal.erase(30)
    journal._db = real
    assert [record["action"] for record in journal.read()] == ["erase audit"]
    assert journal.erase(None) == 0
    assert b"case 7" not in journal.file.read_bytes()
    assert not real.execute("PRAGMA freelist_count").fetchone()[0]


def test_a_record_that_is_no_json_any_more_is_shown_as_such(journal):
    fill(journal, 3)
    journal._db.execute("UPDATE audit SET what = 'x' WHERE number = 2")
    assert [record["action"] for record in journal.read()] == ["query", "unreadable", "query"]
    with pytest.raises(GalleryError, match="record 2"):
        journal.check()


DAMAGED = {
    "no start": "DELETE FROM base",
    "a start that is text": "UPDATE base SET number = 'x'",
    "a negative start": "UPDATE base SET number = -1",
    "a seal that is no text": "UPDATE base SET hash = x'00'",
    "no ageing": "DELETE FROM ageing",
    "days that are text": "UPDATE ageing SET days = 'x'",
    "days that are no whole number": "UPDATE ageing SET days = 1e300",
    "negative days": "UPDATE ageing SET days = -5",
    "days without end": "UPDATE ageing SET days = 4611686018427387904",
    "bytes left that are text": "UPDATE ageing SET unwiped = 'x'",
    "an old end that is text": "UPDATE ageing SET unnamed = 'x'",
    "no clock": "DELETE FROM clock",
    "a clock that is text": "UPDATE clock SET trusted = 'x'",
    "marks that are text": "UPDATE mark SET time = 'x', newest = 'y'",
    "a mark that is no whole number": "UPDATE mark SET newest = 1.5",
    "a mark whose checksum is text": "UPDATE mark SET checksum = 'x'",
}
USES = {
    "head": lambda journal: journal.head(),
    "read": lambda journal: journal.read(),
    "check": lambda journal: journal.check(),
    "ageing": lambda journal: journal.ageing(),
    "write": lambda journal: journal.submit("query").result(5),
    "erase": lambda journal: journal.erase(30),
    "finish": lambda journal: journal.erase(None),
    "trust": lambda journal: journal.trust_clock(),
}


def refusal(use):
    """What a use raises, if it raises anything, is a GalleryError of one line."""
    try:
        use()
    except GalleryError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("case", DAMAGED)
def test_a_row_that_is_missing_or_of_another_kind_is_an_error_of_one_line(clock, journal, case):
    fill(journal, 5)
    clock.move(7)
    with closing(sqlite3.connect(journal.file, isolation_level=None)) as db:
        db.execute(DAMAGED[case])
    told = {name: refusal(lambda use=use: use(journal)) for name, use in USES.items()}
    assert not any("\n" in text for text in told.values())
    assert all("is damaged; restore a copy" in told[name] for name in ("check", "ageing", "erase", "trust"))
    assert "is damaged; restore a copy" in refusal(lambda: AuditLog(journal.file, keep=30))


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE audit SET what = x'00ff' WHERE number = 5",
        "UPDATE audit SET what = CAST(x'ff' AS TEXT) WHERE number = 5",
        "UPDATE audit SET what = '{\"action\": NaN}' WHERE number = 5",
        f"UPDATE audit SET what = '{'[' * 100_000}' WHERE number = 5",
        "UPDATE audit SET time = 5 WHERE number = 5",
        "UPDATE audit SET time = x'ff' WHERE number = 5",
        "UPDATE audit SET hash = x'00' WHERE number = 5",
    ],
    ids=lambda damage: damage[:60],
)
def test_a_record_of_another_kind_is_an_error_of_one_line(clock, journal, damage):
    fill(journal, 5)
    clock.move(7)
    with closing(sqlite3.connect(journal.file, isolation_level=None)) as db:
        db.execute(damage)
    for use in USES.values():
        assert "\n" not in refusal(lambda use=use: use(journal))
    with pytest.raises(GalleryError, match=r"record 5|can't be read"):
        journal.check()
    if "CAST" not in damage:
        assert json.dumps(journal.read(), allow_nan=False)


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077])
def test_the_folders_it_makes_are_its_own(tmp_path, mask):
    with umask(mask):
        journal = AuditLog(tmp_path / "a" / "b" / "a.db")
        fill(journal, 1)
    assert readable(tmp_path / "a") == []
    journal.close()
