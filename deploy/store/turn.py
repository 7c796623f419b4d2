"""Whose turn it is to do what only one may do at a time in a folder: erase, copy, clear away.

SQLite's own locks keep the data right. This one keeps a second erasure waiting for as long as the first one works, in
place of the minute after which SQLite gives up. The system releases it when its process ends, however that happens.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from domains.errors import GalleryError

AT_MOST = 3600.0
"""Seconds that one waits for another."""

EVERY = 0.05


@contextmanager
def turn(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a folder's turn throughout the block; yields whether it is held.

    It belongs to the call: the same thread must not ask for it twice. A file system that knows no such locks gives it
    to everybody.

    Raises:
        GalleryError: another one has had it for too long, or the folder can't be opened.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise GalleryError(f"can't open {folder}: {error.strerror or error}; check that it exists") from error
    try:
        held = _take(handle)
        deadline = time.monotonic() + AT_MOST
        while wait and not held:
            if time.monotonic() > deadline:
                raise GalleryError(
                    f"another process has been erasing or copying in {folder} for over {AT_MOST / 60:.0f} min; try "
                    "again when it is done"
                )
            time.sleep(EVERY)
            held = _take(handle)
        yield held
    finally:
        os.close(handle)


def _take(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no such locks
        return True
    return True
