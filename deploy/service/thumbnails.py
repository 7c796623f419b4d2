"""Thumbnails of matches, made from sources in folders that the operator named; off by default."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from deploy.gallery.kept_crops import small_jpeg
from deploy.service.refusal import RefusedError
from deploy.service.settings import Settings
from deploy.service.uploads import check_image
from domains.crops import decode_crop
from domains.errors import DataError


def thumbnail(source: str, folders: Sequence[Path], settings: Settings) -> str | None:
    """A small JPEG as a data: URL, or ``None`` if the source, links followed, is not a readable image inside one of the
    folders.
    """
    data = _read(source, folders, settings.max_image_bytes)
    if data is None:
        return None
    try:
        check_image(data, settings, "source")
        small = small_jpeg(decode_crop(data))
    except (RefusedError, DataError):
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(small).decode()}"


def _read(source: str, folders: Sequence[Path], limit: int) -> bytes | None:
    """The bytes of a regular file inside the folders. It is opened first and located afterwards, so that nothing can be
    swapped in between.
    """
    try:
        path = Path(source).resolve(strict=True)
        if not any(path.is_relative_to(folder.resolve()) for folder in folders):
            return None
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as stream:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            opened = Path(f"/proc/self/fd/{handle}").readlink() if Path("/proc/self/fd").is_dir() else path
            if not any(opened.is_relative_to(folder.resolve()) for folder in folders):
                return None
            data = stream.read(limit + 1)
    except (OSError, ValueError):
        return None
    return data if len(data) <= limit else None
