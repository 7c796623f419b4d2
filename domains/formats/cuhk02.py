"""CUHK02: five pairs of campus cameras, 1,816 people, two images per camera.

Li and Wang, "Locally Aligned Feature Transforms across Views", CVPR 2013. ``P1/cam1/001_1.png`` is person 1 of pair 1;
the numbers restart in each pair. The usual protocol trains on pairs 1 to 4 and tests on pair 5, camera 1 against
camera 2.
"""

from __future__ import annotations

import re
from pathlib import Path

from domains.domain import Domain, from_rows
from domains.formats.listing import first_folder, join, matching

NAME = "cuhk02"
DESCRIPTION = (
    "P1/ to P5/ (or Dataset/P1/ …), each with cam1/ and cam2/ and names that begin with the person, like 001_1.png"
)

BASES = ("", "Dataset")
PAIRS = ("P1", "P2", "P3", "P4", "P5")
CAMERAS = (("cam1", "query"), ("cam2", "gallery"))
TEST = "P5"
PATTERN = re.compile(r"([0-9]{1,4})(?:_.*)?", re.ASCII)


def recognise(root: Path) -> bool:
    """Whether a pair with both cameras is there."""
    return _base(root) is not None


def read(root: Path, name: str) -> Domain:
    """Read the domain; raises DataError if a folder can't be listed or there is no crop."""
    base, notes = _base(root), list[str]()
    rows: list[tuple[str, str, str | None, str]] = []
    for pair in PAIRS:
        for camera, role in CAMERAS:
            folder = join(base, pair, camera)
            if first_folder(root, folder) is None:
                notes.append(f"there is no {folder}/")
                continue
            for path, match in matching(root, folder, PATTERN, "001_1.png", notes):
                rows.append(
                    (role if pair == TEST else "train", path, f"{pair}-{int(match[1]):03d}", f"{pair}-{camera}")
                )
    return from_rows(name, root, NAME, rows, notes=notes)


def _base(root: Path) -> str | None:
    def pair(base: str) -> bool:
        return any(all((root / base / pair / camera).is_dir() for camera, _ in CAMERAS) for pair in PAIRS)

    return next((base for base in BASES if pair(base)), None)
