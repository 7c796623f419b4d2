"""What lies in a folder and is not read: counted by reason, with an example of each.

Layouts look only at the places that they know, and a plain folder gives only what the decoder takes. Everything else
would be missing without a word: pictures in another format, in a folder too deep, behind a link, or not in the table.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from domains.crops import FORMATS, SUFFIXES
from domains.errors import DataError
from domains.formats.listing import inside, leads_to_file, leads_to_folder
from domains.text import shown

PICTURES = frozenset(
    (
        *(".apng", ".arw", ".avif", ".cr2", ".cr3", ".dng", ".exr", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jp2"),
        *(
            ".jxl",
            ".nef",
            ".orf",
            ".pam",
            ".pbm",
            ".pfm",
            ".psd",
            ".raf",
            ".raw",
            ".rw2",
            ".svg",
            ".tga",
            ".tif",
            ".tiff",
        ),
    )
)
"""Suffixes of pictures that are not read, in lower case."""

HIDDEN = "hidden files and folders"
OTHER = f"files that are not {FORMATS} by their suffix"
FORMAT = "pictures in a format that is not read ({suffix})"
"""One reason for each suffix: they may be crops, unlike files that lie beside them."""
NO_FILE = "entries with an image's name that are no files"
NO_TEXT = "names that are not printable UTF-8 text"
BROKEN = "links that lead nowhere"
OUTSIDE = "links that lead out of the folder"
LINKED = "links to folders, which are not followed"
CLOSED = "folders that can't be read"


@dataclass(frozen=True)
class LeftOut:
    """What was left out for one reason.

    Attributes:
        reason: a plural noun phrase, such as ``hidden files and folders``.
        count: how many there are.
        example: the first of them in sorted order, relative to the folder, printable.
    """

    reason: str
    count: int
    example: str

    def __str__(self) -> str:
        """One line for a terminal."""
        return f"{self.count} {self.reason}, such as {self.example}"


@dataclass(frozen=True)
class Survey:
    """A folder with its sub-folders: what is an image by its name, and what was left out; what is read through a link
    is not left out.

    Attributes:
        images: paths relative to the folder, ``/``-separated and sorted.
        left_out: everything else.
    """

    images: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


def survey(
    root: Path,
    *,
    used: Collection[str] | None = None,
    unused: str = "",
    own: Collection[str] = (),
    most: int | None = None,
) -> Survey:
    """Look through a folder and its sub-folders; nothing is opened, and no link to a folder is followed.

    Args:
        root: the folder.
        used: paths that a layout has read; images besides them are left out. None keeps all images.
        unused: the reason for those, as in :class:`LeftOut`.
        own: names of files that are part of a layout, such as its table.
        most: stop after about so many entries; None looks at all.

    Raises:
        DataError: ``root`` itself can't be read.
    """
    found = _Found(root, None if used is None else frozenset(used), unused, frozenset(own))
    folders, seen = [""], 0
    while folders and (most is None or seen < most):
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                listed = list(entries)
        except OSError as error:
            if not folder:
                raise DataError(f"can't read the folder {root}: {error.strerror or error}") from error
            found.leave(CLOSED, folder)
            continue
        seen += len(listed)
        folders += [path for entry in listed if (path := found.take(entry, folder))]
    left = (LeftOut(reason, len(paths), shown(min(paths))) for reason, paths in found.left.items())
    return Survey(tuple(sorted(found.images)), tuple(sorted(left, key=lambda item: (-item.count, item.reason))))


class _Found:
    """Sorts directory entries into images and what is left out."""

    def __init__(self, root: Path, used: frozenset[str] | None, unused: str, own: frozenset[str]) -> None:
        self.root = root
        self.used = used
        self.unused = unused
        self.own = own
        self.parents = {str(parent) for path in used or () for parent in PurePosixPath(path).parents}
        self._linked: frozenset[str] | None = None
        self.images: list[str] = []
        self.left: dict[str, list[str]] = {}

    def leave(self, reason: str, path: str) -> None:
        """Count one entry as left out."""
        self.left.setdefault(reason, []).append(path)

    def take(self, entry: os.DirEntry[str], folder: str) -> str | None:
        """Sort one entry; returns its path if it is a folder to look into."""
        path = f"{folder}/{entry.name}" if folder else entry.name
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a Path per name is slow for 100,000 names
        image = suffix in SUFFIXES
        if self.used is not None and path in self.used:
            self.images.append(path)
        elif entry.name.startswith("."):
            self.leave(HIDDEN, path)
        elif entry.is_dir(follow_symlinks=False):
            if image and path not in self.parents:
                self.leave(NO_FILE, path)
            return path
        elif entry.is_symlink() and (reason := self._link(entry, path)):
            if path not in self.parents:
                self.leave(reason, path)
        elif not image:
            if entry.name not in self.own:
                self.leave(FORMAT.format(suffix=suffix) if suffix in PICTURES else OTHER, path)
        elif not leads_to_file(entry):
            self.leave(NO_FILE, path)
        elif not path.isprintable():
            self.leave(NO_TEXT, path)
        elif self.used is not None and path not in self._read_through_links():
            self.leave(self.unused, path)
        else:
            self.images.append(path)
        return None

    def _read_through_links(self) -> frozenset[str]:
        """Where used images that are behind a link really lie, relative to the folder; found out when first asked."""
        if self._linked is None:
            root = os.path.realpath(self.root)
            linked = {parent for parent in self.parents if os.path.islink(self.root / parent)}  # noqa: PTH114 - as above
            behind = (
                path
                for path in self.used or ()
                if os.path.islink(self.root / path) or not linked.isdisjoint(map(str, PurePosixPath(path).parents))  # noqa: PTH114
            )
            self._linked = frozenset(os.path.relpath(os.path.realpath(self.root / path), root) for path in behind)
        return self._linked

    def _link(self, entry: os.DirEntry[str], path: str) -> str:
        if not inside(self.root, self.root / path):
            return OUTSIDE
        if leads_to_folder(entry):
            return LINKED
        return "" if Path(entry.path).exists() else BROKEN
