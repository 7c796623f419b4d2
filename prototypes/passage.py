"""The way of stored vectors from one feature space to another: out of the metric that they are in, through a transport
to a later network, into another metric.

Between metrics of one network nothing is lost but rounding. A transport is an estimate.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from domains.arrays import Float32s
from domains.npz import read_npy, read_npz
from prototypes.metric import Metric

NPY = b"\x93NUMPY"
PARTS = ("out.mean", "out.shrink", "matrix", "into.mean", "into.shrink")


@dataclass(frozen=True, eq=False)
class Passage:
    """A map of unit vectors from one feature space to another.

    Attributes:
        network: name of the network's own feature space, before any metric, in which it ends; empty if unknown.
        out: the metric of the vectors that it takes.
        matrix: the transport between networks, ``[D, D']`` float32, kept in fp16.
        into: the metric of the vectors that it returns.
    """

    network: str = ""
    out: Metric | None = None
    matrix: Float32s | None = None
    into: Metric | None = None

    def __call__(self, vectors: Float32s) -> Float32s:
        """Map unit vectors ``[N, D]`` to unit vectors ``[N, D']``."""
        if self.out is not None:
            vectors = self.out.undone(vectors)
        if self.matrix is not None:
            carried = vectors @ self.matrix
            vectors = carried / np.maximum(np.linalg.norm(carried, axis=1, keepdims=True), 1e-12)
        return np.asarray(vectors if self.into is None else self.into(vectors), np.float32)

    def back(self) -> Passage:
        """The way back: metrics are undone exactly, a transport by its pseudo-inverse."""
        matrix = None if self.matrix is None else np.asarray(np.linalg.pinv(self.matrix), np.float32)
        return Passage("", self.into, matrix, self.out)

    def to_bytes(self) -> bytes:
        """Return it as npz."""
        found: dict[str, NDArray[np.generic]] = {"network": np.array([self.network])}
        for name, metric in (("out", self.out), ("into", self.into)):
            if metric is not None:
                found |= {f"{name}.mean": metric.mean, f"{name}.shrink": metric.shrink}
        if self.matrix is not None:
            found["matrix"] = self.matrix.astype(np.float16)
        buffer = io.BytesIO()
        np.savez(buffer, **found)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, dims: tuple[int, int]) -> Passage:
        """Read what :meth:`to_bytes` wrote, or the bare fp16 matrix that earlier versions did.

        Args:
            data: the bytes.
            dims: dimensions of the vectors that it takes and returns.

        Raises:
            ValueError: it is damaged, or of other dimensions.
        """
        if data.startswith(NPY):
            stored: dict[str, NDArray[np.generic]] = {"matrix": read_npy(data)}
        else:
            stored = dict(read_npz(data, limit=4 * 5 * max(dims) ** 2 + 2**20))
            if unknown := sorted(set(stored) - {"network", *PARTS}):
                raise ValueError(f"it holds {unknown[0]!r:.60}")
        matrix = stored.get("matrix")
        if matrix is not None and (matrix.shape != dims or matrix.dtype != np.float16):
            raise ValueError(f"it maps {matrix.shape}, not {dims}")
        if matrix is None and dims[0] != dims[1]:
            raise ValueError(f"it has no map from {dims[0]} to {dims[1]} dimensions")
        if matrix is not None and not np.isfinite(matrix).all():
            raise ValueError("its map is not finite")
        name = stored.get("network")
        if name is not None and (name.dtype.kind != "U" or name.shape != (1,)):
            raise ValueError("it names no network")
        return cls(
            "" if name is None else str(name[0]),
            _metric(stored, "out", dims[0]),
            None if matrix is None else matrix.astype(np.float32),
            _metric(stored, "into", dims[1]),
        )


def _metric(stored: dict[str, NDArray[np.generic]], part: str, dim: int) -> Metric | None:
    mean, shrink = stored.get(f"{part}.mean"), stored.get(f"{part}.shrink")
    if mean is None and shrink is None:
        return None
    if mean is None or shrink is None:
        raise ValueError("it holds half a metric")
    return Metric.from_arrays(mean, shrink, dim)
