"""QMUL i-LIDS: people in an airport arrival hall, 477 images of 120 identities (476 of 119 in the first release).

Zheng, Gong and Xiang, "Associating Groups of People", BMVC 2009. ``Persons/0001002.jpg`` is image 2 of person 1.
Cameras are not labelled. A test person's first image is the query and counts as camera 0; the others are the gallery
and count as camera 1, so that no match is dropped.
"""

from __future__ import annotations

import re
from pathlib import Path

from domains.domain import Domain, from_rows
from domains.formats.drawn import drawn_split
from domains.formats.listing import holds, matching

NAME = "ilids"
DESCRIPTION = "i-LIDS_Pedestrian/Persons/ (or Persons/) with names like 0001002.jpg"

FOLDERS = ("Persons", "i-LIDS_Pedestrian/Persons", "i-LIDS_Pedestrain/Persons")
PATTERN = re.compile(r"([0-9]{4})([0-9]{3})", re.ASCII)


def recognise(root: Path) -> bool:
    """Whether a folder ``Persons`` holds images with such names."""
    return any(holds(root, folder, PATTERN) for folder in FOLDERS)


def read(root: Path, name: str) -> Domain:
    """Read the domain with the shipped split; raises DataError if the folder can't be listed or the split was
    changed.
    """
    split, notes = drawn_split(NAME), list[str]()
    folder = next(folder for folder in FOLDERS if holds(root, folder, PATTERN))
    rows: list[tuple[str, str, str | None, str]] = []
    seen: set[int] = set()
    for path, match in matching(root, folder, PATTERN, "0001002.jpg", notes):
        person = int(match[1])
        side, first = split.side(person), person not in seen
        seen.add(person)
        if side == "train":
            rows.append(("train", path, str(person), "0"))
        elif side == "test":
            rows.append(("query" if first else "gallery", path, str(person), "0" if first else "1"))
    notes.append("cameras are not labelled: query (a person's first image) counts as camera 0, gallery as camera 1")
    return from_rows(name, root, NAME, rows, notes=split.notes(seen) + notes)
