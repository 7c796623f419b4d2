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
import json
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from deploy.service.audit_chain import ERASURE, Head, KeptHead, check_chain
from deploy.service.audit_tables import SCHEMA, prepare
from deploy.store import clock
from deploy.store.audit import link
from deploy.store.scratch import keep_in_memory, vacuum
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
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                file.touch(mode=0o600)
            self._db = sqlite3.connect(file, timeout=30, isolation_level=None, check_same_thread=False)
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "trusted_schema=OFF"):
                self._db.execute(f"PRAGMA {pragma}")
            keep_in_memory(self._db)
            known = prepare(self._db)
            if known and keep is not None:
                self._db.execute("UPDATE ageing SET days = ? WHERE days IS NOT ?", (keep, keep))
        except (sqlite3.Error, OSError) as error:
            raise GalleryError(
                f"the audit log {file} can't be opened: {error}; check its folder, or name another with --audit"
            ) from error
        if not known:
            self._db.close()
            raise GalleryError(f"{file} is not an audit log of schema 1 to {SCHEMA}; name another with --audit")
        self._writer = threading.Thread(target=self._work, name="audit log", daemon=True)
        self._writer.start()

    def submit(self, action: str, **what: str | int | None) -> Future[int]:
        """Add a record; the future gives its number once it is on disk, or GalleryError."""
        answer: Future[int] = Future()
        self._incoming.put((_now(), _text(action, **what), answer))
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
        return [{"number": number, "time": time, **_parsed(text), "hash": seal} for number, time, text, seal in rows]

    def head(self) -> Head:
        """The newest record's number and seal, or those that the chain starts with."""
        rows = self._ask(_NEWEST) or self._ask("SELECT number, hash FROM base")
        return Head(*rows[0])

    def check(self, heads: Sequence[KeptHead] = ()) -> int:
        """Count the records.

        Args:
            heads: heads that were kept elsewhere, which must still be in it unless they were erased by age.

        Raises:
            GalleryError: a record was changed, removed or inserted, or the start was moved without an erasure.
        """
        with self._snapshot() as ask:
            return check_chain(ask, f"the audit log {self.file}", heads)

    def ageing(self, days: int | None = None) -> Ageing:
        """Say what the clock reads, whether it can be trusted, and how many records would be erased; erases nothing.

        Args:
            days: how long records are kept; by default what :meth:`erase` was last told.
        """
        kept = self._ask("SELECT days FROM ageing")[0][0] if days is None else days
        with self._lock, self._mapped("read"):
            return self._ageing(kept)

    def trust_clock(self, *, from_now: bool = False) -> int:
        """Accept what the clock reads on a person's word, erase what is old by it as :meth:`erase` was last told, and
        return the number of records erased.

        Args:
            from_now: the time before was the wrong one: all records count as written now.

        Raises:
            GalleryError: the clock reads a time that can't be.
        """
        with self._writing():
            reading = clock.read_clock(self._db, None)
            clock.trust(self._db, reading, self._newest()[0], from_now=from_now)
            before, now = clock.as_text(reading.trusted), clock.as_text(reading.time)
            self._insert([(_now(), _text("trust clock", before=before, now=now, from_now=int(from_now)))])
        return self.erase(self._ask("SELECT days FROM ageing")[0][0])

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
        count = self._db.execute("DELETE FROM audit WHERE number <= ?", (number,)).rowcount
        self._db.execute("UPDATE base SET number = ?, hash = ?", (number, rows[0][0]))
        self._db.execute("UPDATE ageing SET unwiped = 1")
        self._insert([(_now(), _text(ERASURE, records=count, days=days, through=number, seal=rows[0][0]))])
        clock.prune(self._db, number + 1)
        return count

    def _wipe(self, count: int) -> None:
        """Rewrite the file if erased bytes may be in it, and note that this was done only once none is left."""
        with self._lock:
            try:
                if not self._db.execute("SELECT unwiped FROM ageing").fetchone()[0]:
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
            f"{count} old records of the audit log {self.file} are erased, but the file can't be rewritten: {why}; "
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
                raise GalleryError(f"the audit log {self.file} can't be read: {error}; restore a copy") from error

    @contextmanager
    def _snapshot(self) -> Iterator[Callable[..., list[Any]]]:
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
                        answer.set_exception(
                            GalleryError(
                                f"the audit log {self.file} can't be written: {error}; free space, or check permissions"
                            )
                        )
                continue
            for number, (_, _, answer) in zip(numbers, batch, strict=True):
                if answer.set_running_or_notify_cancel():
                    answer.set_result(number)

    def _append(self, records: list[tuple[str, str]]) -> list[int]:
        with self._lock, self._transaction():
            return self._insert(records)

    def _insert(self, records: list[tuple[str, str]]) -> list[int]:
        """Chain records to the newest, inside a transaction; returns their numbers."""
        number, before = self._newest()
        rows = []
        for time, text in records:
            number, before = number + 1, link(before, time, text)
            rows.append((number, time, text, before))
        self._db.executemany("INSERT INTO audit VALUES (?, ?, ?, ?)", rows)
        clock.note(
            self._db, clock.read_clock(self._db, self._db.execute("SELECT days FROM ageing").fetchone()[0]), number
        )
        return [row[0] for row in rows]

    def _base(self) -> tuple[int, str]:
        number, seal = self._db.execute("SELECT number, hash FROM base").fetchone()
        return number, seal

    def _newest(self) -> tuple[int, str]:
        row = self._db.execute(_NEWEST).fetchone()
        return (row[0], row[1]) if row else self._base()

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
            raise GalleryError(f"the audit log {self.file} can't be {what}: {error}; try again") from error


def _now() -> str:
    return clock.as_text(clock.now(), "milliseconds")


def _text(action: str, **what: str | int | None) -> str:
    return json.dumps({"action": action, **what}, sort_keys=True, ensure_ascii=False)


def _parsed(text: str) -> dict[str, Any]:
    """Read a record's content; one that was tampered with is ``unreadable``, and :meth:`AuditLog.check` says which."""
    try:
        content = json.loads(text)
    except (TypeError, ValueError):
        content = None
    return content if isinstance(content, dict) else {"action": "unreadable"}


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
