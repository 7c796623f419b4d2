"""Small pictures of crops, for galleries whose owner asked for them: kept in a separate table and erased with their
entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from deploy.store import Store
from deploy.store.row import checksum
from domains.crops import Crop, check_crop, decode_crop
from domains.errors import DataError, GalleryError

MAX_HEIGHT, MAX_WIDTH, QUALITY = 160, 96, 80


def encode_crops(store: Store, crops: Sequence[Crop], count: int) -> list[bytes]:
    """Encode each crop as a small JPEG of about 3 KB.

    Raises:
        GalleryError: the gallery keeps no pictures, or their number does not match.
        DataError: something is not a crop.
    """
    if not store.ask("SELECT crops FROM gallery")[0][0]:
        raise GalleryError(
            f"{store.file.parent} keeps no pictures; create a gallery with keep_crops (reid gallery add --keep-crops)"
        )
    if len(crops) != count:
        raise GalleryError(f"crops must have one picture per vector: {count} vectors, got {len(crops)}")
    return [small_jpeg(crop) for crop in crops]


def kept_crop(store: Store, number: int) -> Crop | None:
    """Return the picture kept of an entry, uint8 RGB, or ``None``; raises GalleryError if it is damaged."""
    rows = store.ask("SELECT jpeg, checksum FROM crop WHERE id = ?", (int(number),))
    if not rows:
        return None
    data, expected = rows[0]
    damaged = f"the stored crop of entry {number} of {store.file} is damaged; restore a backup, or forget the entry"
    if not isinstance(data, bytes) or checksum(data, (int(number),)) != expected:
        raise GalleryError(damaged)
    try:
        return decode_crop(data)
    except DataError as error:
        raise GalleryError(damaged) from error


def shrunk(crop: Crop) -> Crop:
    """Shrink a crop to the size that is kept; raises DataError."""
    check_crop(crop)
    scale = min(1.0, MAX_HEIGHT / crop.shape[0], MAX_WIDTH / crop.shape[1])
    size = max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale))
    return crop if scale == 1 else np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA), np.uint8)


def small_jpeg(crop: Crop) -> bytes:
    """Encode a crop as a JPEG, shrunk to the size that is kept; raises DataError."""
    small = shrunk(crop)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise DataError(f"a crop of {crop.shape[1]}×{crop.shape[0]} pixels can't be encoded as a JPEG")
    return bytes(data)
