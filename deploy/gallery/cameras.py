"""The cameras of a gallery, for people who type their names."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from deploy.gallery.gallery import Gallery
from domains.errors import UsageError

NAMED = 20
"""Cameras that a message names at most."""


def check_camera(gallery: Gallery, camera: str | None) -> None:
    """Raise UsageError naming the cameras there are, if no entry is from this one."""
    if camera is not None and (reason := unknown_camera(gallery, camera)):
        raise UsageError(reason)


def unknown_camera(gallery: Gallery, camera: str, also: Collection[str] = ()) -> str | None:
    """Say that no entry is from a camera, and which there are; None for one of the gallery's or of ``also``."""
    known = list(gallery.info()["cameras"])
    if camera in known or camera in also:
        return None
    if not known:
        return f"no entry of {gallery.path} is from the camera {camera!r:.100}: the gallery is empty"
    close = difflib.get_close_matches(camera, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    more = f" and {len(known) - NAMED} more, as reid gallery info shows" if len(known) > NAMED else ""
    return (
        f"no entry of {gallery.path} is from the camera {camera!r:.100}; {hint}it has "
        f"{', '.join(map(repr, known[:NAMED]))}{more}"
    )
