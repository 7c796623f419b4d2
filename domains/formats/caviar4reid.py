"""CAVIAR4REID: a shopping centre, 72 people, 50 of them in both cameras, ten images per camera, low and varying
resolution.

Cheng et al., "Custom Pictorial Structures for Re-identification", BMVC 2011. ``0001012.jpg`` is image 12 of person 1;
images 1 to 10 are from the first camera, 11 to 20 from the second. CUHK01 and i-LIDS name their images alike, but keep
them in their own folders.
"""

from __future__ import annotations

import re
from pathlib import Path

from domains.domain import Domain, from_rows
from domains.formats.drawn import drawn_split
from domains.formats.listing import holds, images, matching

NAME = "caviar4reid"
DESCRIPTION = "one folder with names like 0001012.jpg: four digits of person (1 to 72), three of image (1 to 20)"

BASES = ("", "CAVIAR4REID", "CAVIARa")
PATTERN = re.compile(r"([0-9]{4})(0(?:0[1-9]|1[0-9]|20))", re.ASCII)
PEOPLE = 72
PER_CAMERA = 10


def recognise(root: Path) -> bool:
    """Whether the folder holds images with such names and no person above 72."""
    base = _base(root)
    if base is None:
        return False
    matches = (PATTERN.fullmatch(path.rpartition("/")[2].rpartition(".")[0]) for path in images(root, base))
    return all(match is None or 1 <= int(match[1]) <= PEOPLE for match in matches)


def read(root: Path, name: str) -> Domain:
    """Read the domain with the shipped split; raises DataError if the folder can't be listed or the split was
    changed.
    """
    split, notes = drawn_split(NAME), list[str]()
    rows: list[tuple[str, str, str | None, str]] = []
    seen = set()
    for path, match in matching(root, _base(root) or "", PATTERN, "0001012.jpg", notes):
        person, camera = int(match[1]), (int(match[2]) - 1) // PER_CAMERA
        seen.add(person)
        if side := split.side(person):
            rows.append(("train" if side == "train" else ("query", "gallery")[camera], path, str(person), str(camera)))
    return from_rows(name, root, NAME, rows, notes=split.notes(seen) + notes)


def _base(root: Path) -> str | None:
    return next((base for base in BASES if holds(root, base, PATTERN)), None)
