"""What time it is, as far as a store that erases by age can know.

A computer's clock can be years off without anybody noticing, and what is erased by it is gone. A store therefore keeps
two things, in its own database:

* The *trusted time*: the clock's last reading that followed plausibly from the one before. It moves forward by itself,
  by at most :func:`leap` at once, and never back. While the clock reads anything else, nothing is erased by age until a
  person has confirmed the time.
* *Marks*: that the items up to some number were there at some time, one mark an hour. Numbers only grow. An item's age
  counts from the first mark that covers its number, whatever time stands in the item itself, and what was written while
  the clock was behind is only covered once the clock is right again.

So a wrong clock can make an item stay too long, but not go too early by more than :func:`leap`.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from domains.errors import GalleryError

HOUR = 3_600_000_000
DAY = 24 * HOUR
EARLIEST = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp() * 1e6)
"""A clock that reads earlier is wrong: this program is younger."""
LONGEST = 8
"""Days that a clock may at most move by between two readings: a week, and a day to spare."""
STEP = HOUR // 6
"""How far the clock moves on before the trusted time is written again."""

TABLES = """
CREATE TABLE IF NOT EXISTS clock(one INTEGER PRIMARY KEY CHECK (one = 1), trusted INTEGER);
CREATE TABLE IF NOT EXISTS mark(
  hour INTEGER PRIMARY KEY, newest INTEGER NOT NULL, time INTEGER NOT NULL, checksum INTEGER NOT NULL);
INSERT OR IGNORE INTO clock VALUES (1, NULL);
"""


def now() -> int:
    """Return what the clock reads, in microseconds since 1970 (UTC)."""
    return int(datetime.now(UTC).timestamp() * 1e6)


def as_text(time: int | None, timespec: str = "seconds") -> str:
    """Write microseconds since 1970 as ISO 8601 in UTC."""
    if time is None:
        return "never"
    try:
        return datetime.fromtimestamp(time / 1e6, UTC).isoformat(timespec=timespec)
    except (OverflowError, ValueError, OSError):  # a damaged number
        return f"{time / 1e6:.0f} s after 1970"


def leap(days: int | None) -> int:
    """How far, in microseconds, the clock may move between two readings, where what is older than ``days`` is erased.

    A quarter of these days, as a wrong reading can make things go that much too early; but at least one, for a machine
    that is switched off overnight, and at most :data:`LONGEST`.
    """
    return int(DAY * min(LONGEST, max(1.0, (LONGEST * 4 if days is None else days) / 4)))


class Reading(NamedTuple):
    """One reading of the clock beside the last one that was trusted, in microseconds since 1970.

    Attributes:
        time: what the clock reads.
        trusted: the last trusted time, or ``None`` if there was none yet.
        most: how far the two may be apart.
    """

    time: int
    trusted: int | None
    most: int

    @property
    def right(self) -> bool:
        """Whether the clock can be trusted."""
        return self.time >= EARLIEST and (self.trusted is None or abs(self.time - self.trusted) <= self.most)

    @property
    def behind(self) -> bool:
        """Whether the clock reads less than it must, so that nothing can be dated by it."""
        return self.time < max(EARLIEST, EARLIEST if self.trusted is None else self.trusted - self.most)

    def __str__(self) -> str:
        """Say what the clock reads and how that compares."""
        text = f"the clock reads {as_text(self.time)}"
        if self.trusted is None:
            return f"{text}, and no earlier time is known to be right"
        apart = abs(self.time - self.trusted) / DAY
        order = "after" if self.time >= self.trusted else "before"
        return f"{text}, {apart:,.1f} days {order} the last trusted time, {as_text(self.trusted)}"


def read_clock(db: sqlite3.Connection, days: int | None) -> Reading:
    """Read the clock; ``days``: the shortest time that anything is kept, or ``None``."""
    row = db.execute("SELECT trusted FROM clock").fetchone()
    trusted = row[0] if row else None
    if trusted is not None and not isinstance(trusted, int):
        raise GalleryError("the last trusted time is damaged; restore a backup")
    return Reading(now(), trusted, leap(days))


def note(db: sqlite3.Connection, reading: Reading, newest: int) -> None:
    """Note that items up to ``newest`` are there now, and move the trusted time on if the clock can be trusted. Call it
    in a transaction that may write.
    """
    if reading.right:
        _settle(db, reading.time if reading.trusted is None else max(reading.time, reading.trusted))
        if reading.trusted is None or reading.time > reading.trusted:
            db.execute("UPDATE clock SET trusted = ?", (reading.time,))
    if not reading.behind:
        time = reading.time if reading.trusted is None or not reading.right else max(reading.time, reading.trusted)
        _mark(db, newest, time)


def is_stale(db: sqlite3.Connection, reading: Reading, newest: int) -> bool:
    """Whether :func:`note` has anything to write that is worth a transaction of its own."""
    if not reading.right:
        return False
    if reading.trusted is None or reading.time - reading.trusted >= STEP:
        return True
    covered, last = db.execute("SELECT coalesce(max(newest), 0), coalesce(max(time), 0) FROM mark").fetchone()
    return bool(newest > covered or last > max(reading.time, reading.trusted))


def covered(db: sqlite3.Connection, limit: int) -> int:
    """Return the number up to which all items were there before ``limit`` (microseconds since 1970), or 0. Raises
    GalleryError if the mark that says so is damaged.
    """
    row = db.execute(
        "SELECT hour, newest, time, checksum FROM mark WHERE time < ? ORDER BY newest DESC LIMIT 1", (limit,)
    ).fetchone()
    if row is None:
        return 0
    if not is_whole(row):
        raise GalleryError("the record of when things were added is damaged; restore a backup, or repair it")
    return int(row[1])


def trust(db: sqlite3.Connection, reading: Reading, newest: int, *, from_now: bool) -> None:
    """Accept the clock's reading on a person's word. Call it in a transaction that may write.

    Args:
        db: the store.
        reading: what they confirmed.
        newest: number of the newest item.
        from_now: the time before was the wrong one, so that all ages count from now.

    Raises:
        GalleryError: the clock reads a time that can't be.
    """
    if reading.time < EARLIEST:
        raise GalleryError(f"the clock reads {as_text(reading.time)}, which can't be; set the clock first")
    if from_now:
        db.execute("DELETE FROM mark")
    db.execute("UPDATE clock SET trusted = ?", (reading.time,))
    _settle(db, reading.time)
    _mark(db, newest, reading.time)


def prune(db: sqlite3.Connection, oldest: int | None) -> None:
    """Drop the marks that cover no item any more; ``oldest``: number of the oldest item left. Call it in a transaction
    that may write.
    """
    db.execute("DELETE FROM mark WHERE newest < ?", (2**62 if oldest is None else oldest,))


def seed(db: sqlite3.Connection, items: Iterable[tuple[int, int | None]], last: int | None) -> None:
    """Derive marks for a store that had none, from the times that its items state. Call it in a transaction that may
    write.

    Numbers decide: an item is no older than any before it. Times before :data:`EARLIEST`, or after both the clock and
    ``last``, say nothing.

    Args:
        db: the store.
        items: number and stated time of each item, by number.
        last: when something was last written to the store, as far as it knows.
    """
    written = last if last is not None and last >= EARLIEST else 0
    top, newest, latest = max(now(), written), 0, 0
    for number, time in items:
        if time is not None and EARLIEST <= time <= top and time >= latest:
            if newest and time // HOUR != latest // HOUR:
                _mark(db, newest, latest)
            newest, latest = number, time
    if newest:
        _mark(db, newest, latest)
    db.execute("UPDATE clock SET trusted = ?", (max(written, latest) or None,))


def broken_marks(db: sqlite3.Connection) -> list[int]:
    """Return the hours whose marks are damaged."""
    rows = db.execute("SELECT hour, newest, time, checksum FROM mark").fetchall()
    return [row[0] for row in rows if not is_whole(row)]


def drop_broken_marks(db: sqlite3.Connection) -> None:
    """Remove damaged marks, so that later ones decide. Call it in a transaction that may write."""
    db.executemany("DELETE FROM mark WHERE hour = ?", [(hour,) for hour in broken_marks(db)])


def is_whole(mark: tuple[int, int, int, int]) -> bool:
    """Whether a mark's row (hour, newest, time, checksum) is as it was written."""
    return mark[3] == _checksum(*mark[:3])


def _mark(db: sqlite3.Connection, newest: int, time: int) -> None:
    """Note that items up to ``newest`` were there at ``time``, unless an earlier mark says so."""
    hour = time // HOUR
    known = db.execute("SELECT coalesce(max(newest), 0) FROM mark WHERE hour <= ?", (hour,)).fetchone()[0]
    if newest > known:
        old = db.execute("SELECT time FROM mark WHERE hour = ?", (hour,)).fetchone()
        time = max(time, old[0]) if old else time
        db.execute(
            "INSERT OR REPLACE INTO mark VALUES (?, ?, ?, ?)", (hour, newest, time, _checksum(hour, newest, time))
        )


def _settle(db: sqlite3.Connection, time: int) -> None:
    """Replace the marks of a time that has not come yet, which were made while the clock was ahead."""
    newest = db.execute("SELECT max(newest) FROM mark WHERE time > ?", (time,)).fetchone()[0]
    if newest is not None:
        db.execute("DELETE FROM mark WHERE time > ?", (time,))
        _mark(db, newest, time)


def _checksum(hour: int, newest: int, time: int) -> int:
    return zlib.crc32(f"{hour}\0{newest}\0{time}".encode())
