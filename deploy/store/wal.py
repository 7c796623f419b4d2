"""Looks through SQLite's write-ahead log before SQLite does.

SQLite reads a log up to the first frame whose checksum is wrong and drops the rest without a word: right for a change
that a power cut tore, which was never acknowledged, but a byte that went bad in the middle would take acknowledged
changes with it. A change is written to the disk before the next one begins, so a whole change behind a bad frame proves
that the frame was once good.

Format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

MAGIC = (0x377F0682, 0x377F0683)
HEADER, FRAME = 32, 24
LOOKS = 5


@dataclass(frozen=True)
class Damage:
    """A place where a log stops being readable though more of the same log follows.

    Attributes:
        at: byte of the file.
        certain: acknowledged changes are behind it; else it may be what a power cut left of a change that was not
            acknowledged.
        changes: how many changes end at it or behind it.
    """

    at: int
    certain: bool
    changes: int


def find_damage(file: Path) -> Damage | None:
    """Look through a log; ``None`` if there is none or all of it can be read, but for what was never finished.

    Another process may be writing it meanwhile: damage is what is found in the same place several times.
    """
    found: Damage | None = None
    for _ in range(LOOKS):
        try:
            with file.open("rb") as stream:
                again = _scan(stream, file.stat().st_size)
        except FileNotFoundError:
            return None
        if again is None:
            return None
        if again == found:
            return again
        found = again
        time.sleep(0.05)
    return None


def _scan(stream: BinaryIO, size: int) -> Damage | None:
    head = stream.read(HEADER)
    if len(head) < HEADER:
        return None
    magic, _, page, _, *salts, one, two = struct.unpack(">8I", head)
    order = ">" if magic & 1 else "<"
    known = magic in MAGIC and 512 <= page <= 65536 and page & (page - 1) == 0
    if not known or _checksum(head[:24], (0, 0), order) != (one, two):
        return Damage(0, certain=True, changes=0) if size > HEADER + FRAME else None
    state = (one, two)
    count = (size - HEADER) // (page + FRAME)
    for number in range(count):
        frame = stream.read(page + FRAME)
        if len(frame) < page + FRAME:
            return None
        _, commit, *found = struct.unpack(">6I", frame[:FRAME])
        state = _checksum(frame[:8] + frame[FRAME:], state, order)
        if found[:2] == salts and state == (found[2], found[3]):
            continue
        if found[0] != salts[0] and found[1] != salts[1]:
            return None  # of an earlier log that lay in the same file
        behind = sum(_is_commit(stream.read(page + FRAME)[:FRAME], salts) for _ in range(number + 1, count))
        certain = behind > 1 or (behind == 1 and commit != 0)
        return Damage(HEADER + number * (page + FRAME), certain, behind + (commit != 0))
    return None


def _is_commit(head: bytes, salts: list[int]) -> bool:
    if len(head) < FRAME:
        return False
    _, commit, *found = struct.unpack(">6I", head)
    return commit != 0 and found[:2] == salts


def _checksum(data: bytes, state: tuple[int, int], order: str) -> tuple[int, int]:
    """SQLite's running checksum over pairs of words, ``s0 += x + s1; s1 += y + s0``, as two sums with Fibonacci numbers
    modulo 2^32.
    """
    words = np.frombuffer(data, np.dtype(f"{order}u4")).astype(np.uint32)
    count = len(words) // 2
    fibonacci = _fibonacci(2 * count + 2)  # F(0) … F(2n+1)
    at = 2 * np.arange(count - 1, -1, -1)
    first, second = words[0::2], words[1::2]
    sums = [(fibonacci[at + 1 + step] * first + fibonacci[at + step] * second).sum(dtype=np.uint32) for step in (0, 1)]
    below, here, above = (int(fibonacci[2 * count + step]) for step in (-1, 0, 1))
    one = below * state[0] + here * state[1] + int(sums[0])
    two = here * state[0] + above * state[1] + int(sums[1])
    return one % 2**32, two % 2**32


@cache
def _fibonacci(count: int) -> NDArray[np.uint32]:
    numbers = [0, 1]
    while len(numbers) < count:
        numbers.append((numbers[-1] + numbers[-2]) % 2**32)
    return np.array(numbers, np.uint32)
