"""Whether a database may be written, and how to read it where it may not.

SQLite shares a log and its index between those who have a database open, in two files beside it. Where these can't be
made, a database that was closed in good order can still be read on its own.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

from domains.artefact import fsync_folder, make_private
from domains.errors import GalleryError

READ_ONLY = (
    "is open for reading only, so nothing can be added, changed or erased; where that is not intended, check the "
    "permissions of the folder and its files, and how its disk is mounted"
)


class Still(NamedTuple):
    """A file at rest: its number, size and time of change. Any of them differs once somebody has written to it."""

    number: int
    size: int
    changed: int


def is_there(file: Path) -> bool:
    """Whether a file exists and is a plain one; raises GalleryError if its folder can't be looked into."""
    try:
        return file.is_file()
    except OSError as error:
        raise GalleryError(
            f"{file.parent} can't be looked into: {error.strerror or error}; check the permissions of the folder"
        ) from error


def bytes_in(folder: Path) -> int:
    """Count the bytes of a folder's own files; raises GalleryError if they can't be listed."""
    total = 0
    try:
        for file in folder.iterdir():
            with suppress(FileNotFoundError):  # a temporary file that is gone
                known = file.stat()
                total += known.st_size if S_ISREG(known.st_mode) else 0
    except OSError as error:
        raise GalleryError(
            f"{folder} can't be listed: {error.strerror or error}; check the permissions of the folder"
        ) from error
    return total


def make_parents(folder: Path) -> None:
    """Make the folders above one as far as they are missing, durably and for their owner only. Raises OSError."""
    missing = [path for path in folder.parents if not path.exists()]
    make_private(folder.parent)
    for made in missing:
        fsync_folder(made.parent)


def may_write(file: Path) -> bool:
    """Whether this process may write a database, and the files beside it. One that does not exist counts."""
    beside = (file.with_name(f"{file.name}{end}") for end in ("", "-wal", "-shm"))
    return _allows(file.parent, os.W_OK | os.X_OK) and all(_allows(path, os.W_OK) for path in beside if path.exists())


def still_of(file: Path) -> Still | None:
    """Describe a database that nobody has open for writing, and that can be read without its log; ``None`` if it must
    be read together with those who write it.

    Raises:
        GalleryError: its log holds changes, but it can't be read where nothing can be written.
    """
    log, shared = (file.with_name(f"{file.name}{end}") for end in ("-wal", "-shm"))
    try:
        size = log.stat().st_size if log.exists() else 0
        if size and not shared.exists() and not may_write(file):
            raise GalleryError(
                f"{file.parent} was not closed in good order: its newest changes are still in {log.name}, and can't be "
                "read where nothing can be written; open it once, or a copy of it, where it can"
            )
        if size or (log.exists() and shared.exists()):
            return None
        known = file.stat()
    except OSError as error:
        raise GalleryError(f"{file}: can't be read: {error.strerror or error}") from error
    return Still(known.st_ino, known.st_size, known.st_mtime_ns)


def _allows(path: Path, what: int) -> bool:
    return os.access(path, what, effective_ids=os.access in os.supports_effective_ids)
