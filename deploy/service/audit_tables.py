"""The tables of an audit log, schema by schema, and whether they are still what this program made of them."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple

from deploy.store import clock
from deploy.store.audit import START
from domains.errors import GalleryError

Ask = Callable[..., list[Any]]
"""Runs a query, given its values, and returns the rows."""

APPLICATION = 0x52654155
"""``ReAU`` in the file's header."""
SCHEMA = 2
MOST_DAYS = 36500
"""Longest that records are kept, unless it is for ever."""

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

_SPACED = re.compile(r"\s*([(),=])\s*")


class AgeingRow(NamedTuple):
    """What the log holds about its own ageing.

    Attributes:
        days: how long records were last kept, or ``None`` for ever.
        unwiped: whether erased bytes may still be in the file.
        unnamed: up to which record an erasure did not name the last record that it erased.
    """

    days: int | None
    unwiped: bool
    unnamed: int


def prepare(db: sqlite3.Connection, name: str) -> bool:
    """Create the tables in an empty database, or bring those of an earlier schema up to date, in one transaction.

    Returns:
        Whether it is an audit log of the present schema.

    Raises:
        GalleryError: it is one, but its tables are not as this program made them.
    """
    if _is_empty(db) or _header(db) == (APPLICATION, 1):
        _make(db, name)
    if _header(db) != (APPLICATION, SCHEMA):
        return False
    check_objects(_asking(db), name)
    return True


def check_objects(ask: Ask, name: str, schema: int = SCHEMA) -> None:
    """Refuse a log whose tables are not those that this program makes: triggers, views, indices, constraints and
    computed columns could change what is written or read. Raises GalleryError.
    """
    wanted = _objects(schema)
    found = {str(row[1]): _described(row) for row in ask("SELECT type, name, sql FROM sqlite_master")}
    for known in wanted:
        if found.get(known) != wanted[known]:
            raise GalleryError(f"{name} does not hold the table {known} as this program made it; compare with a copy")
    for other in sorted(found.keys() - wanted.keys()):
        raise GalleryError(f"{name} holds a {found[other][0]} that this program did not make; compare with a copy")


def check_rows(ask: Ask, name: str) -> None:
    """Refuse a log in which one of the rows that are no records is missing or of another kind; raises GalleryError."""
    read_base(ask, name)
    read_ageing(ask, name)
    if ask("SELECT typeof(trusted) FROM clock") not in ([("integer",)], [("null",)]):
        raise _damaged("the last trusted time", name)
    kinds = " OR ".join(f"typeof({column}) != 'integer'" for column in ("newest", "time", "checksum"))
    if ask(f"SELECT 1 FROM mark WHERE {kinds} LIMIT 1"):  # noqa: S608 - constants
        raise _damaged("the record of when things were added", name)


def read_base(ask: Ask, name: str) -> tuple[int, str]:
    """Number and seal of the record that a log starts after; raises GalleryError."""
    rows = ask("SELECT number, hash FROM base")
    if len(rows) != 1 or not isinstance(rows[0][0], int) or rows[0][0] < 0 or not isinstance(rows[0][1], str):
        raise _damaged("the record of where it starts", name)
    return rows[0][0], rows[0][1]


def read_ageing(ask: Ask, name: str) -> AgeingRow:
    """What a log holds about its ageing; raises GalleryError."""
    rows = ask("SELECT days, unwiped, unnamed FROM ageing")
    if len(rows) != 1:
        raise _damaged("the record of its ageing", name)
    days, unwiped, unnamed = rows[0]
    kept = days is None or (isinstance(days, int) and 0 <= days <= MOST_DAYS)
    if not kept or not isinstance(unwiped, int) or not isinstance(unnamed, int):
        raise _damaged("the record of its ageing", name)
    return AgeingRow(days, bool(unwiped), unnamed)


def moment(time: object) -> int | None:
    """Read a record's time, in microseconds since 1970; ``None`` if it says nothing."""
    try:
        read = datetime.fromisoformat(time) if isinstance(time, str) else None
        return None if read is None or read.tzinfo is None else int(read.astimezone(UTC).timestamp() * 1e6)
    except (ValueError, OverflowError):
        return None


def _make(db: sqlite3.Connection, name: str) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        if _is_empty(db):
            _run(db, _SCHEMA_1 + _SINCE_2)
            clock.note(db, clock.read_clock(db, None), 0)
        elif _header(db) == (APPLICATION, 1):  # unless another process was first
            _migrate(db, name)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _migrate(db: sqlite3.Connection, name: str) -> None:
    check_objects(_asking(db), name, 1)
    read_base(_asking(db), name)
    _run(db, _SINCE_2)
    last = db.execute("SELECT time FROM audit ORDER BY number DESC LIMIT 1").fetchone()
    records = db.execute("SELECT number, time FROM audit ORDER BY number")
    clock.seed(db, ((number, moment(time)) for number, time in records), moment(last[0]) if last else None)


@cache
def _objects(schema: int) -> dict[str, tuple[str, str]]:
    """Kind and text, by name, of all that a database of a schema holds."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        _run(db, _SCHEMA_1 + (_SINCE_2 if schema == SCHEMA else ""))
        return {row[1]: _described(row) for row in db.execute("SELECT type, name, sql FROM sqlite_master")}


def _described(row: tuple[Any, ...]) -> tuple[str, str]:
    """Kind and text of an object; the texts of two versions may differ in their spaces."""
    return str(row[0]), _SPACED.sub(r"\1", " ".join(str(row[2]).split()))


def _damaged(what: str, name: str) -> GalleryError:
    return GalleryError(f"{what} in {name} is damaged; restore a copy")


def _asking(db: sqlite3.Connection) -> Ask:
    return lambda query, values=(): db.execute(query, values).fetchall()


def _is_empty(db: sqlite3.Connection) -> bool:
    return not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _header(db: sqlite3.Connection) -> tuple[int, int]:
    application, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    return application, version


def _run(db: sqlite3.Connection, script: str) -> None:
    for statement in script.split(";"):
        db.execute(statement)
