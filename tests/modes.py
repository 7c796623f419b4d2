"""Who may read what is written, whatever the umask."""

import contextlib
import os
import stat
from pathlib import Path

SHARED = ("report.html",)
"""Files in an artefact that are meant to be passed on."""


def readable(folder):
    """What in a folder, itself included, has another mode than 0600 or 0700; as text, so that a failure can be read."""
    return [
        f"{path.relative_to(folder)} {stat.S_IMODE(path.lstat().st_mode):04o}"
        for path in (folder, *folder.rglob("*"))
        if not any(stat.S_IMODE(inner.stat().st_mode) == 0o700 for inner in _unfinished(path, folder))
        and not any(name in path.name for name in SHARED)
        and stat.S_IMODE(path.lstat().st_mode) != (0o700 if path.is_dir() else 0o600)
    ]


def _unfinished(path, folder):
    """Folders around a file that become an artefact when they are complete; nobody else gets into them."""
    return [inner for inner in path.parents if folder in inner.parents and inner.name.endswith(".tmp")]


@contextlib.contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def watched(monkeypatch, folder):
    """Look at all that is in a folder whenever something is made durable or renamed, so that what is there only for a
    moment is seen too; yields the findings.
    """
    found, fsync, replace, rename = set(), os.fsync, Path.replace, Path.rename

    def looked(do):
        def look(*arguments):
            with contextlib.suppress(FileNotFoundError):  # another thread may be at work
                found.update(readable(folder) if folder.is_dir() else ())
            return do(*arguments)

        return look

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", looked(fsync))
        patch.setattr(Path, "replace", looked(replace))
        patch.setattr(Path, "rename", looked(rename))
        yield found


def pretend_owners(monkeypatch):
    """Owners that paths seem to have, since a test need not be root: a dictionary to fill; all else is ours."""
    owners, lstat = {}, Path.lstat

    def seeming(self):
        found = list(lstat(self))
        found[stat.ST_UID] = owners.get(self, os.geteuid())
        return os.stat_result(found)

    monkeypatch.setattr(Path, "lstat", seeming)
    return owners
