"""What SQLite writes besides a database while it works, kept in memory or in the database's own folder.

Left to itself, SQLite sorts, undoes and rewrites with the help of files in the system's temporary folder. That folder
may be outside an encrypted disk, or too small for a gallery. Sorting and undoing take little, and are done in memory.
A rewrite (``VACUUM``) takes a whole copy, which goes to a file in the database's folder; its name is removed as soon as
it is open, so that nobody else can read it and a killed process leaves nothing of it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from domains.text import logger

LONGEST = 480
"""Most bytes of a folder's path that SQLite can put a temporary name behind."""

LEFTOVERS = "etilqs_*"
"""How SQLite names such files. One is left, empty, if the process is killed before it has removed the name."""

log = logger("deploy")

_one_folder = threading.Lock()
"""SQLite knows one folder per process, so that rewrites of two databases take turns."""


def keep_in_memory(db: sqlite3.Connection) -> None:
    """Have a connection sort and undo in memory."""
    db.execute("PRAGMA temp_store=MEMORY")


def vacuum(db: sqlite3.Connection, folder: Path) -> None:
    """Rewrite a database's pages with a copy in ``folder``, for a connection outside any transaction. Raises
    sqlite3.Error.

    Where this SQLite can't be told the folder, the copy is made in memory, and a line in the log says so.
    """
    with _one_folder, _spilling(db, folder.absolute()):
        db.execute("VACUUM")


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed in a rewrite left in a folder."""
    for file in folder.glob(LEFTOVERS):
        file.unlink(missing_ok=True)


@contextmanager
def _spilling(db: sqlite3.Connection, folder: Path) -> Iterator[None]:
    known = db.execute("PRAGMA temp_store_directory").fetchone()
    if not _point_to(db, folder):
        log.warning("SQLite can't be told to keep its copy in %s, so the rewrite takes place in memory", folder)
        keep_in_memory(db)
        yield
        return
    try:
        db.execute("PRAGMA temp_store=FILE")
        yield
    finally:
        keep_in_memory(db)
        db.execute(f"PRAGMA temp_store_directory={_quoted(known[0] if known else '')}")


def _point_to(db: sqlite3.Connection, folder: Path) -> bool:
    """Make SQLite use a folder; returns False if its name can't be told, or if this SQLite was built without that."""
    name = str(folder)
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # SQL is UTF-8, a path need not be
        return False
    if size > LONGEST or not os.access(folder, os.W_OK | os.X_OK):
        return False
    db.execute(f"PRAGMA temp_store_directory={_quoted(name)}")
    return bool(db.execute("PRAGMA temp_store_directory").fetchone() == (name,))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
