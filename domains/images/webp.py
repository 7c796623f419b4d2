"""WebP files (RFC 9649): one picture, lossy or lossless; a decoder is given its bitstream alone."""

from __future__ import annotations

import struct

from domains.errors import CostlyImageError, UnsupportedImageError
from domains.images.exif import orientation

MAX_CHUNKS = 1024
_ANIMATED = 0x02


def size(data: bytes) -> tuple[int, int]:
    """Height and width of the lossy, lossless or extended format; raises ValueError, IndexError or struct.error for a
    damaged header.
    """
    if data[12:16] == b"VP8X":
        if len(data) < 30:
            raise ValueError("no canvas")
        return int.from_bytes(data[27:30], "little") + 1, int.from_bytes(data[24:27], "little") + 1
    return _frame_size(data[12:16], data[20:30])


def still(data: bytes) -> tuple[bytes, int]:
    """Return the file with only its bitstream, and its orientation.

    Raises:
        CostlyImageError: too many chunks.
        UnsupportedImageError: an animation.
        ValueError, IndexError, struct.error: damaged.
    """
    picture, shown, at = b"", 0, 12
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
        if kind in (b"ANIM", b"ANMF") or (kind == b"VP8X" and body[0] & _ANIMATED):
            raise UnsupportedImageError("an animated WebP; save one frame as a still picture")
        if kind == b"EXIF":
            shown = shown or orientation(body)
        elif kind in (b"VP8 ", b"VP8L") and not picture:
            if len(body) != length:
                raise ValueError("a bitstream that is cut off")
            if _frame_size(kind, body[:10]) != size(data):
                raise ValueError("a bitstream of another size than the canvas")
            picture = struct.pack("<4sI", kind, length) + body + b"\0" * (length % 2)
    else:
        raise CostlyImageError(f"a WebP of more than {MAX_CHUNKS} chunks; save it again without metadata")
    if not picture:
        raise ValueError("no bitstream")
    return struct.pack("<4sI4s", b"RIFF", 4 + len(picture), b"WEBP") + picture, shown or 1


def _frame_size(kind: bytes, body: bytes) -> tuple[int, int]:
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", body[6:10])
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L" and body[0] == 0x2F:
        (bits,) = struct.unpack("<I", body[1:5])
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    raise ValueError("no frame header")
