"""One folder per person: how most people keep the crops of their own cameras.

Either ``train/12/a.jpg``, ``query/12/b.jpg``, ``gallery/12/c.jpg``, or ``12/a.jpg`` directly. Without split
folders, people are divided by a hash of their label: half train, half test, and adding people moves nobody, unless a
side would otherwise have too few to learn from or to ask for. The first crop of a test person seen by two cameras is a
query and the rest is gallery; if nobody was seen by two, two crops are enough.

The camera is read from ``_c3`` or ``cam3`` in a file's name, if at least half of the names give one and the numbers
come again. Where fewer names give one, it is chance, such as a part of a random name; numbers that hardly come again
count crops or frames. Where there is only one camera, whether or not names tell it, same-camera matches are kept when
scoring.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from domains.domain import SPLITS, Domain, from_rows
from domains.errors import DataError
from domains.formats.labels import is_junk
from domains.formats.listing import folders, images, join, some
from domains.formats.named_cameras import NamedCameras, is_camera_folder, named_cameras, several_cameras

NAME = "folders"
DESCRIPTION = "one folder of crops per person, directly or below train/, query/ and gallery/"

SPLIT_FOLDER = re.compile(
    r"(?:probe|query|queries|gallery|test(?:ing)?|val(?:id(?:ation)?)?|train(?:ing)?|bounding_box_(?:train|test))"
    r"([ _-]?[0-9]{1,2}|[ _-][A-Za-z0-9]{1,2})?",
    re.IGNORECASE | re.ASCII,
)
"""Names of folders that are splits, and what follows the word."""
SCENE_FOLDER = re.compile(
    r"(?:scene?|seq(?:uence)?)[ ._#-]{0,2}[0-9]{1,6}[a-z]?"
    r"|(?:scene?|images?|img|seq)(?:[ _-]?[0-9]{1,2}|[ _-][A-Za-z0-9]{1,2})?",
    re.IGNORECASE | re.ASCII,
)
"""Names of folders that are scenes, or hold whatever there is."""
MANY = 100
"""More folders than this are not taken for cameras."""
UNKNOWN = "unknown"
DIVIDED = (
    "people are divided into train and test by a hash of their folder's name; make train/, query/ and gallery/ to "
    "choose yourself"
)
ENOUGH = 4
"""People that either side of a division should have, if there are enough of them."""

Row = tuple[str, str, str | None, str]


def recognise(root: Path) -> bool:
    """Whether there are person folders with images in them: two or more if there are no splits, and in none of the
    splits named like cameras.
    """
    if splits := _split_folders(root):
        found = any(images(root, join(split, person)) for split in splits for person in folders(root, split))
        return found and not no_people(root)
    return len(_people(root, "")) > 1 and not no_people(root)


def no_people(root: Path) -> str:
    """Why the folders of images in ``root``, or in one of its splits, can't be people; ``""`` if they can.

    They can't if most are named like cameras, views or splits. Those named like cameras or views can if one of them
    holds crops of two cameras, by their names. Those named like splits can't even then, nor beside others if there are
    two such as ``test`` and ``val``, or if it is ``train``, ``query`` or ``gallery``.
    """
    for split in _split_folders(root) or [""]:
        if not any(_is_no_person(name) for name in folders(root, split)):
            continue
        people = {name: crops for name in folders(root, split) if (crops := images(root, join(split, name)))}
        named, splits = _no_people(people)
        if named:
            where = f"{split}/" if split else "it"
            like, below, example = "cameras or splits", "", "anna"
            if named == splits:
                like, below, example = "splits", " below train/, query/ and gallery/", "train/anna"
            return (
                f"the folders in {where} are named like {like}, not people ({some(named)}); make one folder per "
                f"person{below}, with the camera in each file's name ({example}/0001_c1.jpg), or write a domain.csv"
            )
    return ""


def _no_people(people: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """Of folders with their images, those that keep all from being people, and those of them that are splits."""
    named = [name for name in people if _is_no_person(name)]
    splits = {name: match for name in named if (match := SPLIT_FOLDER.fullmatch(name))}
    if sum(not match[1] for match in splits.values()) > 1 or any(name.lower() in SPLITS for name in splits):
        return list(splits), list(splits)
    if _holds_two_cameras(people, set(named) - set(splits)):
        named = list(splits)
    return named if len(people) < 2 * len(named) <= 2 * MANY else [], list(splits)


def _is_no_person(name: str) -> bool:
    """Whether a folder is named like a camera, a view or a split."""
    return is_camera_folder(name) or bool(SPLIT_FOLDER.fullmatch(name) or SCENE_FOLDER.fullmatch(name))


def _holds_two_cameras(people: Mapping[str, Sequence[str]], named: Collection[str]) -> bool:
    """Whether one of the folders ``named`` holds crops of two cameras, if names tell cameras at all."""
    told = named_cameras([path for crops in people.values() for path in crops]).told
    return told and any(several_cameras(people[name]) for name in named)


def read(root: Path, name: str) -> Domain:
    """Read the domain; raises DataError if a folder can't be listed, there is no crop, or folders are cameras."""
    notes: list[str] = []
    if reason := no_people(root):
        raise DataError(f"{root}: {reason}")
    splits = _split_folders(root)
    if splits and (others := [folder for folder in folders(root) if folder not in SPLITS]):
        notes.append(f"these folders beside {', '.join(f'{split}/' for split in splits)} are not read: {some(others)}")
    for split in SPLITS:
        if splits and (root / split).is_dir() and (loose := images(root, split)):
            notes.append(
                f"{len(loose)} images lie directly in {split}/ and are not read, such as {loose[0]}; make one folder "
                "per person"
            )
    crops = [
        (split, path, person)
        for split in splits or [""]
        for person in folders(root, split)
        for path in images(root, join(split, person))
    ]
    cameras = _cameras([path for _, path, _ in crops], notes)
    known = {camera for camera in cameras if camera is not None}
    rows: list[Row] = [
        (split, path, None if is_junk(person) else person, camera or (UNKNOWN if known else "0"))
        for (split, path, person), camera in zip(crops, cameras, strict=True)
    ]
    alone = len(known) < 2
    if not splits:
        alone = alone or not any(len(seen) > 1 for seen in _seen(rows).values())
        rows = _divided(rows, alone=alone)
        notes.append(DIVIDED)
    notes += _folder_notes(rows)
    if known and alone:
        notes.append(
            f"the file names give a single camera, {next(iter(known))!r}: same-camera matches are kept when scoring"
            if len(known) == 1
            else "nobody was seen by two cameras: same-camera matches are kept when scoring"
        )
    domain = from_rows(name, root, NAME, rows, notes=notes)
    return replace(domain, same_camera="keep") if alone else domain


def _people(root: Path, split: str) -> list[str]:
    return [person for person in folders(root, split) if images(root, join(split, person))]


def _cameras(paths: list[str], notes: list[str]) -> tuple[str | None, ...]:
    """The camera of each path, or None for all of them where names give none that is more than chance; a note says
    which.
    """
    named = named_cameras(paths)
    one = "all crops count as one camera, and same-camera matches are kept when scoring"
    if not named.found:
        notes.append(f"no file name gives its camera (_c3 or cam3): {one}")
    elif named.chance:
        notes.append(f"{named.chance}, which is taken for chance: {one}; if these are cameras, write a domain.csv")
    elif named.found < len(paths):
        notes.append(untold(named))
    return named.cameras


def untold(named: NamedCameras) -> str:
    """A note on files whose names do not give their camera, where others do."""
    return (
        f"{named.cameras.count(None)} of {len(named.cameras)} file names do not give their camera and count as camera "
        f"{UNKNOWN!r}"
    )


def _folder_notes(rows: list[Row]) -> list[str]:
    seen = _seen(rows)
    notes = []
    if named := [person for person, cameras in seen.items() if len(cameras) < 2 and _is_no_person(person)]:
        notes.append(f"these folders are named like cameras or splits and count as people: {some(named)}")
    train, test = (
        {row[2] for row in rows if (row[0] == "train") == half and row[2] is not None} for half in (True, False)
    )
    if train and train <= test:
        notes.append(
            f"every folder in train/ is in query/ or gallery/ too ({some(sorted(train))}): if the folders are cameras "
            "and not people, make one folder per person instead; people that are tested should not be trained on"
        )
    cameras = [camera for each in seen.values() for camera in each]
    if len(seen) > 1 and len(cameras) == len(seen) == len(set(cameras)):
        notes.append(
            f"each of the {len(seen)} folders has its own camera, which no other has: if the folders are cameras and "
            "not people, make one folder per person instead"
        )
    return notes


def _seen(rows: list[Row]) -> dict[str, set[str]]:
    """The cameras that saw each person, junk aside."""
    seen: dict[str, set[str]] = defaultdict(set)
    for _, _, person, camera in rows:
        if person is not None:
            seen[person].add(camera)
    return seen


def _split_folders(root: Path) -> list[str]:
    return [split for split in SPLITS if (root / split).is_dir() and folders(root, split)]


def _divided(rows: list[Row], *, alone: bool) -> list[Row]:
    """Give each row its split; ``alone`` says that two crops of one camera make a query. Junk goes to the gallery."""
    people: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row[2] is not None:
            people[row[2]].append(row)
    several = {person for person, crops in people.items() if len(crops) > 1}
    askable = {person for person in several if alone or len({row[3] for row in people[person]}) > 1}
    trains = _trained(list(people), several, askable)
    divided: list[Row] = [("gallery", path, None, camera) for _, path, person, camera in rows if person is None]
    for person, crops in people.items():
        for number, (_, path, _, camera) in enumerate(crops):
            asked = person in askable and number == 0
            split = "train" if person in trains else "query" if asked else "gallery"
            divided.append((split, path, person, camera))
    return divided


def _trained(people: list[str], several: set[str], askable: set[str]) -> set[str]:
    """Choose who trains: half of the people, by their hash, but enough on either side, those who train first.

    Args:
        people: all labels.
        several: those with more than one crop, who can be learned from.
        askable: those who can be a query in the test half.
    """
    order = sorted(people, key=lambda person: hashlib.sha256(person.encode()).digest())
    trains = {person for person in order if hashlib.sha256(person.encode()).digest()[0] % 2 == 0}
    enough = max(2, min(ENOUGH, len(order) // 4))
    for useful in (several, set(order)):  # two people with one crop each are still better than nobody
        wanted = min(enough if useful is several else 2, len(useful))
        for person in order:
            if len(trains & useful) >= wanted:
                break
            if person in useful:
                trains.add(person)
    for person in order:
        if len(askable - trains) >= enough or len(trains & several) <= enough:
            break
        if person in askable:
            trains.discard(person)
    if trains == set(order):  # whoever can't be learned from is still found in a gallery
        spare = [person for person in order if person not in several] if len(order) > 2 else []
        trains -= set(spare[:1])
    return trains
