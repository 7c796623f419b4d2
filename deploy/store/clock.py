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

A store without items trusts the first reading that can be, as it has nothing to lose. One that has items, but never had
a trusted time, marks them and waits: for a person, or until readings have followed one another for
:data:`CONFIRMED_AFTER`. A reading that does not follow from the last one begins anew, and the marks before it are
dropped.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from domains.errors import GalleryError

HOUR = 3_600_000_000
DAY = 24 * HOUR
EARLIEST = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp() * 1e6)
"""A clock that reads earlier is wrong: this program is younger."""
LATEST = 2**58
"""No clock reads later: it is after the year 9999."""
LONGEST = 8
"""Days that a clock may at most move by between two readings: a week, and a day to spare."""
CONFIRMED_AFTER = 4 * LONGEST * DAY
"""For how long readings must have followed one another before the first of them is trusted, where items are kept."""
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


class Mark(NamedTuple):
    """A note that the items up to ``newest`` were there at ``time``, in some hour since 1970."""

    hour: int
    newest: int
    time: int
    checksum: int


class Reading(NamedTuple):
    """One reading of the clock beside the last one that was trusted, in microseconds since 1970.

    Attributes:
        time: what the clock reads.
        trusted: the last trusted time, or ``None`` if there was none yet.
        most: how far the two may be apart.
        noted: the first and the last time that items were marked at, while there is no trusted time.
    """

    time: int
    trusted: int | None
    most: int
    noted: tuple[int, int] | None = None

    @property
    def right(self) -> bool:
        """Whether the clock can be trusted."""
        if self.trusted is None:
            return self.waiting and self.follows and self.time - self._since >= CONFIRMED_AFTER
        return self.time >= EARLIEST and abs(self.time - self.trusted) <= self.most

    @property
    def waiting(self) -> bool:
        """Whether nothing speaks against the clock, but there is no trusted time either."""
        return self.trusted is None and self.time >= EARLIEST

    @property
    def follows(self) -> bool:
        """Whether it follows from the last time noted, while there is no trusted time."""
        return self.noted is not None and abs(self.time - self.noted[1]) <= LONGEST * DAY

    @property
    def _since(self) -> int:
        return self.time if self.noted is None else self.noted[0]

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
    if row is None or not is_trusted(row[0]):
        raise GalleryError("the last trusted time is damaged; restore a backup, or try reid gallery verify --repair")
    first, last = (None, None) if row[0] is not None else (_end_mark(db, "ASC"), _end_mark(db, "DESC"))
    noted = None if first is None or last is None else (first.time, last.time)
    return Reading(now(), row[0], leap(days), noted)


def is_trusted(time: object) -> bool:
    """Whether a value can be a trusted time, or stand for none yet (``None``)."""
    return time is None or (isinstance(time, int) and EARLIEST <= time < LATEST)


def last_marked(db: sqlite3.Connection) -> int | None:
    """Return the latest time that items were marked at, in microseconds since 1970, ``None`` without marks."""
    last = _end_mark(db, "DESC")
    return last.time if last is not None and is_trusted(last.time) else None


def note(db: sqlite3.Connection, reading: Reading, newest: int) -> None:
    """Note that items up to ``newest`` are there now, and move the trusted time on if the clock can be trusted. Call it
    in a transaction that may write.
    """
    if reading.waiting and not reading.right and newest:
        _wait(db, reading, newest)
        return
    if reading.right or reading.waiting:
        _settle(db, reading.time if reading.trusted is None else max(reading.time, reading.trusted))
        if reading.trusted is None or reading.time > reading.trusted:
            db.execute("UPDATE clock SET trusted = ?", (reading.time,))
    if not reading.behind:
        time = reading.time if reading.trusted is None or not reading.right else max(reading.time, reading.trusted)
        _mark(db, newest, time)


def is_stale(db: sqlite3.Connection, reading: Reading, newest: int) -> bool:
    """Whether :func:`note` has anything to write that is worth a transaction of its own."""
    last = _end_mark(db, "DESC")
    if reading.trusted is None:
        noted = last is not None and newest <= last.newest and reading.time // HOUR == last.hour
        return reading.waiting and (reading.right or not noted)
    if not reading.right:
        return False
    ahead = last is not None and last.time > max(reading.time, reading.trusted)
    return ahead or reading.time - reading.trusted >= STEP or newest > (0 if last is None else last.newest)


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
    if from_now or (reading.trusted is None and not reading.follows):
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
    written = last if last is not None and EARLIEST <= last < LATEST else 0
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


def is_whole(row: Sequence[Any]) -> bool:
    """Whether a mark's row (hour, newest, time, checksum) is as it was written."""
    return all(isinstance(value, int) for value in row) and row[3] == _checksum(*row[:3])


def _end_mark(db: sqlite3.Connection, order: str, until: int = 2**62) -> Mark | None:
    """Return the first (``ASC``) or last (``DESC``) whole mark of the hours up to ``until``."""
    rows = db.execute(
        f"SELECT hour, newest, time, checksum FROM mark WHERE hour <= ? ORDER BY hour {order}",  # noqa: S608 - one of two words
        (until,),
    )
    return next((Mark(*row) for row in rows if is_whole(row)), None)


def _mark(db: sqlite3.Connection, newest: int, time: int) -> None:
    """Note that items up to ``newest`` were there at ``time``, unless an earlier mark says so."""
    known = _end_mark(db, "DESC", time // HOUR)
    if newest > (known.newest if known else 0):
        _put(db, newest, max(time, known.time) if known and known.hour == time // HOUR else time)


def _put(db: sqlite3.Connection, newest: int, time: int) -> None:
    """Write a mark, unless the one of its hour is damaged: that is to be found."""
    hour = time // HOUR
    known = db.execute("SELECT hour, newest, time, checksum FROM mark WHERE hour = ?", (hour,)).fetchone()
    if known is not None and not is_whole(known):
        return
    db.execute("INSERT OR REPLACE INTO mark VALUES (?, ?, ?, ?)", (hour, newest, time, _checksum(hour, newest, time)))


def _settle(db: sqlite3.Connection, time: int) -> None:
    """Replace the marks of a time that has not come yet, which were made while the clock was ahead."""
    rows = db.execute("SELECT hour, newest, time, checksum FROM mark WHERE hour >= ?", (time // HOUR,)).fetchall()
    ahead = [mark for mark in (Mark(*row) for row in rows if is_whole(row)) if mark.time > time]
    if ahead:
        db.executemany("DELETE FROM mark WHERE hour = ?", [(mark.hour,) for mark in ahead])
        _mark(db, max(mark.newest for mark in ahead), time)


def _wait(db: sqlite3.Connection, reading: Reading, newest: int) -> None:
    """Mark items while there is no trusted time: the last mark says when the clock was last read, the first one since
    when each reading has followed from the one before.
    """
    if not reading.follows:
        db.execute("DELETE FROM mark")
    hour = reading.time // HOUR
    last = _end_mark(db, "DESC", hour)
    if last is None or last.hour == hour:
        _mark(db, newest, reading.time)
        return
    before = _end_mark(db, "DESC", last.hour - 1)
    if before is not None and before.newest == last.newest:  # it only said when the clock was read
        db.execute("DELETE FROM mark WHERE hour = ?", (last.hour,))
    _put(db, max(newest, last.newest), reading.time)


def _checksum(hour: int, newest: int, time: int) -> int:
    return zlib.crc32(f"{hour}\0{newest}\0{time}".encode())
