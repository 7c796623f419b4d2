"""Checks SQLite's write-ahead log before SQLite reads it.

SQLite reads a log up to the first frame whose checksum is wrong and silently drops the rest. That is right for a change
torn by a power cut, which was never acknowledged, but a corrupted byte in the middle would take acknowledged changes
with it. Each change is written to disk before the next one starts, so a complete change after a bad frame proves that
the frame was once good.

Format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from errno import EINVAL
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

MAGIC = (0x377F0682, 0x377F0683)
HEADER, FRAME = 32, 24
SCANS = 5


@dataclass(frozen=True)
class Damage:
    """A point where a log becomes unreadable although more of the same log follows.

    Attributes:
        at: byte offset in the file.
        certain: whether acknowledged changes follow it; otherwise it may be an unacknowledged change torn by a power
            cut.
        changes: number of changes that end at it or after it.
    """

    at: int
    certain: bool
    changes: int


def find_damage(file: Path) -> Damage | None:
    """Scan a log for damage; ``None`` if there is no log, or all of it is readable except for an unfinished change.

    Another process may be writing it meanwhile, so only what two scans in a row find in the same place is damage.
    Raises OSError.
    """
    if file.exists() and not file.is_file():
        raise OSError(EINVAL, "it is not a plain file")
    previous: Damage | None = None
    for _ in range(SCANS):
        try:
            with file.open("rb") as stream:
                damage = _scan(stream, file.stat().st_size)
        except FileNotFoundError:
            return None
        if damage is None:
            return None
        if damage == previous:
            return damage
        previous = damage
        time.sleep(0.05)
    return None


def _scan(stream: BinaryIO, size: int) -> Damage | None:
    head = stream.read(HEADER)
    if len(head) < HEADER:
        return None
    magic, _, page, _, *salts, s0, s1 = struct.unpack(">8I", head)
    order = ">" if magic & 1 else "<"
    known = magic in MAGIC and 512 <= page <= 65536 and page & (page - 1) == 0
    if not known or _checksum(head[:24], (0, 0), order) != (s0, s1):
        return Damage(0, certain=True, changes=0) if size > HEADER + FRAME else None
    state = (s0, s1)
    count = (size - HEADER) // (page + FRAME)
    for number in range(count):
        frame = stream.read(page + FRAME)
        if len(frame) < page + FRAME:
            return None
        _, commit, salt0, salt1, s0, s1 = struct.unpack(">6I", frame[:FRAME])
        state = _checksum(frame[:8] + frame[FRAME:], state, order)
        if [salt0, salt1] == salts and state == (s0, s1):
            continue
        if salt0 != salts[0] and salt1 != salts[1]:
            return None  # left over from an earlier log in the same file
        behind = sum(_is_commit(stream.read(page + FRAME)[:FRAME], salts) for _ in range(number + 1, count))
        certain = behind > 1 or (behind == 1 and commit != 0)
        return Damage(HEADER + number * (page + FRAME), certain, behind + (commit != 0))
    return None


def _is_commit(head: bytes, salts: list[int]) -> bool:
    if len(head) < FRAME:
        return False
    _, commit, salt0, salt1, _, _ = struct.unpack(">6I", head)
    return commit != 0 and [salt0, salt1] == salts


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
    s0 = below * state[0] + here * state[1] + int(sums[0])
    s1 = here * state[0] + above * state[1] + int(sums[1])
    return s0 % 2**32, s1 % 2**32


@cache
def _fibonacci(count: int) -> NDArray[np.uint32]:
    numbers = [0, 1]
    while len(numbers) < count:
        numbers.append((numbers[-1] + numbers[-2]) % 2**32)
    return np.array(numbers, np.uint32)
