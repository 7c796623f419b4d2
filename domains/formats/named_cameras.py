"""Cameras that files and folders are named after, as ``0001_c3.jpg`` and ``cam3/`` are, and what only looks like one.

``c0001.jpg`` to ``c0400.jpg``, and ``cam_000001.jpg``, are usually numbers of crops and frames. Real cameras are few,
and come again: so numbers that hardly ever do, within the folders that hold the images, are chance.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

CAMERA = re.compile(
    r"(?:(?<![A-Za-z0-9])c|cam(?:era)?[_-]?)([0-9]{1,6})(?:[f-z][0-9]+)*(?![A-Za-z0-9])", re.IGNORECASE | re.ASCII
)
"""A camera in a file's name: ``_c3``, ``c3s1`` or ``cam-03``, but no longer word that begins like one."""
RANDOM = re.compile(r"[0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12}|[0-9a-f]{16,}", re.IGNORECASE | re.ASCII)
"""UUIDs and hashes: what looks like a camera in them is chance."""
NUMBERED_FOLDER = re.compile(
    r"(?:cam(?:era)?|view)[ _-]?[A-Za-z0-9]{0,2}"
    r"|(?:c|ch|channel|cctv|(?:ip|web)?cam(?:era)?|kamera|camara|view)[ ._#-]{0,2}[0-9]{1,6}[a-z]?",
    re.IGNORECASE | re.ASCII,
)
"""Names of folders that are cameras by number or letter: ``cam1``, ``c2``, ``camera_A``."""
NAMED_FOLDER = re.compile(
    r"(?:cctv|(?:ip|web)?cam(?:era)?|kamera|view|channel)[ ._-].{1,40}"
    r"|.{1,40}[ ._-](?:cctv|cam(?:era)?|kamera|view)[ ._-]?[0-9]{0,4}",
    re.IGNORECASE | re.ASCII,
)
"""Names of folders that are cameras by a word beside: ``entrance_cam``, ``camera yard``."""
FEW = 8
"""So many crops of a folder may all be of different cameras, and so many cameras may have one crop each."""
MORE = 16
"""The same where something besides the number tells the crops apart, such as a time."""
ONCE = 0.9
"""Share of numbers that come only once, within their folder, from which on they count as running numbers."""
WIDTH = 4
"""Digits of numbers that are filled up with zeros for hundreds and more: ``c0001``."""


@dataclass(frozen=True)
class NamedCameras:
    """What the names of some files tell about cameras.

    Attributes:
        cameras: the number of each file's camera, or None; None for all of them if what was found is chance.
        found: how many names seem to tell one.
        chance: what shows that these are no cameras, with an example, or ``""``.
    """

    cameras: tuple[str | None, ...]
    found: int
    chance: str = ""

    @property
    def told(self) -> bool:
        """Whether the names tell cameras."""
        return bool(self.found) and not self.chance


@dataclass(frozen=True)
class _Found:
    """A number that seems to be a camera: as it is written, and the rest of the file's name."""

    folder: str
    digits: str
    rest: str

    @property
    def camera(self) -> str:
        return str(int(self.digits))

    @property
    def alone(self) -> bool:
        """Whether the name holds nothing besides."""
        return CAMERA.fullmatch(self.rest.rpartition(".")[0].replace("#", "0")) is not None

    @property
    def padded(self) -> bool:
        return self.digits.startswith("0") and len(self.digits) >= (WIDTH - 1 if self.alone else WIDTH)


def camera_of(name: str) -> str | None:
    """The number of the camera that a file's name gives, or None."""
    found = _found(name)
    return found.camera if found else None


def named_cameras(paths: Sequence[str]) -> NamedCameras:
    """Read the cameras of files from their names, unless fewer than half of them give one or all is chance.

    Args:
        paths: ``/``-separated; numbers are compared within each folder.
    """
    found = [_found(path) for path in paths]
    seen = [each for each in found if each is not None]
    if not seen:
        return NamedCameras((None,) * len(paths), 0)
    chance, example = "", paths[next(at for at, each in enumerate(found) if each is not None)]
    if 2 * len(seen) < len(found):
        chance = f"only {len(seen)} of {len(found)} file names seem to give a camera (such as {example})"
    elif _running(seen):
        different = len({each.camera for each in seen})
        chance = f"{len(seen)} file names give {different} numbers, hardly any of them twice in a folder ({example})"
    if chance:
        return NamedCameras((None,) * len(paths), len(seen), chance)
    return NamedCameras(tuple(None if each is None else each.camera for each in found), len(seen))


def several_cameras(paths: Sequence[str]) -> bool:
    """Whether the names of a folder's files tell two cameras or more, beside something else that they are told by."""
    found = [each for path in paths if (each := _found(path)) is not None and not each.alone]
    return len({each.camera for each in found}) > 1


def is_camera_folder(name: str) -> bool:
    """Whether a folder is named like a camera: by a number or letter, or by a word beside."""
    return is_numbered_folder(name) or NAMED_FOLDER.fullmatch(name) is not None


def is_numbered_folder(name: str) -> bool:
    """Whether a folder is named like a camera by number or letter: ``cam1``, ``c2``, ``camera_A``."""
    return NUMBERED_FOLDER.fullmatch(name) is not None


def _found(path: str) -> _Found | None:
    folder, _, name = path.rpartition("/")
    plain = RANDOM.sub("", name)
    match = CAMERA.search(plain)
    if match is None:
        return None
    rest = f"{plain[: match.start(1)]}#{plain[match.end(1) :]}"
    return _Found(folder, match[1], rest if plain == name else name)


def _running(found: Sequence[_Found]) -> bool:
    """Whether numbers count the crops, of all folders or within each, and not cameras."""
    different = len({each.camera for each in found})
    if different > FEW and different >= ONCE * len(found):
        return True
    by_folder: dict[str, list[_Found]] = defaultdict(list)
    for each in found:
        by_folder[each.folder].append(each)
    several = [each for each in by_folder.values() if len(each) > 1]
    crops = sum(map(len, several))
    if not crops or sum(len({each.camera for each in folder}) for folder in several) < ONCE * crops:
        return False
    if all(each.padded for folder in several for each in folder):
        return True
    only_the_number = all(len({each.rest for each in folder}) == 1 for folder in several)
    return max(map(len, several)) > (FEW if only_the_number else MORE)
