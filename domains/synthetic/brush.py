"""Lays lit shapes over one another: limbs as tubes through joints, bodies and bags as shapes turned about a vertical
axis.

Body coordinates are fractions of the body's height: x to the person's left, y up from the ground, z to where they face.
Because every part has a position in them, front, side and back views agree without being drawn separately.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from domains.arrays import Float32s, Float64s
from domains.synthetic.cloth import Dye, plain
from domains.synthetic.person import Colour, Pose

Pixels = Float64s
Point = tuple[float, float, float]
Station = tuple[float, float, float, float]
"""One cross-section of a turned shape: height, half the breadth (x), half the depth (z), and the centre's z."""


class Brush:
    """A canvas, and the directions of the camera and the sun.

    Attributes:
        image: colours so far, float32 ``[3, height, width]`` in 0..255, black where there is nothing; stored plane
            by plane, which is faster in numpy.
        mask: coverage so far, float32 ``[height, width]`` in 0..1.
        cos: of the angle at which the body faces the camera; negative from behind.
    """

    def __init__(self, pose: Pose, height: int, width: int, foot: tuple[float, float], tall: float) -> None:
        self.pose, self.tall, self.foot = pose, tall, foot
        self.image = np.zeros((3, height, width), np.float32)
        self.mask = np.zeros((height, width), np.float32)
        self.rng = np.random.default_rng(pose.seed)
        self.cos, self.sin = math.cos(pose.yaw), math.sin(pose.yaw)
        self.steep, self.rise = math.sin(pose.tilt), math.cos(pose.tilt)
        toward = np.array([0.8 * pose.sun, 0.75, 0.65])
        self.sun = (toward / np.linalg.norm(toward)).astype(np.float32)

    def depth(self, point: Point) -> float:
        """How much nearer to the camera than the body's axis."""
        return point[2] * self.cos - point[0] * self.sin

    def _projected(self, x: Pixels | float, y: Pixels, z: Pixels) -> Pixels:
        """Project points to pixels ``[n, 2]``; seen from above, nearer ones are lower and higher ones larger."""
        across, near = x * self.cos + z * self.sin, z * self.cos - x * self.sin
        grow = 1 + 0.5 * self.steep * (y - 0.5)
        up = (y + 0.25 * self.steep * y * (y - 1)) * (0.5 + 0.5 * self.rise) - 0.8 * near * self.steep
        return np.stack(
            [self.foot[0] + (across * grow + self.pose.lean * y) * self.tall, self.foot[1] - up * self.tall], 1
        )

    def tube(self, joints: Sequence[Point], widths: Sequence[float], colour: Colour, *, folds: float = 1.0) -> None:
        """Draw a limb through joints, with its width interpolated between ``widths``."""
        steps = 5 * (len(joints) - 1) + 1
        at, ends = _spaced(len(joints) - 1, steps), _spaced(1, len(widths))
        body, knots = np.array(joints), _spaced(len(joints) - 1, len(joints))
        path = self._projected(*(np.interp(at, knots, body[:, axis]) for axis in range(3)))
        if len(joints) > 2:  # a knee is not a hinge: round off the bend
            path[1:-1] = 0.25 * path[:-2] + 0.5 * path[1:-1] + 0.25 * path[2:]
        wide = (
            np.interp(_spaced(1, steps), ends, widths)
            * (self.tall / 2)
            * (1 + 0.035 * folds * self.rng.standard_normal(steps))
        )
        along = np.empty_like(path)
        along[1:-1], along[0], along[-1] = path[2:] - path[:-2], path[1] - path[0], path[-1] - path[-2]
        aside = along[:, ::-1] * (wide / np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-6))[:, None] * (-1, 1)
        outline = np.concatenate([path + aside, (path - aside)[::-1]])
        balls = [(path[i], wide[i], wide[i]) for i in range(0, steps, 5)]
        self._lay(outline, balls, plain(colour), folds, None)

    def turned(self, stations: Sequence[Station], dye: Dye, *, folds: float = 1.0, shift: float = 0.0) -> None:
        """Draw a shape of elliptic cross-sections about a vertical axis at x = ``shift``, from the top station down."""
        sections = np.array(stations)[::-1]
        heights = sections[0, 0] + (sections[-1, 0] - sections[0, 0]) * _spaced(1, max(12, 2 * len(sections)))
        breadth, depth, centre = (np.interp(heights, sections[:, 0], sections[:, column]) for column in (1, 2, 3))
        half = np.sqrt((breadth * self.cos) ** 2 + (depth * self.sin) ** 2) * self.tall
        half *= (1 + 0.5 * self.steep * (heights - 0.5)) * (1 + 0.015 * folds * self.rng.standard_normal(len(heights)))
        middle = self._projected(shift, heights, centre)
        edge = np.stack([half, np.zeros_like(half)], 1)
        outline = np.concatenate([middle - edge, (middle + edge)[::-1]])
        sag = max(1.0, 0.6 * float(depth[0]) * self.steep * self.tall)  # the lower rim, seen from above
        self._lay(outline, [(middle[0], half[0], sag)], dye, folds, (middle, half, heights))

    def _lay(
        self,
        outline: Pixels,
        balls: Sequence[tuple[Pixels, float, float]],
        dye: Dye,
        folds: float,
        turned: tuple[Pixels, Pixels, Pixels] | None,
    ) -> None:
        """Light a part, an outline with round ends, and lay it over the canvas, on which it casts a soft shadow."""
        rows, columns = self.mask.shape
        reach = max(1, round(0.016 * self.tall))
        low, high = outline.min(0), outline.max(0)
        for at, wide, tall in balls:
            size = np.array((wide, tall))
            low, high = np.minimum(low, at - size), np.maximum(high, at + size)
        x, y = max(0, math.floor(low[0]) - reach), max(0, math.floor(low[1]) - reach)
        w, h = min(columns, math.ceil(high[0]) + reach) - x, min(rows, math.ceil(high[1]) + 2 * reach) - y
        if w < 1 or h < 1:
            return
        part = np.zeros((h, w), np.uint8)
        cv2.fillPoly(part, [_fixed(outline - (x, y))], 255, cv2.LINE_AA, 4)
        for at, wide, tall in balls:
            centre = (round(16 * (at[0] - x)), round(16 * (at[1] - y)))
            cv2.ellipse(part, centre, (int(16 * wide), int(16 * tall)), 0, 0, 360, 255, -1, cv2.LINE_AA, 4)
        below = self.image[:, y : y + h, x : x + w]
        below *= 1 - cv2.blur(part, (2 * reach + 1, 2 * reach + 1)) * np.float32(0.4 / 255)
        if turned is None:
            u = v = np.zeros((1, 1), np.float32)  # a limb has one colour
            light = self._limb_light(part)
        else:
            u, v, light = self._turned_light(x, y, w, h, *turned)
        bank = _folds(rows)
        top, left = (int(self.rng.integers(max(1, size - need))) for size, need in zip(bank.shape, (h, w), strict=True))
        light = (0.5 + 0.62 * np.maximum(light, 0)) * (
            1 + np.float32(0.13 * folds) * bank[top : top + h, left : left + w]
        )
        cover = part * np.float32(1 / 255)
        below += (dye(u, v) * light - below) * cover
        covered = self.mask[y : y + h, x : x + w]
        covered += (1 - covered) * cover

    def _limb_light(self, part: NDArray[np.uint8]) -> Float32s:
        """Lambert's law on a limb as deep as it is wide: its relief is a circle over the distance to its edge."""
        far = cv2.distanceTransform(cv2.copyMakeBorder(part, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 3)[
            1:-1, 1:-1
        ]
        radius = max(1.0, float(far.max()))
        share = np.minimum(far / radius, 1)
        relief = cv2.blur(radius * np.sqrt(share * (2 - share)), (3, 3))
        across, down = (
            cv2.Sobel(relief, cv2.CV_32F, 1, 0, scale=0.125),
            cv2.Sobel(relief, cv2.CV_32F, 0, 1, scale=0.125),
        )
        light: Float32s = (self.sun[2] - across * self.sun[0] - down * 0.4 * self.sun[1]) / np.sqrt(
            1 + across * across + down * down
        )
        return light

    def _turned_light(
        self, x: int, y: int, w: int, h: int, middle: Pixels, half: Pixels, heights: Pixels
    ) -> tuple[Float32s, Float32s, Float32s]:
        """Angle u about the body, height v and light for each pixel of a box on the canvas."""
        levels = np.arange(y, y + h, dtype=np.float32)
        v, centre, wide = (
            np.interp(levels, middle[::-1, 1], values[::-1]).astype(np.float32)[:, None]
            for values in (heights, middle[:, 0], half)
        )
        offset = np.clip((np.arange(x, x + w, dtype=np.float32)[None] - centre) / np.maximum(wide, 1), -0.98, 0.98)
        u = np.arcsin(offset) + np.float32(math.pi - self.pose.yaw % (2 * math.pi))
        u = np.where(u < 0, u + np.float32(2 * math.pi), u) - np.float32(math.pi)
        u = np.where(u < -np.float32(math.pi), u + np.float32(2 * math.pi), u)
        light = offset * self.sun[0] + np.sqrt(1 - offset * offset) * self.sun[2]
        return u, np.broadcast_to(v, u.shape), light


@lru_cache(maxsize=8)
def _folds(tall: int) -> Float32s:
    """Creases for a person of about ``tall`` pixels: zero mean, about unit spread, longer than wide. Read-only."""
    rng = np.random.default_rng(97)
    size = max(48, 2 * tall)
    total = np.zeros((size, size), np.float32)
    for grain, share in ((0.12, 0.8), (0.05, 0.6), (0.02, 0.35)):
        cells = (max(4, round(size / (1.6 * grain * tall))), max(4, round(size / (0.8 * grain * tall))))
        total += share * cv2.resize(
            rng.normal(0, 1, cells).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
        )
    total = np.clip(total, -2.2, 2.2)
    total.setflags(write=False)
    return total


@lru_cache(maxsize=64)
def _spaced(end: int, count: int) -> Pixels:
    return np.linspace(0, end, count)


def _fixed(points: Float64s) -> NDArray[np.int32]:
    """Pixels in sixteenths, as OpenCV's ``shift=4`` takes them."""
    return np.round(points * 16).astype(np.int32)
