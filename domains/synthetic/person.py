"""A drawn person: build, clothes, textures, bags and hair stay the same; view and pose change from crop to crop."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

import numpy as np

from domains.errors import DataError

Colour = tuple[float, float, float]

SEASONS = ("summer", "mild", "winter")
SKINS: tuple[Colour, ...] = ((224, 184, 160), (208, 164, 136), (184, 138, 106), (140, 98, 74), (96, 66, 52))
HAIRS: tuple[Colour, ...] = (
    (26, 22, 22),
    (40, 30, 26),
    (56, 42, 34),
    (74, 54, 40),
    (104, 78, 52),
    (132, 106, 74),
    (118, 116, 114),
)
DARKS: tuple[Colour, ...] = (
    (30, 32, 36),
    (44, 48, 58),
    (56, 48, 44),
    (36, 44, 62),
    (66, 68, 72),
    (24, 24, 26),
    (84, 84, 86),
    (58, 62, 52),
)
BRIGHTS: tuple[Colour, ...] = (
    (152, 46, 46),
    (44, 80, 136),
    (52, 106, 78),
    (190, 158, 70),
    (214, 212, 206),
    (120, 66, 108),
    (178, 104, 60),
    (112, 146, 174),
    (178, 162, 138),
    (100, 104, 70),
    (204, 154, 158),
    (92, 48, 60),
    (226, 226, 226),
    (146, 148, 152),
)
DENIMS: tuple[Colour, ...] = ((50, 62, 90), (74, 88, 116), (38, 42, 56), (104, 116, 134))
PATTERNS = ("plain", "plain", "plain", "plain", "bands", "pinstripe", "check", "yoke", "logo", "back print")
BAGS = ("none", "none", "none", "backpack", "backpack", "shoulder", "hand")
HAIRSTYLES = ("short", "short", "short", "long", "tied", "bald", "cap", "beanie", "hood")


@dataclass(frozen=True)
class Person:
    """What makes a drawn person the same person. Colours are RGB in 0..255, lengths fractions of the body's height.

    Attributes:
        build: girth, 1 is average.
        shoulders: breadth of the shoulders against that of the hips, 1 is average.
        stature: height against the height that a detector's box suggests.
        pattern: pattern of the top; a logo is seen only from the front, a back print only from behind.
        scale: width of the pattern's stripes, 1 is average.
        hem: height at which the jacket ends, from a coat's 0.3 to a blouson's 0.5.
        jacket_open: whether the top shows between the jacket's fronts.
        sleeve: 0 for none, 0.4 for short, 1 for long.
        fit: width of the trouser legs, 1 is average.
        bag_side: -1 on the person's right, 1 on their left.
    """

    build: float
    shoulders: float
    stature: float
    skin: Colour
    hair: Colour
    hairstyle: str
    headwear: Colour
    beard: bool
    top: Colour
    top_second: Colour
    pattern: str
    scale: float
    jacket: Colour | None
    jacket_open: bool
    hem: float
    sleeve: float
    scarf: Colour | None
    bottom: Colour
    bottom_kind: str
    fit: float
    shoes: Colour
    bag: str
    bag_colour: Colour
    bag_side: int


@dataclass(frozen=True)
class Pose:
    """One moment of one person.

    Attributes:
        yaw: where they face, in radians: 0 the camera, π/2 the right of the picture, π away.
        phase: phase of the step, in radians.
        stride: length of the step; 0 is standing still.
        lean: sideways lean of the upper body, as a fraction of the height.
        arms: ``swing``, ``pockets`` or ``phone``.
        tilt: how steeply the camera looks down, in radians.
        sun: where the light comes from, -1 left to 1 right.
        seed: seed of the folds in the clothes.
    """

    yaw: float
    phase: float
    stride: float
    lean: float
    arms: str
    tilt: float
    sun: float
    seed: int


def draw_person(rng: np.random.Generator, *, season: str = "mild", muted: float = 0.5) -> Person:
    """Draw a random person.

    Args:
        rng: the only source of randomness.
        season: ``summer``, ``mild`` or ``winter``; decides sleeves, jackets and legs.
        muted: how likely a garment is dark, 0 to 1; crowds in dark clothes are hard to tell apart.

    Raises:
        DataError: an unknown season, or ``muted`` outside 0 to 1.
    """
    if season not in SEASONS:
        near = difflib.get_close_matches(str(season), SEASONS, 1)
        raise DataError(
            f"unknown season {season!r}{f'; did you mean {near[0]!r}?' if near else ''}; known seasons: "
            f"{', '.join(SEASONS)}"
        )
    if not 0 <= muted <= 1:
        raise DataError(f"muted must lie between 0 and 1, got {muted!r}")

    def garment() -> Colour:
        return _one_of(DARKS if rng.random() < muted else BRIGHTS, rng)

    winter, summer = season == "winter", season == "summer"
    legs = DENIMS if rng.random() < 0.5 else DARKS if rng.random() < 0.75 else BRIGHTS
    jacket = garment() if rng.random() < (0.85 if winter else 0.05 if summer else 0.45) else None
    return Person(
        build=float(rng.uniform(0.86, 1.2)),
        shoulders=float(rng.uniform(0.9, 1.1)),
        stature=float(rng.uniform(0.92, 1.03)),
        skin=_one_of(SKINS, rng, 6),
        hair=_one_of(HAIRS, rng, 6),
        hairstyle=str(rng.choice([style for style in HAIRSTYLES if winter or style not in ("beanie", "hood")])),
        headwear=garment(),
        beard=bool(rng.random() < 0.2),
        top=garment(),
        top_second=garment(),
        pattern=str(rng.choice(PATTERNS)),
        scale=float(rng.uniform(0.75, 1.4)),
        jacket=jacket,
        jacket_open=bool(rng.random() < (0.3 if winter else 0.6)),
        hem=float(rng.choice([0.3, 0.4, 0.46] if winter else [0.44, 0.46, 0.5])),
        sleeve=float(
            rng.choice([0.0, 0.4, 0.4, 0.4, 1.0] if summer else [1.0, 1.0, 1.0, 0.4] if season == "mild" else [1.0])
        ),
        scarf=garment() if winter and rng.random() < 0.4 else None,
        bottom=_one_of(legs, rng),
        bottom_kind=str(
            rng.choice(
                ["trousers", "trousers", "shorts", "shorts", "skirt", "dress"]
                if summer
                else ["trousers"] * 6 + ["skirt"]
            )
        ),
        fit=float(rng.uniform(0.82, 1.2)),
        shoes=_one_of(DARKS if rng.random() < 0.65 else BRIGHTS, rng),
        bag=str(rng.choice(BAGS)),
        bag_colour=garment(),
        bag_side=int(rng.choice([-1, 1])),
    )


def draw_pose(rng: np.random.Generator, *, tilt: float = 0.2, sun: float = 0.3) -> Pose:
    """Draw a view and a moment of walking; ``tilt`` and ``sun`` are the camera's."""
    facing = float(rng.choice([0.0, 0.0, 1.0, 1.0, 0.5, -0.5])) * math.pi
    standing = rng.random() < 0.15
    return Pose(
        yaw=facing + float(rng.normal(0, 0.3)),
        phase=float(rng.uniform(0, 2 * math.pi)),
        stride=float(rng.uniform(0.0, 0.2) if standing else rng.uniform(0.45, 1.0)),
        lean=float(rng.normal(0, 0.012)),
        arms=str(rng.choice(["swing", "swing", "swing", "swing", "swing", "pockets", "phone"])),
        tilt=tilt,
        sun=sun,
        seed=int(rng.integers(2**31)),
    )


def _one_of(colours: tuple[Colour, ...], rng: np.random.Generator, spread: float = 10) -> Colour:
    """Pick one of the colours, a little off: no two garments come out of the same dye."""
    base = np.array(colours[rng.integers(len(colours))])
    red, green, blue = np.clip(base + rng.normal(0, spread * 0.6) + rng.normal(0, spread * 0.6, 3), 8, 240)
    return float(red), float(green), float(blue)
