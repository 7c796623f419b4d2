"""PRID 2011: two street cameras, 200 people in both.

Hirzer et al., "Person Re-Identification by Descriptive and Discriminative Classification", SCIA 2011.
``cam_a/person_0001.png`` (single shot) or ``cam_a/person_0001/0001.png`` (multi shot). Persons 1 to 200 are the same
people in both cameras; above that, one number means two people, so 201 of camera a is labelled 2201 and 201 of camera b
1201. People seen only by camera a are for training too (one image each); those seen only by camera b are distractors in
the gallery, as is usual.
"""

from __future__ import annotations

import re
from pathlib import Path

from domains.domain import Domain, from_rows
from domains.formats.drawn import drawn_split
from domains.formats.listing import folders, holds, images, join, matching

NAME = "prid2011"
DESCRIPTION = "cam_a/ and cam_b/ with names like person_0001.png, or one folder person_0001/ per person"

SHOTS = ("single_shot", "multi_shot")
BASES = ("", *SHOTS, *(f"prid_2011/{shot}" for shot in SHOTS))
CAMERAS = (("a", "0", "query", 2000), ("b", "1", "gallery", 1000))
"""Folder letter, camera label, role in testing, and the offset added to the number of a person that the other camera
never saw.
"""
PATTERN = re.compile(r"person_([0-9]{1,4})", re.ASCII)
SHARED = 200


def recognise(root: Path) -> bool:
    """Whether both camera folders hold such images or folders."""
    return _base(root) is not None


def read(root: Path, name: str) -> Domain:
    """Read the domain with the shipped split; raises DataError if a folder can't be listed or the split was changed."""
    split, base, notes = drawn_split(NAME), _base(root), list[str]()
    rows: list[tuple[str, str, str | None, str]] = []
    seen = set()
    for letter, camera, role, alone in CAMERAS:
        for person, crops in _people(root, join(base, f"cam_{letter}"), notes).items():
            if person > SHARED:
                rows += [("train" if letter == "a" else "gallery", path, str(alone + person), camera) for path in crops]
                continue
            seen.add(person)
            side = split.side(person)
            if side == "test":
                rows += [(role, path, str(person), camera) for path in (crops[:1] if role == "query" else crops)]
            elif side == "train":
                rows += [("train", path, str(person), camera) for path in crops]
    if base and base.endswith("multi_shot"):
        notes.append("multi-shot images: the query is a person's first image in camera a")
    return from_rows(name, root, NAME, rows, notes=split.notes(seen) + notes)


def _people(root: Path, folder: str, notes: list[str]) -> dict[int, list[str]]:
    people = {}
    if holds(root, folder, PATTERN):
        people = {int(match[1]): [path] for path, match in matching(root, folder, PATTERN, "person_0001.png", notes)}
    for inner in folders(root, folder):
        if match := PATTERN.fullmatch(inner):
            people[int(match[1])] = images(root, f"{folder}/{inner}")
    return people


def _base(root: Path) -> str | None:
    return next(
        (base for base in BASES if all(_camera(root, join(base, f"cam_{letter}")) for letter, *_ in CAMERAS)), None
    )


def _camera(root: Path, folder: str) -> bool:
    if not (root / folder).is_dir():
        return False
    return holds(root, folder, PATTERN) or any(PATTERN.fullmatch(inner) for inner in folders(root, folder))
