"""The camera of each image of a plain folder: what file names tell, else a folder that is named like a camera, else the
folder that holds the image. The last is a guess, as it may be a person or a date, and a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from domains.formats.folders import UNKNOWN, untold
from domains.formats.listing import some
from domains.formats.named_cameras import is_camera_folder, is_numbered_folder, named_cameras

_DATE = re.compile(
    r"/(?:19|20)[0-9]{2}([-_./]?)(?:0[1-9]|1[0-2])(?:\1(?:0[1-9]|[12][0-9]|3[01]))?"
    r"(?:[-_ T]?[0-9]{2}(?:[-_:.h]?[0-9]{2}){0,2})?(?=/)",
    re.ASCII,
)
"""Folders of a day or a month, perhaps with a time: ``2024-05-01``, ``2024/05/01``, ``20240501_1030``."""


def folder_cameras(paths: Sequence[str], home: str, notes: list[str]) -> list[str]:
    """Return the camera of each image of a plain folder.

    Args:
        paths: relative to the folder, ``/``-separated.
        home: the folder's own name.
        notes: gets a note on what was taken as the camera, unless it is the folder that holds the image and is named
            like a camera.
    """
    named, outer = named_cameras(paths), _outer_cameras(paths)
    if named.told and (len(set(named.cameras)) > 1 or len(set(outer) - {None}) < 2):
        example = next(path for path, camera in zip(paths, named.cameras, strict=True) if camera is not None)
        notes.append(f"the file names tell the cameras, such as {example}; to name one yourself, give --camera NAME")
        if None in named.cameras:
            notes.append(untold(named))
        return [camera or UNKNOWN for camera in named.cameras]
    if named.chance:
        notes.append(f"{named.chance}, which is taken for chance and not for cameras")
    if any(camera not in (None, _holder(path)) for path, camera in zip(paths, outer, strict=True)):
        told = dict.fromkeys(camera for camera in outer if camera is not None)
        notes.append(f"the outermost folder named like a camera is taken as an image's camera: {some(told)}")
    cameras = [camera or _nearest(path, home) for path, camera in zip(paths, outer, strict=True)]
    if guessed := [camera for camera, sure in zip(cameras, outer, strict=True) if sure is None]:
        notes.append(
            f"the folder of {len(guessed)} images is taken as their camera: {some(dict.fromkeys(guessed))}; if these "
            "are people or dates, give --camera NAME"
        )
    return cameras


def _outer_cameras(paths: Sequence[str]) -> list[str | None]:
    """The outermost folder of each image that is named like a camera, or None; but the next one where that is the same
    for all, as ``camera exports/`` is that holds ``cam1/`` and ``cam2/``.
    """
    parents = {path.rpartition("/")[0] for path in paths}
    known = {parent: [part for part in parent.split("/") if is_camera_folder(part)] for parent in parents}
    while len({tuple(parts[:1]) for parts in known.values()}) == 1 and any(len(parts) > 1 for parts in known.values()):
        known = {parent: parts[1:] or parts for parent, parts in known.items()}
    return [next(iter(known[path.rpartition("/")[0]]), None) for path in paths]


def _holder(path: str) -> str:
    """Name of the folder that holds an image."""
    return path.rpartition("/")[0].rpartition("/")[2]


def _nearest(path: str, home: str) -> str:
    """The folder that holds an image, but for dates; ``home`` if there is none below it, or if it is a camera."""
    inner = _DATE.sub("/", f"/{path.rpartition('/')[0]}/").strip("/").rpartition("/")[2]
    return home if not inner or is_numbered_folder(home) else inner
