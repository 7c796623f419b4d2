"""One still picture as a decoder is given it: nothing but what its pixels need, at a bounded cost."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from domains.errors import DataError
from domains.images import jpeg, plain, png, webp

FORMATS = "PNG, JPEG, BMP, WebP or PPM"
"""What is taken, for messages."""

_DAMAGED = (struct.error, ValueError, IndexError)


@dataclass(frozen=True)
class Still:
    """A picture that may be decoded.

    Attributes:
        data: the file without metadata, so that the decoder parses none.
        height: rows as stored.
        width: columns as stored.
        orientation: how to turn it, 1 to 8 as in EXIF; 5 to 8 swap height and width.
    """

    data: bytes
    height: int
    width: int
    orientation: int = 1

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width as shown."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def image_size(data: bytes) -> tuple[int, int]:
    """Read height and width, as stored, from an image file's header alone, so that limits are checked before decoding.

    Raises:
        DataError: not a PNG, JPEG, BMP, WebP or PPM file, or its header is truncated or could be read differently by a
            decoder.
    """
    try:
        height, width = _size(data)
    except _DAMAGED as error:
        raise DataError("the image header is damaged") from error
    if height < 1 or width < 1:
        raise DataError("the image has no pixels")
    return height, width


def read_still(data: bytes, max_pixels: int) -> Still:
    """Check what decoding an image would take, and leave out of it all that a decoder does not need.

    A decoder's work is bounded by the pixels of the picture and the bytes of the file, and not by how often a file
    makes it go over either: JPEG's scans, PNG's surplus of compressed data and inflated texts, animations.

    Args:
        data: an image file.
        max_pixels: the largest picture that may be decoded.

    Raises:
        DataError: damaged, or more pixels than that.
        CostlyImageError: decoding it would take far more work than its pixels need.
        UnsupportedImageError: an animation, or a coding that hardly anybody uses.
    """
    height, width = image_size(data)
    if height * width > max_pixels:
        raise DataError(f"{width}×{height} pixels, over the limit of {max_pixels / 10**6:g} million")
    try:
        if data.startswith(png.START):
            kept, orientation = png.still(data)
        elif data.startswith(jpeg.START):
            kept, orientation = jpeg.still(data, max_pixels)
        elif data.startswith(b"RIFF"):
            kept, orientation = webp.still(data)
        elif data[:2] in (b"P5", b"P6"):
            kept, orientation = plain.ppm_still(data), 1
        else:
            kept, orientation = data, 1
    except _DAMAGED as error:
        raise DataError("the image data is damaged") from error
    return Still(kept, height, width, orientation)


def _size(data: bytes) -> tuple[int, int]:
    if data.startswith(png.START):
        return png.size(data)
    if data.startswith(jpeg.START):
        return jpeg.size(data)
    if data[:2] == b"BM":
        return plain.bmp_size(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return webp.size(data)
    if data[:2] in (b"P5", b"P6"):
        return plain.ppm_size(data)
    raise DataError(f"not a {FORMATS} image")
