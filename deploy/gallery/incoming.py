"""Checks on what enters a gallery from outside: whatever FAISS would silently accept is refused here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from deploy.embeddings import Embeddings
from deploy.store.store import Facts
from domains.arrays import Float64s
from domains.errors import GalleryError

UNIT = 1e-2
"""Largest deviation of a vector's length from 1: half precision and int8 graphs stay well within it, vectors that were
never normalised do not.
"""


def unit_vectors(vectors: ArrayLike, name: str, facts: Facts) -> Float64s:
    """Return unit vectors, float64 ``[N, D]``; raises GalleryError for whatever FAISS would silently accept."""
    if isinstance(vectors, Embeddings) and vectors.feature_space != facts.feature_space:
        space = f"in space {vectors.feature_space:.12}…" if vectors.feature_space else "of mixed spaces"
        raise GalleryError(
            f"the embeddings are {space}, the gallery's in {facts.feature_space:.12}…; use the gallery's bundle, or "
            "upgrade the gallery"
        )
    try:
        values = np.atleast_2d(np.asarray(vectors))
    except ValueError as error:
        raise GalleryError(f"vectors must be one array [N, {facts.dim}]: {error}") from error
    if values.dtype.kind not in "fiu" or values.ndim != 2 or (values.shape[1] != facts.dim and values.size):
        raise GalleryError(f"vectors must be numbers [N, {facts.dim}], got {values.dtype} {list(values.shape)}")
    if not values.size:
        return np.empty((0, facts.dim))
    exact = values.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(exact).all(axis=1))
    if bad.size:
        raise GalleryError(f"{name} {bad[0]} has a value that is not finite; was the crop embedded by a damaged model?")
    with np.errstate(over="ignore"):
        lengths = np.sqrt((exact * exact).sum(axis=1))
    bad = np.flatnonzero(np.abs(lengths - 1) > UNIT)
    if bad.size:
        raise GalleryError(f"{name} {bad[0]} has length {lengths[bad[0]]:.4g}, not 1; divide it by its length")
    unit: Float64s = exact / lengths[:, None]
    return unit


def one_each(name: str, value: Any, count: int) -> list[Any]:
    """Return one value per vector, repeating a single one."""
    if value is None or isinstance(value, str):
        return [value] * count
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise GalleryError(f"{name} must be text or a list of texts, got {type(value).__name__}")
    values = list(value)
    if len(values) != count:
        raise GalleryError(f"{name} must have one value per vector: {count} vectors, got {len(values)}")
    return values
