"""Backups of a gallery, made while it is used, and their way back."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path

from deploy.store import Store
from deploy.store.audit import write_audit
from deploy.store.check import check_store
from deploy.store.store import DATABASE
from domains.artefact import fsync_folder, sealing
from domains.errors import ArtefactError, GalleryError

log = logging.getLogger("deploy")


def backup(store: Store, path: str | PathLike[str]) -> int:
    """Copy a gallery into a new folder while others use it, and check the copy; returns its entries.

    Raises:
        GalleryError: the folder exists, or the copy is not whole.
    """
    folder = Path(path).absolute()
    if _may_exist(folder):
        raise GalleryError(f"can't make a backup: {folder} exists already; choose another name, or remove it first")
    with store.holding():
        _remember(store, [folder])  # first, so that no copy is there without being known, and the copy knows itself
    try:
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
    """Folders of the backups that were made and are there still, or may be: one that can't be looked into counts."""
    return [path for path in _remembered(store) if _may_exist(Path(path) / DATABASE)]


def _remembered(store: Store) -> list[str]:
    return [path for (path,) in store.ask("SELECT path FROM backup ORDER BY time, path")]


def _remember(store: Store, folders: Iterable[str | Path]) -> None:
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
    """Put a checked copy of a backup where a gallery is to be; returns its entries, and where the gallery that was
    there is now.

    The copy is complete and on disk before it takes the place, in one rename; a gallery that lies there is moved aside
    in another before, and not deleted: it may hold what the backup does not. Close every process that has it open
    first: one that stays goes on in the old files. What is restored knows of the backup, of all that the gallery in its
    place knew of, and of where that one is now: erasures name them.

    Raises:
        GalleryError: the backup is no gallery or damaged, or the folder can't be written; everything is as it was then.
    """
    origin, target = Path(source).absolute(), Path(path).absolute()
    if not (origin / DATABASE).is_file():
        raise GalleryError(f"{origin} is no backup of a gallery: it has no {DATABASE}")
    if target.exists() and target.resolve() == origin.resolve():
        raise GalleryError(
            f"{origin} and {target} are the same folder; name the backup, then the place to restore it to"
        )
    if not target.name:
        raise GalleryError(f"{target} can't be the place of a gallery; name a folder in it")
    aside = None
    if target.exists():
        aside = target.with_name(
            f"{target.name}.before-restore-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(2)}"
        )
    made = target.with_name(f".{target.name}.{secrets.token_hex(4)}.restored")
    backed = Store(origin / DATABASE)
    try:
        with sealing(made) as temporary:
            backed.copy(temporary / DATABASE)
            count = _checked(temporary)
            copy = Store(temporary / DATABASE)
            try:
                with copy.holding():
                    _remember(
                        copy,
                        {str(origin), *_known_to(target), *([] if aside is None else [str(aside)])} - {str(target)},
                    )
                    write_audit(copy, "restore", entries=count)
            finally:
                copy.close()
        _put_in_place(made, target, aside)
    except ArtefactError as error:
        raise GalleryError(f"can't restore {origin}: {error}") from error
    except OSError as error:
        raise GalleryError(
            f"can't restore {origin} to {target}: {error.strerror or error}; everything is as it was"
        ) from error
    finally:
        backed.close()
    return count, aside


def _known_to(folder: Path) -> list[str]:
    """Backups that a gallery knows of; none, and a line in the log, if it can't be asked."""
    if not (folder / DATABASE).is_file():
        return []
    try:
        store = Store(folder / DATABASE, repair=True)
        try:
            return _remembered(store)
        finally:
            store.close()
    except GalleryError as error:
        log.warning("the backups that were made of %s are not known any more: %s", folder, error)
        return []


def _put_in_place(made: Path, target: Path, aside: Path | None) -> None:
    """Rename what lies there aside and the copy to its place; if one of them fails, both are undone and the copy is
    removed.
    """
    moved = False
    try:
        if aside is not None:
            os.rename(target, aside)  # noqa: PTH104 - the two renames belong together
            moved = True
        os.rename(made, target)  # noqa: PTH104
    except OSError:
        if aside is not None and moved:
            os.rename(aside, target)  # noqa: PTH104
        shutil.rmtree(made)
        raise
    fsync_folder(target.parent)


def _checked(folder: Path) -> int:
    """Check the database in a folder whole; returns its entries."""
    copy = Store(folder / DATABASE)
    try:
        with copy.reading():
            check_store(copy)
            return copy.count()
    finally:
        copy.close()
