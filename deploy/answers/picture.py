"""A picture of a query and its matches, side by side."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

import cv2
import numpy as np

from deploy.match import Match
from domains.artefact import write_atomic
from domains.crops import Crop, check_crop, read_crop
from domains.errors import DataError, UsageError
from domains.text import shown

CROP_HEIGHT = 256
CROP_WIDTH = 128
CELL_WIDTH = 164
"""Wide enough for a date or a time of day at a legible size."""

PER_ROW = 10
MAX_DRAWN = 100
"""Matches beyond this are not drawn: nobody looks at them, and image files have a size limit."""

_MARGIN = 10
_BORDER = 4
_LINE = 18
_LINES = 4
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SIZE = 0.46

_WHITE = (255, 255, 255)
_PAPER = (236, 238, 241)
_EDGE = (190, 196, 204)
_INK = (24, 28, 34)
_FAINT = (92, 99, 110)
_QUERY = (42, 96, 176)
_RIGHT = (24, 138, 70)
_WRONG = (200, 48, 44)


def draw_matches(
    query: Crop,
    matches: Sequence[Match],
    *,
    known_label: str | None = None,
    kept: Callable[[int], Crop | None] | None = None,
) -> Crop:
    """Draw the query and its matches in reading order, each with rank, score, camera and time.

    Args:
        query: uint8 RGB ``[H, W, 3]``.
        matches: best first; at most 100 are drawn, ten in a row. Crops are read from ``source``; what can't be read
            gets a placeholder.
        known_label: the query's true label; correct matches then get a green frame and wrong ones a red one. Matches
            without a label get neither.
        kept: returns the small picture that a gallery keeps of an entry (``gallery.crop``), shown if the source can't
            be read.

    Returns:
        uint8 RGB picture.

    Raises:
        DataError: the query is not a crop.
    """
    check_crop(query)
    cells = [_cell(query, ["query", "" if known_label is None else known_label], _QUERY)]
    for match in matches[:MAX_DRAWN]:
        frame = None
        if known_label is not None and match.label is not None:
            frame = _RIGHT if match.label == known_label else _WRONG
        cells.append(_cell(_crop_of(match, kept), _caption(match), frame))
    if not matches:
        cells.append(_cell(_placeholder("no match"), [], None))
    rows = [cells[: PER_ROW + 1]]
    blank = np.full_like(cells[0], 255)
    for start in range(PER_ROW + 1, len(cells), PER_ROW):
        rows.append([blank, *cells[start : start + PER_ROW]])
    width = len(rows[0])
    lines = [np.concatenate([*row, *[blank] * (width - len(row))], axis=1) for row in rows]
    return np.pad(np.concatenate(lines), ((_MARGIN, 0), (_MARGIN, 0), (0, 0)), constant_values=255)


def stack(pictures: Sequence[Crop]) -> Crop:
    """Put pictures below each other, padded with white to the widest; raises DataError if there are none."""
    if not pictures:
        raise DataError("there is no picture to stack; draw at least one")
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate(
        [np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255) for picture in pictures]
    )


def check_suffix(path: str | PathLike[str]) -> str:
    """Return the suffix of a picture's file in small letters; raises UsageError unless it is one for PNG or JPEG."""
    file = Path(path)
    if file.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UsageError(f"a picture must be written as .png, .jpg or .jpeg, got {file.name!r}")
    return file.suffix.lower()


def write_picture(path: str | PathLike[str], image: Crop) -> None:
    """Write a picture whole or not at all, as PNG or JPEG by the file name's suffix.

    Raises:
        UsageError: another suffix.
        DataError: ``image`` is not a uint8 RGB array, is too large for the format, or the file can't be written.
    """
    file, suffix = Path(path), check_suffix(path)
    check_crop(image)
    try:
        done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise DataError(
            f"a picture of {image.shape[1]}×{image.shape[0]} pixels can't be written as {suffix}; draw fewer matches"
        ) from error
    if not done:
        raise DataError(
            f"a picture of {image.shape[1]}×{image.shape[0]} pixels can't be written as {suffix}; draw fewer matches"
        )
    try:
        write_atomic(file, data.tobytes(), private=False)  # meant to be passed on
    except OSError as error:
        raise DataError(f"can't write {file}: {error.strerror or error}; does its folder exist?") from error


def _cell(crop: Crop, lines: Sequence[str], frame: tuple[int, int, int] | None) -> Crop:
    """Draw one crop, fitted without distortion, on white with its caption; all cells have the same size."""
    inner = CELL_WIDTH - _MARGIN
    cell = np.full((CROP_HEIGHT + 2 * _BORDER + _LINES * _LINE + _MARGIN, CELL_WIDTH, 3), 255, np.uint8)
    left = (inner - CROP_WIDTH) // 2
    cv2.rectangle(
        cell, (left - _BORDER, 0), (left + CROP_WIDTH + _BORDER - 1, CROP_HEIGHT + 2 * _BORDER - 1), frame or _WHITE, -1
    )
    cell[_BORDER : _BORDER + CROP_HEIGHT, left : left + CROP_WIDTH] = _fitted(crop)
    for number, line in enumerate(lines[:_LINES]):
        text = _shortened(line, inner)
        (width, _), _ = cv2.getTextSize(text, _FONT, _SIZE, 1)
        baseline = CROP_HEIGHT + 2 * _BORDER + (number + 1) * _LINE - 3
        cv2.putText(
            cell, text, ((inner - width) // 2, baseline), _FONT, _SIZE, _INK if number < 2 else _FAINT, 1, cv2.LINE_AA
        )
    return cell


def _fitted(crop: Crop) -> Crop:
    scale = min(CROP_HEIGHT / crop.shape[0], CROP_WIDTH / crop.shape[1])
    height, width = max(1, round(crop.shape[0] * scale)), max(1, round(crop.shape[1] * scale))
    small = cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    out = np.full((CROP_HEIGHT, CROP_WIDTH, 3), _PAPER, np.uint8)
    top, left = (CROP_HEIGHT - height) // 2, (CROP_WIDTH - width) // 2
    out[top : top + height, left : left + width] = small
    return out


def _caption(match: Match) -> list[str]:
    day, _, clock = (match.time or "no time").replace(" ", "T", 1).partition("T") if match.time else ("no time", "", "")
    heading = (
        f"{match.rank}.   {match.score:.3f}"
        if match.verdict is None
        else f"{match.rank}. {match.score:.3f} {match.verdict.split(' person')[0]}"
    )
    return [heading, match.camera, day, clock]


def _crop_of(match: Match, kept: Callable[[int], Crop | None] | None) -> Crop:
    """Return the match's crop, the gallery's small picture of it, or a placeholder; only regular files are opened, as a
    source may name anything.
    """
    reason = "not found"
    try:
        if Path(match.source).is_file():
            return read_crop(match.source)
    except (DataError, OSError, ValueError):
        reason = "unreadable"
    small = None if kept is None else kept(match.id)
    return _placeholder(reason) if small is None else small


def _placeholder(text: str) -> Crop:
    """Draw a grey figure, so that a missing crop looks missing and not like a fault."""
    image = np.full((CROP_HEIGHT, CROP_WIDTH, 3), _PAPER, np.uint8)
    middle = CROP_WIDTH // 2
    cv2.circle(image, (middle, 84), 17, _EDGE, -1, cv2.LINE_AA)
    cv2.ellipse(image, (middle, 170), (32, 58), 0, 180, 360, _EDGE, -1, cv2.LINE_AA)
    cv2.rectangle(image, (0, 0), (CROP_WIDTH - 1, CROP_HEIGHT - 1), _EDGE, 1)
    (width, _), _ = cv2.getTextSize(text, _FONT, _SIZE, 1)
    cv2.putText(image, text, ((CROP_WIDTH - width) // 2, 206), _FONT, _SIZE, _FAINT, 1, cv2.LINE_AA)
    return image


def _shortened(text: str, width: int) -> str:
    """Return ``text`` in characters that OpenCV can draw, cut in the middle to fit ``width`` pixels, as names differ at
    their beginnings and ends.
    """
    text = unicodedata.normalize("NFKD", shown(text))
    plain = "".join(letter for letter in text if not unicodedata.combining(letter))
    plain = "".join(letter if 32 <= ord(letter) < 127 else "?" for letter in plain[:200])
    shortened, keep = plain, len(plain)
    while keep > 1 and cv2.getTextSize(shortened, _FONT, _SIZE, 1)[0][0] > width:
        keep -= 1
        shortened = f"{plain[: (keep + 1) // 2]}..{plain[len(plain) - keep // 2 :]}"
    return shortened
