"""What somebody who can write an audit log may try, and where it shows."""

import json
import sqlite3

import pytest
from clocks import SetClock

from deploy.service.audit_chain import KeptHead, read_heads
from deploy.service.audit_log import AuditLog, read_all
from deploy.store.audit import link
from domains.errors import GalleryError, UsageError


@pytest.fixture
def clock(monkeypatch):
    return SetClock(monkeypatch)


@pytest.fixture
def journal(tmp_path, clock):
    """A log of records 4 to 9, the last of which says that 1 to 3 were erased by age."""
    made = AuditLog(tmp_path / "a.audit.db")
    fill(made, 3)
    for _ in range(5):
        clock.move(7)
        fill(made, 1)
    assert made.erase(30) == 3
    made.heads = [KeptHead(record["number"], record["hash"], record["time"]) for record in made.read()]
    assert made.check(made.heads) == 6
    yield made
    made.close()


def fill(journal, count):
    for number in range(count):
        journal.submit("query", reason=f"case {number}").result()


def forge(db, text, time="2026-04-05T12:00:00.000+00:00"):
    """Append a record that fits the chain."""
    number, seal = db.execute("SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1").fetchone()
    db.execute("INSERT INTO audit VALUES (?, ?, ?, ?)", (number + 1, time, text, link(seal, time, text)))


def rechain(db):
    """Recompute every seal."""
    before = db.execute("SELECT hash FROM base").fetchone()[0]
    for number, time, text in db.execute("SELECT number, time, what FROM audit ORDER BY number").fetchall():
        before = link(before, time, text)
        db.execute("UPDATE audit SET hash = ? WHERE number = ?", (before, number))


def cut(db, through):
    """Remove the oldest records, and have the log start after them."""
    seal = db.execute("SELECT hash FROM audit WHERE number = ?", (through,)).fetchone()[0]
    db.execute("DELETE FROM audit WHERE number <= ?", (through,))
    db.execute("UPDATE base SET number = ?, hash = ?", (through, seal))
    return seal


def cut_and_say_so(db, **changes):
    seal = cut(db, 6)
    forge(db, json.dumps({"action": "erase audit", "records": 3, "days": 30, "through": 6, "seal": seal} | changes))


NOTICED = {
    "a record below the base": "INSERT INTO audit SELECT 2, time, what, hash FROM audit WHERE number = 9",
    "a record at the base": "INSERT INTO audit SELECT 3, time, what, hash FROM audit WHERE number = 9",
    "a record of number 0": "INSERT INTO audit SELECT 0, time, what, hash FROM audit WHERE number = 9",
    "a record of a negative number": "INSERT INTO audit SELECT -5, time, what, hash FROM audit WHERE number = 9",
    "a record below the base and all others gone": "DELETE FROM audit WHERE number > 4; UPDATE audit SET number = 2",
    "everything gone": "DELETE FROM audit",
    "the newest moved below the base": "UPDATE audit SET number = 1 WHERE number = 9",
    "the base moved back": "UPDATE base SET number = 2",
    "the base moved back to the start": f"UPDATE base SET number = 0, hash = '{'0' * 64}'",
    "the base's seal changed": "UPDATE base SET hash = 'x'",
    "the oldest cut": lambda db: cut(db, 6),
    "all but the last cut": lambda db: cut(db, 8),
    "the record of the erasure cut, too": lambda db: (forge(db, '{"action": "query"}'), cut(db, 9)),
    "cut, and an erasure forged that names another end": lambda db: cut_and_say_so(db, through=5),
    "cut, and an erasure forged that names another seal": lambda db: cut_and_say_so(db, seal="x"),
    "cut, and an erasure forged that names no end": lambda db: (
        cut(db, 6),
        forge(db, '{"action": "erase audit", "records": 6, "days": 30}'),
    ),
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON audit BEGIN DELETE FROM audit WHERE number = new.number; END",
    "a view": "CREATE VIEW v AS SELECT 1",
}
NOTICED_BY_HEADS = {
    "the newest cut": "DELETE FROM audit WHERE number > 6; DELETE FROM audit WHERE number = 10",
    "all seals computed anew": lambda db: (
        db.execute("UPDATE audit SET what = replace(what, 'case', 'cafe') WHERE number = 5"),
        rechain(db),
    ),
    "the oldest cut, and an erasure forged": cut_and_say_so,
    "the base's seal and all others computed anew": lambda db: (
        db.execute(f"UPDATE base SET hash = '{'1' * 64}'"),
        db.execute("UPDATE audit SET what = json_set(what, '$.seal', ?) WHERE number = 9", ("1" * 64,)),
        rechain(db),
    ),
}


def apply(journal, forgery):
    db = sqlite3.connect(journal.file, isolation_level=None)
    if isinstance(forgery, str):
        db.executescript(forgery)
    else:
        forgery(db)
    db.close()


@pytest.mark.parametrize("case", NOTICED)
def test_a_forgery_is_noticed_by_verify(journal, case):
    apply(journal, NOTICED[case])
    with pytest.raises(GalleryError, match=r"audit log .*compare with a copy"):
        journal.check()


@pytest.mark.parametrize("case", NOTICED_BY_HEADS)
def test_a_forgery_that_fits_is_noticed_by_the_heads_that_were_kept(journal, case):
    apply(journal, NOTICED_BY_HEADS[case])
    if case == "the newest cut":
        sqlite3.connect(journal.file, isolation_level=None).execute("UPDATE base SET number = number")
    with pytest.raises(GalleryError, match=r"audit log .*compare with a copy"):
        journal.check(journal.heads)


def test_no_record_below_the_base_hides_the_newest(journal):
    apply(journal, NOTICED["a record below the base"])
    assert [record["number"] for record in journal.read(limit=6)] == [4, 5, 6, 7, 8, 9]
    assert journal.head() == (9, journal.heads[-1].hash)


def test_heads_that_were_erased_by_age_are_no_forgery(journal, clock):
    first = KeptHead(2, "a" * 64, "2026-03-01T12:00:00.000+00:00")
    assert journal.check([first, *journal.heads]) == 6
    for _ in range(5):
        clock.move(7)
        fill(journal, 1)
        journal.erase(30)
    journal.check([first, *journal.heads])


def test_heads_are_read_from_the_services_log(journal, tmp_path):
    log = tmp_path / "service.log"
    lines = [
        "not JSON",
        json.dumps({"event": "started"}),
        *(json.dumps({"event": "audit", "number": h.number, "head": h.hash, "time": h.time}) for h in journal.heads),
        "Nov 01 08:00:00 host reid[1]: "
        + json.dumps({"event": "stopped", "audit_number": 9, "audit_head": journal.heads[-1].hash}),
        json.dumps({"event": "audit", "number": "9", "head": "x"}),
    ]
    log.write_text("\n".join(lines))
    assert read_heads(log) == [*journal.heads, KeptHead(9, journal.heads[-1].hash)]
    assert len(read_all(journal.file, read_heads(log))) == 6
    for nothing in ("", "x\n", "[1]\n"):
        log.write_text(nothing)
        with pytest.raises(UsageError, match="holds no sealed head"):
            read_heads(log)
    with pytest.raises(UsageError, match="can't read"):
        read_heads(tmp_path)
