"""BMP and PPM files: sizes only. A decoder's work is bounded by their pixels and bytes; neither has metadata."""

from __future__ import annotations

import re
import struct

_GAP = rb"\s(?:\s|#[^\r\n]*[\r\n])*"
_PPM = re.compile(rb"P[56]" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})\s")


def bmp_size(data: bytes) -> tuple[int, int]:
    """Height and width of a BMP; raises struct.error for a damaged header."""
    if struct.unpack("<I", data[14:18])[0] == 12:  # OS/2's header has 16-bit sides
        width, height = struct.unpack("<HH", data[18:22])
        return height, width
    width, height = struct.unpack("<ii", data[18:26])
    return abs(height), abs(width)


def ppm_size(data: bytes) -> tuple[int, int]:
    """Height and width of a binary PPM or PGM; raises ValueError for a damaged header.

    The second number must end within what is read here, or a decoder would read on and find a larger one; and a space
    must follow each, as decoders take whatever follows for it.
    """
    found = _PPM.match(data[:4096])
    if found is None:
        raise ValueError("no width and height")
    return int(found[2]), int(found[1])
