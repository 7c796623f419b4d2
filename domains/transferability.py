"""How much a learned domain helps a new one: the H-score of its features, and where that puts the new domain among the
learned ones.

H-score: Bao et al., ICIP 2019; shrunk as in Ibrahim et al., ECML PKDD 2022. H-embedding: "Exploiting Task Relationships
for Continual Learning Using Transferability-Aware Task Embeddings", NeurIPS 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from domains.arrays import Float64s
from domains.errors import DataError

CHUNK = 4096
TOLERANCE = 1e-15
"""Singular values below this share of the largest count as zero in the plain form, as published."""


@dataclass(frozen=True)
class HScore:
    """How well features tell a domain's identities apart, before any training on it.

    Attributes:
        value: ``tr(Σ⁻¹ B)``, where Σ is the covariance of the features and B that of their class means; from 0 to
            ``classes - 1``.
        classes: number of identities K.
        crops: number of crops N.
        shrinkage: α, how far Σ was pulled towards a multiple of the identity matrix; 0 for the plain form.
    """

    value: float
    classes: int
    crops: int
    shrinkage: float

    @property
    def share(self) -> float:
        """``value / (classes - 1)``, from 0 to 1, to compare domains with different numbers of identities."""
        return self.value / (self.classes - 1)


def h_score(features: ArrayLike, labels: ArrayLike, *, shrunk: bool = True) -> HScore:
    """H-score of labelled features.

    With as many dimensions as crops the plain form gives K - 1 for pure noise, so the covariance is shrunk by Ledoit
    and Wolf's factor α (2004): ``(1 - α) tr(((1 - α) S + α tr(S)/D I)⁻¹ B)``. Rows are read in chunks; if D > N, the
    inverse is taken over crops instead of dimensions.

    Args:
        features: ``[N, D]``.
        labels: ``[N]``, any integers.
        shrunk: False for the plain form with a pseudo-inverse, for comparison.

    Raises:
        DataError: fewer than two identities or three crops, or features that are not a finite table of N rows.
    """
    table, people = np.asarray(features), np.asarray(labels)
    if table.ndim != 2 or people.shape != table.shape[:1]:
        raise DataError(f"an H-score needs features [N, D] and N labels, got {table.shape} and {people.shape}")
    if not all(np.isfinite(part).all() for part in _chunks(table)):
        raise DataError("an H-score needs finite features, got NaN or infinity; check the model and its input")
    names, rows = np.unique(people, return_inverse=True)
    if len(names) < 2 or len(table) < 3:
        raise DataError(f"an H-score needs at least two identities and three crops, got {len(names)} and {len(table)}")
    count, width = table.shape
    mean = sum(part.sum(0) for part in _chunks(table)) / count
    sums, sizes = np.zeros((len(names), width)), np.bincount(rows).astype(np.float64)
    fourth, trace = 0.0, 0.0
    for start in range(0, count, CHUNK):
        part = np.asarray(table[start : start + CHUNK], np.float64) - mean
        np.add.at(sums, rows[start : start + CHUNK], part)
        lengths = np.square(part).sum(1)
        fourth, trace = fourth + float(np.square(lengths).sum()), trace + float(lengths.sum()) / count
    between = sums / np.sqrt(sizes * count)[:, None]  # BᵀB of these rows is the covariance of the class means
    if trace == 0.0:
        return HScore(0.0, len(names), count, 0.0)
    wide = width > count
    scatter = (
        _gram(table - mean) / count if wide else sum((part - mean).T @ (part - mean) for part in _chunks(table)) / count
    )
    if not shrunk:  # with more dimensions than crops α is never 0, so the division below is safe
        return HScore(_plain(table, mean, scatter, between, wide=wide), len(names), count, 0.0)
    square = float(np.square(scatter).sum())  # ‖S‖² is the same over crops as over dimensions
    distance = square - trace**2 / width
    alpha = min(1.0, (fourth / count - square) / count / distance) if distance > 0 else 1.0
    floor = alpha * trace / width
    if wide:
        # Woodbury: (cXᵀX + fI)⁻¹ = (I - cXᵀ(fI + cXXᵀ)⁻¹X) / f, with c = (1 - α)/N
        centred = np.asarray(table, np.float64) - mean
        cross = centred @ between.T
        inner = np.linalg.solve(floor * np.eye(count) + (1 - alpha) * scatter, cross)
        trace_of = float((np.square(between).sum() - (1 - alpha) / count * (cross * inner).sum()) / floor)
    else:
        covariance = (1 - alpha) * scatter + floor * np.eye(width)
        trace_of = float((between * np.linalg.solve(covariance, between.T).T).sum())
    return HScore(float((1 - alpha) * trace_of), len(names), count, float(alpha))


def _chunks(table: NDArray[np.generic]) -> list[Float64s]:
    return [np.asarray(table[start : start + CHUNK], np.float64) for start in range(0, len(table), CHUNK)]


def _gram(centred: NDArray[np.generic]) -> Float64s:
    rows = np.asarray(centred, np.float64)
    return np.asarray(rows @ rows.T)


def _plain(table: NDArray[np.generic], mean: Float64s, scatter: Float64s, between: Float64s, *, wide: bool) -> float:
    if not wide:
        return float((between * (np.linalg.pinv(scatter, rcond=TOLERANCE, hermitian=True) @ between.T).T).sum())
    centred = np.asarray(table, np.float64) - mean
    whitened = np.linalg.pinv(centred, rcond=1e-10)  # [D, N]; Σ⁺ = N · pinv(X) pinv(X)ᵀ
    return float(len(table) * np.square(between @ whitened).sum())


def relations(scores: ArrayLike) -> Float64s:
    """Turn H-scores ``[n]`` of learned domains' features on a new domain into AHP's relative merits, which sum to 1.

    The tournament matrix of ratios H_m / H_n has rank one, so its principal eigenvector is H itself. A domain whose
    features say nothing has merit 0.

    Raises:
        DataError: a negative score, or none above 0.
    """
    values = np.asarray(scores, np.float64)
    if (
        values.ndim != 1
        or not len(values)
        or not np.isfinite(values).all()
        or (values < 0).any()
        or not values.sum() > 0
    ):
        raise DataError(f"relations need H-scores of 0 or more, at least one above 0, got {values.tolist()!r:.120}")
    return np.asarray(values / values.sum())


def discriminant(features: ArrayLike, labels: ArrayLike) -> Float64s:
    """Directions that separate a domain's identities: ``[D, at most K - 1]``, by linear discriminant analysis with
    Ledoit and Wolf's shrinkage.

    They stand in for a network trained on the domain, for domains not trained on yet.

    Raises:
        DataError: as for :func:`h_score`.
    """
    alpha = h_score(features, labels).shrinkage
    table, rows = np.asarray(features, np.float64), np.unique(np.asarray(labels), return_inverse=True)[1]
    centred = table - table.mean(0)
    sums, sizes = np.zeros((rows.max() + 1, table.shape[1])), np.bincount(rows)
    np.add.at(sums, rows, centred)
    between = sums / np.sqrt(sizes * len(table))[:, None]
    scatter = centred.T @ centred / len(table)
    width = len(scatter)
    covariance = (1 - alpha) * scatter + max(alpha, 1e-6) * max(float(np.trace(scatter)), 1e-12) / width * np.eye(width)
    lower = np.linalg.inv(np.linalg.cholesky(covariance))
    left, values, _ = np.linalg.svd(lower @ between.T, full_matrices=False)
    nonzero = values > 1e-6 * max(float(values.max()), 1e-12)
    return np.asarray(lower.T @ (left * values)[:, nonzero])


def transfer_table(domains: Sequence[tuple[ArrayLike, ArrayLike]]) -> Float64s:
    """How much each domain helps every other, from all domains' features under one network: ``[n, n]`` shares of
    H-scores, where the row helps the column.

    The features of the column's crops are projected onto the directions that separate the row's identities.
    """
    table = np.zeros((len(domains), len(domains)))
    for row, (features, labels) in enumerate(domains):
        directions = discriminant(features, labels)
        for column, (others, people) in enumerate(domains):
            table[row, column] = h_score(np.asarray(others, np.float64) @ directions, people).share
    return table


def propose_order(table: ArrayLike) -> list[int]:
    """Propose an order of learning: first the domain that helps the others most, then always the one helped most by
    those before it.
    """
    helps = np.asarray(table, np.float64)
    count = len(helps)
    if helps.shape != (count, count) or not count or not np.isfinite(helps).all():
        raise DataError(f"an order needs a square table of finite numbers, got shape {helps.shape}")
    outgoing = (helps.sum(1) - np.diag(helps)) / max(count - 1, 1)
    order = [int(outgoing.argmax())]
    while len(order) < count:
        left = [number for number in range(count) if number not in order]
        order.append(max(left, key=lambda number: float(helps[order, number].mean())))
    return order
