"""One open SQLite file: its transactions, its locks, and errors that say what to do."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

from deploy.store.access import READ_ONLY, Still, may_write, still_of
from deploy.store.memory import NO_MEMORY
from deploy.store.scratch import keep_in_memory, vacuum
from deploy.store.seal import seal_holds, write_seal
from domains.errors import GalleryError
from domains.forking import Opened, abandon

TRY_SECONDS = 0.02
"""How long a writer waits for another before it lets this process's readers run in between."""


HOW_TO_FORK = (
    'start processes with "spawn" or "forkserver" and open it in each, or close it before the fork and open it after'
)

_inherited: set[tuple[int, int]] = set()
"""Device and inode of each file that was open when this process was forked from another. SQLite counts the locks of its
process by inode and in the child goes by the parent's count: a new connection to the file would take no lock at all.
"""


class Inherited:
    """Stands for a connection that another process opened and a fork copied; it can't be used, nor closed."""

    def __init__(self, file: Path) -> None:
        """Set the database, for the message."""
        self._file = file

    def close(self) -> None:
        """Do nothing: the file is open in the other process."""

    def __getattr__(self, name: str) -> NoReturn:
        """Raise GalleryError, whatever is asked for."""
        raise GalleryError(
            f"{self._file.parent} was opened in another process, which this one was forked from; {HOW_TO_FORK}"
        )


class Connection(Opened):
    """A connection whose methods may be called from any thread, one at a time; SQLite's errors become
    GalleryErrors that name the file.

    It belongs to the process that opened it: in one forked from that, every method raises GalleryError, except
    :meth:`close`, which does nothing, and the file can't be opened again if it was open at the fork.
    """

    _db: sqlite3.Connection

    def __init__(self, file: Path, busy_seconds: float, *, read_only: bool = False) -> None:
        """Set the file; :meth:`_connect` opens it, only for reading if that is asked for or all that is possible."""
        self.file = file
        self.read_only = read_only or not may_write(file)
        """Whether nothing can be changed."""
        self._busy_seconds = busy_seconds
        self._still: Still | None = None
        """What a file that nobody else had open looked like when it was opened for reading alone."""
        self._lock = threading.RLock()
        self._inode: tuple[int, int] | None = None
        self._sealed = False
        """Whether the seal must hold before anything is changed: corruption must not be sealed along with the change.
        """

    def _connect(self) -> None:
        self._still = still_of(self.file) if self.read_only else None
        try:
            found = self.file.stat()
        except OSError:
            pass  # SQLite says what is wrong with it
        else:
            self._inode = found.st_dev, found.st_ino
        if self._inode in _inherited:
            raise GalleryError(
                f"{self.file.parent} was open in the process that this one was forked from when it was forked, so "
                f"SQLite's locks on it would not hold here; {HOW_TO_FORK}"
            )
        self._db = self._new_connection()
        self._belongs_here()

    def _after_fork(self) -> None:
        try:
            _ = self._db.total_changes
        except sqlite3.ProgrammingError:  # it was closed before the fork
            return
        abandon(self._db)
        if self._inode is not None:
            _inherited.add(self._inode)
        self._db = cast(sqlite3.Connection, Inherited(self.file))
        self._lock = threading.RLock()  # a thread that held it is not here to release it

    @property
    def is_inherited(self) -> bool:
        """Whether it was opened in another process, which this one was forked from."""
        return isinstance(self._db, Inherited)

    def _new_connection(self) -> sqlite3.Connection:
        how = "mode=rw" if not self.read_only else "mode=ro" if self._still is None else "mode=ro&immutable=1"
        uri = f"{self.file.absolute().as_uri()}?{how}"
        db = sqlite3.connect(uri, uri=True, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False)
        db.text_factory = _text
        return db

    def close(self) -> None:
        """Close the file; the log is merged into it if nobody else has it open."""
        with self._mapped(), self._lock:
            self._db.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read one consistent state throughout the block."""
        with self._transaction("BEGIN"):
            yield

    @contextmanager
    def holding(self, *, wait: float | None = None) -> Iterator[None]:
        """Keep all other processes from changing the gallery while the block runs.

        Args:
            wait: seconds to wait for another process that is writing; by default as long as for any lock.

        Raises:
            GalleryError: its facts or rules are corrupted, or it can't be written.
        """
        self.check_writable()
        with self._transaction("BEGIN IMMEDIATE", wait):
            if self._sealed and not seal_holds(self._db):
                raise self._corrupted()
            before = self._db.total_changes
            yield
            if self._db.total_changes != before:
                write_seal(self._db)

    def _corrupted(self, what: str = "") -> GalleryError:
        where = f" ({what})" if what else ""
        return GalleryError(
            f"{self.file}: its facts or rules are corrupted{where}; restore a backup, or try reid gallery verify "
            "--repair"
        )

    def check_writable(self) -> None:
        """Raise GalleryError if nothing can be changed."""
        if self.read_only:
            raise GalleryError(f"{self.file.parent} {READ_ONLY}")

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
        lock. It needs up to twice as much free space in the file's folder as the file takes; if the disk is too full,
        nothing is lost.
        """
        self.check_writable()
        size = self.file.stat().st_size if self.file.exists() else 0
        outcome = (
            f"the file could not be rewritten, for which its folder needs up to {2 * size // 2**20 + 1} MiB of free "
            "space for a while"
        )
        with self._mapped(outcome), closing(self._new_connection()) as other:
            configure(other)
            vacuum(other, self.file.parent)
            other.execute("PRAGMA wal_checkpoint(PASSIVE)")
        deadline = time.monotonic() + self._busy_seconds
        while not self._emptied():  # somebody reads, or empties it at the same time
            if time.monotonic() > deadline:
                return False
            time.sleep(TRY_SECONDS)
        return True

    def _emptied(self) -> bool:
        """Try to merge the log into the file and empty it, without making this process's readers wait."""
        with self._guarded(), self._impatient():
            return not self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]

    def rebuild(self) -> None:
        """Rebuild the database's own indices, and rewrite its pages in order."""
        self.check_writable()
        with self._guarded():
            self._db.execute("REINDEX")
            vacuum(self._db, self.file.parent)

    def copy(self, file: Path) -> None:
        """Write the current state to a new file while others read and write."""
        with self._guarded():
            target = sqlite3.connect(file, isolation_level=None)
            try:
                keep_in_memory(target)
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
    def _transaction(self, begin: str, wait: float | None = None) -> Iterator[None]:
        with self._started(begin, self._busy_seconds if wait is None else wait):
            try:
                yield
                self._db.execute("COMMIT")
                self._check_still()
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _started(self, begin: str, wait: float) -> Iterator[None]:
        """Start a transaction and hold the lock; while another process or connection writes, for up to ``wait``
        seconds, the lock is repeatedly released to let readers in.
        """
        deadline = time.monotonic() + wait
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
            self._follow()
            self._db.execute(begin)
            return True
        try:
            with self._impatient():
                self._db.execute(begin)
        except sqlite3.OperationalError as error:
            if last or not is_busy(error):
                raise
            return False
        return True

    @contextmanager
    def _impatient(self) -> Iterator[None]:
        """Wait for others only for a moment."""
        self._db.execute(f"PRAGMA busy_timeout={round(1000 * TRY_SECONDS)}")
        try:
            yield
        finally:
            self._db.execute(f"PRAGMA busy_timeout={round(1000 * self._busy_seconds)}")

    def _follow(self) -> None:
        """Open a file that is only read anew if somebody else has begun to change it, or has changed it."""
        if self._still is not None and not self._db.in_transaction and still_of(self.file) != self._still:
            self._db.close()
            self._connect()
            configure(self._db, read_only=True)

    def _check_still(self) -> None:
        """Raise GalleryError if somebody changed a file that was being read without locks."""
        if self._still is not None and still_of(self.file) != self._still:
            raise GalleryError(f"{self.file} was changed while it was read; try again")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        with self._mapped(), self._lock:
            self._follow()
            yield

    @contextmanager
    def _mapped(self, outcome: str = "nothing was changed") -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise GalleryError(f"{self.file}: {reason(error, self._busy_seconds, outcome)}") from error
        except MemoryError as error:
            raise GalleryError(f"{self.file}: {NO_MEMORY}") from error
        except UnicodeDecodeError as error:  # in the text of SQLite's own messages
            raise GalleryError(f"{self.file}: the database is damaged; restore a backup") from error
        except UnicodeEncodeError as error:
            raise GalleryError(f"{self.file}: {error.object!a:.80} is not valid Unicode, so no row holds it") from error


def is_busy(error: BaseException | None) -> bool:
    """Whether an error of SQLite says that another connection is writing."""
    return getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")


def _text(data: bytes) -> str:
    """Decode a column's text; bytes that corruption made invalid as UTF-8 are passed through, to be caught by their
    row's checksum.
    """
    return data.decode("utf-8", "surrogateescape")


def configure(db: sqlite3.Connection, *, read_only: bool = False) -> None:
    """Make a connection to a gallery durable, have it erase what is deleted, keep its scratch in memory, and distrust a
    damaged file.
    """
    keep_in_memory(db)
    for pragma in (
        *(() if read_only else ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON")),
        "cache_size=-16384",
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
