"""Whether what lies under a gallery's seal can have been written by lifelong-reid: types, ranges, table definitions.

The seal alone says that nothing has changed since it was made. Whoever makes it anew has to know what is sealed.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from deploy.store import clock
from deploy.store.schema import Fault, definition_faults
from deploy.store.tables import MAX_DIM, SCHEMA

MOST_DAYS = 36500
"""Days that a rule keeps entries at most."""
LAST_NUMBER = 2**62
"""No id or count is as large."""


def unsound(db: sqlite3.Connection) -> list[Fault]:
    """List what a database of schema 3 or later holds besides its entries that lifelong-reid can't have written."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    found = list(definition_faults(db, version))
    if any(fault.outcome is None for fault in found):  # the tables can't be read as ours
        return found
    parts = [_fact_faults, _space_faults, _rule_faults, _backup_faults, _number_faults]
    for part in (*parts, _clock_faults) if version >= SCHEMA else parts:
        found += part(db)
    return found


def is_count(value: object) -> bool:
    """Whether a value is a whole number from 0 that can be counted on from."""
    return isinstance(value, int) and 0 <= value < LAST_NUMBER


def is_dim(value: object) -> bool:
    """Whether a value can be the length of a gallery's vectors."""
    return isinstance(value, int) and 1 <= value <= MAX_DIM


def is_text(value: object) -> bool:
    """Whether a value is valid Unicode text without NUL."""
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def is_rule(camera: object, days: object) -> bool:
    """Whether two values can be a rule: a camera's name, empty for all others, and its days."""
    return is_text(camera) and isinstance(days, int) and 1 <= days <= MOST_DAYS


def is_path(value: object) -> bool:
    """Whether a value can be a recorded folder."""
    return is_text(value) and value != ""


def _is_name(value: object) -> bool:
    return value is None or is_text(value)


_FACTS: Mapping[str, Callable[[Any], bool]] = {
    "dim": is_dim,
    "feature_space": is_text,
    "bundle": _is_name,
    "space": is_count,
    "generation": is_count,
    "erasures": is_count,
    "moves": is_count,
    "crops": is_count,
    "entries": is_count,
    "unwiped": is_count,
    "token": is_text,
    "base": _is_name,
}


def _fact_faults(db: sqlite3.Connection) -> Iterator[Fault]:
    rows = db.execute(f"SELECT {', '.join(_FACTS)} FROM gallery").fetchall()  # noqa: S608 - constants
    if len(rows) != 1:
        yield Fault("the row of the gallery's facts, which is missing,", hides_entries=True)
        return
    mends = {
        "entries": ("counted anew", "UPDATE gallery SET entries = (SELECT count(*) FROM entry)", ()),
        "unwiped": ("set, so that the file is rewritten", "UPDATE gallery SET unwiped = 1", ()),
        "token": ("drawn anew", "UPDATE gallery SET base = NULL, token = ?", (secrets.token_hex(8),)),
        "base": ("removed, so that the index is built anew", "UPDATE gallery SET base = NULL", ()),
    }
    for (name, fits), value in zip(_FACTS.items(), rows[0], strict=True):
        if not fits(value):
            what = f"the gallery's fact {name!r}, which is {_shown(value)},"
            outcome, statement, values = mends.get(name, (None, "", ()))
            yield Fault(what, outcome, ((statement, values),) if outcome else (), hides_entries=True)


def _space_faults(db: sqlite3.Connection) -> Iterator[Fault]:
    rows = db.execute("SELECT number, feature_space, dim, bundle, ready, source, map FROM space").fetchall()
    numbers = {row[0] for row in rows}
    for number, name, dim, bundle, ready, source, matrix in rows:
        linked = source is None or (source in numbers and source != number and isinstance(matrix, bytes))
        if not (is_text(name) and is_dim(dim) and _is_name(bundle) and ready in (0, 1) and linked and is_count(number)):
            yield Fault(f"the record of the feature space {number}")
    present = db.execute("SELECT space, feature_space, dim FROM gallery").fetchall()
    if not set(present) <= {row[:3] for row in rows if row[4] == 1}:
        yield Fault("the number of the present feature space")


def _rule_faults(db: sqlite3.Connection) -> Iterator[Fault]:
    for row, camera, days in db.execute("SELECT rowid, camera, days FROM retention"):
        if not is_rule(camera, days):
            yield Fault(
                f"the rule that keeps camera {_shown(camera)} for {_shown(days)} days",
                "removed; set it again with reid gallery keep",
                (("DELETE FROM retention WHERE rowid = ?", (row,)),),
            )


def _backup_faults(db: sqlite3.Connection) -> Iterator[Fault]:
    for row, path, time in db.execute("SELECT rowid, path, time FROM backup"):
        if not (is_path(path) and is_text(time)):
            yield Fault(
                f"the record of the backup {_shown(path)}",
                "removed; erasures no longer name it",
                (("DELETE FROM backup WHERE rowid = ?", (row,)),),
            )


def _number_faults(db: sqlite3.Connection) -> Iterator[Fault]:
    for table, key in (("entry", "id"), ("audit", "number")):
        last = db.execute(
            f"SELECT coalesce(max({key}), 0) FROM {table} WHERE {key} < ?",  # noqa: S608 - constants
            (LAST_NUMBER,),
        ).fetchone()[0]
        known = [seq for (seq,) in db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,))]
        if len(known) > 1 or not all(is_count(seq) and seq >= last for seq in known) or (last and not known):
            yield Fault(
                f"the last number given in the table {table}",
                f"set to {last}",
                (
                    ("DELETE FROM sqlite_sequence WHERE name = ?", (table,)),
                    ("INSERT INTO sqlite_sequence VALUES (?, ?)", (table, last)),
                ),
            )


def _clock_faults(db: sqlite3.Connection) -> Iterator[Fault]:
    rows = db.execute("SELECT one, trusted FROM clock").fetchall()
    if len(rows) != 1 or not clock.is_trusted(rows[0][1]):
        time = clock.last_marked(db)
        yield Fault(
            "the last trusted time",
            f"set back to {clock.as_text(time)}",
            (("INSERT OR REPLACE INTO clock VALUES (1, ?)", (time,)),),
        )


def _shown(value: object) -> str:
    """A value that may be anything, in a few printable characters."""
    return f"{value!a:.60}"
