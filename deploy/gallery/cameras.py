"""The cameras of a gallery, for people who type their names."""

from __future__ import annotations

from collections.abc import Collection

from deploy.gallery.gallery import Gallery
from deploy.known_names import known_names
from domains.errors import UsageError


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
    listed = known_names(camera, known, ", as reid gallery info shows")
    return f"no entry of {gallery.path} is from the camera {camera!r:.100}; {listed}"
