"""The audit log of a service: who asked what, when and why, each record sealed by a hash over all before it.

It is a separate database beside the gallery, chained like the gallery's own log, because every query writes to it.
Records hold the token's name, the stated reason and counts; no image, no vector, no label, no source. An answer is sent
only after its record is on disk. Records that arrive together share one transaction, so that many callers do not wait
for one disk write each.

Old records are erased by age: the chain continues from the seal of the last one erased, which the record of the erasure
names. A record's age counts by its number and by when the clock was right, not by the time that stands in it: see
:mod:`deploy.store.clock`.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from deploy.service.audit_chain import ERASURE, Head, KeptHead, check_chain
from deploy.service.audit_record import read_record, record_text
from deploy.service.audit_tables import SCHEMA, Ask, check_rows, prepare, read_ageing, read_base
from deploy.store import clock
from deploy.store.audit import link
from deploy.store.scratch import keep_in_memory, vacuum
from domains.artefact import make_private
from domains.errors import ClockError, GalleryError

TOGETHER = 256
"""Maximum number of records per transaction."""

PATIENCE = 2000
"""Milliseconds to wait for those who read what was erased; everybody else waits meanwhile."""

_NEWEST = "SELECT number, hash FROM audit WHERE number > (SELECT number FROM base) ORDER BY number DESC LIMIT 1"


class Ageing(NamedTuple):
    """What would be erased now, and whether it may be.

    Attributes:
        reading: what the clock reads, and the last trusted time.
        days: how long records are kept, or ``None`` for ever.
        through: number of the last record that is too old if the clock is right, or 0.
        due: how many records that makes.
    """

    reading: clock.Reading
    days: int | None
    through: int
    due: int


class AuditLog:
    """One open audit log; its methods may be called from any thread."""

    def __init__(self, file: Path, *, keep: int | None = None) -> None:
        """Open or create it; raises GalleryError.

        Args:
            file: its database.
            keep: days that records will be kept, if that is to change: the clock may move by less where they are few.
        """
        self.file = file
        self._lock = threading.Lock()
        self._incoming: queue.SimpleQueue[tuple[str, str, Future[int]] | None] = queue.SimpleQueue()
        self._name = f"the audit log {file}"
        try:
            make_private(file.parent)
            if not file.exists():
                file.touch(mode=0o600)
            self._db = sqlite3.connect(file, timeout=30, isolation_level=None, check_same_thread=False)
            self._prepare(keep)
        except (sqlite3.Error, OSError) as error:
            raise GalleryError(
                f"{self._name} can't be opened: {error}; check its folder, or name another with --audit"
            ) from error
        self._writer = threading.Thread(target=self._work, name="audit log", daemon=True)
        self._writer.start()

    def _prepare(self, keep: int | None) -> None:
        """Set up the connection and the tables; the connection is closed again if they can't be used."""
        try:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "trusted_schema=OFF"):
                self._db.execute(f"PRAGMA {pragma}")
            keep_in_memory(self._db)
            if not prepare(self._db, self._name):
                raise GalleryError(
                    f"{self.file} is not an audit log of schema 1 to {SCHEMA}; name another with --audit"
                )
            check_rows(self._rows, self._name)
            if keep is not None:
                self._db.execute("UPDATE ageing SET days = ? WHERE days IS NOT ?", (keep, keep))
        except BaseException:
            self._db.close()
            raise

    def submit(self, action: str, **what: str | int | None) -> Future[int]:
        """Add a record; the future gives its number once it is on disk, or GalleryError."""
        answer: Future[int] = Future()
        self._incoming.put((_now(), record_text(action, **what), answer))
        return answer

    async def write(self, action: str, **what: str | int | None) -> int:
        """Add a record and wait until it is on disk."""
        return await asyncio.wrap_future(self.submit(action, **what))

    def read(self, after: int = 0, limit: int = 100) -> list[dict[str, Any]]:
        """Records with a number above ``after``, oldest first."""
        rows = self._ask(
            "SELECT number, time, what, hash FROM audit WHERE number > max(?, (SELECT number FROM base)) "
            "ORDER BY number LIMIT ?",
            (after, limit),
        )
        return [read_record(*row) for row in rows]

    def head(self) -> Head:
        """The newest record's number and seal, or those that the chain starts with; raises GalleryError."""
        with self._lock, self._mapped("read"):
            return Head(*self._newest())

    def check(self, heads: Sequence[KeptHead] = ()) -> int:
        """Count the records.

        Args:
            heads: heads that were kept elsewhere, which must still be in it unless they were erased by age.

        Raises:
            GalleryError: a record was changed, removed or inserted, or the start was moved without an erasure.
        """
        with self._snapshot() as ask:
            return check_chain(ask, self._name, heads)

    def ageing(self, days: int | None = None) -> Ageing:
        """Say what the clock reads, whether it can be trusted, and how many records would be erased; erases nothing.

        Args:
            days: how long records are kept; by default what :meth:`erase` was last told.
        """
        with self._lock, self._mapped("read"):
            check_rows(self._rows, self._name)
            return self._ageing(read_ageing(self._rows, self._name).days if days is None else days)

    def trust_clock(self, *, from_now: bool = False) -> int:
        """Accept what the clock reads on a person's word, erase what is old by it as :meth:`erase` was last told, and
        return the number of records erased.

        Args:
            from_now: the time before was the wrong one: all records count as written now.

        Raises:
            GalleryError: the clock reads a time that can't be.
        """
        with self._writing():
            check_rows(self._rows, self._name)
            days = read_ageing(self._rows, self._name).days
            reading = clock.read_clock(self._db, None)
            clock.trust(self._db, reading, self._newest()[0], from_now=from_now)
            before, now = clock.as_text(reading.trusted), clock.as_text(reading.time)
            self._insert([(_now(), record_text("trust clock", before=before, now=now, from_now=int(from_now)))])
        return self.erase(days)

    def erase(self, days: int | None) -> int:
        """Erase records older than ``days``, bytes included; returns how many. The erasure itself becomes a record, in
        the same transaction. With ``None``, only finish what an earlier call could not.

        Raises:
            ClockError: nothing was erased, as the clock moved by more than is plausible since it was last read.
            GalleryError: nothing was erased; or the records are gone but their bytes are still in the file, which the
                next call mends.
        """
        count, state = 0, None
        with self._writing():
            check_rows(self._rows, self._name)
            self._db.execute("UPDATE ageing SET days = ?", (days,))
            if days is not None:
                clock.note(self._db, clock.read_clock(self._db, days), self._newest()[0])
                state = self._ageing(days)
                if state.reading.right:
                    count = self._erase_through(state.through, days)
        if state is not None and not state.reading.right:
            raise ClockError(
                f"no audit record is erased by age: {state.reading}; {state.due} would go. If the clock is right, "
                f"run reid gallery clock GALLERY --audit {self.file} --trust; if not, set it"
            )
        self._wipe(count)
        return count

    def _ageing(self, days: int | None) -> Ageing:
        reading = clock.read_clock(self._db, days)
        if days is None:
            return Ageing(reading, days, 0, 0)
        through = min(clock.covered(self._db, reading.time - days * clock.DAY), self._newest()[0])
        return Ageing(reading, days, through, max(0, through - self._base()[0]))

    def _erase_through(self, number: int, days: int) -> int:
        """Erase the records up to a number, inside a transaction; returns how many."""
        rows = self._db.execute("SELECT hash FROM audit WHERE number = ?", (number,)).fetchall()
        if not rows or number <= self._base()[0]:
            return 0
        if not isinstance(rows[0][0], str):
            raise self._damaged(number)
        count = self._db.execute("DELETE FROM audit WHERE number <= ?", (number,)).rowcount
        self._db.execute("UPDATE base SET number = ?, hash = ?", (number, rows[0][0]))
        self._db.execute("UPDATE ageing SET unwiped = 1")
        self._insert([(_now(), record_text(ERASURE, records=count, days=days, through=number, seal=rows[0][0]))])
        clock.prune(self._db, number + 1)
        return count

    def _wipe(self, count: int) -> None:
        """Rewrite the file if erased bytes may be in it, and note that this was done only once none is left."""
        with self._lock:
            try:
                if not read_ageing(self._rows, self._name).unwiped:
                    return
                vacuum(self._db, self.file.parent)
                if self._emptied():
                    self._db.execute("UPDATE ageing SET unwiped = 0")
                    return
                why = "another process keeps reading it"
            except sqlite3.Error as error:
                raise self._unwiped(count, str(error)) from error
        raise self._unwiped(count, why)

    def _emptied(self) -> bool:
        """Move the log of changes into the file; returns False if somebody reads what was there before."""
        (patience,) = self._db.execute("PRAGMA busy_timeout").fetchone()
        self._db.execute(f"PRAGMA busy_timeout={PATIENCE}")
        try:
            return not self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        finally:
            self._db.execute(f"PRAGMA busy_timeout={patience}")

    def _unwiped(self, count: int, why: str) -> GalleryError:
        return GalleryError(
            f"{count} old records of {self._name} are erased, but the file can't be rewritten: {why}; "
            "their bytes are still in it until the next erasure does it"
        )

    def close(self) -> None:
        """Write what was submitted and close the file."""
        self._incoming.put(None)
        self._writer.join()
        with self._lock:
            self._db.close()

    def _ask(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise GalleryError(f"{self._name} can't be read: {error}; restore a copy") from error

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        """Ask within whatever transaction and lock are held."""
        return self._db.execute(query, values).fetchall()

    @contextmanager
    def _snapshot(self) -> Iterator[Ask]:
        """Read one state throughout the block, while others go on writing and erasing."""
        with self._mapped("read"), closing(sqlite3.connect(self.file, timeout=30, isolation_level=None)) as other:
            keep_in_memory(other)
            other.execute("BEGIN")
            yield lambda query, values=(): other.execute(query, values).fetchall()

    def _work(self) -> None:
        """Write records as they arrive, all that are waiting in one transaction."""
        closing = False
        while not closing:
            items = [self._incoming.get()]
            while len(items) < TOGETHER and not self._incoming.empty():
                items.append(self._incoming.get())
            closing = None in items
            batch = [item for item in items if item is not None]
            try:
                numbers = self._append([(time, text) for time, text, _ in batch]) if batch else []
            except Exception as error:  # this thread must survive: without it no request is answered
                for _, _, answer in batch:
                    if answer.set_running_or_notify_cancel():  # the caller may have given up
                        answer.set_exception(self._unwritten(error))
                continue
            for number, (_, _, answer) in zip(numbers, batch, strict=True):
                if answer.set_running_or_notify_cancel():
                    answer.set_result(number)

    def _unwritten(self, error: Exception) -> GalleryError:
        if isinstance(error, GalleryError):
            return error
        return GalleryError(f"{self._name} can't be written: {error}; free space, or check permissions")

    def _append(self, records: list[tuple[str, str]]) -> list[int]:
        with self._lock, self._transaction():
            return self._insert(records)

    def _insert(self, records: list[tuple[str, str]]) -> list[int]:
        """Chain records to the newest, inside a transaction; returns their numbers. Raises GalleryError if they are not
        there afterwards.
        """
        number, before = self._newest()
        rows = []
        for time, text in records:
            number, before = number + 1, link(before, time, text)
            rows.append((number, time, text, before))
        self._db.executemany("INSERT INTO audit(number, time, what, hash) VALUES (?, ?, ?, ?)", rows)
        self._check_written(rows)
        days = read_ageing(self._rows, self._name).days
        clock.note(self._db, clock.read_clock(self._db, days), number)
        return [row[0] for row in rows]

    def _check_written(self, rows: list[tuple[int, str, str, str]]) -> None:
        """Raise GalleryError if the newest records are others: whoever can change the tables can have them drop some
        without a word.
        """
        there = self._rows(
            "SELECT number, time, what, hash FROM audit WHERE number >= ? ORDER BY number LIMIT ?",
            (rows[0][0], len(rows) + 1),
        )
        if there != rows:
            raise GalleryError(f"{self._name} does not keep what is written to it; compare with a copy")

    def _base(self) -> tuple[int, str]:
        return read_base(self._rows, self._name)

    def _newest(self) -> tuple[int, str]:
        rows = self._rows(_NEWEST)
        if not rows:
            return self._base()
        number, seal = rows[0]
        if not isinstance(seal, str):
            raise self._damaged(number)
        return number, seal

    def _damaged(self, number: int) -> GalleryError:
        return GalleryError(f"record {number} of {self._name} is damaged; restore a copy")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep everybody else from writing throughout the block."""
        with self._lock, self._mapped("changed"), self._transaction():
            yield

    @contextmanager
    def _mapped(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise GalleryError(f"{self._name} can't be {what}: {error}; try again") from error


def _now() -> str:
    return clock.as_text(clock.now(), "milliseconds")


def audit_log_of(gallery: Path) -> Path:
    """Default path of a service's audit log: beside the gallery's folder."""
    folder = gallery.absolute()
    return folder.with_name(f"{folder.name}.audit.db")


def open_existing(file: Path) -> AuditLog:
    """Open an audit log that must exist; a service may be writing to it. Raises GalleryError."""
    if not file.is_file():
        raise GalleryError(
            f"there is no audit log at {file}; reid serve creates one beside its gallery, or where --audit says"
        )
    return AuditLog(file)


def read_all(file: Path, heads: Sequence[KeptHead] = ()) -> list[dict[str, Any]]:
    """All records of an audit log, oldest first, after checking its chain, and ``heads`` that were kept elsewhere
    against it. Raises GalleryError.
    """
    audit_log = open_existing(file)
    try:
        count = audit_log.check(heads)
        return audit_log.read(0, count)
    finally:
        audit_log.close()
