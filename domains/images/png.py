"""PNG files (W3C, third edition): one picture, no more compressed data than its pixels need; a decoder is given only
the chunks that pixels come from.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

from domains.errors import CostlyImageError, UnsupportedImageError
from domains.images.exif import orientation

START = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 16384
"""Encoders write image data in chunks of 8 KiB or more, and a dozen other chunks."""
SLACK = 2**16
"""Bytes that may follow the last row: decoders inflate them for nothing."""

_PIECE, _STEP = 2**14, 2**20
_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits per sample that a colour type may have: what a row takes is counted with them."""
_PASSES = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
"""Adam7: first row, step between rows, first column, step between columns."""


def size(data: bytes) -> tuple[int, int]:
    """Height and width from the header chunk; raises ValueError or struct.error for a damaged one."""
    if data[8:16] != b"\0\0\0\x0dIHDR":
        raise ValueError("another chunk before the header")
    width, height, depth, colour, compression, filtering, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    if depth not in _DEPTHS.get(colour, ()):
        raise ValueError("a colour type or depth that no decoder knows")
    if compression or filtering or interlaced > 1:
        raise ValueError("a compression, filter or interlacing that no decoder knows")
    return height, width


def still(data: bytes) -> tuple[bytes, int]:
    """Return the file with only what its pixels need, and its orientation.

    Raises:
        CostlyImageError: too many chunks, or more compressed data than the pixels need.
        UnsupportedImageError: an animation.
        ValueError, struct.error: damaged.
    """
    kept: list[bytes | memoryview] = [START]
    pixels: list[memoryview] = []
    shown = 0
    for number, (kind, body, whole) in enumerate(_chunks(data)):
        if number == MAX_CHUNKS:
            raise CostlyImageError(f"a PNG of more than {MAX_CHUNKS} chunks; save it again")
        if kind in _ANIMATION:
            raise UnsupportedImageError("an animated PNG; save one frame as a still picture")
        if kind == b"IHDR" and number:
            raise ValueError("a second header")
        if kind in _NEEDED:
            kept.append(whole)
        elif kind == b"eXIf":
            shown = shown or orientation(bytes(body))
        elif not kind[0] & 0x20:
            raise ValueError("a critical chunk that no decoder knows")
        if kind == b"IDAT":
            pixels.append(body)
    _check_inflated(pixels, _raw_bytes(data[16:29]) + SLACK)
    return b"".join(kept), shown or 1


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Yield kind, body and whole of each chunk, up to the last one; raises struct.error or ValueError if cut off."""
    view, at, kind = memoryview(data), len(START), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        whole = view[at : at + 12 + length]
        if len(whole) != 12 + length:
            raise ValueError("a chunk that is cut off")
        yield kind, whole[8:-4], whole
        at += 12 + length


def _raw_bytes(header: bytes) -> int:
    """Bytes of all rows with their filter bytes, for the header chunk's content."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS[colour]
    total = 0
    for first_row, down, first_column, across in _PASSES if interlaced else ((0, 1, 0, 1),):
        rows, columns = -(-(height - first_row) // down), -(-(width - first_column) // across)
        if rows > 0 and columns > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _check_inflated(parts: Sequence[memoryview], most: int) -> None:
    """Raise CostlyImageError if compressed data inflate to more than ``most`` bytes."""
    inflater, total = zlib.decompressobj(), 0
    try:
        for part in parts:
            for start in range(0, len(part), _PIECE):
                waiting: bytes | memoryview = part[start : start + _PIECE]
                while waiting and not inflater.eof:
                    total += len(inflater.decompress(waiting, _STEP))
                    if total > most:
                        raise CostlyImageError(
                            "a PNG whose compressed data hold more than its pixels need; save it again"
                        )
                    waiting = inflater.unconsumed_tail
    except zlib.error:
        return  # the decoder gets no further either, and says so
