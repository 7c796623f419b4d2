"""Counter-based randomness: every draw is a function of (seed, step, iteration, purpose).

No generator carries state from one iteration to the next, so a step can be resumed at any iteration with the same bits,
and requesting another view or enabling a term changes no other draws.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def key(*parts: int | str) -> list[int]:
    """Return entropy for a generator; strings are hashed, so that the key does not depend on the process."""
    return [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in parts]


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """Return a NumPy generator for this purpose."""
    return np.random.default_rng(key(*parts))


def torch_seed(*parts: int | str) -> int:
    """Return a seed below 2⁶³ for a torch generator."""
    return int(np.random.SeedSequence(key(*parts)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def torch_generator(*parts: int | str) -> torch.Generator:
    """Return a CPU torch generator for this purpose."""
    generator = torch.Generator()
    generator.manual_seed(torch_seed(*parts))
    return generator
