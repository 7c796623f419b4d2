"""The input side of a domain's distribution: how its images look, without keeping an image.

Twelve numbers (``StyleStatistics``, 48 bytes) are enough to give a crop another domain's colours; the learned aligner
is :class:`reid.network.style.StyleNetwork`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from domains.arrays import Float32s, Float64s
from domains.errors import ArtefactError

NUMBERS = (4, 3)
"""Shape of the statistics: four rows, one column per channel."""


@dataclass(frozen=True, eq=False)
class StyleStatistics:
    """How channel means and deviations are distributed over a domain's crops, in grey levels 0..255, RGB.

    Attributes:
        numbers: float32 ``[4, 3]``: mean of the crops' means, deviation of their means, mean of their deviations,
            deviation of their deviations.
    """

    numbers: Float32s

    @classmethod
    def of(cls, batches: Iterable[NDArray[np.uint8]]) -> StyleStatistics:
        """Compute them from batches of crops ``[n, H, W, 3]``, so that a store larger than RAM is read in pieces."""
        means, deviations = (np.concatenate(parts) for parts in zip(*map(_moments, batches), strict=True))
        return cls(np.stack([means.mean(0), means.std(0), deviations.mean(0), deviations.std(0)]).astype(np.float32))

    @classmethod
    def from_array(cls, array: NDArray[np.generic]) -> StyleStatistics:
        """Read them from a memory; raises ArtefactError unless they are finite numbers ``[4, 3]``."""
        numbers = np.asarray(array, np.float32)
        if numbers.shape != NUMBERS or not np.isfinite(numbers).all():
            raise ArtefactError(
                f"style statistics must be 12 finite numbers [4, 3], found shape {numbers.shape}; restore the memory "
                "from a backup"
            )
        return cls(numbers)


def _moments(crops: NDArray[np.uint8]) -> tuple[Float64s, Float64s]:
    return crops.mean((1, 2), dtype=np.float64), crops.std((1, 2), dtype=np.float64)
