"""One stored row and its checksums: SQLite's pages have none, and a flipped bit must not become another person,
place or time.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from deploy.store.entry import Entry

COLUMNS = (
    "e.vector, e.checksum, e.id, e.camera, e.source, e.time, e.utc, e.label, e.space, e.stamp, e.origin, e.added, "
    "c.vector, c.checksum"
)
PRESENT = "entry e LEFT JOIN carried c ON c.space = (SELECT space FROM gallery) AND c.id = e.id"
"""Every entry, with its carried vector in the present space if its own is in another."""


def checksum(data: bytes, texts: Iterable[str | int | None]) -> int:
    """CRC-32 of some bytes and the values that belong to them."""
    joined = "\0".join(["\1" if value is None else str(value) for value in texts])
    return zlib.crc32(joined.encode("utf-8", "surrogateescape"), zlib.crc32(data))


def entry_checksum(vector: bytes, origin: Sequence[str | int | None], space: int, stamp: int) -> int:
    """Checksum of an entry's own vector, its ``(id, camera, source, time, utc, label)`` and, except for entries of
    schema 2 (stamp 0), its space.
    """
    return checksum(vector, (*origin, space) if stamp else origin)


def make_stamp(number: int, space: int, origin: int, added: int) -> int:
    """Checksum of an entry's provenance and time of addition, never 0."""
    return 2**32 | checksum(b"", (number, space, origin, added))


def present_vector(row: Sequence[Any], space: int, dim: int) -> bytes | None:
    """Return the fp16 vector of a row (``COLUMNS``) in the present space, as bytes; None if any byte that an answer
    depends on is corrupted.
    """
    own, expected, number, stamp = row[0], row[1], row[2], row[9]
    if (
        not isinstance(own, bytes)
        or not isinstance(stamp, int)
        or entry_checksum(own, row[2:8], row[8], stamp) != expected
    ):
        return None
    blob = own
    if row[8] != space:
        if not isinstance(row[12], bytes) or checksum(row[12], (space, number)) != row[13]:
            return None
        blob = row[12]
    return blob if len(blob) == 2 * dim else None


def is_stamped(row: Sequence[Any]) -> bool:
    """Whether a row's provenance and time of addition are intact; entries of schema 2 always pass, having no stamp."""
    return bool(row[9] == 0 or row[9] == make_stamp(row[2], row[8], row[10], row[11]))


def is_whole(row: Sequence[Any], space: int, dim: int) -> bool:
    """Whether every byte of a row (``COLUMNS``) is intact."""
    return present_vector(row, space, dim) is not None and is_stamped(row)


def row_entry(row: Sequence[Any]) -> Entry:
    """Return a row's origin."""
    return Entry.stored(row[3], row[4], row[5], row[7])
