"""Colours over a body: what cloth, skin and hair look like at each angle and height, from any direction.

A logo on the chest is hidden from behind, the gap of an open jacket from the side, because both are placed by the
angle about the body.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from domains.arrays import Float32s
from domains.synthetic.person import Colour, Person

Dye = Callable[[Float32s, Float32s], Float32s]
"""Colour ``[3, h, w]``, or ``[3, 1, 1]`` if uniform, at angle u about the body (0 in front, positive to the left)
and height v, ``[h, w]``.
"""


def shade(colour: Colour, light: float) -> Colour:
    """A colour in more or less light."""
    return colour[0] * light, colour[1] * light, colour[2] * light


def plain(colour: Colour) -> Dye:
    """One colour all over."""
    planes = _planes(colour)
    return lambda u, v: planes


def top(person: Person) -> Dye:
    """The top and its pattern."""
    first, second = _planes(person.top), _planes(person.top_second)
    kind, wide = person.pattern, person.scale

    def dye(u: Float32s, v: Float32s) -> Float32s:
        if kind == "bands":
            share = (v * 17 / wide) % 1 < 0.5
        elif kind == "pinstripe":
            share = (u * 3.2 / wide) % 1 < 0.3
        elif kind == "check":
            share = 0.5 * ((v * 15 / wide) % 1 < 0.5) + 0.5 * ((u * 1.6 / wide) % 1 < 0.5)
        elif kind == "yoke":
            share = v > 0.73
        elif kind == "logo":
            share = (np.abs(u) < 0.42 * wide) & (np.abs(v - 0.73) < 0.04 * wide) & ((u * 7 + v * 60) % 1 < 0.75)
        elif kind == "back print":
            share = (np.abs(u) > math.pi - 0.6) & (np.abs(v - 0.72) < 0.05 * wide) & ((v * 40) % 1 < 0.7)
        else:
            return _straps(person, u, v, first)
        return _straps(person, u, v, first + np.float32(share) * (second - first))

    return dye


def jacket(person: Person) -> Dye:
    """The jacket, closed with a seam or open over the top."""
    under = top(person)
    cloth = _planes(person.jacket or person.top)

    def dye(u: Float32s, v: Float32s) -> Float32s:
        seam = 0.3 * (np.abs(u) < 0.05) + 0.12 * (np.abs(v - person.hem) < 0.012)
        painted = (1 - seam).astype(np.float32) * cloth
        collar = np.maximum(0, v - 0.79) * 6
        gap = (
            (np.abs(u) < 0.2 + 1.6 * np.maximum(0, 0.7 - v) + collar) & (v > 0.5)
            if person.jacket_open
            else np.abs(u) < collar
        )
        return _straps(person, u, v, np.where(gap, np.float32(0.86) * under(u, v), painted))

    return dye


def backpack(person: Person) -> Dye:
    """A backpack's pocket and seams."""
    colour = _planes(person.bag_colour)

    def dye(u: Float32s, v: Float32s) -> Float32s:
        pocket = (v < 0.68) & (v > 0.58)
        seam = (np.abs(v - 0.68) < 0.006) | (np.abs(v - 0.77) < 0.004)
        light: Float32s = (1 - 0.14 * pocket - 0.35 * seam).astype(np.float32)
        return colour * light

    return dye


def face(person: Person) -> Dye:
    """A head: hair, headwear, and a face where they leave room."""
    skin, hair = _planes(person.skin), _planes(person.hair)
    cover = _planes(person.headwear if person.hairstyle in ("cap", "beanie") else person.jacket or person.top)
    kind = person.hairstyle

    def dye(u: Float32s, v: Float32s) -> Float32s:
        away = np.abs(u)
        eyes = 0.3 * np.exp(-(((away - 0.42) / 0.2) ** 2) - ((v - 0.93) / 0.009) ** 2)
        mouth = 0.2 * np.exp(-((u / 0.3) ** 2) - ((v - 0.888) / 0.005) ** 2)
        nose = 0.1 * np.exp(-((u / 0.14) ** 2) - ((v - 0.905) / 0.006) ** 2)
        bare = (1 - eyes - mouth - nose) * skin
        if person.beard:
            beard = np.clip((0.9 - v) * 60, 0, 1) * np.clip((1.5 - away) * 4, 0, 1) * 0.75
            bare = bare + beard * (hair - bare)
        line = 0.958 - 0.05 * np.clip(away - 0.75, 0, 0.6) / 0.6 - 0.055 * np.clip(away - 1.35, 0, 0.5) / 0.5
        grown = np.clip((v - line) * 90, 0, 1)
        if kind == "bald":
            grown = grown * 0.12
        elif kind == "hood":
            grown = np.clip((away - 0.8) * 6, 0, 1) + np.clip((v - 0.955) * 90, 0, 1)
        painted = bare + np.minimum(grown, 1) * ((cover if kind == "hood" else hair) - bare)
        if kind in ("cap", "beanie"):
            worn = np.clip((v - (0.95 if kind == "cap" else 0.938)) * 120, 0, 1)
            painted = painted + worn * (cover - painted)
        return painted.astype(np.float32, copy=False)

    return dye


def _straps(person: Person, u: Float32s, v: Float32s, cloth: Float32s) -> Float32s:
    """The straps of a backpack in front, or of a shoulder bag all around."""
    if person.bag == "backpack":
        on = (np.abs(np.abs(u) - 0.72) < 0.16) & (v > 0.62)
    elif person.bag == "shoulder":
        on = (np.abs(v - 0.685 + 0.165 * person.bag_side * np.sin(u)) < 0.012) & (v < 0.85)
    else:
        return cloth
    return np.where(on, _planes(shade(person.bag_colour, 0.75)), cloth).astype(np.float32, copy=False)


def _planes(colour: Colour) -> Float32s:
    """A colour over planes: float32 ``[3, 1, 1]``."""
    return np.array(colour, np.float32)[:, None, None]
