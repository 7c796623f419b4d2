"""JPEG files (ITU-T T.81): one frame in a bounded number of scans; a decoder is given no other segment."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from domains.errors import CostlyImageError, UnsupportedImageError
from domains.images.exif import PREFIX, orientation

START = b"\xff\xd8"
MAX_SCANS = 64
"""A scan costs a decoder a walk over the whole picture and the sender a dozen bytes. Encoders write 1 to 4 scans, or 10
to 20 for progressive files.
"""
MAX_PASSES = 24
"""How often the scans may go over the largest picture allowed, in single components. Progressive colour takes 14."""
MAX_SEGMENTS = 1024

_FILL = re.compile(rb"\xff++")
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END, _SCAN, _EXIF = 0xD9, 0xDA, 0xE1
_FRAMES = (0xC0, 0xC1, 0xC2)
_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TABLES = (0xC4, 0xDB, 0xDD)
_COLOUR = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
"""The application segments that say how components become colours."""
_BARE = frozenset((0x01, *range(0xD0, 0xD8)))
"""Markers without a length, skipped as decoders skip them."""
_LEFT_OUT = frozenset((0xCC, 0xDC, *range(0xE0, 0xF0), 0xFE))


def size(data: bytes) -> tuple[int, int]:
    """Height and width from the frame header.

    Raises:
        CostlyImageError: too many segments before it.
        ValueError, IndexError, struct.error: damaged.
    """
    at = len(START)
    for _ in range(MAX_SEGMENTS):
        fill = _FILL.match(data, at)
        if fill is None:
            raise ValueError("no marker where one was expected")
        at = fill.end()
        marker = data[at]
        # these have no length: where we would skip, a decoder would read on and find another size
        if marker in (0x00, *_BARE, 0xD8, _END):
            raise ValueError("a marker that does not belong before the frame header")
        if marker in _FRAMES or marker in _OTHER_FRAMES:
            height, width = struct.unpack(">HH", data[at + 4 : at + 8])
            return height, width
        at += 1 + struct.unpack(">H", data[at + 1 : at + 3])[0]
    raise _too_many_segments()


@dataclass
class _Frame:
    """What was seen of a file so far: blocks of 8×8 samples per component, scans, and blocks that they go over.

    ``size``, height and width in pixels, is what limits were checked on.
    """

    size: tuple[int, int]
    blocks: dict[int, int] = field(default_factory=dict)
    scans: int = 0
    visits: int = 0

    def begin(self, body: bytes) -> None:
        height, width, count = struct.unpack_from(">xHHB", body)
        if self.blocks or not 1 <= count <= 4 or len(body) != 6 + 3 * count:
            raise ValueError("a frame header that no decoder takes")
        if (height, width) != self.size:
            raise ValueError("a frame of another size than the header's")
        parts = [(body[at], body[at + 1] >> 4, body[at + 1] & 15) for at in range(6, len(body), 3)]
        if not all(1 <= across <= 4 and 1 <= down <= 4 for _, across, down in parts):
            raise ValueError("sampling factors that no decoder takes")
        columns = -(-width // (8 * max(across for _, across, _ in parts)))
        rows = -(-height // (8 * max(down for _, _, down in parts)))
        for name, across, down in parts:
            self.blocks[name] = max(self.blocks.get(name, 0), columns * across * rows * down)

    def scan(self, body: bytes) -> None:
        named = body[1 : 1 + 2 * body[0] : 2]
        if not named or not set(named) <= set(self.blocks):
            raise ValueError("a scan of components that the frame lacks")
        self.scans += 1
        self.visits += sum(self.blocks[name] for name in named)


def still(data: bytes, max_pixels: int) -> tuple[bytes, int]:
    """Return the file with only what its pixels need, and its orientation.

    Raises:
        CostlyImageError: too many segments or scans, or scans that go over too many pixels.
        UnsupportedImageError: lossless, hierarchical or arithmetic coding.
        ValueError, IndexError, struct.error: damaged.
    """
    kept, frame, shown, at = [START], _Frame(size(data)), 0, len(START)
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None:
            break  # cut off, as the decoder will find
        marker, at = found[1][0], found.end()
        if marker == _END:
            kept.append(b"\xff\xd9")
            break
        if marker in _BARE:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        body = data[at + 2 : at + length]
        if length < 2 or len(body) != length - 2:
            raise ValueError("a segment that is cut off")
        at += length
        if marker == _EXIF and body.startswith(PREFIX):
            shown = shown or orientation(body)
        elif _is_needed(marker, body, frame):
            kept += [bytes((0xFF, marker)), struct.pack(">H", length), body]
        if marker == _SCAN:
            _check_work(frame, max_pixels)
            after = _AFTER_SCAN.search(data, at)
            end = len(data) if after is None else after.start()
            kept.append(data[at:end])
            at = end
    else:
        raise _too_many_segments()
    return b"".join(kept), shown or 1


def _is_needed(marker: int, body: bytes, frame: _Frame) -> bool:
    """Whether a decoder needs a segment; frames and scans are counted."""
    if marker in _OTHER_FRAMES:
        raise UnsupportedImageError(
            "a JPEG of lossless, hierarchical or arithmetic coding; save it again as an ordinary JPEG"
        )
    if marker in _FRAMES:
        frame.begin(body)
    elif marker == _SCAN:
        frame.scan(body)
    elif marker in _LEFT_OUT:
        return marker in _COLOUR and body.startswith(_COLOUR[marker])
    elif marker not in _TABLES:
        raise ValueError("a marker that no decoder takes")
    return True


def _check_work(frame: _Frame, max_pixels: int) -> None:
    if frame.scans > MAX_SCANS:
        raise CostlyImageError(f"a JPEG of more than {MAX_SCANS} scans; save it again as an ordinary JPEG")
    if 64 * frame.visits > max(MAX_PASSES * max_pixels, 64 * sum(frame.blocks.values())):
        raise CostlyImageError(
            f"a JPEG whose scans go over more than {MAX_PASSES} times {max_pixels} pixels (found after scan "
            f"{frame.scans}); save it again as an ordinary JPEG"
        )


def _too_many_segments() -> CostlyImageError:
    return CostlyImageError(f"a JPEG of more than {MAX_SEGMENTS} segments; save it again without metadata")
