"""Painting a person: a walking skeleton in three dimensions, dressed part by part from the far side to the near one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from domains.arrays import Float32s
from domains.synthetic import cloth
from domains.synthetic.brush import Brush, Point, Station
from domains.synthetic.cloth import plain, shade
from domains.synthetic.person import Person, Pose


def render(
    person: Person, pose: Pose, height: int, width: int, foot: tuple[float, float], tall: float
) -> tuple[Float32s, Float32s]:
    """Paint a person on an empty picture.

    They are painted with smooth edges at two to four times the size and averaged down, so that edges are as soft as a
    sensor sees them.

    Args:
        person: person to paint.
        pose: how they stand, and how the camera sees them.
        height: rows of the picture.
        width: columns of the picture.
        foot: x and y, in pixels, of the ground under them.
        tall: the height of a person of average stature, in pixels.

    Returns:
        Colours ``[height, width, 3]`` in 0..255, multiplied by the coverage, and the coverage ``[height, width]`` in
        0..1.
    """
    fine = 2 if height > 96 else 3 if height > 48 else 4
    painter = _Painter(
        person, pose, fine * height, fine * width, (fine * foot[0], fine * foot[1]), fine * tall * person.stature
    )
    painter.paint()
    red, green, blue, cover = (
        cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA) for plane in (*painter.image, painter.mask)
    )
    return cv2.merge((red, green, blue)), cover


class _Painter(Brush):
    """Dresses one person."""

    def __init__(
        self, person: Person, pose: Pose, height: int, width: int, foot: tuple[float, float], tall: float
    ) -> None:
        super().__init__(pose, height, width, foot, tall)
        self.person = person

    def paint(self) -> None:
        """Fill ``image`` and ``mask``."""
        person = self.person
        swing = math.sin(self.pose.phase)
        legs = {side: _leg(person, self.pose, side) for side in (-1, 1)}
        ground = min(leg[2][1] for leg in legs.values()) - 0.042
        legs = {side: tuple((x, y - ground, z) for x, y, z in leg) for side, leg in legs.items()}
        for side in sorted(legs, key=lambda s: self.depth(legs[s][1])):
            self._draw_leg(legs[side])
        arms = {side: _arm(person, self.pose, side, -side * swing) for side in (-1, 1)}
        behind = self.cos < 0
        order = sorted(arms, key=lambda s: self.depth(arms[s][0]) + 0.5 * self.depth(arms[s][2]))
        near_bag = self.depth((person.bag_side * 0.14, 0.5, 0.0)) >= 0
        if person.bag == "backpack" and not behind:
            self._backpack()
        if person.bag == "shoulder" and not near_bag:
            self._shoulder_bag()
        if person.hairstyle == "long" and not behind:
            self._long_hair()
        self._draw_arm(order[0], arms[order[0]])
        self._draw_trunk()
        if person.bag == "shoulder" and near_bag:
            self._shoulder_bag()
        if person.bag == "backpack" and behind:
            self._backpack()
        self._draw_head()
        if person.hairstyle == "long" and behind:
            self._long_hair()
        self._draw_arm(order[1], arms[order[1]])

    # -- parts

    def _draw_leg(self, leg: Sequence[Point]) -> None:
        hip, knee, ankle = leg
        person, dim = self.person, 0.9 + 0.1 * (self.depth(knee) > 0)
        bare = person.bottom_kind in ("shorts", "skirt", "dress")
        girth = 0.5 + 0.5 * person.build
        toe = (ankle[0] + 0.012 * math.copysign(1, ankle[0]), max(0.012, ankle[1] - 0.03), ankle[2] + 0.095)
        heel = (ankle[0], max(0.018, ankle[1] - 0.026), ankle[2] - 0.018)
        if bare:
            self.tube(
                [hip, knee, ankle],
                [0.08 * girth, 0.053 * girth, 0.06 * girth, 0.032 * girth],
                shade(person.skin, dim),
                folds=0.15,
            )
            self.tube([heel, toe], [0.042, 0.03], shade(person.shoes, dim))
            if person.bottom_kind == "shorts":
                middle = _between(hip, knee, 0.85)
                self.tube([hip, middle], [0.094 * girth, 0.086 * girth * person.fit], shade(person.bottom, dim))
            return
        self.tube([heel, toe], [0.044, 0.032], shade(person.shoes, dim))
        width = [0.094 * girth, 0.07 * girth * person.fit, 0.064 * girth * person.fit, 0.052 * girth * person.fit]
        self.tube([hip, knee, (ankle[0], ankle[1] - 0.012, ankle[2])], width, shade(person.bottom, dim), folds=1.3)

    def _draw_arm(self, side: int, arm: Sequence[Point]) -> None:
        shoulder, elbow, hand = arm
        person, dim = self.person, 0.9 + 0.1 * (self.depth(elbow) > 0)
        girth = (0.6 + 0.4 * person.build) * (1.22 if person.jacket else 1.0)
        sleeve, fabric = (1.0, person.jacket) if person.jacket else (person.sleeve, person.top)
        skin = shade(person.skin, dim)
        wrist = _between(elbow, hand, 0.93)
        if self.pose.arms != "pockets" or self.depth(hand) < 0:
            self.tube([wrist, (hand[0], hand[1] - 0.024, hand[2] + 0.008)], [0.026, 0.032, 0.018], skin)
        if sleeve < 1:
            self.tube(
                [shoulder, elbow, wrist], [0.05 * girth, 0.04 * girth, 0.038 * girth, 0.026 * girth], skin, folds=0.2
            )
            if sleeve > 0:
                cuff = _between(shoulder, elbow, 0.72)
                self.tube([shoulder, cuff], [0.056 * girth, 0.06 * girth, 0.058 * girth], shade(fabric, dim))
        else:
            self.tube(
                [shoulder, elbow, wrist],
                [0.056 * girth, 0.056 * girth, 0.046 * girth, 0.036 * girth],
                shade(fabric, dim),
            )
        if person.bag == "hand" and side == person.bag_side:
            x, y, z = hand
            self.tube([(x, y, z), (x, y - 0.06, z)], [0.05, 0.012], shade(person.bag_colour, 0.6))
            self.turned(
                [(y - 0.045, 0.018, 0.07, z), (y - 0.09, 0.026, 0.08, z), (y - 0.155, 0.028, 0.085, z)],
                plain(person.bag_colour),
                shift=x,
            )

    def _draw_trunk(self) -> None:
        person, wide = self.person, self.person.build
        hips, chest = (
            0.088 * (0.4 + 0.6 * wide) * (2 - person.shoulders) ** 0.5,
            0.104 * (0.5 + 0.5 * wide) * person.shoulders,
        )
        belly = 0.07 * wide**1.6
        waist = 0.5 * (hips + chest) * (0.86 + 0.14 * (wide - 0.86) / 0.34)
        neck: list[Station] = [
            (0.856, 0.034, 0.036, 0.0),
            (0.84, 0.056, 0.044, -0.002),
            (0.824, chest * 0.82, 0.054, -0.004),
        ]
        trunk = [
            *neck,
            (0.795, chest * 0.97, 0.062, 0.0),
            (0.72, chest * 0.97, 0.072, 0.006),
            (0.62, waist, belly, 0.004),
            (0.55, hips, 0.072, -0.006),
        ]
        skirt = person.bottom_kind in ("skirt", "dress")
        if skirt:
            sway = 0.02 * math.sin(self.pose.phase)
            dye = cloth.top(person) if person.bottom_kind == "dress" else plain(person.bottom)
            self.turned(
                [(0.6, waist, 0.06, 0.0), (0.5, hips * 1.08, 0.084, 0.0), (0.3, hips * 1.32, 0.108, sway)],
                dye,
                folds=1.5,
            )
        else:
            seat = [
                (0.57, hips * 0.98, 0.07, -0.004),
                (0.5, hips * 1.06, 0.082, -0.01),
                (0.455, hips * 0.86, 0.066, -0.006),
            ]
            self.turned(seat, plain(person.bottom))
        end = 0.56 if skirt else 0.49
        self.tube([(0.0, 0.8, -0.004), (0.0, 0.885, 0.004)], [0.066, 0.05, 0.05], shade(person.skin, 0.8))
        self.turned([*trunk, (end, hips * 1.04, 0.08, -0.006)], cloth.top(person))
        if person.jacket:
            loose = [(y, a * 1.1, b * 1.12, z) for y, a, b, z in trunk if y > person.hem + 0.03]
            flare = 1.16 + 0.5 * (0.5 - person.hem)
            self.turned([*loose, (person.hem, hips * flare, 0.08 * flare, -0.004)], cloth.jacket(person))
        if person.scarf:
            self.turned(
                [(0.872, 0.046, 0.05, 0.008), (0.845, 0.062, 0.062, 0.008), (0.826, 0.05, 0.056, 0.012)],
                plain(person.scarf),
            )

    def _draw_head(self) -> None:
        person = self.person
        hat = person.hairstyle in ("cap", "beanie", "hood")
        tail = [(0.0, 0.945, -0.055), (0.0, 0.9, -0.088), (0.0, 0.85, -0.07)]
        if person.hairstyle == "tied" and self.cos >= 0:
            self.tube(tail, [0.03, 0.036, 0.034, 0.016], person.hair)
        grown = 1.0 if person.hairstyle == "bald" else 1.1 if hat else 1.06
        head: list[Station] = []
        for angle in np.linspace(0.12, math.pi - 0.1, 11):
            up, out = math.cos(angle), math.sin(angle)
            large, jaw = grown if up > 0 else 1.0, 1.0 + 0.16 * min(0.0, up + 0.3)
            head.append(
                (
                    0.925 + 0.07 * up * large,
                    0.0465 * out * jaw * large,
                    0.057 * out * large,
                    0.012 if up > -0.3 else 0.018,
                )
            )
        brim = [(0.957, 0.034, 0.04, 0.05), (0.948, 0.045, 0.055, 0.068)]
        if person.hairstyle == "cap" and self.cos < 0:
            self.turned(brim, plain(shade(person.headwear, 0.75)))
        self.turned(head, cloth.face(person), folds=0.25)
        if person.hairstyle == "tied" and self.cos < 0:
            self.tube(tail, [0.03, 0.036, 0.034, 0.016], shade(person.hair, 0.85))
        if person.hairstyle == "cap" and self.cos >= 0:
            self.turned(brim, plain(shade(person.headwear, 0.75)))

    def _long_hair(self) -> None:
        length = 0.79 if self.person.scale > 1 else 0.82
        stations = [
            (0.97, 0.03, 0.03, -0.012),
            (0.93, 0.055, 0.05, -0.016),
            (0.87, 0.06, 0.045, -0.03),
            (length, 0.045, 0.024, -0.055),
        ]
        self.turned(stations, plain(shade(self.person.hair, 0.9)), folds=1.4)

    def _backpack(self) -> None:
        half = 0.082 * (0.4 + 0.6 * self.person.build)
        self.turned(
            [
                (0.825, half * 0.6, 0.03, -0.1),
                (0.8, half * 0.95, 0.05, -0.105),
                (0.68, half, 0.062, -0.118),
                (0.58, half, 0.066, -0.118),
                (0.55, half * 0.8, 0.05, -0.112),
            ],
            cloth.backpack(self.person),
            folds=0.7,
        )

    def _shoulder_bag(self) -> None:
        x = self.person.bag_side * 0.125 * (0.4 + 0.6 * self.person.build)
        self.turned(
            [(0.56, 0.018, 0.07, 0.0), (0.54, 0.03, 0.088, 0.0), (0.44, 0.032, 0.092, 0.0), (0.425, 0.022, 0.08, 0.0)],
            plain(self.person.bag_colour),
            folds=0.6,
            shift=x,
        )


def _leg(person: Person, pose: Pose, side: int) -> tuple[Point, ...]:
    """Hip, knee and ankle; the knee bends most while the leg swings forward."""
    thigh = 0.42 * pose.stride * math.sin(pose.phase) * side
    bend = 0.06 + 0.75 * pose.stride * max(0.0, side * math.cos(pose.phase))
    x = side * 0.046 * (0.4 + 0.6 * person.build)
    hip = (x, 0.515, 0.0)
    knee = (x * 1.02, hip[1] - 0.235 * math.cos(thigh), 0.235 * math.sin(thigh))
    shin = thigh - bend
    return hip, knee, (x * 0.92, knee[1] - 0.245 * math.cos(shin), knee[2] + 0.245 * math.sin(shin))


def _arm(person: Person, pose: Pose, side: int, swing: float) -> tuple[Point, ...]:
    """Shoulder, elbow and hand; arms swing against the legs."""
    upper, bend, apart = 0.5 * pose.stride * swing, 0.22 + 0.3 * pose.stride * max(0.0, swing), 0.1
    if pose.arms == "pockets":
        upper, bend, apart = -0.3, 0.7, 0.2
    elif pose.arms == "phone" and side != person.bag_side:
        upper, bend, apart = 0.5, 1.9, 0.1
    elif person.bag == "hand" and side == person.bag_side:
        upper, bend, apart = 0.3 * upper, 0.06, 0.14
    x = side * (0.103 * (0.5 + 0.5 * person.build) * person.shoulders + (0.006 if person.jacket else 0))
    out = math.sin(apart) * side
    shoulder = (x * 0.9, 0.787, 0.0)
    elbow = (x + 0.165 * out, 0.787 - 0.16 * math.cos(upper), 0.165 * math.sin(upper))
    lower = upper + bend
    inward = 0.35 if pose.arms == "pockets" else 0.1
    return (
        shoulder,
        elbow,
        (
            elbow[0] - 0.155 * inward * side * 0.5,
            elbow[1] - 0.155 * math.cos(lower),
            elbow[2] + 0.155 * math.sin(lower),
        ),
    )


def _between(start: Point, end: Point, share: float) -> Point:
    return tuple(a + share * (b - a) for a, b in zip(start, end, strict=True))  # type: ignore[return-value]
