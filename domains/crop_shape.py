"""Whether a picture can be a crop of one person at all, by its shape: a whole frame, a strip or a speck embeds as
readily as a person does, and would be answered or stored without a word.

The bounds leave a margin around some 6,500 crops of seven real domains, whose extremes are named with each.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from domains.crops import MAX_BYTES, MAX_PIXELS
from domains.errors import DataError
from domains.images import read_still

LEAST_HEIGHT, LEAST_WIDTH = 16, 8
"""Pixels below which nothing of a person can be made out. The smallest real crops are 39 high, or 16 wide."""
FLATTEST, TALLEST = 0.4, 8.0
"""Bounds of height / width. Real crops have 0.56 (two people, or one behind a counter) to 4.8."""
FRAME_WIDTH = 400
"""A picture at least this wide and no higher than wide is a frame. The widest real crops are 272×170 and 251×176."""
WIDEST = 1080
"""No crop is as wide as this: a person who fills a 4K frame from top to bottom takes some 800 pixels."""
FORMATS = {
    (4, 3): 480,
    (3, 2): 640,
    (11, 9): 480,
    (22, 15): 480,
    (16, 9): 360,
    (18, 9): 720,
    (37, 18): 540,
    (19, 9): 540,
    (39, 18): 540,
    (20, 9): 540,
    (21, 9): 540,
}
"""Of sensors, screens and phones, long side first: upright, a picture of one of them is a frame from these widths on.
Crops of those shapes are hardly ever as wide; but large ones are often just twice as high as wide.
"""
FORMAT_WIDTH = 320
"""As sensors lie, they are frames from this width on."""
ROUNDED, BLOCK = 2, 16
"""Pixels by which sides are rounded, and blocks of a codec that they may be rounded to, up or down by half of one."""


def doubt(height: int, width: int) -> str | None:
    """Return why a picture of this size, in pixels, can't be a crop of one person, or None if it can."""
    size = f"{width}×{height} pixels"
    if height < LEAST_HEIGHT or width < LEAST_WIDTH:
        return f"{size} are too few to show a person (at least {LEAST_WIDTH}×{LEAST_HEIGHT})"
    if width >= (FRAME_WIDTH if height <= width else WIDEST) or _has_a_frames_format(height, width):
        return f"{size} look like a whole frame and not like one person"
    if not FLATTEST <= height / width <= TALLEST:
        return f"{size} look like a strip and not like one person"
    return None


def _has_a_frames_format(height: int, width: int) -> bool:
    """Whether a picture has the shape of a sensor or a screen, up to rounding, and is as wide as they are."""
    short, long = sorted((height, width))
    tolerance = BLOCK / 2 if short % BLOCK == long % BLOCK == 0 else ROUNDED
    return any(
        abs(long - short * longer / shorter) <= tolerance
        for (longer, shorter), upright in FORMATS.items()
        if width >= (FORMAT_WIDTH if height <= width else upright)
    )


def doubt_about(data: bytes) -> str | None:
    """Return why an image file, as shown, can't be a crop of one person; None if it can, or if it can't be decoded."""
    try:
        return doubt(*read_still(data, MAX_PIXELS).shown_size)
    except DataError:  # whoever decodes it says so
        return None


def doubt_about_file(path: str | PathLike[str]) -> str | None:
    """The same of a file; None if it can't be read."""
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError):  # whoever decodes it says so
        return None
    return doubt_about(data) if len(data) <= MAX_BYTES else None
