"""The tables of an audit log, schema by schema."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime

from deploy.store import clock
from deploy.store.audit import START

APPLICATION = 0x52654155
"""``ReAU`` in the file's header."""
SCHEMA = 2

_SCHEMA_1 = f"""
CREATE TABLE audit(
  number INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, what TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TABLE base(one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, hash TEXT NOT NULL);
INSERT INTO base VALUES (1, 0, '{START}');
PRAGMA application_id = {APPLICATION};
"""  # noqa: S608 - constants

_SINCE_2 = f"""
{clock.TABLES}
CREATE TABLE ageing(
  one INTEGER PRIMARY KEY CHECK (one = 1), days INTEGER, unwiped INTEGER NOT NULL, unnamed INTEGER NOT NULL);
INSERT INTO ageing SELECT 1, NULL, number > 0, (SELECT coalesce(max(number), 0) FROM audit) FROM base;
PRAGMA user_version = {SCHEMA}
"""  # noqa: S608 - constants
"""What schema 2 added: the tables of :mod:`deploy.store.clock`; the days that records were last kept; whether erased
bytes may still be in the file; and up to which record an erasure did not name the last record that it erased.
"""


def prepare(db: sqlite3.Connection) -> bool:
    """Create the tables in an empty database, or bring those of an earlier schema up to date, in one transaction.

    Returns:
        Whether it is an audit log of the present schema.
    """
    if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] and _header(db) == (APPLICATION, SCHEMA):
        return True
    db.execute("BEGIN IMMEDIATE")
    try:
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            _run(db, _SCHEMA_1 + _SINCE_2)
            clock.note(db, clock.read_clock(db, None), 0)
        elif _header(db) == (APPLICATION, 1):
            _run(db, _SINCE_2)
            last = db.execute("SELECT time FROM audit ORDER BY number DESC LIMIT 1").fetchone()
            records = db.execute("SELECT number, time FROM audit ORDER BY number")
            clock.seed(db, ((number, moment(time)) for number, time in records), moment(last[0]) if last else None)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return _header(db) == (APPLICATION, SCHEMA)


def moment(time: object) -> int | None:
    """Read a record's time, in microseconds since 1970; ``None`` if it says nothing."""
    try:
        read = datetime.fromisoformat(time) if isinstance(time, str) else None
        return None if read is None or read.tzinfo is None else int(read.astimezone(UTC).timestamp() * 1e6)
    except (ValueError, OverflowError):
        return None


def _header(db: sqlite3.Connection) -> tuple[int, int]:
    application, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    return application, version


def _run(db: sqlite3.Connection, script: str) -> None:
    for statement in script.split(";"):
        db.execute(statement)
