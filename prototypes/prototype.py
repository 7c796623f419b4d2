"""Distribution prototypes: what is remembered of a domain's people, one Gaussian each (DKP, CVPR 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from domains.arrays import Float32s
from domains.errors import ArtefactError

MEAN, SPREAD = "prototypes.mean", "prototypes.spread"


@dataclass(frozen=True, eq=False)
class DistributionPrototypes:
    """A diagonal Gaussian per identity, in one feature space; sealed in fp16, so 4·D bytes per identity.

    Attributes:
        mean: ``[K, D]`` float32, means of unit vectors, so of at most unit length.
        spread: ``[K, D]`` float32, standard deviations.
    """

    mean: Float32s
    spread: Float32s

    def __len__(self) -> int:
        """Return K, the number of identities."""
        return len(self.mean)

    def to_arrays(self) -> dict[str, NDArray[np.float16]]:
        """Return the arrays that a memory keeps."""
        return {MEAN: self.mean.astype(np.float16), SPREAD: self.spread.astype(np.float16)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> DistributionPrototypes | None:
        """Read prototypes from a memory's arrays; None if its method kept none. Raises ArtefactError if malformed."""
        if MEAN not in arrays and SPREAD not in arrays:
            return None
        mean, spread = arrays.get(MEAN), arrays.get(SPREAD)
        if mean is None or spread is None or mean.ndim != 2 or mean.shape != spread.shape:
            shapes = {name: getattr(array, "shape", None) for name, array in ((MEAN, mean), (SPREAD, spread))}
            raise ArtefactError(
                f"prototypes must be two arrays [K, D], found {shapes}; restore the memory from a backup"
            )
        prototypes = cls(mean.astype(np.float32), spread.astype(np.float32))
        if not (
            np.isfinite(prototypes.mean).all()
            and np.isfinite(prototypes.spread).all()
            and (prototypes.spread >= 0).all()
        ):
            raise ArtefactError(
                "prototypes hold values that are not finite, or a negative deviation; restore the memory from a backup"
            )
        return prototypes


class PrototypeStream:
    """Gathers prototypes in one pass over crops, in any order and chunks; keeps only three sums per identity."""

    def __init__(self, identities: int, dim: int) -> None:
        self.count = np.zeros(identities, np.int64)
        self.sums = np.zeros((3, identities, dim), np.float64)

    def add(self, centre: Float32s, spread: Float32s, labels: NDArray[np.int64]) -> None:
        """Add crops: centres and deviations ``[n, D]``, labels ``[n]`` below the number of identities."""
        np.add.at(self.count, labels, 1)
        for total, values in zip(
            self.sums, (centre, np.square(centre, dtype=np.float64), np.square(spread, dtype=np.float64)), strict=True
        ):
            np.add.at(total, labels, values)

    def finish(self) -> DistributionPrototypes:
        """Return the prototypes by the law of total variance: σ² = mean of v² + mean of c² - μ², element by element.

        Raises:
            ValueError: an identity without a crop.
        """
        if not self.count.all():
            raise ValueError(f"{int((self.count == 0).sum())} identities have no crop to compute a prototype from")
        mean, squares, within = self.sums / self.count[:, None]
        spread = np.sqrt(np.maximum(within + squares - mean**2, 0))
        return DistributionPrototypes(mean.astype(np.float32), spread.astype(np.float32))
