"""VIPeR: 632 people, two cameras, one image each.

Gray, Brennan and Tao, "Evaluating Appearance Models for Recognition, Reacquisition, and Tracking", PETS 2007.
``cam_a/000_45.bmp`` is person 0 at 45 degrees.
"""

from __future__ import annotations

import re
from pathlib import Path

from domains.domain import Domain, from_rows
from domains.formats.drawn import drawn_split
from domains.formats.listing import holds, join, matching

NAME = "viper"
DESCRIPTION = "cam_a/ and cam_b/ with names like 000_45.bmp"

BASES = ("", "VIPeR", "VIPeR.v1.0")
CAMERAS = (("cam_a", "0", "query"), ("cam_b", "1", "gallery"))
PATTERN = re.compile(r"([0-9]{1,4})_[0-9]{1,3}", re.ASCII)


def recognise(root: Path) -> bool:
    """Whether both camera folders hold images with such names."""
    return _base(root) is not None


def read(root: Path, name: str) -> Domain:
    """Read the domain with the shipped split; raises DataError if a folder can't be listed or the split was changed."""
    split, base, notes = drawn_split(NAME), _base(root), list[str]()
    rows: list[tuple[str, str, str | None, str]] = []
    seen = set()
    for folder, camera, role in CAMERAS:
        for path, match in matching(root, join(base, folder), PATTERN, "000_45.bmp", notes):
            person = int(match[1])
            seen.add(person)
            if side := split.side(person):
                rows.append(("train" if side == "train" else role, path, str(person), camera))
    return from_rows(name, root, NAME, rows, notes=split.notes(seen) + notes)


def _base(root: Path) -> str | None:
    return next(
        (base for base in BASES if all(holds(root, join(base, folder), PATTERN) for folder, _, _ in CAMERAS)), None
    )
