"""Whose word a file is: whether anyone but this user and root could have written it, or could put another in its place.

What opens doors (tokens, trusted keys) or is run (compiled engines) is read only if that is nobody else's.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

MAX_LINKS = 40


def others_may_change(path: Path) -> str | None:
    """Say who else could change a file, and what to do about it; None if nobody could.

    The file, every folder above it and every link on the way must belong to this user or to root, and no other user may
    write to them. In a folder with the sticky bit, such as ``/tmp``, others may write, but can't replace what is ours.
    A file that does not exist is judged by the folders that do.
    """
    try:
        for where, found in _way_to(Path(path).absolute()):
            if reason := _weakness(where, found):
                return reason
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"{path} can't be followed: {error.strerror or error}; name it by its real path"
    return None


def _weakness(where: Path, found: os.stat_result) -> str | None:
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in (0, os.geteuid()):
        other, us = _name(found.st_uid), _name(os.geteuid())
        return f"{where} belongs to {other}; work as {other}, or make it {us}'s with chown"
    if stat.S_ISLNK(found.st_mode) or not mode & 0o022:
        return None
    if not stat.S_ISDIR(found.st_mode) and not stat.S_ISREG(found.st_mode):
        return f"{where} is a device, pipe or socket; name a plain file"
    if not stat.S_ISDIR(found.st_mode):
        return f"{where} is writable by others (mode {mode:04o}); run chmod 600 {where}"
    if mode & stat.S_ISVTX:
        return None
    return f"the folder {where} is writable by others (mode {mode:04o}); run chmod go-w {where}"


def _way_to(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every folder and link that is passed on the way to a file, and the file itself, with their state."""
    at, links = Path(path.anchor), 0
    rest = list(reversed(path.parts[1:]))
    yield at, at.lstat()
    while rest:
        name = rest.pop()
        if name == "..":
            at = at.parent
            continue
        found = (at / name).lstat()
        yield at / name, found
        if not stat.S_ISLNK(found.st_mode):
            at /= name
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = (at / name).readlink()
        if target.is_absolute():
            at, parts = Path(target.anchor), target.parts[1:]
        else:
            parts = target.parts
        rest += reversed(parts)


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
