"""QMUL underGround Re-IDentification (GRID): 250 people in two folders, 775 distractors, 8 cameras of an underground
station.

Loy, Xiang and Gong, "Multi-camera Activity Correlation Analysis", CVPR 2009. ``probe/0001_1_25004_137_82_204_337.jpeg``
is person 1 in camera 1; person ``0000`` of the gallery is a distractor (many people under one number, which no query
has). The authors' own partitions are in a MATLAB file, which is not read; the shipped split is used instead.
"""

from __future__ import annotations

import re
from pathlib import Path

from domains.domain import Domain, from_rows
from domains.formats.drawn import drawn_split
from domains.formats.listing import holds, join, matching

NAME = "grid"
DESCRIPTION = "probe/ and gallery/ with names like 0001_1_25004_137_82_204_337.jpeg"

BASES = ("", "underground_reid")
FOLDERS = (("probe", "query"), ("gallery", "gallery"))
PATTERN = re.compile(r"([0-9]{1,4})_([0-9]{1,3})_[0-9_]+", re.ASCII)


def recognise(root: Path) -> bool:
    """Whether both folders hold images with such names."""
    return _base(root) is not None


def read(root: Path, name: str) -> Domain:
    """Read the domain with the shipped split; raises DataError if a folder can't be listed or the split was changed."""
    split, base, notes = drawn_split(NAME), _base(root), list[str]()
    rows: list[tuple[str, str, str | None, str]] = []
    seen = set()
    for folder, role in FOLDERS:
        for path, match in matching(root, join(base, folder), PATTERN, "0001_1_25004_137_82_204_337.jpeg", notes):
            person, camera = int(match[1]), str(int(match[2]))
            if person == 0:
                if role == "gallery":
                    rows.append((role, path, "0", camera))
                continue
            seen.add(person)
            if side := split.side(person):
                rows.append(("train" if side == "train" else role, path, str(person), camera))
    return from_rows(name, root, NAME, rows, notes=split.notes(seen) + notes)


def _base(root: Path) -> str | None:
    return next(
        (base for base in BASES if all(holds(root, join(base, folder), PATTERN) for folder, _ in FOLDERS)), None
    )
