"""CUHK01: 971 people on a campus, two camera views, two images per view.

Li, Zhao and Wang, "Human Reidentification with Transferred Metric Learning", ACCV 2012. ``campus/0001003.png`` is image
3 of person 1; images 1 and 2 are from the first view, 3 and 4 from the second.
"""

from __future__ import annotations

import re
from pathlib import Path

from domains.domain import Domain, from_rows
from domains.formats.drawn import drawn_split
from domains.formats.listing import holds, matching

NAME = "cuhk01"
DESCRIPTION = "campus/ with names like 0001003.png: four digits of person, three of image (1 to 4)"

FOLDERS = ("campus", "CUHK01/campus")
PATTERN = re.compile(r"([0-9]{4})00([1-4])", re.ASCII)


def recognise(root: Path) -> bool:
    """Whether a folder ``campus`` holds images with such names."""
    return any(holds(root, folder, PATTERN) for folder in FOLDERS)


def read(root: Path, name: str) -> Domain:
    """Read the domain with the shipped split; raises DataError if the folder can't be listed or the split was
    changed.
    """
    split, notes = drawn_split(NAME), list[str]()
    folder = next(folder for folder in FOLDERS if holds(root, folder, PATTERN))
    rows: list[tuple[str, str, str | None, str]] = []
    seen = set()
    for path, match in matching(root, folder, PATTERN, "0001003.png", notes):
        person, view = int(match[1]), (int(match[2]) - 1) // 2
        seen.add(person)
        if side := split.side(person):
            rows.append(("train" if side == "train" else ("query", "gallery")[view], path, str(person), str(view)))
    return from_rows(name, root, NAME, rows, notes=split.notes(seen) + notes)
