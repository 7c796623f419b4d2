"""Backups of a gallery, made while it is used, and their way back."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path

from deploy.audit import write_audit
from deploy.check import check_store
from deploy.store import DATABASE, Store
from domains.artefact import fsync_folder, sealing
from domains.errors import ArtefactError, GalleryError


def backup(store: Store, path: str | PathLike[str]) -> int:
    """Copy a gallery into a new folder while others use it, and check the copy; returns its entries.

    Raises:
        GalleryError: the folder exists, or the copy is not whole.
    """
    folder = Path(path)
    try:
        with sealing(folder) as temporary:
            store.copy(temporary / DATABASE)
            count = _checked(temporary)
    except ArtefactError as error:
        raise GalleryError(f"can't make a backup: {error}") from error
    except OSError as error:
        raise GalleryError(f"can't make a backup at {folder}: {error.strerror or error}") from error
    with store.holding():
        row = (str(folder.absolute()), datetime.now(UTC).isoformat(timespec="seconds"))
        store.change("INSERT OR REPLACE INTO backup VALUES (?, ?)", [row])
        write_audit(store, "backup", entries=count)
    return count


def backups(store: Store) -> list[str]:
    """Folders of the backups that were made and are there still."""
    return [path for (path,) in store.ask("SELECT path FROM backup ORDER BY time") if (Path(path) / DATABASE).is_file()]


def restore(source: str | PathLike[str], path: str | PathLike[str]) -> tuple[int, Path | None]:
    """Put a checked copy of a backup where a gallery is to be; returns its entries, and where the gallery that was there is now.

    The copy is complete and on disk before it takes the place, in one rename; a gallery that lies there is moved aside in another before, and not
    deleted: it may hold what the backup does not. Close every process that has it open first: one that stays goes on in the old files.

    Raises:
        GalleryError: the backup is no gallery or damaged (nothing is changed then), or the folder can't be written.
    """
    origin, target = Path(source), Path(path)
    if not (origin / DATABASE).is_file():
        raise GalleryError(f"{origin} is no backup of a gallery: it has no {DATABASE}")
    if target.exists() and target.resolve() == origin.resolve():
        raise GalleryError(f"{origin} and {target} are the same folder; name the backup, then the place to restore it to")
    aside: Path | None = None
    made = target.with_name(f".{target.name}.{secrets.token_hex(4)}.restored")
    backed = Store(origin / DATABASE)
    try:
        with sealing(made) as temporary:
            backed.copy(temporary / DATABASE)
            count = _checked(temporary)
            copy = Store(temporary / DATABASE)
            try:
                with copy.holding():
                    write_audit(copy, "restore", entries=count)
            finally:
                copy.close()
        if target.exists():
            aside = target.with_name(f"{target.name}.before-restore-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(2)}")
            os.rename(target, aside)  # noqa: PTH104 - the two renames belong together
        os.rename(made, target)  # noqa: PTH104
        fsync_folder(target.absolute().parent)
    except ArtefactError as error:
        raise GalleryError(f"can't restore {origin}: {error}") from error
    except OSError as error:
        raise GalleryError(f"can't restore {origin} to {target}: {error.strerror or error}") from error
    finally:
        backed.close()
    return count, aside


def _checked(folder: Path) -> int:
    """Check the database in a folder whole; returns its entries."""
    copy = Store(folder / DATABASE)
    try:
        with copy.reading():
            check_store(copy)
            return copy.count()
    finally:
        copy.close()
