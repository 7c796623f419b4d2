"""A gallery's database and the time: which entries are how old, as far as its clock can be trusted."""

from __future__ import annotations

import sqlite3

from deploy.store import clock
from deploy.store.clock import Reading
from deploy.store.connection import is_busy
from deploy.store.sealed import Sealed
from deploy.store.tables import SCHEMA
from domains.errors import GalleryError


class Dated(Sealed):
    """The half of :class:`deploy.store.Store` that knows when its entries were added."""

    def clock(self, days: int | None = None) -> Reading:
        """Read the clock, where what is older than ``days`` is to be erased, or by the shortest rule."""
        with self._guarded():
            if self._pragma("user_version") < SCHEMA:  # which is possible where nothing can be written
                raise GalleryError(
                    f"{self.file.parent} was made by an earlier version, which kept no time; open it once, or a copy "
                    "of it, where it can be written"
                )
            return self._read_clock(days)

    def keep_time(self, reading: Reading) -> None:
        """Note that the clock was read, unless another process is writing: then the next reading does."""
        with self._guarded():
            stale = clock.is_stale(self._db, reading, self._newest())
        if not stale:
            return
        try:
            with self.holding(wait=0.0):
                self._note(reading)
        except GalleryError as error:
            if not is_busy(error.__cause__):
                raise

    def covered(self, limit: int) -> int:
        """Return the id up to which all entries were added before ``limit`` (microseconds since 1970), or 0."""
        with self._guarded():
            try:
                return clock.covered(self._db, limit)
            except GalleryError as error:
                raise GalleryError(f"{self.file}: {error} with reid gallery verify --repair") from error

    def trust(self, reading: Reading, *, from_now: bool) -> None:
        """Accept the clock's reading on a person's word, inside a :meth:`holding` block; with ``from_now``, entries
        without a time count as added now.
        """
        clock.trust(self._db, reading, self._newest(), from_now=from_now)

    def broken_marks(self) -> list[int]:
        """Return the hours of damaged marks: when entries were added is then known less exactly."""
        with self._guarded():
            return clock.broken_marks(self._db) if self._pragma("user_version") >= SCHEMA else []

    def drop_broken_marks(self) -> None:
        """Remove damaged marks, inside a :meth:`holding` block; entries may then stay longer, never shorter."""
        with self._guarded():
            clock.drop_broken_marks(self._db)

    def _read_clock(self, days: int | None = None) -> Reading:
        shortest = self._db.execute("SELECT min(days) FROM retention").fetchone()[0]
        known = [limit for limit in (days, shortest) if isinstance(limit, int)]
        return clock.read_clock(self._db, min(known) if known else None)

    def _note(self, reading: Reading) -> None:
        """Note a reading of the clock, inside a transaction that may write."""
        clock.note(self._db, reading, self._newest())
        clock.prune(self._db, self._db.execute("SELECT min(id) FROM entry").fetchone()[0])

    def _newest(self) -> int:
        return int(self._db.execute("SELECT coalesce(max(id), 0) FROM entry").fetchone()[0])


def start_clock(db: sqlite3.Connection) -> None:
    """Let time begin in a new database, inside a transaction or before any."""
    for statement in clock.TABLES.split(";"):
        db.execute(statement)
    clock.note(db, clock.read_clock(db, None), 0)


def start_clock_late(db: sqlite3.Connection) -> None:
    """Let time begin in a database of a schema that kept none, inside a transaction: entries are as old as they say, as
    far as that can be true.
    """
    for statement in clock.TABLES.split(";"):
        db.execute(statement)
    newest = db.execute("SELECT added FROM entry ORDER BY id DESC LIMIT 1").fetchone()
    written = db.execute(
        "SELECT CAST(strftime('%s', time) AS INTEGER) * 1000000 FROM audit ORDER BY number DESC LIMIT 1"
    ).fetchone()
    known = [row[0] for row in (newest, written) if row and isinstance(row[0], int)]
    rows = db.execute("SELECT id, added FROM entry ORDER BY id")
    entries = ((number, added if isinstance(added, int) else None) for number, added in rows)
    clock.seed(db, entries, max(known, default=None))
