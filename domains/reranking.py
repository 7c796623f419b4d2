"""k-reciprocal re-ranking: a crop's neighbours vote, which lifts matches that a single comparison misses.

Zhong, Zheng, Cao and Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017. It needs all
queries and gallery crops at once, and a query's answer changes with the other queries, so it suits the scoring of a
closed set, not a live gallery.

Where the paper leaves room for interpretation or differs from the authors' code, the code is followed, because the
published numbers come from it: queries and gallery are ranked as one set, in which each crop is at distance 0 from
itself; the original distance is squared Euclidean, divided by the crop's largest; an expansion needs *more* than two
thirds of the candidate's set (the paper: at least); k1 / 2 rounds half to even; the weights of a row sum to one; and
query expansion averages the first ``k2`` neighbours, including the crop itself, so ``k2=1`` means none. Equal
distances, whose order that code leaves to its sort, are in row order here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.arrays import Float32s, Float64s
from domains.errors import DataError, UsageError
from domains.scoring import check_features, similarity_blocks

Index = NDArray[np.int32]

SLAB = 8192
"""Number of crops whose neighbours' neighbours are looked up at once; about 15 MB at k1 = 20."""


def k_reciprocal(query: Float32s, gallery: Float32s, *, k1: int = 20, k2: int = 6, weight: float = 0.3) -> Float32s:
    """Re-rank: return the similarity ``-((1 - weight) · Jaccard distance + weight · original distance)``.

    With N = Q + G it takes O(N² D) time for the neighbours, which dominates, and O(N k1²) for the sets. Memory is the
    returned matrix, 4·Q·G bytes, plus a copy of the features, at most O(N k1² k2) sparse weights (about 1 kB a crop in
    practice) and one 64 MB block of distances; the N×N matrices of the authors' code are never held.

    Args:
        query: float32 ``[Q, D]``, rows of unit length.
        gallery: float32 ``[G, D]``, rows of unit length.
        k1: number of neighbours that must be reciprocal.
        k2: number of neighbours whose weights are averaged.
        weight: λ in [0, 1], the share of the original distance; 1 gives the original ranking.

    Returns:
        float32 ``[Q, G]`` in [-1, 0], higher is closer, for :func:`domains.scoring.score_similarities`.

    Raises:
        DataError: features of the wrong type, shape or length, or not finite, or none at all.
        UsageError: k1 or k2 below 1, or a weight outside [0, 1].
    """
    if k1 < 1 or k2 < 1 or not 0 <= weight <= 1:
        raise UsageError(
            f"re-ranking needs k1 and k2 of at least 1 and a weight from 0 to 1, got k1={k1}, k2={k2}, weight={weight}"
        )
    check_features(query, gallery)
    if not len(query) or not len(gallery):
        raise DataError(
            f"re-ranking needs at least one query and one gallery feature, got {len(query)} and {len(gallery)}"
        )
    features = np.concatenate([query, gallery])
    neighbours, farthest = _neighbours(features, max(k1 + 1, k2))
    weights = _weights(features, neighbours, farthest, k1)
    if k2 > 1:
        weights = _expanded(weights, neighbours[:, :k2])
    overlap = _Overlap(weights, len(query))
    result = np.empty((len(query), len(gallery)), np.float32)
    for start, similarity in similarity_blocks(query, gallery):
        for row, values in enumerate(similarity, start):
            result[row] = (weight - 1) * overlap.jaccard(row) - weight * (_squared(values) / farthest[row])
    return result


@dataclass(frozen=True, eq=False)
class _Sparse:
    """Sparse rows of weights: row i holds ``values[bounds[i] : bounds[i + 1]]`` in the columns of the same slice,
    ascending.
    """

    bounds: NDArray[np.int64]
    columns: Index
    values: Float32s

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[Index, Float32s]]) -> _Sparse:
        columns, values = zip(*rows, strict=True)
        bounds = np.concatenate([[0], np.cumsum([len(row) for row in columns])])
        return cls(bounds, np.concatenate(columns), np.concatenate(values))

    def positions(self, rows: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions of all entries of ``rows``, one row after the other, and the number of entries of each."""
        first, count = self.bounds[rows], self.bounds[rows + 1] - self.bounds[rows]
        before = np.cumsum(count) - count
        return np.arange(int(count.sum())) + np.repeat(first - before, count), count


class _Overlap:
    """Jaccard distances from queries to all gallery crops; an inverted index visits only crops that share a neighbour
    with the query.
    """

    def __init__(self, weights: _Sparse, queries: int) -> None:
        crops = len(weights.bounds) - 1
        begin = weights.bounds[queries]
        columns = weights.columns[begin:]
        order = np.argsort(columns, kind="stable")
        owner = np.repeat(np.arange(crops - queries, dtype=np.int32), np.diff(weights.bounds[queries:]))
        bounds = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=crops))])
        self._inverted = _Sparse(bounds, owner[order], weights.values[begin:][order])
        self._weights = weights
        self._gallery = crops - queries

    def jaccard(self, query: int) -> Float64s:
        """``1 - Σ min / Σ max`` to each gallery crop, ``[G]``. Rows sum to one, so Σ max = 2 - Σ min."""
        mine = slice(self._weights.bounds[query], self._weights.bounds[query + 1])
        positions, count = self._inverted.positions(self._weights.columns[mine])
        shared = np.minimum(np.repeat(self._weights.values[mine], count), self._inverted.values[positions])
        least = np.bincount(self._inverted.columns[positions], weights=shared, minlength=self._gallery)
        return np.maximum(1 - least / (2 - least), 0)


def _squared(similarity: Float32s) -> Float32s:
    """Squared Euclidean distance of unit vectors; rounding must not make it negative."""
    return np.maximum(2 - 2 * similarity, 0)


def _neighbours(features: Float32s, count: int) -> tuple[Index, Float32s]:
    """Each crop's ``count`` nearest, itself included, nearest first and ties in row order, ``[N, count]``; and its
    largest distance ``[N]``.

    A largest distance of 0 (all crops alike) is returned as 1: every normalised distance is then 0, where the authors'
    code divides by zero.
    """
    count = min(count, len(features))
    nearest = np.empty((len(features), count), np.int32)
    farthest = np.empty(len(features), np.float32)
    for start, similarity in similarity_blocks(features, features):
        for row, values in enumerate(similarity, start):
            distance = _squared(values)
            distance[row] = 0
            near = np.flatnonzero(distance <= np.partition(distance, count - 1)[count - 1])
            nearest[row] = near[np.argsort(distance[near], kind="stable")[:count]]
            farthest[row] = distance.max() or 1
    return nearest, farthest


def _reciprocal(neighbours: Index) -> NDArray[np.bool_]:
    """Mask ``[i, j]``: crop i is a neighbour of its own j-th neighbour."""
    mutual = np.empty(neighbours.shape, bool)
    for start in range(0, len(neighbours), SLAB):
        rows = np.arange(start, min(start + SLAB, len(neighbours)))
        mutual[rows] = (neighbours[neighbours[rows]] == rows[:, None, None]).any(axis=2)
    return mutual


def _weights(features: Float32s, neighbours: Index, farthest: Float32s, k1: int) -> _Sparse:
    """Gaussian-kernel weights of each crop's expanded k-reciprocal set, normalised to sum to one."""
    wide, half = neighbours[:, : k1 + 1], neighbours[:, : round(k1 / 2) + 1]
    mutual, half_mutual = _reciprocal(wide), _reciprocal(half)
    half_size = half_mutual.sum(axis=1)
    member = np.zeros(len(features), bool)

    def row(crop: int) -> tuple[Index, Float32s]:
        core = wide[crop, mutual[crop]]
        member[core] = True
        common = (member[half[core]] & half_mutual[core]).sum(axis=1)
        member[core] = False
        accepted = core[3 * common > 2 * half_size[core]]
        columns = np.unique(np.concatenate([core, half[accepted][half_mutual[accepted]]]))
        values = np.exp(-_squared(features[columns] @ features[crop]) / farthest[crop])
        return columns, values / values.sum()

    return _Sparse.from_rows(row(crop) for crop in range(len(features)))


def _expanded(weights: _Sparse, neighbours: Index) -> _Sparse:
    """Local query expansion: each row becomes the mean of its neighbours' rows."""

    def row(near: Index) -> tuple[Index, Float32s]:
        positions, _ = weights.positions(near)
        columns, inverse = np.unique(weights.columns[positions], return_inverse=True)
        values = np.bincount(inverse, weights=weights.values[positions]) / len(near)
        return columns, values.astype(np.float32)

    return _Sparse.from_rows(map(row, neighbours))
