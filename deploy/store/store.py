"""The durable half of a gallery: one SQLite file that holds every embedding with its origin.

It uses a write-ahead log with ``synchronous=FULL``: acknowledged changes survive a power cut, and a killed process
leaves the state either before or after its transaction. Locks belong to the operating system, so a dead process
releases its own.

A gallery has been in one or more *feature spaces*, numbered from 1, of which one is the present one. An entry's own
vector lies in the space ``entry.space``; its vector in any other space, carried there by a transport, is a row of
``carried``. A gallery thus changes its space by changing one number.

Every change draws a new ``token`` in its own transaction. A cache with the current state's token was built from this
state and no other, not even one of an earlier backup with the same number of changes.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.store import clock
from deploy.store.connection import configure, reason
from deploy.store.dated import Dated, start_clock, start_clock_late
from deploy.store.entry import Entry
from deploy.store.metadata import is_count, is_dim, is_text
from deploy.store.row import COLUMNS, PRESENT, checksum, entry_checksum, make_stamp, present_vector, row_entry
from deploy.store.seal import seal_holds, write_seal
from deploy.store.tables import APPLICATION, READABLE, SCHEMA, SCHEMA_1, SINCE_2, SINCE_3, SINCE_4
from deploy.store.wal import find_damage
from domains.errors import GalleryError
from domains.text import logger

DATABASE = "gallery.db"
BUSY_SECONDS = 60.0
CHUNK = 4096
NO_TIME = -(2**63)

log = logger("deploy")

_SELECT = f"SELECT {COLUMNS} FROM {PRESENT}"  # noqa: S608 - constants


class State(NamedTuple):
    """A version of the gallery.

    Attributes:
        generation: number of changes so far.
        token: random name of this exact state.
        erasures: number of changes that removed or moved something; between two states with the same number, entries
            were only appended.
        moves: number of changes that replaced every entry's vector; between two states with the same number, no vector
            changed.
    """

    generation: int
    token: str
    erasures: int
    moves: int


class Facts(NamedTuple):
    """Length and feature space of the present vectors, the bundle that produces them, and the space's number."""

    dim: int
    feature_space: str
    bundle: str | None
    space: int = 1


class Columns(NamedTuple):
    """What filters need of every entry, ids ascending: its camera's index in ``names`` and its time in microseconds
    since 1970 (UTC), or ``NO_TIME``.
    """

    ids: NDArray[np.int64]
    cameras: NDArray[np.int32]
    names: list[str]
    utc: NDArray[np.int64]


class Store(Dated):
    """One open SQLite file; its methods may be called from any thread, one at a time."""

    def __init__(self, file: Path, *, repair: bool = False, read_only: bool = False) -> None:
        """Open an existing file; raises GalleryError if it is not a gallery, is damaged, or is of a newer version.

        Args:
            file: the database.
            repair: open it even if its log or its facts are damaged; changes lost from the log are then gone for good.
            read_only: change nothing in its folder. A file that can't be written is opened so in any case.
        """
        super().__init__(file, BUSY_SECONDS, read_only=read_only)
        self.notes: list[str] = []
        """Problems found when the file was opened that are no reason to refuse it."""
        self._check_log(repair=repair)
        with self._guarded():
            self._connect()
            try:
                if self._pragma("application_id") != APPLICATION:
                    raise GalleryError(f"{file} is not a gallery database")
                if self._pragma("user_version") not in range(1, SCHEMA + 1):
                    raise GalleryError(
                        f"{file} has schema {self._pragma('user_version')}; this version reads 1 to {SCHEMA}. Install "
                        "a matching lifelong-reid"
                    )
                configure(self._db, read_only=self.read_only)
                self._migrate(repair=repair)
                _ = self.facts
                with self.reading():
                    if not repair:
                        self._check_metadata()
                self._sealed = not repair
            except BaseException:
                self._db.close()
                raise

    def _check_log(self, *, repair: bool) -> None:
        """Refuse a log that is damaged before acknowledged changes, since SQLite would silently drop them."""
        try:
            damage = find_damage(self.file.with_name(f"{self.file.name}-wal"))
        except OSError as error:
            raise GalleryError(
                f"{self.file}-wal can't be read: {error.strerror or error}; check what it is, and its permissions"
            ) from error
        if damage is None:
            return
        where = f"the log {self.file.name}-wal is damaged at byte {damage.at}"
        if damage.certain and not repair:
            raise GalleryError(
                f"{self.file.parent}: {where}, before acknowledged changes; restore a backup, or keep what precedes "
                "the damage with reid gallery verify --repair"
            )
        if damage.certain:
            self.notes.append(f"{where}: {damage.changes or 'all'} changes from there on are lost")
        else:
            self.notes.append(
                f"{where}, in its last change, which was either cut short before it was acknowledged or is lost"
            )
        log.warning("%s: %s", self.file.parent, self.notes[-1])

    @property
    def facts(self) -> Facts:
        """The current facts, read each time because another process may have changed the space."""
        return self.present()[1]

    def present(self) -> tuple[State, Facts]:
        """Return the current state and facts, in one query."""
        row = self._row("SELECT generation, token, erasures, moves, dim, feature_space, bundle, space FROM gallery")
        counts = (row[0], row[2], row[3], row[7])
        if not (all(map(is_count, counts)) and is_text(row[1]) and is_dim(row[4]) and is_text(row[5])):
            raise GalleryError(f"{self.file} is damaged: its facts are invalid; restore a backup")
        return State(*row[:4]), Facts(*row[4:])

    def _migrate(self, *, repair: bool) -> None:
        """Migrate an older gallery to the current schema in one transaction; no vector is moved."""
        if self._pragma("user_version") == SCHEMA:
            return
        if self.read_only and self._pragma("user_version") >= READABLE:
            return
        if self.read_only:
            raise GalleryError(
                f"{self.file.parent} was made by an earlier version and has to be brought up to date, but can't be "
                "written; open it once, or a copy of it, where it can"
            )
        with self.holding():
            if self._pragma("user_version") >= READABLE and not seal_holds(self._db):
                if not repair:
                    raise self._corrupted()
                self.notes.append("its facts or rules were not as they were last written; they were accepted as found")
            for version, script in ((1, SINCE_2.format(now=clock.now())), (2, SINCE_3), (3, SINCE_4)):
                if self._pragma("user_version") == version:  # unless another process just did it
                    if version == 3:
                        start_clock_late(self._db)
                    for statement in script.split(";"):
                        self._db.execute(statement)
            write_seal(self._db)

    @staticmethod
    def create(file: Path, facts: Facts, crops: bool = False, way: bytes | None = None) -> None:
        """Create an empty gallery's file durably, and close it; raises GalleryError if the disk is full or fails.

        Args:
            file: path of the new file.
            facts: its dimension, feature space and bundle.
            crops: whether it keeps small pictures of crops.
            way: how its vectors came about, as a passage (:mod:`prototypes.passage`): their network and metric.
        """
        try:
            with closing(sqlite3.connect(file, isolation_level=None)) as db:
                db.execute(f"PRAGMA application_id={APPLICATION}")
                configure(db)
                db.executescript(SCHEMA_1)
                db.execute("INSERT INTO gallery VALUES (1, ?, ?, ?, 0, 0, ?, 0, 0)", (*facts[:3], secrets.token_hex(8)))
                db.executescript(SINCE_2.format(now=clock.now()))
                db.executescript(SINCE_3)
                start_clock(db)
                db.executescript(SINCE_4)
                db.execute("UPDATE gallery SET crops = ?", (int(crops),))
                db.execute("UPDATE space SET map = ?", (way,))
                write_seal(db)
        except sqlite3.Error as error:
            raise GalleryError(f"can't create {file}: {reason(error, BUSY_SECONDS)}") from error

    def state(self) -> State:
        """Return the current state."""
        return self.present()[0]

    def count(self) -> int:
        """Number of entries; raises GalleryError if it is damaged."""
        count = self._row("SELECT entries FROM gallery")[0]
        if not is_count(count):
            raise GalleryError(f"{self.file} is damaged: its number of entries is lost; restore a backup")
        return int(count)

    def append(
        self,
        vectors: NDArray[np.float16],
        entries: Sequence[Entry],
        space: str | None = None,
        crops: Sequence[bytes] = (),
        *,
        once: bool = False,
    ) -> list[int | None]:
        """Add vectors ``[N, D]`` with their origins in one transaction; returns their ids once they are on disk.

        Args:
            vectors: of the present space.
            entries: their origins.
            space: name of their space, if known; raises GalleryError if it is no longer the present one.
            crops: a small JPEG of each, or none at all.
            once: skip an entry whose source, camera and time match a stored or a preceding one; its id is None.
        """
        with self.holding():
            facts = self.facts
            if not self.count():
                self._note(self._read_clock())  # while there is nothing that a wrong clock could erase
            if (space is not None and space != facts.feature_space) or vectors.shape[1] != facts.dim:
                raise GalleryError(
                    f"the gallery {self.file.parent} was upgraded meanwhile; embed with its new bundle "
                    f"{facts.bundle or ''}"
                )
            row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entry'").fetchone()
            first, present, added = (row[0] if row else 0) + 1, facts.space, clock.now()
            positions = self._new_positions(entries) if once else range(len(entries))
            rows = []
            for number, position in enumerate(positions, first):
                vector, entry = vectors[position], entries[position]
                origin = (number, entry.camera, entry.source, entry.time, entry.utc, entry.label)
                blob, stamp = vector.tobytes(), make_stamp(number, present, present, added)
                rows.append(
                    (blob, entry_checksum(blob, origin, present, stamp), *origin, present, present, added, stamp)
                )
            self._db.executemany(
                "INSERT INTO entry(vector, checksum, id, camera, source, time, utc, label, space, origin, added, "
                "stamp) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            pictures = (
                (number, crops[position], checksum(crops[position], (number,)))
                for number, position in enumerate(positions, first)
                if crops
            )
            self._db.executemany("INSERT INTO crop(id, jpeg, checksum) VALUES (?, ?, ?)", pictures)
            if rows:
                self.changed(added=len(rows))
                self._note(self._read_clock())
        ids: list[int | None] = [None] * len(entries)
        for number, position in enumerate(positions, first):
            ids[position] = number
        return ids

    def _new_positions(self, entries: Sequence[Entry]) -> list[int]:
        """Return the positions of entries that are not stored yet, only the first of any duplicates."""
        firsts = {(entry.source, entry.camera, entry.utc): row for row, entry in reversed(list(enumerate(entries)))}
        return sorted(row for row in firsts.values() if not self.holds(entries[row]))

    def remove(self, ids: Iterable[int]) -> int:
        """Delete entries inside a :meth:`holding` block; returns how many existed. Their bytes are gone only after
        :meth:`wipe`.
        """
        numbers = [(number,) for number in ids]
        facts, damaged = self.facts, False
        for part in _parts([number for (number,) in numbers]):
            rows = self.ask(f"{_SELECT} WHERE e.id IN ({','.join('?' * len(part))})", part)
            damaged |= any(present_vector(row, facts.space, facts.dim) is None for row in rows)
        if damaged:  # the database's own indices may hold another text than the row, so deleting it would miss them
            self._db.execute("REINDEX")
        before = self._db.total_changes
        self._db.executemany("DELETE FROM entry WHERE id = ?", numbers)
        removed = self._db.total_changes - before
        wanted = json.dumps([number for (number,) in numbers])
        self._db.execute("DELETE FROM carried WHERE id IN (SELECT value FROM json_each(?))", (wanted,))
        self._db.executemany("DELETE FROM crop WHERE id = ?", numbers)
        if removed:
            self.changed(removed=removed)
        return removed

    def unwiped(self) -> bool:
        """Whether removed bytes may still be in the file because the process that removed them was stopped."""
        return bool(self._row("SELECT unwiped FROM gallery")[0])

    def leave_unwiped(self) -> None:
        """Record, inside a :meth:`holding` block, that bytes must be wiped: if this process is stopped, the next one to
        open the gallery does it.
        """
        self._db.execute("UPDATE gallery SET unwiped = 1")

    def wipe(self) -> bool:
        """Rewrite the file so that nothing removed is left in it, and empty its log.

        ``secure_delete`` alone is not enough: where SQLite moves rows between pages it leaves copies in the free part
        of a page, which a later delete does not find. Only a rewrite (``VACUUM``) is certain; it takes time in
        proportion to the gallery.

        It uses a separate connection, so that readers, in this process too, can continue meanwhile; writers have to
        wait.

        Returns:
            False if another process kept reading, so that the log could not be emptied.
        """
        erasures = self.state().erasures
        if not self.rewrite():
            return False
        with self.holding():
            self._db.execute("UPDATE gallery SET unwiped = 0 WHERE erasures = ?", (erasures,))
        return True

    def ids(self) -> NDArray[np.int64]:
        """Return the ids of all entries, ascending; reads the database's smallest index, not the vectors."""
        with self._mapped():
            return np.sort(np.array([number for (number,) in self.ask("SELECT id FROM entry")], np.int64))

    def columns(self, after: int = 0) -> Columns:
        """Read what filters need of every entry with an id above ``after``; raises GalleryError if entries are damaged
        or missing.
        """
        ids, codes, times = array("q"), array("i"), array("q")
        names: dict[str, int] = {}
        last = after
        while rows := self.ask(f"SELECT id, camera, utc FROM entry WHERE id > ? ORDER BY id LIMIT {CHUNK}", (last,)):  # noqa: S608 - a constant
            for number, camera, utc in rows:
                if not isinstance(camera, str) or not (utc is None or isinstance(utc, int)):
                    raise self._damaged(number)
                ids.append(number)
                codes.append(names.setdefault(camera, len(names)))
                times.append(NO_TIME if utc is None else utc)
            last = ids[-1]
        if not after and len(ids) != self.count():
            raise GalleryError(
                f"{self.file} is damaged: it holds {len(ids)} entries instead of {self.count()}; restore a backup"
            )
        return Columns(np.array(ids, np.int64), np.array(codes, np.int32), list(names), np.array(times, np.int64))

    def pick(self, ids: Sequence[int]) -> NDArray[np.float16]:
        """Stored vectors ``[n, D]`` of the given entries, in the order of their ids; raises GalleryError on a damaged
        entry.
        """
        facts, blobs = self.facts, []
        for part in _parts(sorted(ids)):
            rows = self.ask(f"{_SELECT} WHERE e.id IN ({','.join('?' * len(part))}) ORDER BY e.id", part)
            blobs += [self._vector(row, facts) for row in rows]
        return np.frombuffer(b"".join(blobs), np.float16).reshape(-1, facts.dim)

    def vectors(self, after: int = 0) -> Iterator[NDArray[np.float16]]:
        """Stored vectors ``[n, D]`` of entries with an id above ``after``, by id, in parts; raises GalleryError on a
        damaged entry.
        """
        while rows := self.rows(after):
            facts = self.facts
            yield np.frombuffer(b"".join([self._vector(row, facts) for row in rows]), np.float16).reshape(-1, facts.dim)
            after = rows[-1][2]

    def rows(self, after: int = 0) -> list[Any]:
        """The next rows (``COLUMNS``) of entries with an id above ``after``, by id, unchecked; none at the end."""
        return self.ask(f"{_SELECT} WHERE e.id > ? ORDER BY e.id LIMIT {CHUNK}", (after,))

    def entries(self, ids: Sequence[int], facts: Facts | None = None) -> dict[int, Entry]:
        """Return the origins of the given entries; raises GalleryError if one is damaged, so that no answer names a
        wrong camera or time.
        """
        origins: dict[int, Entry] = {}
        facts = facts or self.facts
        for part in _parts(ids):
            for row in self.ask(f"{_SELECT} WHERE e.id IN ({','.join('?' * len(part))})", part):
                self._vector(row, facts)
                origins[row[2]] = row_entry(row)
        for number in ids:
            if number not in origins:
                raise self._damaged(number)
        return origins

    def based_on(self) -> str | None:
        """Return the token of the state that the index on disk was built from, if entries were only added since."""
        token: str | None = self._row("SELECT base FROM gallery")[0]
        return token

    def base_on(self, token: str) -> None:
        """Record the state that the index on disk is built from, inside a :meth:`holding` block."""
        self._db.execute("UPDATE gallery SET base = ?", (token,))

    def holds(self, entry: Entry) -> bool:
        """Whether an entry with the same source, camera and time exists."""
        query = "SELECT EXISTS (SELECT 1 FROM entry WHERE source = ? AND camera = ? AND utc IS ?)"
        return bool(self._row(query, (entry.source, entry.camera, entry.utc))[0])

    def changed(self, *, added: int = 0, removed: int = 0, moved: bool = False) -> None:
        """Record a new state; ``moved``: every vector was replaced, but nothing needs wiping."""
        gone = removed > 0 or moved
        self._db.execute(
            "UPDATE gallery SET generation = generation + 1, token = ?, entries = entries + ?, erasures = erasures + "
            "?, "
            "unwiped = max(unwiped, ?), moves = moves + ?, base = CASE WHEN ? THEN NULL ELSE base END",
            (secrets.token_hex(8), added - removed, int(gone), int(removed > 0), int(moved), int(gone)),
        )

    def _vector(self, row: Sequence[Any], facts: Facts) -> bytes:
        """Return a row's vector in the present space, as bytes; raises GalleryError if any byte that an answer depends
        on is corrupted.
        """
        blob = present_vector(row, facts.space, facts.dim)
        if blob is None:
            raise self._damaged(row[2])
        return blob

    def _damaged(self, number: int) -> GalleryError:
        return GalleryError(
            f"entry {number} of {self.file} is damaged; restore a backup, or discard it with reid gallery forget … "
            f"{number}"
        )


def _parts(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Split ids into parts small enough for one statement."""
    return (ids[start : start + 500] for start in range(0, len(ids), 500))
