"""EXIF orientation: which way up a picture is shown, read and applied here and not by the decoder, as OpenCV reads it
from some formats in some versions only.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

PREFIX = b"Exif\0\0"
TAG = 0x0112
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}


def orientation(tiff: bytes) -> int:
    """Return the orientation, 1 to 8, that EXIF data name; 1 where they name none or are damaged.

    The first entry of the first directory that has the tag counts, whatever its type, as in OpenCV's reader of JPEG.

    Args:
        tiff: EXIF data from their byte order on; the prefix that JPEG files put before it may be there too.
    """
    tiff = tiff.removeprefix(PREFIX)
    order = _ORDERS.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        if directory < 8:
            return 1
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for number in range(entries):
            tag, value = struct.unpack_from(f"{order}H6xH", tiff, directory + 2 + 12 * number)
            if tag == TAG:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def upright(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn a picture ``[H, W, 3]`` as its orientation says; 5 to 8 swap height and width."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
