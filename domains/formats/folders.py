"""One folder per person: how most people keep the crops of their own cameras.

Either ``train/12/a.jpg``, ``query/12/b.jpg``, ``gallery/12/c.jpg``, or ``12/a.jpg`` directly. Without split
folders, people are divided by a hash of their label: half train, half test, and adding people moves nobody. The first
crop of a test person seen by two cameras is a query and the rest is gallery; if the domain has one camera, two crops
are enough. The camera is read from ``_c3`` or ``cam3`` in a file's name.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

from domains.domain import SPLITS, Domain, from_rows
from domains.formats.listing import folders, images, join, some

NAME = "folders"
DESCRIPTION = "one folder of crops per person, directly or below train/, query/ and gallery/"

CAMERA = re.compile(r"(?:(?<![A-Za-z0-9])c|cam(?:era)?[_-]?)([0-9]{1,6})(?![0-9])", re.IGNORECASE | re.ASCII)
NOT_PEOPLE = re.compile(
    r"(?:cam(?:era)?|view|scene?|images?|img|probe|test|val|train|query|gallery|seq)[ _-]?[A-Za-z0-9]{0,2}",
    re.IGNORECASE | re.ASCII,
)
UNKNOWN = "unknown"


def recognise(root: Path) -> bool:
    """Whether there are person folders with images in them: two or more, and not all named like cameras or splits."""
    if _split_folders(root):
        return any(
            images(root, join(split, person)) for split in _split_folders(root) for person in folders(root, split)
        )
    people = [person for person in folders(root) if images(root, person)]
    return len(people) > 1 and not all(NOT_PEOPLE.fullmatch(person) for person in people)


def read(root: Path, name: str) -> Domain:
    """Read the domain; raises DataError if a folder can't be listed or there is no crop."""
    notes: list[str] = []
    splits = _split_folders(root)
    if splits:
        if others := [folder for folder in folders(root) if folder not in SPLITS]:
            notes.append(
                f"these folders beside {', '.join(f'{split}/' for split in splits)} are not read: {some(others)}"
            )
        crops = [
            (split, path, person)
            for split in splits
            for person in folders(root, split)
            for path in images(root, join(split, person))
        ]
    else:
        crops = [("", path, person) for person in folders(root) for path in images(root, person)]
    cameras = [_camera(path) for _, path, _ in crops]
    known = {camera for camera in cameras if camera is not None}
    if not known:
        notes.append(
            "no file name gives its camera (_c3 or cam3): all crops count as one camera, and same-camera matches are "
            "kept when scoring"
        )
    elif None in cameras:
        notes.append(
            f"{cameras.count(None)} of {len(cameras)} file names do not give their camera and count as camera "
            f"{UNKNOWN!r}"
        )
    rows = [
        (split, path, person, camera or (UNKNOWN if known else "0"))
        for (split, path, person), camera in zip(crops, cameras, strict=True)
    ]
    if not splits:
        rows = _divided(rows)
        notes.append(
            "people are divided into train and test by a hash of their folder's name; make train/, query/ and "
            "gallery/ to choose yourself"
        )
    people: list[tuple[str, str, str | None, str]] = list(rows)
    domain = from_rows(name, root, NAME, people, notes=notes)
    return domain if known else replace(domain, same_camera="keep")


def _split_folders(root: Path) -> list[str]:
    return [split for split in SPLITS if (root / split).is_dir() and folders(root, split)]


def _divided(rows: list[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    one_camera = len({camera for *_, camera in rows}) == 1
    people: dict[str, list[tuple[str, str, str, str]]] = {}
    for row in rows:
        people.setdefault(row[2], []).append(row)
    divided = []
    for person, crops in people.items():
        trains = hashlib.sha256(person.encode()).digest()[0] % 2 == 0
        can_query = len(crops) > 1 and (one_camera or len({camera for *_, camera in crops}) > 1)
        for number, (_, path, _, camera) in enumerate(crops):
            split = "train" if trains else "query" if can_query and number == 0 else "gallery"
            divided.append((split, path, person, camera))
    return divided


def _camera(path: str) -> str | None:
    match = CAMERA.search(path.rpartition("/")[2])
    return str(int(match[1])) if match else None
