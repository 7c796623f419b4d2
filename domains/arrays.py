"""Names, for use in signatures, of the arrays that pass between the packages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float32s = NDArray[np.float32]
Float64s = NDArray[np.float64]
Crops = NDArray[np.uint8]
"""Decoded crops of one size, RGB in 0..255, ``[N, H, W, 3]``."""

Embed = Callable[[Crops], Float32s]
"""Crops → unit-length embeddings ``[N, D]``."""
