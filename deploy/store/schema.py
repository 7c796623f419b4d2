"""The table definitions of a gallery's database, compared with those that lifelong-reid makes.

A database can be given triggers, views and generated columns that act whenever a row is written: a trigger can keep a
copy of every erased vector. So nothing is accepted that is not ours.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import cache
from typing import NamedTuple

from deploy.store.clock import TABLES
from deploy.store.tables import SCHEMA, SCHEMA_1, SINCE_2, SINCE_3

_SQLITE = {("table", "sqlite_sequence"), ("table", "sqlite_stat1"), ("table", "sqlite_stat4")}
"""What SQLite makes by itself."""

_ADDED = re.compile(r"(added INTEGER NOT NULL DEFAULT) -?\d+")
"""The column's default is the time at which a gallery was made or migrated."""


class Fault(NamedTuple):
    """Something in a database, besides its entries, that lifelong-reid did not write.

    Attributes:
        what: what is wrong, for a person.
        outcome: what a repair makes of it, or ``None`` if only a backup helps.
        statements: the repair, in SQL, each with its values.
        hides_entries: whether entries can't be counted and read as long as it is there.
    """

    what: str
    outcome: str | None = None
    statements: tuple[tuple[str, tuple[str | int | None, ...]], ...] = ()
    hides_entries: bool = False


def definition_faults(db: sqlite3.Connection, version: int) -> Iterator[Fault]:
    """Compare the definitions in a database of a schema (3 or later) with ours. An index of ours may be missing."""
    ours = _definitions(version)
    found = {(kind, name): sql for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_master")}
    for kind, name in sorted(ours.keys() - found.keys()):
        if kind == "table":
            yield Fault(f"the table {name}, which is missing,", hides_entries=True)
    removed = set[str]()
    for (kind, name), sql in sorted(found.items(), key=lambda item: _before_tables(item[0])):
        if (kind, name) in ours and isinstance(sql, str) and _plain(sql) == ours[kind, name]:
            continue
        if (kind, name) in _SQLITE or (kind == "index" and sql is None and name.startswith("sqlite_autoindex_")):
            continue
        if (kind, name) in ours and kind == "table":
            yield Fault(f"the definition of the table {name}", hides_entries=True)
        elif name not in removed:
            removed.add(name)
            again = ((ours[kind, name], ()),) if (kind, name) in ours else ()
            yield Fault(
                f"the {kind} {name!a:.80}, which lifelong-reid did not make,",
                "made anew" if again else "removed",
                ((f"DROP {kind} IF EXISTS {_quoted(name)}", ()), *again, ("UPDATE gallery SET unwiped = 1", ())),
            )


def _before_tables(what: tuple[str, str]) -> tuple[int, str]:
    """Order by which a foreign trigger goes before anything that would set it off."""
    return ("trigger", "view", "index", "table").index(what[0]), what[1]


@cache
def _definitions(version: int) -> Mapping[tuple[str, str], str]:
    """Our tables and indices of a schema, by kind and name."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA_1 + SINCE_2.format(now=0) + SINCE_3)
        if version >= SCHEMA:
            db.executescript(TABLES)
        rows = db.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {(kind, name): _plain(sql) for kind, name, sql in rows if (kind, name) not in _SQLITE}


def _plain(sql: str) -> str:
    """One spelling of a definition, whatever its line breaks: earlier versions broke lines elsewhere."""
    spaced = re.sub(r"\s+", " ", sql)
    return _ADDED.sub(r"\1 0", re.sub(r" ?([(),=]) ?", r"\1", spaced))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
