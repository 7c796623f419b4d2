"""A drawn camera: a place seen from one spot, and what the lens and the sensor do to it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from domains.arrays import Float32s
from domains.errors import DataError
from domains.synthetic.places import paint_place

Colour = tuple[float, float, float]
Range = tuple[float, float]

SCALE = 1.5
"""A backdrop is this much larger than a crop, so that each crop shows a different part of it."""


@dataclass(frozen=True)
class Style:
    """What the cameras of one domain have in common.

    Attributes:
        floor: colour of the ground.
        wall: colour of what stands behind.
        ground: name in ``places.FLOORS``.
        behind: name in ``places.WALLS``.
        season: season of the clothes.
        muted: share of garments that are dark.
        light: gain.
        cast: gain of red, green and blue.
        colour: saturation; 1 leaves it unchanged.
        detail: share of the crop's resolution that the sensor really has.
        blur: standard deviation in pixels of a 128-row crop.
        noise: standard deviation in grey levels.
        contrast: contrast about mid grey.
        shadow: how dark people's shadows are.
        occlusion: share of crops with something in front of the person.
    """

    floor: Colour
    wall: Colour
    ground: str
    behind: str
    season: str
    muted: float
    light: Range
    cast: Colour
    colour: Range
    detail: Range
    blur: Range
    noise: Range
    contrast: Range
    shadow: float
    occlusion: float


_STYLES: Mapping[str, Style] = {
    "plaza": Style(
        (172, 164, 150),
        (176, 168, 154),
        "paving",
        "shops",
        "summer",
        0.45,
        light=(0.92, 1.12),
        cast=(1.05, 1.0, 0.92),
        colour=(0.85, 1.15),
        detail=(0.75, 1.0),
        blur=(0.0, 0.5),
        noise=(2, 5),
        contrast=(1.05, 1.25),
        shadow=0.55,
        occlusion=0.12,
    ),
    "corridor": Style(
        (150, 152, 144),
        (196, 198, 186),
        "tiles",
        "doors",
        "mild",
        0.6,
        light=(0.78, 0.98),
        cast=(0.93, 1.05, 0.9),
        colour=(0.6, 0.85),
        detail=(0.5, 0.8),
        blur=(0.3, 0.9),
        noise=(3, 6),
        contrast=(0.8, 0.95),
        shadow=0.3,
        occlusion=0.12,
    ),
    "nightstreet": Style(
        (82, 80, 84),
        (52, 52, 60),
        "asphalt",
        "night",
        "winter",
        0.65,
        light=(0.75, 1.0),
        cast=(1.26, 0.98, 0.66),
        colour=(0.45, 0.7),
        detail=(0.4, 0.65),
        blur=(0.4, 1.0),
        noise=(4, 8),
        contrast=(0.95, 1.15),
        shadow=0.35,
        occlusion=0.15,
    ),
    "snow": Style(
        (216, 222, 232),
        (150, 160, 172),
        "snow",
        "trees",
        "winter",
        0.8,
        light=(0.85, 1.12),
        cast=(0.94, 0.99, 1.09),
        colour=(0.4, 0.7),
        detail=(0.55, 0.85),
        blur=(0.2, 0.7),
        noise=(3, 6),
        contrast=(0.85, 1.05),
        shadow=0.3,
        occlusion=0.12,
    ),
    "carpark": Style(
        (104, 104, 102),
        (116, 114, 108),
        "asphalt",
        "cars",
        "mild",
        0.65,
        light=(0.75, 0.95),
        cast=(0.97, 1.02, 0.97),
        colour=(0.45, 0.75),
        detail=(0.3, 0.5),
        blur=(0.3, 0.8),
        noise=(3, 6),
        contrast=(0.95, 1.15),
        shadow=0.4,
        occlusion=0.35,
    ),
    "station": Style(
        (132, 124, 114),
        (156, 150, 138),
        "warning line",
        "platform",
        "mild",
        0.6,
        light=(0.75, 0.95),
        cast=(1.1, 0.99, 0.84),
        colour=(0.65, 0.95),
        detail=(0.55, 0.85),
        blur=(0.2, 0.8),
        noise=(3, 6),
        contrast=(1.05, 1.25),
        shadow=0.35,
        occlusion=0.4,
    ),
    "park": Style(
        (112, 120, 82),
        (84, 94, 68),
        "grass",
        "trees",
        "summer",
        0.5,
        light=(0.85, 1.1),
        cast=(1.0, 1.04, 0.88),
        colour=(0.75, 1.0),
        detail=(0.6, 0.95),
        blur=(0.1, 0.6),
        noise=(3, 7),
        contrast=(1.0, 1.2),
        shadow=0.5,
        occlusion=0.2,
    ),
}
STYLES: tuple[str, ...] = tuple(_STYLES)


@dataclass(frozen=True)
class Camera:
    """One camera of a style.

    Attributes:
        style: name of its domain's style.
        seed: seed of its backdrop.
        light: gain.
        cast: gain of red, green and blue.
        colour: saturation; 1 leaves it unchanged.
        gamma: exponent of the tone curve.
        contrast: contrast about mid grey.
        detail: share of the resolution that the sensor really has.
        blur: standard deviation in pixels of a 128-row crop.
        sharpen: how strongly the camera oversharpens edges; 0 is none.
        noise: standard deviation in grey levels.
        gradient: how much brighter the left is than the right.
        tilt: how steeply it looks down, in radians.
        horizon: where wall meets floor, as a fraction of the crop's height from the top; the steeper the
            tilt, the higher.
        sun: where the light comes from, -1 left to 1 right.
        quality: quality of the JPEGs it sends.
    """

    style: str
    seed: int
    light: float
    cast: Colour
    colour: float
    gamma: float
    contrast: float
    detail: float
    blur: float
    sharpen: float
    noise: float
    gradient: float
    tilt: float
    horizon: float
    sun: float
    quality: int


def style_of(name: str) -> Style:
    """Look up a style by name; raises DataError naming the nearest."""
    if not isinstance(name, str) or name not in _STYLES:
        near = difflib.get_close_matches(str(name), STYLES, 1)
        raise DataError(
            f"unknown style {name!r}{f'; did you mean {near[0]!r}?' if near else ''}; known styles: {', '.join(STYLES)}"
        )
    return _STYLES[name]


def draw_camera(style: str, rng: np.random.Generator) -> Camera:
    """Draw a camera of a style; raises DataError if the style is unknown."""
    traits = style_of(style)
    red, green, blue = np.array(traits.cast) * rng.uniform(0.92, 1.08, 3)
    tilt = float(rng.uniform(0.06, 0.42))
    return Camera(
        style=style,
        seed=int(rng.integers(2**31)),
        light=float(rng.uniform(*traits.light)),
        cast=(float(red), float(green), float(blue)),
        colour=float(rng.uniform(*traits.colour)),
        gamma=float(rng.uniform(0.8, 1.2)),
        contrast=float(rng.uniform(*traits.contrast)),
        detail=float(rng.uniform(*traits.detail)),
        blur=float(rng.uniform(*traits.blur)),
        sharpen=float(rng.uniform(0.0, 0.6)),
        noise=float(rng.uniform(*traits.noise)),
        gradient=float(rng.uniform(-0.3, 0.3)),
        tilt=tilt,
        horizon=float(np.clip(0.5 - 1.0 * tilt + rng.normal(0, 0.06), 0.04, 0.55)),
        sun=float(rng.choice([-1, 1]) * rng.uniform(0.25, 1.0)),
        quality=int(rng.integers(40, 90)),
    )


@lru_cache(maxsize=64)
def backdrop(camera: Camera, height: int, width: int) -> NDArray[np.uint8]:
    """The place without people: read-only uint8 RGB ``[SCALE·height, 3·SCALE·width, 3]``.

    The horizon is at its row for an unshifted crop.
    """
    style, rng = style_of(camera.style), np.random.default_rng((17, camera.seed))
    rows, columns = round(SCALE * height), round(3 * SCALE * width)
    fine = 2 if height <= 256 else 1
    horizon = round(fine * (camera.horizon + (SCALE - 1) / 2) * height)
    image = np.empty((fine * rows, fine * columns, 3), np.float32)
    image[:horizon] = np.array(style.wall, np.float32) * rng.uniform(0.82, 1.12)
    image[horizon:] = np.array(style.floor, np.float32) * rng.uniform(0.82, 1.12)
    paint_place(image, horizon, style.behind, style.ground, rng)
    small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    picture: NDArray[np.uint8] = np.clip(small, 0, 255).astype(np.uint8)
    picture.setflags(write=False)
    return picture


def photograph(scene: Float32s, camera: Camera, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn a scene, float32 RGB ``[height, width, 3]`` in 0..255, into the uint8 RGB image that the camera sends.

    The steps are in a camera's order: light and cast, the sensor's few pixels with their noise, the tone curve,
    oversharpening, the JPEG encoder.
    """
    height, width = scene.shape[:2]
    across = 1 + camera.gradient * np.linspace(0.5, -0.5, width, dtype=np.float32)
    flicker = rng.uniform(0.88, 1.12) * rng.uniform(0.97, 1.03, 3) / 255
    image = scene * (across[:, None] * (camera.light * flicker * np.array(camera.cast)).astype(np.float32))
    seen = (max(6, round(camera.detail * width)), max(12, round(camera.detail * height)))
    image = cv2.resize(image, seen, interpolation=cv2.INTER_AREA)
    if camera.blur > 0.05:
        image = cv2.GaussianBlur(image, (0, 0), camera.blur * camera.detail * height / 128)
    noise = rng.standard_normal((seen[1], seen[0], 4), np.float32) * np.float32(camera.noise / 255)
    image += noise[..., :3] * np.float32(0.6) + noise[..., 3:] * np.float32(0.8)
    grey = image @ np.array([[0.299], [0.587], [0.114]], np.float32)
    image = grey + np.float32(camera.colour) * (image - grey)
    image = np.clip(image, 0, 1) ** np.float32(camera.gamma)
    image = (image - np.float32(0.45)) * np.float32(camera.contrast) + np.float32(0.45)
    image = np.where(image > 0.75, 0.75 + 0.25 * np.tanh((image - 0.75) * 4), image)  # highlights roll off
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    if camera.sharpen > 0.05:
        image += np.float32(camera.sharpen) * (image - cv2.GaussianBlur(image, (0, 0), 1.2 * height / 128))
    sent = cv2.imencode(
        ".jpg", np.clip(255 * image[..., ::-1], 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, camera.quality]
    )[1]
    crop: NDArray[np.uint8] = cv2.cvtColor(np.asarray(cv2.imdecode(sent, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB)
    return crop
