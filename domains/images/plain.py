"""BMP and PPM files. A decoder's work is bounded by their pixels and bytes; neither has metadata."""

from __future__ import annotations

import re
import struct

import numpy as np

_GAP = rb"\s(?:\s|#[^\r\n]*[\r\n])*"
_PPM = re.compile(rb"P[56]" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})\s")
_DECODED = (255, 65535)
"""Largest values that OpenCV scales to 255; of others it takes the first eight bits."""


def bmp_size(data: bytes) -> tuple[int, int]:
    """Height and width of a BMP; raises struct.error for a damaged header."""
    if struct.unpack("<I", data[14:18])[0] == 12:  # OS/2's header has 16-bit sides
        width, height = struct.unpack("<HH", data[18:22])
        return height, width
    width, height = struct.unpack("<ii", data[18:26])
    return abs(height), abs(width)


def ppm_size(data: bytes) -> tuple[int, int]:
    """Height and width of a binary PPM or PGM; raises ValueError for a damaged header.

    The last number must end within what is read here, or a decoder would read on and find a larger one; and a space
    must follow each, as decoders take whatever follows for it.
    """
    found = _ppm_header(data)
    return int(found[2]), int(found[1])


def ppm_still(data: bytes) -> bytes:
    """Return the file with samples that go up to 255 or 65535, scaled where its own largest value is another.

    Raises:
        ValueError: a damaged header, or fewer samples than pixels.
    """
    found = _ppm_header(data)
    largest = int(found[3])
    if largest in _DECODED:
        return data
    wide = largest > 255
    count = int(found[1]) * int(found[2]) * (3 if data[1:2] == b"6" else 1)
    samples = data[found.end() : found.end() + count * (2 if wide else 1)]
    if len(samples) != count * (2 if wide else 1):
        raise ValueError("samples that are cut off")
    if wide:
        values = np.minimum(np.frombuffer(samples, ">u2"), largest).astype(np.uint32)
        samples = ((values * 255 + largest // 2) // largest).astype(np.uint8).tobytes()
    else:
        samples = samples.translate(
            bytes((min(value, largest) * 255 + largest // 2) // largest for value in range(256))
        )
    return b"%s\n%s %s\n255\n" % (data[:2], found[1], found[2]) + samples


def _ppm_header(data: bytes) -> re.Match[bytes]:
    """Width, height and largest value; raises ValueError if one is missing or the last is not from 1 to 65535."""
    found = _PPM.match(data[:4096])
    if found is None or not 1 <= int(found[3]) <= 65535:
        raise ValueError("no width, height and largest value")
    return found
