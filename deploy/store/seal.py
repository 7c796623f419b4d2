"""One hash over everything in a gallery's database that is not an entry: its facts, spaces, rules, backups, the last
trusted time, the end of the audit, the table definitions.

Entries, stored crops and marks of time have their own checksums, row by row. Every transaction that changes something
renews the seal, so that a corrupted byte is found when the gallery is opened, before a rule or a space that nobody set
can take effect.
"""

from __future__ import annotations

import hashlib
import sqlite3

_SEALED = (
    "SELECT dim, feature_space, bundle, entries, generation, token, erasures, unwiped, space, moves, base, crops FROM "
    "gallery",
    "SELECT number, feature_space, dim, bundle, ready, source FROM space ORDER BY number",
    "SELECT camera, days FROM retention ORDER BY camera",
    "SELECT path, time FROM backup ORDER BY path",
    "SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1",
    "SELECT name, seq FROM sqlite_sequence ORDER BY name",
    "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name",
    "PRAGMA application_id",
    "PRAGMA user_version",
)
_SEALED_SINCE_4 = "SELECT one, trusted FROM clock"


def make_seal(db: sqlite3.Connection) -> str:
    """Return the hash (hex) of the state that the open transaction sees."""
    digest = hashlib.sha256()
    keeps_time = db.execute("PRAGMA user_version").fetchone()[0] >= 4
    for query in (*_SEALED, _SEALED_SINCE_4) if keeps_time else _SEALED:
        digest.update(repr(db.execute(query).fetchall()).encode("utf-8", "backslashreplace"))
    for (matrix,) in db.execute("SELECT map FROM space ORDER BY number"):
        digest.update(hashlib.sha256(matrix if isinstance(matrix, bytes) else repr(matrix).encode()).digest())
    return digest.hexdigest()


def write_seal(db: sqlite3.Connection) -> None:
    """Renew the seal, as the last step of a transaction."""
    db.execute("UPDATE gallery SET seal = ?", (make_seal(db),))


def seal_holds(db: sqlite3.Connection) -> bool:
    """Whether everything under the seal is as it was last written."""
    row = db.execute("SELECT seal FROM gallery").fetchone()
    return row is not None and row[0] == make_seal(db)
