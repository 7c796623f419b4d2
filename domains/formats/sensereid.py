"""SenseReID: only a test set, 522 query and 1,717 gallery identities.

Zhao et al., "Spindle Net: Person Re-identification with Human Body Region Guided Feature Decomposition and Fusion",
CVPR 2017. ``test_probe/00001_0.jpg`` is person 1 in camera 0.
"""

from __future__ import annotations

import re
from pathlib import Path

from domains.domain import Domain, from_rows
from domains.formats.listing import first_folder, join, matching

NAME = "sensereid"
DESCRIPTION = "test_probe/ and test_gallery/ with names like 00001_0.jpg (no training images)"

BASES = ("", "SenseReID")
FOLDERS = (("test_probe", "query"), ("test_gallery", "gallery"))
PATTERN = re.compile(r"([0-9]{1,9})_([0-9]{1,4})", re.ASCII)


def recognise(root: Path) -> bool:
    """Whether both folders are there."""
    return _base(root) is not None


def read(root: Path, name: str) -> Domain:
    """Read the domain; raises DataError if a folder can't be listed or there is no crop."""
    base, notes = _base(root), list[str]()
    rows: list[tuple[str, str, str | None, str]] = []
    for folder, split in FOLDERS:
        for path, match in matching(root, join(base, folder), PATTERN, "00001_0.jpg", notes):
            rows.append((split, path, str(int(match[1])), str(int(match[2]))))
    notes.append("this set has no training images: it can be scored but not learned")
    return from_rows(name, root, NAME, rows, notes=notes)


def _base(root: Path) -> str | None:
    return next(
        (base for base in BASES if all(first_folder(root, join(base, folder)) is not None for folder, _ in FOLDERS)),
        None,
    )
