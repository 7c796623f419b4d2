"""The ageing of an audit log by a clock that may be wrong, and what is left of what it erased."""

import json
import sqlite3
from contextlib import closing

import pytest
from clocks import SetClock

from deploy.service.audit_chain import KeptHead
from deploy.service.audit_log import AuditLog
from deploy.service.audit_tables import APPLICATION
from deploy.store.audit import link
from domains.errors import ClockError, GalleryError


@pytest.fixture
def clock(monkeypatch):
    return SetClock(monkeypatch)


@pytest.fixture
def journal(tmp_path, clock):
    made = AuditLog(tmp_path / "a.audit.db")
    yield made
    made.close()


def fill(journal, count=1):
    return [journal.submit("query", reason=f"case {number}").result() for number in range(count)]


def numbers(journal):
    return [record["number"] for record in journal.read(limit=1000) if record["action"] == "query"]


WRONG = [
    "1970-01-01T00:05:00",
    "1972-02-01T00:00:00",
    "2021-01-01T00:00:00",
    "2026-02-20T00:00:00",
    "2026-04-10T12:00:00",
    "2027-03-01T12:00:00",
    "2106-02-07T00:00:00",
]


@pytest.mark.parametrize("ages", [False, True], ids=["written", "written and aged"])
@pytest.mark.parametrize("first", [False, True], ids=["in between", "first of all"])
@pytest.mark.parametrize("wrong", WRONG)
def test_records_of_a_wrong_clock_take_no_others_along(journal, clock, wrong, first, ages):
    if not first:
        fill(journal, 3)
    right = clock.time
    clock.set(wrong)
    fill(journal, 2)
    if ages:
        with pytest.raises(ClockError):
            journal.erase(30)
    clock.time = right
    clock.move(0.1)
    fill(journal)
    before = numbers(journal)
    for days in (0, 7, 7, 7, 7, 1.8):
        clock.move(days)
        assert journal.erase(30) == 0
    assert numbers(journal) == before
    clock.move(1)
    assert journal.erase(30) == len(before)
    assert journal.check() == 1


@pytest.mark.parametrize(
    ("days", "jump"), [(1, 1.1), (30, 7.6), (30, 40), (365, 8.1), (365, 4000), (365, -9), (30, -2000)]
)
def test_a_jump_waits_for_a_person_and_says_what_would_go(journal, clock, days, jump):
    fill(journal, 3)
    assert journal.erase(days) == 0
    clock.move(jump)
    fill(journal)
    with pytest.raises(ClockError, match=f"{3 if jump > days else 0} would go") as raised:
        journal.erase(days)
    assert "2026-03-01T12:00:00+00:00" in str(raised.value)
    assert clock.time.isoformat() in str(raised.value)
    assert numbers(journal) == [1, 2, 3, 4]
    assert journal.trust_clock() == (3 if jump > days else 0)
    assert json.loads(json.dumps(journal.read()[-2 if jump > days else -1]))["action"] == "trust clock"
    assert journal.erase(days) == 0
    journal.check()


def test_a_person_may_say_that_the_time_before_was_wrong(journal, clock):
    clock.set("2021-01-01T00:00:00")
    journal.trust_clock()
    fill(journal, 3)
    clock.set("2026-03-01T12:00:00")
    with pytest.raises(ClockError, match="4 would go"):
        journal.erase(30)
    assert journal.trust_clock(from_now=True) == 0
    for days in (7, 7, 7, 7, 1.9):
        clock.move(days)
        assert journal.erase(30) == 0
    clock.move(1)
    assert journal.erase(30) == 5


def test_what_a_reader_kept_in_the_file_is_told_and_erased_by_the_next_run(journal, clock):
    fill(journal, 200)
    for _ in range(5):
        clock.move(7)
        journal.erase(365)
    reader = sqlite3.connect(journal.file, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM audit").fetchone()

    def left():
        return any(b"case 17" in file.read_bytes() for file in journal.file.parent.glob("a.audit.db*"))

    for gone in (200, 0):
        with pytest.raises(GalleryError, match=f"{gone} old records .* another process keeps reading"):
            journal.erase(30)
        assert left()
        assert fill(journal), "the service goes on"
    reader.execute("ROLLBACK")
    reader.close()
    assert journal.erase(None) == 0
    assert not left()
    journal.check()


def test_a_run_that_was_killed_before_the_rewrite_is_finished_after_it(tmp_path, clock, monkeypatch):
    journal = AuditLog(tmp_path / "a.audit.db")
    fill(journal, 50)
    for _ in range(5):
        clock.move(7)
        journal.erase(365)
    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "_wipe", lambda *_: None)
        assert journal.erase(30) == 50
    journal.close()
    journal = AuditLog(tmp_path / "a.audit.db")
    assert journal.erase(30) == 0
    journal.close()
    assert b"case 17" not in (tmp_path / "a.audit.db").read_bytes()


# --------------------------------------------------------------------------------------------- logs of the first schema


def first_schema(file, times, base=0):
    """Write what the version before wrote, with records of these times."""
    db = sqlite3.connect(file, isolation_level=None)
    db.executescript(
        "CREATE TABLE audit(number INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, what TEXT NOT NULL, "
        "hash TEXT NOT NULL);"
        "CREATE TABLE base(one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, hash TEXT NOT NULL);"
        f"PRAGMA application_id={APPLICATION}; PRAGMA user_version=1"
    )
    before = "0" * 64
    db.execute("INSERT INTO base VALUES (1, ?, ?)", (base, before))
    for number, time in enumerate(times, base + 1):
        action = {"action": "query", "reason": f"case {number}"}
        if base and number == base + len(times):
            action = {"action": "erase audit", "records": base, "days": 30}
        text = json.dumps(action)
        before = link(before, time, text)
        db.execute("INSERT INTO audit VALUES (?, ?, ?, ?)", (number, time, text, before))
    db.close()


@pytest.mark.parametrize(
    ("ages", "gone"),
    [
        ([40, 35, 1, 0], 2),
        ([40, 35, 20000, 0], 2),
        ([1, 20000, 0], 0),
        ([20000, 20000, 0], 0),
        ([40, -400, 35, 0], 3),
        ([5, 400, 400, 0], 0),
        ([40, 20000], 1),
    ],
)
def test_a_log_of_the_first_schema_goes_by_the_order_of_its_records(tmp_path, clock, ages, gone):
    first_schema(tmp_path / "a.db", [clock.ago(days) for days in ages])
    if ages[-1]:  # its last record says nothing, so that a person has to
        journal = AuditLog(tmp_path / "a.db")
        journal.trust_clock()
        journal.close()
    journal = AuditLog(tmp_path / "a.db")
    assert journal.erase(30) == gone
    journal.check()
    assert fill(journal)
    journal.close()


def test_a_log_of_the_first_schema_with_an_erasure_is_whole(tmp_path, clock):
    first_schema(tmp_path / "a.db", [clock.ago(3)] * 3, base=7)
    journal = AuditLog(tmp_path / "a.db")
    assert journal.check() == 3
    for days in (0, 7, 7, 7, 7):
        clock.move(days)
        journal.erase(30)
    assert journal.check() == 1
    journal.close()


def test_a_log_of_the_first_schema_with_an_erasure_is_whole_by_the_seals_that_were_kept(tmp_path, clock):
    first_schema(tmp_path / "a.db", [clock.ago(3)] * 3, base=7)
    journal = AuditLog(tmp_path / "a.db")
    before = KeptHead(5, "a" * 64, clock.ago(50))
    assert journal.check([before, KeptHead(*journal.head(), clock.ago(2))]) == 3
    with pytest.raises(GalleryError, match="it names no last one, as old erasures do"):
        journal.check([before])
    journal.close()


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TRIGGER t AFTER INSERT ON audit BEGIN SELECT 1; END",
        "ALTER TABLE audit ADD COLUMN x",
        "DELETE FROM base",
    ],
)
def test_a_log_of_the_first_schema_that_somebody_changed_stays_as_it_is(tmp_path, clock, script):
    first_schema(tmp_path / "a.db", [clock.ago(3)] * 3)
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as db:
        db.execute(script)
    for _ in range(2):
        with pytest.raises(GalleryError, match=r"compare with a copy|restore a copy"):
            AuditLog(tmp_path / "a.db")
    with closing(sqlite3.connect(tmp_path / "a.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)


def test_a_log_of_the_first_schema_opened_by_a_wrong_clock_loses_nothing(tmp_path, clock):
    first_schema(tmp_path / "a.db", [clock.ago(1)] * 3)
    clock.move(400)
    journal = AuditLog(tmp_path / "a.db")
    with pytest.raises(ClockError, match="3 would go"):
        journal.erase(365)
    assert journal.check() == 3
    journal.close()
