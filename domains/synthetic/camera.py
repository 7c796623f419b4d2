"""A drawn camera: a place seen from one spot, and what the lens and the sensor do to it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from domains.errors import DataError

Colour = tuple[float, float, float]
Floats = NDArray[np.float32]

SCALE = 1.5
"""A backdrop is this much larger than a canvas, so that each crop sees another part of it."""


@dataclass(frozen=True)
class Style:
    """What the cameras of one domain have in common. Ranges are (low, high)."""

    floor: Colour
    wall: Colour
    ground: str
    behind: str
    season: str
    muted: float
    light: tuple[float, float]
    cast: Colour
    detail: tuple[float, float]
    """Share of the crop's resolution that the sensor really has."""
    blur: tuple[float, float]
    noise: tuple[float, float]
    contrast: tuple[float, float]
    occlusion: float


_STYLES: Mapping[str, Style] = {
    "plaza": Style((176, 168, 152), (188, 182, 170), "paving", "facade", "summer", 0.3, (0.95, 1.15), (1.05, 1.0, 0.92), (0.8, 1.0), (0.0, 0.4),
                   (2, 5), (1.0, 1.15), 0.1),
    "corridor": Style((146, 150, 142), (206, 208, 196), "tiles", "doors", "mild", 0.55, (0.8, 1.0), (0.92, 1.06, 0.9), (0.5, 0.8), (0.3, 0.9),
                      (4, 8), (0.75, 0.9), 0.12),
    "nightstreet": Style((74, 74, 82), (54, 56, 70), "asphalt", "lamps", "winter", 0.7, (0.6, 0.85), (1.28, 0.98, 0.62), (0.4, 0.65), (0.5, 1.1),
                         (7, 12), (0.85, 1.05), 0.15),
    "snow": Style((228, 232, 240), (196, 206, 222), "snow", "trees", "winter", 0.5, (1.0, 1.2), (0.9, 0.98, 1.14), (0.6, 0.9), (0.2, 0.7), (3, 6),
                  (0.8, 0.95), 0.1),
    "carpark": Style((96, 96, 94), (122, 120, 114), "asphalt", "cars", "mild", 0.6, (0.65, 0.85), (0.96, 1.02, 0.98), (0.3, 0.55), (0.3, 0.9),
                     (5, 10), (0.9, 1.1), 0.35),
    "station": Style((128, 116, 104), (98, 86, 84), "tiles", "shelves", "mild", 0.65, (0.7, 0.95), (1.14, 0.98, 0.84), (0.55, 0.85), (0.2, 0.8),
                     (6, 10), (1.05, 1.3), 0.4),
    "park": Style((94, 122, 66), (78, 108, 72), "grass", "trees", "summer", 0.35, (0.8, 1.1), (0.94, 1.08, 0.88), (0.6, 0.95), (0.1, 0.6), (3, 7),
                  (1.0, 1.2), 0.2),
}  # fmt: skip
STYLES: tuple[str, ...] = tuple(_STYLES)


@dataclass(frozen=True)
class Camera:
    """One camera of a style.

    Attributes:
        style: name of its domain's style.
        seed: what its backdrop is drawn from.
        light: gain.
        cast: gain of red, green and blue.
        gamma: exponent of the tone curve.
        contrast: about mid grey.
        detail: share of the resolution that the sensor really has.
        blur: standard deviation in pixels of a 128-row crop.
        noise: standard deviation in grey levels.
        gradient: how much lighter the left is than the right.
        horizon: where wall meets floor, as a fraction of the crop's height from the top.
        quality: of the JPEG that the camera sends.
    """

    style: str
    seed: int
    light: float
    cast: Colour
    gamma: float
    contrast: float
    detail: float
    blur: float
    noise: float
    gradient: float
    horizon: float
    quality: int


def style_of(name: str) -> Style:
    """Look a style up; raises DataError naming the nearest."""
    if name not in _STYLES:
        near = difflib.get_close_matches(name, STYLES, 1)
        raise DataError(f"unknown style {name!r}{f'; did you mean {near[0]!r}?' if near else ''}; there are {', '.join(STYLES)}")
    return _STYLES[name]


def draw_camera(name: str, rng: np.random.Generator) -> Camera:
    """Draw a camera of a style; raises DataError on an unknown one."""
    style = style_of(name)
    red, green, blue = np.array(style.cast) * rng.uniform(0.93, 1.07, 3)
    return Camera(
        style=name,
        seed=int(rng.integers(2**31)),
        light=float(rng.uniform(*style.light)),
        cast=(float(red), float(green), float(blue)),
        gamma=float(rng.uniform(0.85, 1.2)),
        contrast=float(rng.uniform(*style.contrast)),
        detail=float(rng.uniform(*style.detail)),
        blur=float(rng.uniform(*style.blur)),
        noise=float(rng.uniform(*style.noise)),
        gradient=float(rng.uniform(-0.3, 0.3)),
        horizon=float(rng.uniform(0.3, 0.62)),
        quality=int(rng.integers(40, 90)),
    )


@lru_cache(maxsize=64)
def backdrop(camera: Camera, height: int, width: int) -> Floats:
    """The place without anybody: float32 ``[SCALE·height, 3·SCALE·width, 3]`` in 0..255, the horizon at its row for an unshifted crop. Read-only."""
    style, rng = style_of(camera.style), np.random.default_rng((17, camera.seed))
    rows, columns = round(SCALE * height), round(3 * SCALE * width)
    horizon = round((camera.horizon + (SCALE - 1) / 2) * height)
    image = np.empty((rows, columns, 3), np.float32)
    image[:horizon] = np.array(style.wall, np.float32) * rng.uniform(0.85, 1.12)
    image[horizon:] = np.array(style.floor, np.float32) * rng.uniform(0.85, 1.12)
    _BEHIND[style.behind](image[:horizon], rng)
    _GROUND[style.ground](image[horizon:], rng)
    fade = cv2.resize(rng.normal(0, 1, (6, 12)).astype(np.float32), (columns, rows), interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, 1, (rows, columns)).astype(np.float32)
    image *= (1 + 0.05 * fade + 0.025 * grain)[..., None]
    cv2.line(image, (0, horizon), (columns, horizon), tuple(0.55 * value for value in style.floor), max(1, height // 90), cv2.LINE_AA)
    image.setflags(write=False)
    return image


def photograph(scene: Floats, camera: Camera, rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """What the camera sends of a scene ``[h, w, 3]`` (0..255, larger than the crop): uint8 RGB ``[height, width, 3]``."""
    seen = (max(12, round(camera.detail * height)), max(6, round(camera.detail * width)))
    image = cv2.resize(scene, (seen[1], seen[0]), interpolation=cv2.INTER_AREA)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    if camera.blur > 0.05:
        image = cv2.GaussianBlur(image, (0, 0), camera.blur * height / 128)
    across = 1 + camera.gradient * np.linspace(0.5, -0.5, width, dtype=np.float32)
    flicker = rng.uniform(0.9, 1.1) * rng.uniform(0.97, 1.03, 3)
    image = np.clip(image, 0, 255) / 255 * across[None, :, None] * (camera.light * flicker * np.array(camera.cast)).astype(np.float32)
    image = np.clip(image, 0, 1) ** np.float32(camera.gamma)
    image = (image - 0.5) * np.float32(camera.contrast) + 0.5
    image = 255 * image + rng.normal(0, camera.noise, image.shape).astype(np.float32)
    sent = cv2.imencode(".jpg", np.clip(image[..., ::-1], 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, camera.quality])[1]
    crop: NDArray[np.uint8] = cv2.cvtColor(np.asarray(cv2.imdecode(sent, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB)
    return crop


# -- places; each paints into its part of the backdrop


def _facade(wall: Floats, rng: np.random.Generator) -> None:
    rows, columns = wall.shape[:2]
    step = max(12, columns // 12)
    for x in range(int(rng.integers(step)), columns, step):
        shade = rng.uniform(0.35, 0.8)
        cv2.rectangle(wall, (x, rows // 8), (x + step // 2, rows * 3 // 5), tuple(shade * value for value in (120, 136, 150)), -1)
        cv2.rectangle(wall, (x, rows // 8), (x + step // 2, rows * 3 // 5), (226, 222, 212), 2)
    wall[-max(2, rows // 12) :] *= 0.8


def _doors(wall: Floats, rng: np.random.Generator) -> None:
    rows, columns = wall.shape[:2]
    wall[-max(2, rows // 14) :] *= 0.6
    at = int(rng.integers(columns // 6))
    while at < columns:
        colour = rng.uniform(0.6, 1.0) * np.array(rng.choice([(134, 96, 66), (92, 112, 124), (168, 164, 150)]))
        cv2.rectangle(wall, (at, rows // 10), (at + columns // 13, rows), tuple(colour.tolist()), -1)
        cv2.rectangle(wall, (at, rows // 10), (at + columns // 13, rows), (70, 70, 66), 2)
        at += int(rng.integers(columns // 7, columns // 4))


def _lamps(wall: Floats, rng: np.random.Generator) -> None:
    rows, columns = wall.shape[:2]
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    for _ in range(6):
        cx, cy, size = rng.integers(columns), rng.integers(rows), rng.uniform(0.02, 0.07) * columns
        glow = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * size**2))
        wall += glow[..., None] * np.array(rng.choice([(230, 170, 90), (200, 60, 50), (170, 190, 220)]), np.float32)


def _trees(wall: Floats, rng: np.random.Generator) -> None:
    rows, columns = wall.shape[:2]
    for _ in range(14):
        x, thick = int(rng.integers(columns)), int(rng.integers(2, max(3, columns // 45)))
        cv2.line(
            wall, (x, rows), (x + int(rng.integers(-8, 9)), 0), tuple((rng.uniform(0.6, 1.1) * np.array((74, 62, 52))).tolist()), thick, cv2.LINE_AA
        )
    leaves = wall.mean((0, 1))
    for _ in range(40):
        at = (int(rng.integers(columns)), int(rng.integers(max(1, rows // 2))))
        colour = tuple((leaves * rng.uniform(0.6, 1.1)).tolist())
        cv2.circle(wall, at, int(rng.integers(3, max(4, columns // 22))), colour, -1, cv2.LINE_AA)


def _cars(wall: Floats, rng: np.random.Generator) -> None:
    rows, columns = wall.shape[:2]
    at = int(rng.integers(columns // 5))
    while at < columns:
        long = int(columns * rng.uniform(0.22, 0.32))
        colour = rng.uniform(0.6, 1.1) * np.array(rng.choice([(168, 168, 172), (60, 66, 76), (132, 40, 38), (44, 70, 116), (214, 214, 210)]))
        cv2.rectangle(wall, (at, rows - rows // 3), (at + long, rows), tuple(colour.tolist()), -1)
        roof = [
            (at + long // 6, rows - rows // 3),
            (at + long // 3, rows // 3),
            (at + long * 3 // 4, rows // 3),
            (at + long * 9 // 10, rows - rows // 3),
        ]
        cv2.fillPoly(wall, [np.array(roof, np.int32)], (58, 66, 74), cv2.LINE_AA)
        for wheel in (at + long // 5, at + long * 4 // 5):
            cv2.circle(wall, (wheel, rows - 2), max(3, rows // 11), (26, 26, 28), -1, cv2.LINE_AA)
        at += long + int(rng.integers(columns // 20, columns // 8))


def _shelves(wall: Floats, rng: np.random.Generator) -> None:
    rows, columns = wall.shape[:2]
    step = max(6, rows // 7)
    for y in range(0, rows, step):
        x = 0
        while x < columns:
            wide = int(rng.integers(4, max(5, columns // 16)))
            wall[y + step // 5 : y + step, x : x + wide] = rng.uniform(50, 220, 3)
            x += wide + int(rng.integers(1, 5))
        wall[y : y + max(1, step // 6)] = 62


def _paving(floor: Floats, rng: np.random.Generator) -> None:
    _grid(floor, 9, 0.82, rng)


def _tiles(floor: Floats, rng: np.random.Generator) -> None:
    _grid(floor, 14, 0.7, rng)
    floor *= np.linspace(1.1, 0.92, floor.shape[0], dtype=np.float32)[:, None, None]


def _grid(floor: Floats, lines: int, dark: float, rng: np.random.Generator) -> None:
    """Joints in perspective: they meet high above the floor."""
    rows, columns = floor.shape[:2]
    colour = tuple((floor.mean((0, 1)) * dark).tolist())
    centre = columns * rng.uniform(0.3, 0.7)
    for x in np.linspace(-columns, 2 * columns, 3 * lines):
        cv2.line(floor, (int(centre + (x - centre) * 0.45), 0), (int(x), rows), colour, 1, cv2.LINE_AA)
    for depth in np.linspace(0, 1, lines) ** 1.8:
        cv2.line(floor, (0, int(depth * rows)), (columns, int(depth * rows)), colour, 1, cv2.LINE_AA)


def _asphalt(floor: Floats, rng: np.random.Generator) -> None:
    rows, columns = floor.shape[:2]
    floor += rng.normal(0, 7, (rows, columns, 1)).astype(np.float32)
    for x in range(int(rng.integers(columns // 6)), columns, columns // 4):
        cv2.line(floor, (x, 0), (x + int(columns * rng.uniform(-0.1, 0.1)), rows), tuple((floor.mean((0, 1)) + 70).tolist()), max(2, columns // 90))


def _snow(floor: Floats, rng: np.random.Generator) -> None:
    rows, columns = floor.shape[:2]
    for _ in range(50):
        at = (int(rng.integers(columns)), int(rng.integers(rows)))
        cv2.ellipse(floor, at, (int(rng.integers(2, 9)), 2), 0, 0, 360, (186, 196, 216), -1, cv2.LINE_AA)


def _grass(floor: Floats, rng: np.random.Generator) -> None:
    rows, columns = floor.shape[:2]
    floor *= (1 + 0.18 * rng.normal(0, 1, (rows, columns, 1))).astype(np.float32)
    cv2.line(floor, (columns // 3, 0), (columns // 2, rows), (168, 152, 122), max(6, columns // 9), cv2.LINE_AA)


_BEHIND = {"facade": _facade, "doors": _doors, "lamps": _lamps, "trees": _trees, "cars": _cars, "shelves": _shelves}
_GROUND = {"paving": _paving, "tiles": _tiles, "asphalt": _asphalt, "snow": _snow, "grass": _grass}
