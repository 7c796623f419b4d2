"""What somebody who can write an audit log may try, and where it shows."""

import json
import os
import sqlite3
from pathlib import Path

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


NOW = "2026-04-05T12:00:00.000+00:00"
LEFT_OUT = "left out"


def cut_and_say_so(db, time=NOW, **changes):
    seal = cut(db, 6)
    what = {"action": "erase audit", "records": 3, "days": 30, "through": 6, "seal": seal} | changes
    forge(db, json.dumps({name: value for name, value in what.items() if value is not LEFT_OUT}), time)


def cut_as_the_first_schema_did(db, time=NOW, **changes):
    db.execute("UPDATE ageing SET unnamed = 1000000")
    cut_and_say_so(db, time, through=LEFT_OUT, seal=LEFT_OUT, **changes)


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
    "an index": "CREATE INDEX i ON audit(what)",
    "another table": "CREATE TABLE t(a)",
    "records that are no text": lambda db: (
        db.execute("UPDATE audit SET what = CAST(what AS BLOB) WHERE number = 9"),
        rechain(db),
    ),
}
NOTICED_BY_HEADS = {
    "the newest cut": "DELETE FROM audit WHERE number > 6; DELETE FROM audit WHERE number = 10",
    "all seals computed anew": lambda db: (
        db.execute("UPDATE audit SET what = replace(what, 'case', 'cafe') WHERE number = 5"),
        rechain(db),
    ),
    "the oldest cut, and an erasure forged": cut_and_say_so,
    **{
        f"cut, and an erasure forged after {days!r} days": lambda db, days=days: cut_and_say_so(db, days=days)
        for days in (0, -1, None, LEFT_OUT, "30", 30.0, False, True, [30], 10**9)
    },
    **{
        f"cut, and an erasure forged at {time!r}": lambda db, time=time: cut_and_say_so(db, time)
        for time in ("2099-01-01T00:00:00+00:00", "soon", "", "2026-04-05T12:00:00", "10000-01-01T00:00:00+00:00")
    },
    "cut, and an erasure forged without an end": cut_as_the_first_schema_did,
    "cut, and an erasure forged without anything": lambda db: cut_as_the_first_schema_did(
        db, days=LEFT_OUT, records=LEFT_OUT
    ),
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


@pytest.mark.parametrize(
    ("day", "told"),
    [("2026-04-25", "is after that of a seal over it"), ("2026-03-25", "is before that of a seal without it")],
)
def test_an_erasure_lies_between_the_seals_around_it(journal, clock, day, told):
    apply(journal, lambda db: cut_and_say_so(db, f"{day}T12:00:00+00:00", days=1))
    clock.move(3)
    fill(journal, 1)
    after = KeptHead(*journal.head(), clock.time.isoformat())
    clock.move(60)
    assert journal.check() == 5
    with pytest.raises(GalleryError, match=told):
        journal.check([*journal.heads, after])


def test_a_seal_of_a_clock_that_stood_dates_no_erasure(journal):
    unset = [head._replace(time="1970-01-01T00:05:00+00:00") for head in journal.heads]
    assert journal.check([KeptHead(2, "a" * 64, "1970-01-01T00:05:00+00:00"), *unset]) == 6
    assert journal.check([KeptHead(2, "a" * 64), *unset]) == 6


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
        json.dumps({"event": "audit", "number": True, "head": "x"}),
    ]
    log.write_text("\n".join(lines))
    assert read_heads(log) == [*journal.heads, KeptHead(9, journal.heads[-1].hash)]
    assert len(read_all(journal.file, read_heads(log))) == 6
    for nothing in ("", "x\n", "[1]\n"):
        log.write_text(nothing)
        with pytest.raises(UsageError, match="holds no sealed head"):
            read_heads(log)
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path, tmp_path / "nowhere", tmp_path / "pipe", Path("/dev/zero")):  # the last never ends
        with pytest.raises(UsageError, match="can't read"):
            read_heads(other)


# ----------------------------------------------------------------------------------- tables that do not keep what comes

COMPUTED = "x TEXT GENERATED ALWAYS AS (substr(what, instr(what, 'token'))) UNIQUE ON CONFLICT IGNORE"
COLUMNS = "number INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, what TEXT NOT NULL, hash TEXT NOT NULL"
BASE = "one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, hash TEXT NOT NULL"
REMADE = {
    "a computed column that drops rows": ("audit", f"{COLUMNS}, {COMPUTED}"),
    "a constraint that drops rows": ("audit", f"{COLUMNS}, UNIQUE (what) ON CONFLICT IGNORE"),
    "a constraint that replaces rows": ("audit", f"{COLUMNS}, UNIQUE (what) ON CONFLICT REPLACE"),
    "a default": ("audit", COLUMNS.replace("time TEXT NOT NULL", "time TEXT NOT NULL DEFAULT 'x'")),
    "no numbers of its own": ("audit", COLUMNS.replace(" AUTOINCREMENT", "")),
    "a start that can't move": ("base", f"{BASE}, UNIQUE (one) ON CONFLICT IGNORE"),
    "a foreign key": ("base", f"{BASE}, FOREIGN KEY (number) REFERENCES audit(number) ON DELETE CASCADE"),
}


def remake(db, table, columns):
    """Make a table anew with the same rows."""
    names = ", ".join(row[1] for row in db.execute(f"PRAGMA table_info({table})"))
    db.execute(f"ALTER TABLE {table} RENAME TO before")
    db.execute(f"CREATE TABLE {table}({columns})")
    db.execute(f"INSERT OR IGNORE INTO {table}({names}) SELECT {names} FROM before")
    db.execute("DROP TABLE before")


@pytest.mark.parametrize("case", REMADE)
def test_tables_that_somebody_made_anew_are_refused(journal, case):
    apply(journal, lambda db: remake(db, *REMADE[case]))
    with pytest.raises(GalleryError, match=f"the table {REMADE[case][0]} as this program made it; compare with a copy"):
        journal.check()
    with pytest.raises(GalleryError, match=r"audit log .*as this program made it; compare with a copy"):
        AuditLog(journal.file)


@pytest.mark.parametrize("case", ["a trigger", "a view", "an index", "another table"])
def test_what_this_program_did_not_make_is_refused(journal, case):
    apply(journal, NOTICED[case])
    with pytest.raises(GalleryError, match="that this program did not make; compare with a copy"):
        AuditLog(journal.file)


DROPS = {
    "a computed column": lambda db: remake(db, *REMADE["a computed column that drops rows"]),
    "a trigger that drops them": "CREATE TRIGGER t BEFORE INSERT ON audit BEGIN SELECT raise(IGNORE); END",
    "a trigger that removes them": NOTICED["a trigger"],
    "a trigger that changes them": "CREATE TRIGGER t AFTER INSERT ON audit BEGIN UPDATE audit SET time = 'x' WHERE "
    "number = new.number; END",
    "a trigger that adds to them": "CREATE TRIGGER t AFTER INSERT ON audit WHEN new.what != '{}' BEGIN INSERT INTO "
    "audit VALUES (new.number + 1, 'x', '{}', 'x'); END",
}


@pytest.mark.parametrize("case", DROPS)
def test_a_record_that_is_not_kept_is_no_success(journal, case):
    journal.submit("query", token="desk").result()
    apply(journal, DROPS[case])
    with pytest.raises(GalleryError, match="does not keep what is written to it; compare with a copy"):
        journal.submit("query", token="desk").result()
    assert journal.head().number == 10
