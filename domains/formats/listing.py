"""Listing the images of a folder: sorted, relative to the domain's root, and never outside it.

Folders come from archives that others made. A name is accepted only if it can be printed and hashed as UTF-8 text, and
a symbolic link that leads out of the domain's root is an error: all that is learned must be where the user said.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from domains.crops import SUFFIXES
from domains.errors import DataError

NAMED = 5
"""Number of names of a list that a message spells out."""
ARCHIVES = frozenset({".7z", ".bz2", ".gz", ".rar", ".tar", ".tbz2", ".tgz", ".txz", ".xz", ".zip", ".zst"})
"""Suffixes of files that hold folders, in lower case."""


def is_image(name: str) -> bool:
    """Whether a file name has an image's suffix; hidden files (``._0001.jpg`` from a Mac archive) do not count."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - a Path per name is slow for 100,000 names


def first_folder(root: Path, *candidates: str) -> str | None:
    """The first candidate (``""`` is the root itself) that is a folder below ``root``, or None."""
    return next((candidate for candidate in candidates if (root / candidate).is_dir()), None)


def join(*parts: str | None) -> str:
    """Join parts of a path with ``/``, leaving out empty ones."""
    return "/".join(part for part in parts if part)


def images(root: Path, folder: str) -> list[str]:
    """Paths, relative to ``root`` and sorted, of the images that lie directly in ``root/folder``.

    Raises:
        DataError: the folder can't be read, a name is not printable text, or a link leads out of the root.
    """
    prefix = f"{folder}/" if folder else ""
    paths = [prefix + entry.name for entry in _entries(root, folder) if is_image(entry.name) and leads_to_file(entry)]
    for path in paths:
        if not path.isprintable():
            raise DataError(f"{root}: the file name {path!a} is not printable UTF-8 text; rename it")
    return sorted(paths)


def folders(root: Path, folder: str = "") -> list[str]:
    """Names, sorted, of the folders that lie directly in ``root/folder``; hidden ones are left out. Raises as
    :func:`images`.
    """
    names = sorted(
        entry.name for entry in _entries(root, folder) if not entry.name.startswith(".") and leads_to_folder(entry)
    )
    for name in names:
        if not name.isprintable():
            raise DataError(f"{root}: the folder name {name!a} is not printable UTF-8 text; rename it")
    return names


def holds(root: Path, folder: str | None, pattern: re.Pattern[str]) -> bool:
    """Whether ``root/folder`` directly holds an image whose whole name, without suffix, matches ``pattern``; a missing
    folder holds none.
    """
    if folder is None or not (root / folder).is_dir():
        return False
    return any(
        is_image(entry.name) and pattern.fullmatch(entry.name.rpartition(".")[0]) for entry in _scan(root / folder)
    )


def matching(
    root: Path, folder: str, pattern: re.Pattern[str], example: str, notes: list[str]
) -> list[tuple[str, re.Match[str]]]:
    """Images of ``root/folder`` whose whole name, without suffix, matches ``pattern``; a note lists the others.

    Raises:
        DataError: as :func:`images`.
    """
    matches, odd = [], []
    for path in images(root, folder):
        name = path.rpartition("/")[2]
        match = pattern.fullmatch(name.rpartition(".")[0])
        if match:
            matches.append((path, match))
        else:
            odd.append(name)
    if odd:
        notes.append(
            f"{folder or 'the folder'}: {len(odd)} images left out because they are not named like {example}: "
            f"{some(odd)}"
        )
    return matches


def some(names: Iterable[str]) -> str:
    """The first few names of a list, for a message that stays on one line."""
    listed = list(names)
    return ", ".join(listed[:NAMED]) + (f" and {len(listed) - NAMED} more" if len(listed) > NAMED else "")


def instead_of_folder(path: Path) -> str:
    """What is wrong with a path that should be a folder, and what to do, to end a sentence that begins with it."""
    if path.suffix.lower() in ARCHIVES and path.is_file():
        return "is an archive, not a folder; unpack it and give the folder that holds its images"
    if path.is_file():
        return f"is not a folder; give the folder it is in, {path.absolute().parent}"
    return "is not a folder" if path.exists() else "is not a folder: it does not exist"


def inside(root: Path, path: Path) -> bool:
    """Whether ``path``, with every link followed, lies below ``root``."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


class Fence:
    """Checks the paths in a list, resolving each folder once: a list may have a hundred thousand lines."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._inside: dict[str, bool] = {}

    def check(self, path: str, where: str) -> None:
        """Raise DataError, starting with ``where``, if a link leads out of the root or an existing path is not a file.

        A missing file is left for decoding to report: one lost image should not stop anybody.
        """
        file, folder = self.root / path, path.rpartition("/")[0]
        if folder not in self._inside:
            self._inside[folder] = inside(self.root, self.root / folder)
        try:
            mode = file.lstat().st_mode
        except (OSError, ValueError):
            mode = stat.S_IFREG
        if not self._inside[folder] or (stat.S_ISLNK(mode) and not inside(self.root, file)):
            raise DataError(f"{where}: {path} leads out of the domain's folder through a link; copy the file into it")
        if not stat.S_ISREG(mode) and not (stat.S_ISLNK(mode) and file.is_file()):
            raise DataError(f"{where}: {path} is not a file")


def leads_to_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a regular file or a link to one; a link in a circle is none."""
    try:
        return entry.is_file()
    except OSError:
        return False


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _entries(root: Path, folder: str) -> Iterator[os.DirEntry[str]]:
    if not inside(root, root / folder):
        raise DataError(f"{root / folder} is a link that leads out of the domain's folder; copy the files into it")
    for entry in _scan(root / folder):
        if entry.is_symlink() and not entry.name.startswith(".") and not inside(root, Path(entry.path)):
            raise DataError(f"{entry.path} is a link that leads out of the domain's folder; copy the file into it")
        yield entry


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"can't read the folder {folder}: {error.strerror or error}") from error
