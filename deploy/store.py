"""The durable half of a gallery: one SQLite file that holds every embedding with its origin.

Write-ahead log with ``synchronous=FULL``: what was acknowledged survives a power cut, and a killed process leaves the state before its transaction or
after it. Locks are the operating system's, so that those of a dead process are gone with it.

A gallery has been in one or more *feature spaces*, numbered from 1; one is the present one. An entry's own vector lies in the space ``entry.space``;
in any other its vector, carried there by a transport, is a row of ``carried``. So a gallery changes its space by changing one number.

Every change draws a new ``token`` in its own transaction. A cache that carries the token of the present state was made from this state and from no
other, not even from one of an earlier backup with the same number of changes.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.entry import Entry
from deploy.schema import APPLICATION, SCHEMA, SCHEMA_1, SINCE_2
from domains.errors import GalleryError

BUSY_SECONDS = 60.0
CHUNK = 4096

_ORIGIN = "id, camera, source, time, utc, label"
_ROW = "e.vector, e.checksum, e.id, e.camera, e.source, e.time, e.utc, e.label, e.space, c.vector, c.checksum"
_PRESENT = "entry e LEFT JOIN carried c ON c.space = (SELECT space FROM gallery) AND c.id = e.id"
"""Every entry with its vector in the present space, if that is not its own."""


class State(NamedTuple):
    """Which version of the gallery this is.

    Attributes:
        generation: number of changes so far.
        token: random name of this very state.
        erasures: number of changes that removed something; between two states with the same number, entries were only appended.
    """

    generation: int
    token: str
    erasures: int


class Facts(NamedTuple):
    """Length and feature space of the present vectors, the bundle that gives such, and the space's number."""

    dim: int
    feature_space: str
    bundle: str | None
    space: int = 1


class Columns(NamedTuple):
    """What filters need of every entry: ids int64, cameras, and times in microseconds since 1970 UTC (``None`` where unknown), ids ascending."""

    ids: NDArray[np.int64]
    cameras: list[str]
    utc: list[int | None]


class Store:
    """One open SQLite file; its methods may be called from any thread, one at a time."""

    def __init__(self, file: Path) -> None:
        """Open an existing file; raises GalleryError if it is no gallery, damaged, or of a newer version."""
        self.file = file
        self._lock = threading.RLock()
        with self._guarded():
            uri = f"{file.absolute().as_uri()}?mode=rw"
            self._db = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                if self._pragma("application_id") != APPLICATION:
                    raise GalleryError(f"{file} is not a gallery's database")
                if self._pragma("user_version") not in range(1, SCHEMA + 1):
                    raise GalleryError(
                        f"{file} has schema {self._pragma('user_version')}; this version reads 1 to {SCHEMA}. Install a matching lifelong-reid"
                    )
                _configure(self._db)
                self._migrate()
                _ = self.facts
            except BaseException:
                self._db.close()
                raise

    @property
    def facts(self) -> Facts:
        """The present facts: another process may have changed the space."""
        row = self._one("SELECT dim, feature_space, bundle, space FROM gallery")
        if not isinstance(row[0], int) or row[0] < 1 or not isinstance(row[1], str) or not isinstance(row[3], int):
            raise GalleryError(f"{self.file} does not say what it holds; restore a backup")
        return Facts(*row)

    def _migrate(self) -> None:
        """Bring an older gallery up to date, in one transaction; no vector is moved."""
        if self._pragma("user_version") == SCHEMA:
            return
        with self.holding():
            if self._pragma("user_version") < SCHEMA:  # nobody else did it meanwhile
                for statement in SINCE_2.format(now=_now()).split(";"):
                    self._db.execute(statement)

    @staticmethod
    def create(file: Path, facts: Facts) -> None:
        """Write an empty gallery's file, durably, and close it; raises GalleryError if the disk is full or fails."""
        try:
            with closing(sqlite3.connect(file, isolation_level=None)) as db:
                db.execute(f"PRAGMA application_id={APPLICATION}")
                _configure(db)
                db.executescript(SCHEMA_1)
                db.execute("INSERT INTO gallery VALUES (1, ?, ?, ?, 0, 0, ?, 0, 0)", (*facts[:3], secrets.token_hex(8)))
                db.executescript(SINCE_2.format(now=_now()))
        except sqlite3.Error as error:
            raise GalleryError(f"can't make {file}: {_reason(error)}") from error

    def close(self) -> None:
        """Close the file; the log is folded into it if nobody else has it open."""
        with self._guarded():
            self._db.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Everything read in the block belongs to one state."""
        with self._transaction("BEGIN"):
            yield

    @contextmanager
    def holding(self) -> Iterator[None]:
        """No process can change the gallery while the block runs."""
        with self._transaction("BEGIN IMMEDIATE"):
            yield

    def state(self) -> State:
        """The present state."""
        return State(*self._one("SELECT generation, token, erasures FROM gallery"))

    def count(self) -> int:
        """Number of entries."""
        return int(self._one("SELECT entries FROM gallery")[0])

    def ask(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Rows of a query, within whatever transaction is open."""
        with self._guarded():
            return self._db.execute(query, values).fetchall()

    def change(self, statement: str, rows: Iterable[Sequence[Any]] = ((),)) -> None:
        """Run a statement for each row, inside a :meth:`holding` block; whoever changes what a search finds also calls :meth:`changed`."""
        with self._guarded():
            self._db.executemany(statement, rows)

    def append(self, vectors: NDArray[np.float16], entries: Sequence[Entry], space: str | None = None) -> list[int]:
        """Add vectors ``[N, D]`` with their origins in one transaction; returns their ids once they are on disk.

        Args:
            vectors: of the present space.
            entries: their origins.
            space: name of the space that they are in, if it is known; raises GalleryError if it is no longer the present one.
        """
        with self.holding():
            facts = self.facts
            if (space is not None and space != facts.feature_space) or vectors.shape[1] != facts.dim:
                raise GalleryError(f"the gallery {self.file.parent} was upgraded meanwhile; embed with its new bundle {facts.bundle or ''}")
            row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entry'").fetchone()
            first = (row[0] if row else 0) + 1
            rows = []
            for number, (vector, entry) in enumerate(zip(vectors, entries, strict=True), first):
                origin = (number, entry.camera, entry.source, entry.time, entry.utc, entry.label)
                blob = vector.tobytes()
                rows.append((blob, checksum(blob, origin), *origin))
            columns, added = f"vector, checksum, {_ORIGIN}, space, origin, added", _now()
            self._db.executemany(
                f"INSERT INTO entry({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - a constant
                ((*made, facts.space, facts.space, added) for made in rows),
            )
            if rows:
                self.changed(added=len(rows))
        return list(range(first, first + len(entries)))

    def remove(self, ids: Iterable[int]) -> int:
        """Delete entries inside a :meth:`holding` block; returns how many there were. Their bytes are gone only after :meth:`wipe`."""
        numbers = [(number,) for number in ids]
        before = self._db.total_changes
        self._db.executemany("DELETE FROM entry WHERE id = ?", numbers)
        removed = self._db.total_changes - before
        self._db.executemany("DELETE FROM carried WHERE id = ? AND space IN (SELECT number FROM space)", numbers)
        if removed:
            self.changed(removed=removed)
        return removed

    def unwiped(self) -> bool:
        """Whether something was removed whose bytes may still be in the file, because the process that removed it was stopped."""
        return bool(self._one("SELECT unwiped FROM gallery")[0])

    def wipe(self) -> bool:
        """Rewrite the file so that nothing removed is left in it, and empty its log.

        ``secure_delete`` alone is not enough: where SQLite moves rows between pages it leaves copies in the free part of a page, which a later
        delete does not find. Only a rewrite (``VACUUM``) is certain; it takes time in proportion to the gallery.

        Returns:
            False if another process was reading all the time, so that the log could not be emptied.
        """
        with self._guarded():
            erasures = self.state().erasures
            self._db.execute("VACUUM")
            if self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                return False
            self._db.execute("UPDATE gallery SET unwiped = 0 WHERE erasures = ?", (erasures,))
            return True

    def copy(self, file: Path) -> None:
        """Write the present state into a new file, while others read and write."""
        with self._guarded():
            target = sqlite3.connect(file, isolation_level=None)
            try:
                self._db.backup(target)
                _configure(target)
            finally:
                target.close()

    def columns(self, after: int = 0) -> Columns:
        """What filters need of every entry with an id above ``after``; raises GalleryError if entries are damaged or missing."""
        with self._guarded():
            rows = self._db.execute("SELECT id, camera, utc FROM entry WHERE id > ? ORDER BY id", (after,)).fetchall()
        for number, camera, utc in rows:
            if not isinstance(camera, str) or not (utc is None or isinstance(utc, int)):
                raise self._damaged(number)
        if not after and len(rows) != self.count():
            raise GalleryError(f"{self.file} holds {len(rows)} entries, but should hold {self.count()}: it is damaged; restore a backup")
        return Columns(np.array([row[0] for row in rows], np.int64), [row[1] for row in rows], [row[2] for row in rows])

    def vectors(self, after: int = 0) -> Iterator[NDArray[np.float16]]:
        """Stored vectors ``[n, D]`` of entries with an id above ``after``, by id, in parts; raises GalleryError on a damaged entry."""
        facts = self.facts
        with self._guarded():
            cursor = self._db.execute(f"SELECT {_ROW} FROM {_PRESENT} WHERE e.id > ? ORDER BY e.id", (after,))  # noqa: S608 - a constant
        while True:
            with self._guarded():
                rows = cursor.fetchmany(CHUNK)
            if not rows:
                return
            yield np.frombuffer(b"".join(self._checked(row, facts)[0] for row in rows), np.float16).reshape(-1, facts.dim)

    def entries(self, ids: Sequence[int]) -> dict[int, Entry]:
        """Origins of the given entries; raises GalleryError if one is damaged, so that no answer names a wrong camera or time."""
        found: dict[int, Entry] = {}
        facts = self.facts
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            query = f"SELECT {_ROW} FROM {_PRESENT} WHERE e.id IN ({','.join('?' * len(part))})"  # noqa: S608 - only question marks are put in
            with self._guarded():
                rows = self._db.execute(query, part).fetchall()
            found.update({row[2]: self._checked(row, facts)[1] for row in rows})
        for number in ids:
            if number not in found:
                raise self._damaged(number)
        return found

    def holds(self, entry: Entry) -> bool:
        """Whether there is an entry of the same source, camera and time."""
        query = "SELECT EXISTS (SELECT 1 FROM entry WHERE source = ? AND camera = ? AND utc IS ?)"
        return bool(self._one(query, (entry.source, entry.camera, entry.utc))[0])

    def spaces(self) -> list[dict[str, Any]]:
        """Feature spaces that the gallery has been in, with how many entries were embedded in each."""
        embedded = dict(self.ask("SELECT origin, count(*) FROM entry GROUP BY origin"))
        present = self.facts.space
        rows = self.ask("SELECT number, feature_space, bundle, source FROM space WHERE ready = 1 ORDER BY number")
        return [
            {"feature_space": name, "bundle": bundle, "embedded": embedded.get(number, 0), "present": number == present}
            for number, name, bundle, _ in rows
        ]

    def summary(self) -> Mapping[str, Any]:
        """Counts by camera, labelled entries, and the first and last time as they were given."""
        with self._guarded():
            cameras = self._db.execute("SELECT camera, count(*) FROM entry GROUP BY camera ORDER BY camera").fetchall()
        ends = [self._one(f"SELECT {end}(utc), time FROM entry")[1] for end in ("min", "max")]  # noqa: S608 - a constant
        labelled = self._one("SELECT count(label) FROM entry")[0]
        return {"cameras": dict(cameras), "labelled": labelled, "first": ends[0], "last": ends[1]}

    def check(self) -> None:
        """Check SQLite's own structure and every entry; raises GalleryError naming what is damaged."""
        with self._guarded():
            found = self._one("PRAGMA integrity_check(3)")[0]
        if found != "ok":
            raise GalleryError(f"{self.file} is damaged ({str(found).splitlines()[-1]:.150}); restore a backup")
        for vectors in self.vectors():
            lengths = np.linalg.norm(vectors.astype(np.float32), axis=1)
            if not (np.abs(lengths - 1) < 0.01).all():
                raise GalleryError(f"{self.file} holds a vector that is not of unit length; restore a backup")

    def changed(self, *, added: int = 0, removed: int = 0, moved: bool = False) -> None:
        """Name the new state; ``moved``: every vector is another, but nothing is to be wiped."""
        self._db.execute(
            "UPDATE gallery SET generation = generation + 1, token = ?, entries = entries + ?, erasures = erasures + ?, unwiped = max(unwiped, ?)",
            (secrets.token_hex(8), added - removed, int(removed > 0 or moved), int(removed > 0)),
        )

    def _checked(self, row: Sequence[Any], facts: Facts) -> tuple[bytes, Entry]:
        """Vector in the present space and origin of a row; raises GalleryError if any of its bytes changed."""
        own, expected, number, camera, source, time, _, label, space, carried, carried_checksum = row
        if not isinstance(own, bytes) or checksum(own, row[2:8]) != expected:
            raise self._damaged(number)
        blob = own
        if space != facts.space:
            if not isinstance(carried, bytes) or checksum(carried, (facts.space, number)) != carried_checksum:
                raise self._damaged(number)
            blob = carried
        if len(blob) != 2 * facts.dim:
            raise self._damaged(number)
        return blob, Entry(camera, source, time, label)

    def _damaged(self, number: int) -> GalleryError:
        return GalleryError(f"entry {number} of {self.file} is damaged; restore a backup, or give it up with reid gallery forget … {number}")

    def _one(self, query: str, values: Sequence[Any] = ()) -> Any:
        with self._guarded():
            row = self._db.execute(query, values).fetchone()
        if row is None:
            raise GalleryError(f"{self.file} does not say what it holds: it is damaged; restore a backup")
        return row

    def _pragma(self, name: str) -> Any:
        return self._db.execute(f"PRAGMA {name}").fetchone()[0]

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        with self._guarded():
            self._db.execute(begin)
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except sqlite3.Error as error:
            raise GalleryError(f"{self.file}: {_reason(error)}") from error
        except UnicodeDecodeError as error:  # in the text of SQLite's own messages
            raise GalleryError(f"{self.file}: the database is damaged; restore a backup") from error


def checksum(vector: bytes, origin: Iterable[str | int | None]) -> int:
    """CRC-32 of a stored vector and its origin: SQLite's pages have none, and a flipped bit must not turn into another person."""
    return zlib.crc32("\0".join("\1" if value is None else str(value) for value in origin).encode(), zlib.crc32(vector))


def _now() -> int:
    """Microseconds since 1970 UTC."""
    return int(datetime.now(UTC).timestamp() * 1e6)


def _configure(db: sqlite3.Connection) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "foreign_keys=ON", "cell_size_check=ON", "trusted_schema=OFF"):
        db.execute(f"PRAGMA {pragma}")


def _reason(error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", "")
    reasons = {
        "SQLITE_BUSY": f"another process has been writing for over {BUSY_SECONDS:.0f} s; try again",
        "SQLITE_LOCKED": f"another process has been writing for over {BUSY_SECONDS:.0f} s; try again",
        "SQLITE_FULL": "the disk is full; nothing was changed, make room and try again",
        "SQLITE_CORRUPT": "the database is damaged; restore a backup",
        "SQLITE_NOTADB": "this is not a gallery's database",
        "SQLITE_CANTOPEN": "can't be opened; does it exist, and may you read and write it?",
        "SQLITE_READONLY": "can't be written; check the permissions of the gallery's folder",
        "SQLITE_IOERR": f"the disk failed ({name}); nothing was changed",
    }
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
        return "the gallery is closed; open it again"
    for prefix, reason in reasons.items():
        if name == prefix or name.startswith(f"{prefix}_"):
            return reason
    return f"{error}; the database is damaged or not a gallery's"
