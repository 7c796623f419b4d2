"""The audit log of a service: who asked what, when and why, each record sealed by a hash over all before it.

It is a separate database beside the gallery, chained like the gallery's own log, because every query writes to it.
Records hold the token's name, the stated reason and counts; no image, no vector, no label, no source. An answer is sent
only after its record is on disk. Records that arrive together share one transaction, so that many callers do not wait
for one disk write each.

Old records are erased by age: the seal of the last one erased is kept, and the chain continues from it.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import threading
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from deploy.store.audit import START, link
from domains.errors import GalleryError

APPLICATION = 0x52654155
"""``ReAU`` in the file's header."""
SCHEMA = 1
TOGETHER = 256
"""Maximum number of records per transaction."""

_TABLES = f"""
CREATE TABLE audit(
  number INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, what TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TABLE base(one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, hash TEXT NOT NULL);
INSERT INTO base VALUES (1, 0, '{START}');
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {SCHEMA};
"""  # noqa: S608 - constants


class Head(NamedTuple):
    """The newest record's number and seal. Stored elsewhere, it shows later whether the newest records were removed."""

    number: int
    hash: str


class AuditLog:
    """One open audit log; its methods may be called from any thread."""

    def __init__(self, file: Path) -> None:
        """Open or create it; raises GalleryError."""
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
            if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                self._db.executescript(f"BEGIN IMMEDIATE;{_TABLES}COMMIT;")
            header = tuple(
                self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
        except (sqlite3.Error, OSError) as error:
            raise GalleryError(
                f"the audit log {file} can't be opened: {error}; check its folder, or name another with --audit"
            ) from error
        if header != (APPLICATION, SCHEMA):
            self._db.close()
            raise GalleryError(f"{file} is not an audit log of schema {SCHEMA}; name another with --audit")
        self._writer = threading.Thread(target=self._work, name="audit log", daemon=True)
        self._writer.start()

    def submit(self, action: str, **what: str | int | None) -> Future[int]:
        """Add a record; the future gives its number once it is on disk, or GalleryError."""
        answer: Future[int] = Future()
        self._incoming.put((datetime.now(UTC).isoformat(timespec="milliseconds"), _text(action, **what), answer))
        return answer

    async def write(self, action: str, **what: str | int | None) -> int:
        """Add a record and wait until it is on disk."""
        return await asyncio.wrap_future(self.submit(action, **what))

    def read(self, after: int = 0, limit: int = 100) -> list[dict[str, Any]]:
        """Records with a number above ``after``, oldest first."""
        rows = self._ask(
            "SELECT number, time, what, hash FROM audit WHERE number > ? ORDER BY number LIMIT ?", (after, limit)
        )
        return [{"number": number, "time": time, **_parsed(text), "hash": seal} for number, time, text, seal in rows]

    def head(self) -> Head:
        """The newest record's number and seal, or those that the chain starts with."""
        rows = self._ask("SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1") or self._ask(
            "SELECT number, hash FROM base"
        )
        return Head(*rows[0])

    def check(self) -> int:
        """Count the records; raises GalleryError if one was changed, removed or inserted."""
        (position, before), count = self._ask("SELECT number, hash FROM base")[0], 0
        while rows := self._ask(
            "SELECT number, time, what, hash FROM audit WHERE number > ? ORDER BY number LIMIT 4096", (position,)
        ):
            for number, time, text, seal in rows:
                position += 1
                if number != position or seal != link(before, time, text):
                    raise GalleryError(
                        f"record {position} of the audit log {self.file} was changed or is missing; compare with a copy"
                    )
                before = seal
            count += len(rows)
        newest = self._ask("SELECT coalesce(max(number), 0) FROM audit")[0][0]
        if count and newest != position:
            raise GalleryError(f"record {position + 1} of the audit log {self.file} is missing; compare with a copy")
        return count

    def erase(self, days: int) -> int:
        """Erase records older than ``days``, bytes included; returns how many. The erasure itself becomes a record, in
        the same transaction.

        Raises:
            GalleryError: nothing was erased; or the records are gone but the file could not be rewritten, which the
                next call does.
        """
        now = datetime.now(UTC)
        limit = (now - timedelta(days=days)).isoformat(timespec="milliseconds")
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    last = self._db.execute(
                        "SELECT number, hash FROM audit WHERE time < ? ORDER BY number DESC LIMIT 1", (limit,)
                    ).fetchone()
                    count = self._db.execute("DELETE FROM audit WHERE number <= ?", (last[0],)).rowcount if last else 0
                    if last:
                        self._db.execute("UPDATE base SET number = ?, hash = ?", last)
                        self._insert(
                            [(now.isoformat(timespec="milliseconds"), _text("erase audit", records=count, days=days))]
                        )
                    self._db.execute("COMMIT")
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise GalleryError(
                    f"old records of the audit log {self.file} can't be erased: {error}; try again"
                ) from error
            try:
                if self._db.execute("PRAGMA freelist_count").fetchone()[0] or count:  # or an earlier erasure left pages
                    self._db.execute("VACUUM")
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.Error as error:
                raise GalleryError(
                    f"{count} old records of the audit log {self.file} are erased, but the file can't be rewritten: "
                    f"{error}; the next erasure will do it"
                ) from error
        return count

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
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                numbers = self._insert(records)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        return numbers

    def _insert(self, records: list[tuple[str, str]]) -> list[int]:
        """Chain records to the newest, inside a transaction; returns their numbers."""
        last = self._db.execute("SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1").fetchone()
        number, before = last or self._db.execute("SELECT number, hash FROM base").fetchone()
        rows = []
        for time, text in records:
            number, before = number + 1, link(before, time, text)
            rows.append((number, time, text, before))
        self._db.executemany("INSERT INTO audit VALUES (?, ?, ?, ?)", rows)
        return [row[0] for row in rows]


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


def read_all(file: Path) -> list[dict[str, Any]]:
    """All records of an audit log, oldest first, after checking its chain; a service may be writing to it. Raises
    GalleryError.
    """
    if not file.is_file():
        raise GalleryError(
            f"there is no audit log at {file}; reid serve creates one beside its gallery, or where --audit says"
        )
    audit_log = AuditLog(file)
    try:
        count = audit_log.check()
        return audit_log.read(0, count)
    finally:
        audit_log.close()
