"""What is behind and under people: walls and floors of drawn places.

A painter fills its part of a backdrop, float32 ``[rows, columns, 3]`` in 0..255.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import cv2
import numpy as np

from domains.arrays import Float32s, Float64s

Painter = Callable[[Float32s, np.random.Generator], None]


def paint_place(image: Float32s, horizon: int, wall: str, floor: str, rng: np.random.Generator) -> None:
    """Paint wall ``WALLS[wall]`` above row ``horizon`` and floor ``FLOORS[floor]`` below it, with grain, stains and the
    shade where they meet.
    """
    rows, columns = image.shape[:2]
    WALLS[wall](image[:horizon], rng)
    FLOORS[floor](image[horizon:], rng)
    stains = cv2.resize(rng.normal(0, 1, (7, 12)).astype(np.float32), (columns, rows), interpolation=cv2.INTER_CUBIC)
    cloudy = cv2.resize(
        rng.normal(0, 1, (rows // 6 + 2, columns // 6 + 2)).astype(np.float32),
        (columns, rows),
        interpolation=cv2.INTER_CUBIC,
    )
    grain = rng.normal(0, 1, (rows, columns)).astype(np.float32)
    corner = np.exp(-np.abs(np.arange(rows, dtype=np.float32) - horizon) / (0.05 * rows))[:, None]
    image *= ((1 + 0.06 * stains + 0.03 * cloudy + 0.03 * grain) * (1 - 0.22 * corner))[..., None]
    image[:] = cv2.GaussianBlur(image, (0, 0), 0.004 * rows)


def _box(
    image: Float32s, left: float, top: float, right: float, bottom: float, colour: Float64s, shade: float = 0.15
) -> None:
    """A filled rectangle, darker towards its foot."""
    part = image[max(0, int(top)) : max(0, int(bottom)), max(0, int(left)) : max(0, int(right))]
    if part.size:
        part[:] = colour * np.linspace(1 + shade, 1 - shade, len(part))[:, None, None]


def _colour(*rgb: float) -> Float64s:
    return np.array(rgb, np.float64)


def _pick(rng: np.random.Generator, *colours: tuple[float, float, float]) -> Float64s:
    return np.array(colours[rng.integers(len(colours))], np.float64) * rng.uniform(0.75, 1.1)


# -- walls


def _shops(wall: Float32s, rng: np.random.Generator) -> None:
    """Shop windows between piers, with something to see behind the glass."""
    rows, columns = wall.shape[:2]
    at = -float(rng.uniform(0, columns / 6))
    while at < columns:
        wide = columns * rng.uniform(0.12, 0.2)
        _box(
            wall, at, rows * 0.3, at + wide, rows * 0.94, _pick(rng, (84, 90, 98), (62, 68, 72), (104, 102, 96)), -0.25
        )
        for _ in range(6):
            x, y = at + wide * rng.uniform(0.05, 0.8), rows * rng.uniform(0.4, 0.8)
            _box(
                wall,
                x,
                y,
                min(at + wide * 0.97, x + wide * 0.2),
                rows * 0.9,
                _pick(rng, (150, 136, 116), (70, 60, 56), (128, 60, 54), (84, 98, 116)),
            )
        _box(
            wall,
            at,
            rows * 0.2,
            at + wide,
            rows * 0.3,
            _pick(rng, (96, 44, 42), (52, 66, 84), (148, 140, 124), (60, 76, 62)),
        )
        at += wide + columns * rng.uniform(0.02, 0.05)
    _box(wall, 0, rows * 0.95, columns, rows, _colour(116, 110, 104))


def _doors(wall: Float32s, rng: np.random.Generator) -> None:
    """A corridor's doors with frames and handles, notices between them, a skirting board."""
    rows, columns = wall.shape[:2]
    _box(wall, 0, rows * 0.93, columns, rows, _colour(92, 92, 88))
    at = -float(rng.uniform(0, columns / 8))
    while at < columns:
        wide = columns * 0.085
        _box(wall, at - 3, rows * 0.12, at + wide + 3, rows, _colour(120, 118, 110))
        _box(wall, at, rows * 0.14, at + wide, rows, _pick(rng, (138, 108, 80), (100, 114, 122), (160, 156, 146)))
        _box(wall, at + wide * 0.82, rows * 0.6, at + wide * 0.92, rows * 0.63, _colour(50, 50, 48))
        gap = columns * rng.uniform(0.06, 0.16)
        if rng.random() < 0.6:
            x = at + wide + gap * 0.35
            _box(
                wall,
                x,
                rows * 0.35,
                x + gap * 0.4,
                rows * 0.55,
                _pick(rng, (222, 220, 210), (170, 60, 52), (76, 110, 150)),
            )
        at += wide + gap


def _night(wall: Float32s, rng: np.random.Generator) -> None:
    """Dark fronts with lit windows and lamps out of focus."""
    rows, columns = wall.shape[:2]
    at = -float(rng.uniform(0, columns / 6))
    while at < columns:
        wide = columns * rng.uniform(0.1, 0.22)
        _box(wall, at, 0, at + wide, rows, _pick(rng, (46, 44, 50), (58, 52, 50), (36, 40, 50)))
        if rng.random() < 0.55:
            _box(
                wall,
                at + wide * 0.2,
                rows * 0.35,
                at + wide * 0.8,
                rows * 0.8,
                _pick(rng, (196, 156, 96), (150, 150, 136), (96, 70, 50)),
            )
        at += wide
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    for _ in range(5):
        cx, cy, size = rng.integers(columns), rng.integers(rows), rng.uniform(0.01, 0.035) * columns
        glow = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * size**2))
        wall += glow[..., None] * _pick(rng, (210, 160, 90), (180, 60, 50), (150, 170, 190)).astype(np.float32)


def _trees(wall: Float32s, rng: np.random.Generator) -> None:
    """Trunks before a hedge of many small leaves, coloured like the wall."""
    rows, columns = wall.shape[:2]
    leaves = wall.mean((0, 1)).astype(np.float64)
    for _ in range(columns):
        at = (int(rng.integers(columns)), int(rows * (1 - rng.random() ** 1.4)))
        cv2.circle(
            wall,
            at,
            int(rng.integers(2, max(3, columns // 70))),
            tuple((leaves * rng.uniform(0.55, 1.15)).tolist()),
            -1,
            cv2.LINE_AA,
        )
    for _ in range(9):
        x, thick = int(rng.integers(columns)), int(rng.integers(2, max(3, columns // 50)))
        bark = tuple((_colour(78, 68, 60) * rng.uniform(0.6, 1.1)).tolist())
        cv2.line(wall, (x, rows), (x + int(rng.normal(0, 0.01 * columns)), 0), bark, thick, cv2.LINE_AA)


def _cars(wall: Float32s, rng: np.random.Generator) -> None:
    """Parked cars before concrete with its pillars."""
    rows, columns = wall.shape[:2]
    for x in np.arange(rng.uniform(0, 0.2), 1, 0.23) * columns:
        _box(wall, x, 0, x + 0.035 * columns, rows, _colour(146, 142, 132))
    at = -columns * rng.uniform(0, 0.2)
    while at < columns:
        long = columns * rng.uniform(0.2, 0.28)
        paint = _pick(rng, (164, 164, 168), (58, 62, 70), (120, 44, 42), (48, 66, 100), (206, 206, 202), (40, 40, 42))
        roof = np.array([(0.1, 0.62), (0.24, 0.36), (0.7, 0.34), (0.88, 0.62)]) * (long, rows) + (at, 0)
        cv2.fillPoly(wall, [np.round(roof).astype(np.int32)], tuple((0.8 * paint).tolist()), cv2.LINE_AA)
        glass = np.array([(0.17, 0.61), (0.27, 0.41), (0.67, 0.39), (0.8, 0.61)]) * (long, rows) + (at, 0)
        cv2.fillPoly(wall, [np.round(glass).astype(np.int32)], (52, 60, 66), cv2.LINE_AA)
        _box(wall, at, rows * 0.6, at + long, rows * 0.93, paint, 0.3)
        _box(wall, at + long * 0.02, rows * 0.66, at + long * 0.09, rows * 0.73, _colour(190, 60, 50))
        for wheel in (0.2, 0.8):
            centre = (int(at + wheel * long), int(rows * 0.9))
            cv2.circle(wall, centre, max(2, int(rows * 0.1)), (24, 24, 26), -1, cv2.LINE_AA)
            cv2.circle(wall, centre, max(1, int(rows * 0.05)), (104, 104, 106), -1, cv2.LINE_AA)
        at += long + columns * rng.uniform(0.03, 0.1)


def _platform(wall: Float32s, rng: np.random.Generator) -> None:
    """A tiled wall with posters, a dark band and a bench."""
    rows, columns = wall.shape[:2]
    step = max(4, rows // 18)
    for y in range(0, rows, step):
        wall[y] *= 0.85
    for x in range(0, columns, 2 * step):
        wall[:, x] *= 0.88
    _box(wall, 0, rows * 0.2, columns, rows * 0.28, _pick(rng, (52, 66, 96), (110, 48, 44), (60, 84, 70)))
    at = columns * rng.uniform(0, 0.15)
    while at < columns:
        wide = columns * rng.uniform(0.09, 0.14)
        _box(wall, at - 2, rows * 0.34, at + wide + 2, rows * 0.82, _colour(60, 58, 56))
        _box(
            wall,
            at,
            rows * 0.355,
            at + wide,
            rows * 0.805,
            _pick(rng, (176, 164, 142), (120, 66, 58), (72, 96, 122), (196, 192, 184), (92, 110, 84)),
        )
        _box(
            wall,
            at + wide * 0.15,
            rows * 0.4,
            at + wide * 0.85,
            rows * 0.58,
            _pick(rng, (60, 56, 60), (190, 150, 90), (130, 130, 136)),
        )
        at += wide + columns * rng.uniform(0.06, 0.14)


# -- floors


def _paving(floor: Float32s, rng: np.random.Generator) -> None:
    _slabs(floor, 11, 0.07, 0.84, rng)


def _tiles(floor: Float32s, rng: np.random.Generator) -> None:
    _slabs(floor, 15, 0.03, 0.8, rng)
    gloss = np.exp(-(((np.linspace(0, 1, floor.shape[1]) - rng.uniform(0.2, 0.8)) / 0.22) ** 2)).astype(np.float32)
    floor += 16 * gloss[None, :, None]


def _warning_line(floor: Float32s, rng: np.random.Generator) -> None:
    """A platform's tiles with its yellow line."""
    _tiles(floor, rng)
    rows, columns = floor.shape[:2]
    y, slope = rows * rng.uniform(0.2, 0.7), rows * rng.uniform(-0.12, 0.12)
    cv2.line(floor, (0, int(y)), (columns, int(y + slope)), (176, 150, 70), max(2, rows // 26), cv2.LINE_AA)


def _slabs(floor: Float32s, lines: int, spread: float, dark: float, rng: np.random.Generator) -> None:
    """Slabs of slightly different tone, joints in perspective towards a point high above the floor."""
    rows, columns = floor.shape[:2]
    level = floor.mean((0, 1)).astype(np.float64)
    centre = columns * rng.uniform(0.3, 0.7)
    depths = np.linspace(0, 1, lines) ** 1.6 * rows
    edges = np.linspace(-1.2 * columns, 2.2 * columns, 4 * lines)
    for top, bottom in itertools.pairwise(depths):
        near = [centre + (edges - centre) * (0.5 + 0.5 * y / rows) for y in (top, bottom)]
        for i in range(len(edges) - 1):
            corners = [(near[0][i], top), (near[0][i + 1], top), (near[1][i + 1], bottom), (near[1][i], bottom)]
            slab = np.round(corners).astype(np.int32)
            cv2.fillConvexPoly(floor, slab, tuple((level * (1 + spread * rng.normal())).tolist()))
            cv2.polylines(floor, [slab], True, tuple((level * dark).tolist()), 1, cv2.LINE_AA)


def _asphalt(floor: Float32s, rng: np.random.Generator) -> None:
    """Rough ground with worn paint and a few patches."""
    rows, columns = floor.shape[:2]
    level = floor.mean((0, 1)).astype(np.float64)
    for _ in range(4):
        at = (int(rng.integers(columns)), int(rng.integers(rows)))
        axes = (int(rng.integers(4, max(5, columns // 10))), int(rng.integers(2, max(3, rows // 8))))
        cv2.ellipse(floor, at, axes, 0, 0, 360, tuple((level * rng.uniform(0.75, 0.95)).tolist()), -1, cv2.LINE_AA)
    for x in range(int(rng.integers(columns // 5)), columns, columns // 3):
        slant = int(columns * rng.uniform(-0.12, 0.12))
        cv2.line(
            floor,
            (x, 0),
            (x + slant, rows),
            tuple((level + 0.35 * (215 - level)).tolist()),
            max(2, columns // 110),
            cv2.LINE_AA,
        )
    floor += rng.normal(0, 6, (rows, columns, 1)).astype(np.float32)


def _snow(floor: Float32s, rng: np.random.Generator) -> None:
    """Trodden snow: blue hollows, and a path of slush."""
    rows, columns = floor.shape[:2]
    x, wide = columns * rng.uniform(0.1, 0.9), columns * rng.uniform(0.08, 0.2)
    path = np.array([(x, 0), (x + 0.6 * wide, 0), (x + 2 * wide, rows), (x - wide, rows)])
    cv2.fillPoly(floor, [np.round(path).astype(np.int32)], (186, 188, 194), cv2.LINE_AA)
    for _ in range(90):
        at = (int(rng.integers(columns)), int(rng.integers(rows)))
        cv2.ellipse(
            floor, at, (int(rng.integers(2, 8)), int(rng.integers(1, 4))), 0, 0, 360, (178, 188, 206), -1, cv2.LINE_AA
        )


def _grass(floor: Float32s, rng: np.random.Generator) -> None:
    """A lawn in tufts, with a gravel path."""
    rows, columns = floor.shape[:2]
    tufts = cv2.GaussianBlur(rng.normal(0, 1, (rows, columns)).astype(np.float32), (0, 0), sigmaX=1.0, sigmaY=2.0)
    floor *= 1 + 0.5 * tufts[..., None]
    x, wide = columns * rng.uniform(0.0, 0.8), columns * rng.uniform(0.1, 0.25)
    path = np.array([(x, 0), (x + 0.6 * wide, 0), (x + 1.6 * wide, rows), (x - 0.4 * wide, rows)])
    cv2.fillPoly(floor, [np.round(path).astype(np.int32)], (158, 146, 126), cv2.LINE_AA)


WALLS: Mapping[str, Painter] = {
    "shops": _shops,
    "doors": _doors,
    "night": _night,
    "trees": _trees,
    "cars": _cars,
    "platform": _platform,
}
FLOORS: Mapping[str, Painter] = {
    "paving": _paving,
    "tiles": _tiles,
    "warning line": _warning_line,
    "asphalt": _asphalt,
    "snow": _snow,
    "grass": _grass,
}
