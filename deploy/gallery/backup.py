"""Back up a gallery while it is in use, and restore it."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path

from deploy.index.files import FILTERS, HEADER, VECTORS
from deploy.store import Store
from deploy.store.access import is_there, make_parents
from deploy.store.audit import write_audit
from deploy.store.check import check_store
from deploy.store.metadata import is_path
from deploy.store.store import DATABASE
from deploy.store.turn import turn
from domains.artefact import fsync_folder, sealing
from domains.errors import ArtefactError, GalleryError
from domains.text import logger

BACKED_UP = r"\.{}\.[0-9a-f]{{8}}\.tmp"
"""How an unfinished backup is called, by the name that it was to get."""

RESTORED = r"\.{0}\.[0-9a-f]{{8}}\.restored|\.\.{0}\.[0-9a-f]{{8}}\.restored\.[0-9a-f]{{8}}\.tmp"
"""How an unfinished copy to be restored is called, likewise."""

log = logger("deploy")


def backup(store: Store, path: str | PathLike[str]) -> int:
    """Copy a gallery into a new folder while others use it, and check the copy; returns its number of entries.

    Raises:
        GalleryError: the folder exists, or the copy is damaged.
    """
    folder = Path(path).absolute()
    if _may_exist(folder):
        raise GalleryError(f"can't make a backup: {folder} already exists; choose another name, or remove it first")
    if store.read_only:
        raise GalleryError(
            f"can't make a backup: {store.file.parent} can't be written, and it has to record where its backups are so "
            "that an erasure can name them; make it where the gallery can be written"
        )
    with store.holding():
        _record(store, [folder])  # first, so that no copy exists unrecorded, and the copy records itself
    try:
        make_parents(folder)
        with turn(folder.parent):
            _clear(folder, BACKED_UP)
            with sealing(folder) as temporary:
                store.copy(temporary / DATABASE)
                count = _checked(temporary)
    except ArtefactError as error:
        raise GalleryError(f"can't make a backup: {error}") from error
    except OSError as error:
        raise GalleryError(f"can't make a backup at {folder}: {error.strerror or error}") from error
    finally:
        if not _may_exist(folder):
            with store.holding():
                store.change("DELETE FROM backup WHERE path = ?", [(str(folder),)])
    with store.holding():
        write_audit(store, "backup", entries=count)
    return count


def backups(store: Store) -> list[str]:
    """List the folders of backups that still exist, or may: one that can't be inspected counts."""
    return [path for path in _recorded(store) if _may_exist(Path(path) / DATABASE)]


def clear_copies(store: Store) -> None:
    """Remove what killed processes left of backups of a gallery, and of copies that were to be restored to its place;
    whatever is being copied just now is left alone. Raises OSError.
    """
    copies = [(store.file.parent.absolute(), RESTORED), *((Path(path), BACKED_UP) for path in _recorded(store))]
    for folder, kind in copies:
        if any(_unfinished(folder, kind)):
            with turn(folder.parent, wait=False) as mine:
                if mine:
                    _clear(folder, kind)


def _clear(folder: Path, kind: str) -> None:
    for left in list(_unfinished(folder, kind)):
        log.warning("removing %s: a copy that was never finished", left)
        shutil.rmtree(left)


def _unfinished(folder: Path, kind: str) -> Iterator[Path]:
    """Copies of a gallery beside ``folder`` that would have got its name once they were complete."""
    name = re.compile(kind.format(re.escape(folder.name)))
    if folder.parent.is_dir():
        for path in folder.parent.iterdir():
            if name.fullmatch(path.name) and (path / DATABASE).is_file():
                yield path


def _recorded(store: Store) -> list[str]:
    paths = [path for (path,) in store.ask("SELECT path FROM backup ORDER BY time, path")]
    if not all(map(is_path, paths)):
        raise GalleryError(
            f"{store.file}: the record of a backup is damaged; restore a backup, or try reid gallery verify --repair"
        )
    return paths


def _record(store: Store, folders: Iterable[str | Path]) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    store.change("INSERT OR REPLACE INTO backup VALUES (?, ?)", [(str(folder), now) for folder in folders])


def _may_exist(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def restore(source: str | PathLike[str], path: str | PathLike[str]) -> tuple[int, Path | None]:
    """Restore a checked copy of a backup to a gallery's path; returns its number of entries, and where a gallery that
    was at that path is now.

    The copy is complete and on disk before one rename puts it in place. An existing gallery is first moved aside by
    another rename, and not deleted: it may hold what the backup does not. Close every process that has it open first:
    one left running would continue on the old files. The restored gallery records the backup, all backups that the
    gallery it replaces had recorded, and where that one is now, so that erasures can list them.

    Raises:
        GalleryError: the backup is not a gallery or is damaged, what is at the path is neither a gallery nor an empty
            folder, or the folder can't be written; nothing is changed.
    """
    origin, target = Path(source).absolute(), Path(path).absolute()
    if not is_there(origin / DATABASE):
        raise GalleryError(f"{origin} is not a backup of a gallery: it has no {DATABASE}")
    if target.exists() and target.resolve() == origin.resolve():
        raise GalleryError(
            f"{origin} and {target} are the same folder; name the backup, then the folder to restore it to"
        )
    if not target.name:
        raise GalleryError(f"{target} can't itself be a gallery; name a folder in it")
    _check_target(target)
    aside = None
    if target.exists():
        aside = target.with_name(
            f"{target.name}.before-restore-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(2)}"
        )
    restored = target.with_name(f".{target.name}.{secrets.token_hex(4)}.restored")
    original = Store(origin / DATABASE)
    try:
        make_parents(target)
        with turn(target.parent):
            _clear(target, RESTORED)
            known = {str(origin), *_recorded_by(target), *([] if aside is None else [str(aside)])} - {str(target)}
            with sealing(restored) as temporary:
                original.copy(temporary / DATABASE)
                count = _checked(temporary)
                _record_restored(temporary, known, count)
            _put_in_place(restored, target, aside)
    except ArtefactError as error:
        raise GalleryError(f"can't restore {origin}: {error}") from error
    except OSError as error:
        raise GalleryError(
            f"can't restore {origin} to {target}: {error.strerror or error}; nothing was changed"
        ) from error
    finally:
        original.close()
    return count, aside


def _check_target(target: Path) -> None:
    """Refuse to move anything aside but a gallery, what is left of one, or an empty folder; raises GalleryError."""
    if not target.exists() or is_there(target / DATABASE):
        return
    try:
        own = (DATABASE, FILTERS, HEADER, VECTORS)
        others = sorted(path.name for path in target.iterdir() if not path.name.startswith(own))
    except OSError as error:
        what = "is not a folder" if isinstance(error, NotADirectoryError) else f"can't be read ({error.strerror})"
        raise GalleryError(f"can't restore a gallery to {target}: it {what}; name another folder") from error
    if others:
        raise GalleryError(
            f"can't restore a gallery to {target}: it is none, and holds other things, such as {others[0]!r:.100}; "
            "name a gallery, or a folder that is empty or new"
        )


def _record_restored(folder: Path, known: Iterable[str], count: int) -> None:
    copy = Store(folder / DATABASE)
    try:
        with copy.holding():
            _record(copy, known)
            write_audit(copy, "restore", entries=count)
    finally:
        copy.close()


def _recorded_by(folder: Path) -> list[str]:
    """Return the backups that a gallery has recorded; none, and a warning in the log, if it can't be read."""
    if not is_there(folder / DATABASE):
        return []
    try:
        store = Store(folder / DATABASE, repair=True)
        try:
            return _recorded(store)
        finally:
            store.close()
    except GalleryError as error:
        log.warning("the list of backups of %s is lost: %s", folder, error)
        return []


def _put_in_place(restored: Path, target: Path, aside: Path | None) -> None:
    """Move an existing gallery aside and the copy into place; if either rename fails, both are undone and the copy is
    removed.
    """
    moved = False
    try:
        if aside is not None:
            os.rename(target, aside)  # noqa: PTH104 - the two renames belong together
            moved = True
        os.rename(restored, target)  # noqa: PTH104
    except OSError:
        if aside is not None and moved:
            os.rename(aside, target)  # noqa: PTH104
        shutil.rmtree(restored)
        raise
    fsync_folder(target.parent)


def _checked(folder: Path) -> int:
    """Check the whole database in a folder; returns its number of entries."""
    copy = Store(folder / DATABASE)
    try:
        with copy.reading():
            check_store(copy)
            return copy.count()
    finally:
        copy.close()
