"""3DPeS: a campus with eight outdoor cameras, snapshots of about 200 people.

Baltieri, Vezzani and Cucchiara, "3DPeS: 3D People Dataset for Surveillance and Forensics", J-HGBU 2011.
``12_34_FRAME_56_RGB.bmp`` is person 12 in sequence 34. The camera is not in the name, so a sequence counts as a camera;
a test person's first sequence is the query and the others are the gallery.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from domains.domain import Domain, from_rows, natural_key
from domains.formats.drawn import drawn_split
from domains.formats.listing import holds, matching

NAME = "3dpes"
DESCRIPTION = "one folder (or RGB/) with names like 12_34_FRAME_56_RGB.bmp"

BASES = ("", "RGB", "3DPeS_ReId_Snap/RGB")
PATTERN = re.compile(r"([0-9]{1,4})_([0-9]{1,6}[0-9A-Za-z_]{0,8}?)_FRAME_[0-9]{1,9}_RGB", re.ASCII)


def recognise(root: Path) -> bool:
    """Whether the folder holds images with such names."""
    return any(holds(root, base, PATTERN) for base in BASES)


def read(root: Path, name: str) -> Domain:
    """Read the domain with the shipped split; raises DataError if the folder can't be listed or the split was
    changed.
    """
    split, notes = drawn_split(NAME), list[str]()
    base = next(base for base in BASES if holds(root, base, PATTERN))
    crops = [
        (path, int(match[1]), match[2])
        for path, match in matching(root, base, PATTERN, "12_34_FRAME_56_RGB.bmp", notes)
    ]
    sequences: dict[int, set[str]] = defaultdict(set)
    for _, person, sequence in crops:
        sequences[person].add(sequence)
    first = {person: min(seen, key=natural_key) for person, seen in sequences.items()}
    rows: list[tuple[str, str, str | None, str]] = []
    for path, person, sequence in crops:
        if side := split.side(person):
            role = "query" if sequence == first[person] else "gallery"
            rows.append(("train" if side == "train" else role, path, str(person), sequence))
    notes.append(
        "cameras are not labelled: each sequence counts as a camera, and a test person's first sequence is the query"
    )
    return from_rows(name, root, NAME, rows, notes=split.notes(sequences) + notes)
