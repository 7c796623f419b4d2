"""One open SQLite file: its transactions, its locks, and errors that say what to do."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from deploy.store.seal import seal_holds, write_seal
from domains.errors import GalleryError

TRY_SECONDS = 0.02
"""How long a writer waits for another before it lets this process's readers run in between."""


class Connection:
    """A connection whose methods may be called from any thread, one at a time; SQLite's errors become
    GalleryErrors that name the file.
    """

    _db: sqlite3.Connection

    def __init__(self, file: Path, busy_seconds: float) -> None:
        """Set the file; :meth:`_connect` opens it."""
        self.file = file
        self._busy_seconds = busy_seconds
        self._lock = threading.RLock()
        self._sealed = False
        """Whether the seal must hold before anything is changed: corruption must not be sealed along with the change.
        """

    def _connect(self) -> None:
        self._db = self._new_connection()

    def _new_connection(self) -> sqlite3.Connection:
        uri = f"{self.file.absolute().as_uri()}?mode=rw"
        db = sqlite3.connect(uri, uri=True, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False)
        db.text_factory = _text
        return db

    def close(self) -> None:
        """Close the file; the log is merged into it if nobody else has it open."""
        with self._guarded():
            self._db.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read one consistent state throughout the block."""
        with self._transaction("BEGIN"):
            yield

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep all other processes from changing the gallery while the block runs. Raises GalleryError if its facts or
        rules are corrupted.
        """
        with self._transaction("BEGIN IMMEDIATE"):
            if self._sealed and not seal_holds(self._db):
                raise GalleryError(
                    f"{self.file}: its facts or rules are corrupted; restore a backup, or try reid gallery verify "
                    "--repair"
                )
            before = self._db.total_changes
            yield
            if self._db.total_changes != before:
                write_seal(self._db)

    def ask(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return a query's rows, within whatever transaction is open."""
        with self._guarded():
            return self._db.execute(query, values).fetchall()

    def change(self, statement: str, rows: Iterable[Sequence[Any]] = ((),)) -> None:
        """Run a statement for each row, inside a :meth:`holding` block; callers that affect search results must also
        call :meth:`changed`.
        """
        with self._guarded():
            self._db.executemany(statement, rows)

    def rewrite(self) -> bool:
        """Rewrite every page and empty the log; returns False if another process kept reading, so that the log could
        not be emptied.

        The slow part uses a separate connection, so that readers need not wait; the log is truncated under this one's
        lock. It needs as much free space as the file takes; if the disk is too full, nothing is lost.
        """
        with self._mapped("the file could not be rewritten"), closing(self._new_connection()) as other:
            configure(other)
            other.execute("VACUUM")
            other.execute("PRAGMA wal_checkpoint(PASSIVE)")
        with self._guarded():
            return not self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]

    def rebuild(self) -> None:
        """Rebuild the database's own indices, and rewrite its pages in order."""
        with self._guarded():
            self._db.execute("REINDEX")
            self._db.execute("VACUUM")

    def copy(self, file: Path) -> None:
        """Write the current state to a new file while others read and write."""
        with self._guarded():
            target = sqlite3.connect(file, isolation_level=None)
            try:
                self._db.backup(target)
                configure(target)
            finally:
                target.close()

    def _row(self, query: str, values: Sequence[Any] = ()) -> Any:
        with self._guarded():
            row = self._db.execute(query, values).fetchone()
        if row is None:
            raise GalleryError(f"{self.file} is damaged: its facts are missing; restore a backup")
        return row

    def _pragma(self, name: str) -> Any:
        return self._db.execute(f"PRAGMA {name}").fetchone()[0]

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        with self._started(begin):
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _started(self, begin: str) -> Iterator[None]:
        """Start a transaction and hold the lock; while another process or connection writes, the lock is repeatedly
        released to let readers in.
        """
        deadline = time.monotonic() + self._busy_seconds
        with self._mapped():
            while True:
                with self._lock:
                    if self._start(begin, last=time.monotonic() > deadline):
                        yield
                        return
                time.sleep(TRY_SECONDS)

    def _start(self, begin: str, *, last: bool) -> bool:
        """Try to start a transaction; returns False if another one is writing and there is time to try again."""
        if begin == "BEGIN":  # never has to wait
            self._db.execute(begin)
            return True
        self._db.execute(f"PRAGMA busy_timeout={round(1000 * TRY_SECONDS)}")
        try:
            self._db.execute(begin)
        except sqlite3.OperationalError as error:
            if last or not getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                raise
            return False
        finally:
            self._db.execute(f"PRAGMA busy_timeout={round(1000 * self._busy_seconds)}")
        return True

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        with self._mapped(), self._lock:
            yield

    @contextmanager
    def _mapped(self, outcome: str = "nothing was changed") -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise GalleryError(f"{self.file}: {reason(error, self._busy_seconds, outcome)}") from error
        except UnicodeDecodeError as error:  # in the text of SQLite's own messages
            raise GalleryError(f"{self.file}: the database is damaged; restore a backup") from error


def _text(data: bytes) -> str:
    """Decode a column's text; bytes that corruption made invalid as UTF-8 are passed through, to be caught by their
    row's checksum.
    """
    return data.decode("utf-8", "surrogateescape")


def configure(db: sqlite3.Connection) -> None:
    """Make a connection to a gallery durable, have it erase what is deleted, and distrust a damaged file."""
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "cache_size=-16384",
        "secure_delete=ON",
        "foreign_keys=ON",
        "cell_size_check=ON",
        "trusted_schema=OFF",
    ):
        db.execute(f"PRAGMA {pragma}")


def reason(error: sqlite3.Error, busy_seconds: float, kept: str = "nothing was changed") -> str:
    """Explain an error in one sentence: what was wrong, what became of the work, and what to do."""
    name = getattr(error, "sqlite_errorname", "")
    reasons = {
        "SQLITE_BUSY": f"another process has been writing for over {busy_seconds:.0f} s; try again",
        "SQLITE_LOCKED": f"another process has been writing for over {busy_seconds:.0f} s; try again",
        "SQLITE_FULL": f"the disk is full and {kept}; make room and try again",
        "SQLITE_CORRUPT": "the database is damaged; restore a backup",
        "SQLITE_NOTADB": "this is not a gallery database",
        "SQLITE_CANTOPEN": "can't be opened; check that it exists and that you may read and write it",
        "SQLITE_READONLY": "can't be written; check the permissions of the gallery's folder",
        "SQLITE_IOERR": f"the disk failed ({name}); {kept}",
    }
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
        return "the gallery is closed; open it again"
    for prefix, text in reasons.items():
        if name == prefix or name.startswith(f"{prefix}_"):
            return text
    return f"{error}; the database is damaged or is not a gallery"
