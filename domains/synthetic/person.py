"""A drawn person: build, clothes, textures, bags and hair stay; pose and view change from crop to crop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]
Floats = NDArray[np.float32]
Points = list[tuple[float, float]]

SKINS: tuple[Colour, ...] = ((236, 200, 175), (222, 178, 146), (196, 148, 112), (150, 104, 76), (102, 70, 52))
HAIRS: tuple[Colour, ...] = ((28, 22, 20), (52, 36, 26), (92, 62, 38), (148, 112, 66), (196, 172, 122), (150, 148, 146))
DARKS: tuple[Colour, ...] = ((34, 36, 42), (48, 52, 62), (58, 48, 44), (40, 52, 74), (70, 72, 74), (28, 28, 28))
BRIGHTS: tuple[Colour, ...] = (
    (176, 44, 44), (36, 88, 160), (44, 122, 78), (214, 178, 60), (226, 224, 216), (150, 70, 130), (208, 116, 52), (110, 160, 196), (196, 176, 148),
    (104, 112, 66), (236, 170, 176), (88, 44, 60),
)  # fmt: skip
DENIMS: tuple[Colour, ...] = ((52, 70, 104), (78, 98, 132), (38, 44, 60), (112, 126, 148))
PATTERNS = ("plain", "plain", "plain", "bands", "pinstripe", "check", "yoke", "print")
BAGS = ("none", "none", "none", "backpack", "backpack", "shoulder", "hand")
HAIRSTYLES = ("short", "short", "long", "tied", "bald", "cap", "hood")


@dataclass(frozen=True)
class Person:
    """What makes a drawn person the same person. Colours are RGB in 0..255, lengths fractions of the body's height."""

    build: float
    stature: float
    skin: Colour
    hair: Colour
    hairstyle: str
    top: Colour
    top_second: Colour
    pattern: str
    jacket: Colour | None
    sleeve: float
    bottom: Colour
    bottom_kind: str
    shoes: Colour
    bag: str
    bag_colour: Colour


@dataclass(frozen=True)
class Pose:
    """One moment: ``turn`` is 0 facing the camera, ±1 in profile, 2 from behind; ``phase`` the step in radians."""

    turn: float
    phase: float
    stride: float
    lean: float


def draw_person(rng: np.random.Generator, *, season: str = "mild", muted: float = 0.5) -> Person:
    """Draw somebody at random.

    Args:
        rng: the only source of chance.
        season: ``summer``, ``mild`` or ``winter``; decides sleeves, jackets and legs.
        muted: how likely a garment is dark; crowds in dark clothes are hard to tell apart.
    """

    def garment() -> Colour:
        pool = DARKS if rng.random() < muted else BRIGHTS
        return _varied(pool[rng.integers(len(pool))], rng)

    winter, summer = season == "winter", season == "summer"
    bottom_kind = str(rng.choice(["trousers", "trousers", "shorts", "skirt"] if summer else ["trousers", "trousers", "trousers", "skirt"]))
    legs = DENIMS if rng.random() < 0.45 else DARKS if rng.random() < 0.6 else BRIGHTS
    styles = [style for style in HAIRSTYLES if winter or style != "hood"]
    return Person(
        build=float(rng.uniform(0.86, 1.22)),
        stature=float(rng.uniform(0.9, 1.04)),
        skin=SKINS[rng.integers(len(SKINS))],
        hair=_varied(HAIRS[rng.integers(len(HAIRS))], rng, 8),
        hairstyle=str(rng.choice(styles)),
        top=garment(),
        top_second=garment(),
        pattern=str(rng.choice(PATTERNS)),
        jacket=garment() if rng.random() < (0.75 if winter else 0.0 if summer else 0.35) else None,
        sleeve=0.38 if summer and rng.random() < 0.8 else 1.0,
        bottom=_varied(legs[rng.integers(len(legs))], rng),
        bottom_kind=bottom_kind,
        shoes=_varied((DARKS if rng.random() < 0.6 else BRIGHTS)[rng.integers(6)], rng),
        bag=str(rng.choice(BAGS)),
        bag_colour=garment(),
    )


def draw_pose(rng: np.random.Generator) -> Pose:
    """Draw a view and a moment of walking."""
    turn = float(rng.choice([0.0, 0.0, 2.0, 2.0, 1.0, -1.0])) + float(rng.uniform(-0.25, 0.25))
    return Pose(turn, float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(0.35, 1.0)), float(rng.uniform(-0.02, 0.02)))


def render(person: Person, pose: Pose, height: int, width: int, foot: tuple[float, float], tall: float) -> tuple[Floats, Floats]:
    """Paint a person on an empty canvas.

    Args:
        person: who.
        pose: how they stand.
        height: canvas rows.
        width: canvas columns.
        foot: where the ground under them is, as x and y in pixels.
        tall: their height in pixels.

    Returns:
        Colours ``[height, width, 3]`` in 0..255 and coverage ``[height, width]`` in 0..1.
    """
    return _Painter(person, pose, height, width, foot, tall * person.stature).paint()


class _Painter:
    """Paints parts from the far side to the near one. Body coordinates: x to the right, y up from the ground, both in body heights."""

    def __init__(self, person: Person, pose: Pose, height: int, width: int, foot: tuple[float, float], tall: float) -> None:
        self.person, self.pose, self.tall, self.foot = person, pose, tall, foot
        self.image = np.zeros((height, width, 3), np.float32)
        self.mask = np.zeros((height, width), np.uint8)
        self.facing = math.cos(math.pi / 2 * min(abs(pose.turn), 2 - abs(pose.turn) if abs(pose.turn) > 1 else abs(pose.turn)))
        self.back = abs(pose.turn) > 1.5
        self.side = 1.0 if pose.turn >= 0 else -1.0
        self.swing = math.sin(pose.phase) * 0.115 * pose.stride

    def paint(self) -> tuple[Floats, Floats]:
        person, breadth = self.person, 0.098 * self.person.build
        half = breadth * (0.62 + 0.38 * self.facing)
        hips = half * 0.74
        near, far = self.side, -self.side
        if person.bag == "backpack" and not self.back:
            self._backpack(half, behind=True)
        self._leg(far * hips * 0.5, -self.swing, 0.82)
        self._arm(far * half, self.swing, 0.84)
        self._leg(near * hips * 0.5, self.swing, 1.0)
        if person.bottom_kind == "skirt":
            self._part([(-hips, 0.53), (hips, 0.53), (hips * 1.45, 0.3), (-hips * 1.45, 0.3)], person.bottom)
        self._torso(half, hips)
        self._head()
        self._arm(near * half, -self.swing, 1.0)
        if person.bag == "backpack" and self.back:
            self._backpack(half, behind=False)
        if person.bag == "shoulder":
            self._line([(far * half * 0.7, 0.8), (near * hips * 0.9, 0.5)], 0.016, _shade(person.bag_colour, 0.7))
            self._part(_box(near * hips * 1.1, 0.46, 0.055, 0.05), person.bag_colour)
        if person.bag == "hand":
            self._part(_box(near * half * 1.2 - self.swing * 0.5, 0.36, 0.05, 0.055), person.bag_colour)
        return self.image, self.mask.astype(np.float32) / np.float32(255)

    def _torso(self, half: float, hips: float) -> None:
        person = self.person
        outline = [(-half * 0.42, 0.842), (half * 0.42, 0.842), (half * 0.86, 0.822), (half, 0.785), (half * 0.88, 0.66), (hips * 0.98, 0.57),
                   (hips, 0.48), (-hips, 0.48), (-hips * 0.98, 0.57), (-half * 0.88, 0.66), (-half, 0.785), (-half * 0.86, 0.822)]  # fmt: skip
        if person.bottom_kind != "skirt":
            self._part([(-hips, 0.54), (hips, 0.54), (hips * 0.98, 0.46), (-hips * 0.98, 0.46)], person.bottom)
        self._part(outline, person.top, self._pattern())
        if person.jacket is None:
            return
        if self.back or self.facing < 0.45:
            self._part([(x * 1.1, y - 0.03 * (y < 0.6)) for x, y in outline], person.jacket)
            return
        gap = half * 0.28
        for sign in (-1, 1):
            edge = [(sign * half * 0.5, 0.838), (sign * half * 1.07, 0.8), (sign * half * 1.0, 0.64), (sign * hips * 1.15, 0.46), (sign * gap, 0.46)]
            self._part([*edge, (sign * gap * 0.6, 0.76)], person.jacket)

    def _pattern(self) -> Floats | None:
        """Where the top's second colour shows, in 0..1."""
        kind = self.person.pattern
        if kind == "plain":
            return None
        rows = (self.foot[1] - np.arange(self.image.shape[0], dtype=np.float32)[:, None]) / self.tall
        columns = (np.arange(self.image.shape[1], dtype=np.float32)[None, :] - self.foot[0]) / self.tall
        one = np.ones_like(rows * columns)
        shown: NDArray[Any]
        if kind == "bands":
            shown = ((rows * 18) % 1 < 0.5) * one
        elif kind == "pinstripe":
            shown = ((columns * 34) % 1 < 0.35) * one
        elif kind == "check":
            shown = 0.5 * (((rows * 14) % 1 < 0.5) * one + ((columns * 14) % 1 < 0.5) * one)
        elif kind == "yoke":
            shown = (rows > 0.71) * one
        else:  # a print on the chest, which nobody sees from behind
            shown = ((np.abs(columns) < 0.045) & (np.abs(rows - 0.7) < 0.05) & (not self.back)) * one
        return shown.astype(np.float32)

    def _leg(self, x: float, swing: float, light: float) -> None:
        person, profile = self.person, 1 - self.facing
        reach = swing * (0.35 + 0.9 * profile)
        knee = (x + reach * 0.75 * self.side + 0.012 * profile * self.side, 0.28)
        lift = max(0.0, -swing) * 0.3
        ankle = (x + reach * 1.5 * self.side, 0.045 + lift)
        thick = 0.058 * person.build
        bare = person.bottom_kind in ("shorts", "skirt")
        cloth = _shade(person.bottom, light)
        skin = _shade(person.skin, light)
        self._limb((x, 0.5), knee, thick, thick * 0.78, cloth)
        self._limb(knee, ankle, thick * 0.68 if bare else thick * 0.8, thick * (0.42 if bare else 0.6), skin if bare else cloth)
        toe = 0.055 * self.side * (0.3 + profile) if not self.back else 0.0
        self._limb((ankle[0] - toe * 0.3, ankle[1] - 0.025), (ankle[0] + toe, ankle[1] - 0.032), 0.027, 0.022, _shade(person.shoes, light))

    def _arm(self, x: float, swing: float, light: float) -> None:
        person, profile = self.person, 1 - self.facing
        reach = swing * (0.3 + 1.0 * profile)
        elbow = (x * 1.2 + reach * 0.6 * self.side, 0.645)
        hand = (x * 1.24 + reach * 1.4 * self.side + 0.02 * profile * self.side, 0.5)
        sleeve = _shade(person.jacket or person.top, light * 0.93)
        thick = 0.038 * person.build * (1.2 if person.jacket else 1.0)
        self._limb((x * 0.97, 0.79), elbow, thick, thick * 0.85, sleeve)
        bare = person.jacket is None and person.sleeve < 0.5
        self._limb(elbow, hand, thick * (0.66 if bare else 0.8), thick * (0.5 if bare else 0.66), _shade(person.skin, light) if bare else sleeve)
        self._disc(hand, 0.02, 0.024, _shade(person.skin, light))

    def _head(self) -> None:
        person, skin = self.person, self.person.skin
        top = (self.pose.lean + 0.012 * self.side * (1 - self.facing), 0.915)
        self._limb((0, 0.82), (top[0] * 0.6, 0.87), 0.026, 0.024, _shade(skin, 0.8))
        wide = 0.047 + 0.006 * (1 - self.facing)
        hair = person.bag_colour if person.hairstyle == "cap" else (person.jacket or person.top) if person.hairstyle == "hood" else person.hair
        if person.hairstyle in ("long", "hood"):
            self._part(_box(top[0] - 0.012 * self.side * (1 - self.facing), 0.885, wide * 1.12, 0.06), _shade(hair, 0.85))
        if person.hairstyle == "tied" and (self.back or self.facing < 0.6):
            self._disc((top[0] - (0.0 if self.back else 0.058 * self.side), 0.9), 0.022, 0.045, hair)
        self._disc(top, wide, 0.066, hair if self.back and person.hairstyle != "bald" else skin)
        if self.back:
            return
        if person.hairstyle != "bald":
            crown = [(top[0] + wide * 1.06 * math.cos(angle), top[1] + 0.07 * math.sin(angle)) for angle in np.linspace(-0.1, math.pi + 0.1, 12)]
            fringe = 0.022 if person.hairstyle in ("cap", "hood") else 0.036
            self._part([*crown, (top[0] - wide * 0.5, top[1] + fringe), (top[0] + wide * 0.5, top[1] + fringe)], hair)
            if self.facing < 0.6:
                self._disc((top[0] - 0.028 * self.side, top[1] + 0.012), 0.03, 0.05, hair)
        eyes = (-0.018, 0.018) if self.facing > 0.6 else (0.03 * self.side,)
        for x in eyes:
            self._disc((top[0] + x, top[1] + 0.004), 0.006, 0.004, _shade(skin, 0.45))
        self._disc((top[0] + 0.012 * self.side * (1 - self.facing), top[1] - 0.036), 0.011, 0.003, _shade(skin, 0.76))

    def _backpack(self, half: float, *, behind: bool) -> None:
        colour = self.person.bag_colour
        if behind and self.facing > 0.6:
            for sign in (-1, 1):
                self._part(_box(sign * half * 0.96, 0.7, 0.02, 0.11), _shade(colour, 0.8))
            return
        x = -self.side * half * 1.15 if behind else 0.0
        self._part(_box(x, 0.69, half * (0.55 if behind else 0.8), 0.115), colour)
        self._part(_box(x, 0.655, half * (0.4 if behind else 0.6), 0.045), _shade(colour, 0.82))

    # -- primitives, in body coordinates

    def _pixels(self, points: Points) -> NDArray[np.int32]:
        shift = np.float32(16)  # four bits below the pixel, for smooth edges
        lean = self.pose.lean
        xy = np.array([(self.foot[0] + (x + lean * y) * self.tall, self.foot[1] - y * self.tall) for x, y in points], np.float32)
        return np.round(xy * shift).astype(np.int32)

    def _part(self, points: Points, colour: Colour, second: Floats | None = None) -> None:
        layer = np.zeros_like(self.mask)
        cv2.fillPoly(layer, [self._pixels(points)], 255, cv2.LINE_AA, 4)
        self._lay(layer, colour, second)

    def _disc(self, at: tuple[float, float], wide: float, high: float, colour: Colour) -> None:
        ring = [(at[0] + wide * math.cos(angle), at[1] + high * math.sin(angle)) for angle in np.linspace(0, 2 * math.pi, 20, endpoint=False)]
        self._part(ring, colour)

    def _limb(self, start: tuple[float, float], end: tuple[float, float], wide: float, narrow: float, colour: Colour) -> None:
        """A tapering limb with round ends, ``wide`` and ``narrow`` thick."""
        along = math.atan2(end[1] - start[1], end[0] - start[0])
        first = [along + math.pi / 2 + turn for turn in np.linspace(0, math.pi, 6)]
        last = [along - math.pi / 2 + turn for turn in np.linspace(0, math.pi, 6)]
        outline = [(start[0] + wide / 2 * 1.15 * math.cos(angle), start[1] + wide / 2 * 1.15 * math.sin(angle)) for angle in first]
        outline += [(end[0] + narrow / 2 * 1.15 * math.cos(angle), end[1] + narrow / 2 * 1.15 * math.sin(angle)) for angle in last]
        self._part(outline, colour)

    def _line(self, points: Points, thick: float, colour: Colour) -> None:
        self._limb(points[0], points[1], thick, thick, colour)

    def _lay(self, layer: NDArray[np.uint8], colour: Colour, second: Floats | None) -> None:
        x, y, w, h = cv2.boundingRect(layer)
        if not w or not h:
            return
        box = np.s_[y : y + h, x : x + w]
        part = layer[box]
        cover = (part.astype(np.float32) / 255)[..., None]
        # A part is lit like a cylinder: darker towards its edges.
        round_ = cv2.distanceTransform(cv2.copyMakeBorder((part > 127).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 3)[1:-1, 1:-1]
        light = 0.7 + 0.36 * np.sqrt(np.minimum(round_ / max(1.0, float(round_.max())), 1))[..., None]
        paint = np.array(colour, np.float32)
        if second is not None:
            mix = second[box].astype(np.float32)[..., None]
            paint = paint * (1 - mix) + np.array(self.person.top_second, np.float32) * mix
        self.image[box] = self.image[box] * (1 - cover) + paint * light * cover
        self.mask[box] = np.maximum(self.mask[box], part)


def _box(x: float, y: float, half_width: float, half_height: float) -> Points:
    """A box with cut corners."""
    c = 0.3 * min(half_width, half_height)
    left, right, low, high = x - half_width, x + half_width, y - half_height, y + half_height
    return [
        (left + c, low),
        (right - c, low),
        (right, low + c),
        (right, high - c),
        (right - c, high),
        (left + c, high),
        (left, high - c),
        (left, low + c),
    ]


def _shade(colour: Colour, light: float) -> Colour:
    return colour[0] * light, colour[1] * light, colour[2] * light


def _varied(colour: Colour, rng: np.random.Generator, spread: float = 14) -> Colour:
    red, green, blue = np.clip(np.array(colour) + rng.normal(0, spread, 3), 8, 247)
    return float(red), float(green), float(blue)
