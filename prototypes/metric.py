"""A site's own metric: what its people's differences from camera to camera say about which directions matter.

The within-person covariance S of a site's embeddings says in which directions the same person differs from crop to
crop. Shrinking these directions, ``y = unit((x - m)(share S / tr S + floor I / D)^(-1/2))``, compares what is left:
the person. It is the whitening of a two-class linear discriminant on differences (KISSME, CVPR 2012; WCCN,
Interspeech 2006), shrunk towards the identity as a site has few people.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from domains.arrays import Float32s, Float64s
from domains.errors import ArtefactError, ConfigError
from domains.npz import read_npz

MEAN, FACTORS = "metric.mean", "metric.factors"
RANK = 30
"""Eigenvectors of S that are kept; with the mean, 31 KB in fp16 at 512 dimensions."""
PAIRS = 20
"""Pairs of crops that one person adds to S at most."""
SHARE, POOLED = 0.25, 0.05
"""Share of S in a metric, the rest being the floor; of it, what a mixed metric takes from all sites together."""
CENTRE, FEW = 0.5, 8
"""Part of the mean that is taken off where there are many people, and the number of people with whom it is half of
that: a mean of few people points at them. All four were chosen on held-out train people (``benchmarks/metrics.py``).
"""


@dataclass(frozen=True, eq=False)
class SiteStatistics:
    """Mean and within-person covariance of a site's unit-length embeddings; no row belongs to a person.

    The covariance has trace 1 and is ``factorsᵀ factors + rest I / D``: what the kept eigenvectors leave of the trace
    is spread evenly.

    Attributes:
        mean: ``[D]`` float32, shrunk towards 0 where there are few people, and of length below 1.
        factors: ``[r, D]`` float32, eigenvectors times the roots of their eigenvalues, largest first.
    """

    mean: Float32s
    factors: Float32s

    @property
    def rest(self) -> float:
        """The part of the trace, 0..1, that the factors leave."""
        return max(0.0, 1.0 - float(np.square(self.factors, dtype=np.float64).sum()))

    @property
    def covariance(self) -> Float64s:
        """S of trace 1, ``[D, D]``."""
        factors, dim = self.factors.astype(np.float64), len(self.mean)
        return factors.T @ factors + self.rest / dim * np.eye(dim)

    @classmethod
    def of(cls, embeddings: Float32s, differences: Float32s, people: int, *, rank: int = RANK) -> SiteStatistics:
        """Compute them.

        Args:
            embeddings: of all crops, unit vectors ``[N, D]``.
            differences: between two crops of one person each, ``[P, D]``.
            people: number of people in the crops.
            rank: number of eigenvectors that are kept.

        Raises:
            ValueError: there is no embedding, or no difference that is not zero.
        """
        if not len(embeddings):
            raise ValueError("a site's statistics need at least one embedding")
        trace = float(np.square(differences, dtype=np.float64).sum())
        if not trace > 0:
            raise ValueError("a site's statistics need two crops of one person that differ")
        mean = CENTRE * people / (people + FEW) * embeddings.mean(0, dtype=np.float64)
        return cls(_inside(mean), _factors(differences / np.float64(trace) ** 0.5, rank))

    def carried(self, matrix: Float32s) -> SiteStatistics:
        """Carry them through a linear map of embeddings ``[D, D']``: mean mW at its old length, covariance WᵀSW at
        trace 1.

        Raises:
            ArtefactError: they have another number of dimensions.
        """
        if len(self.mean) != len(matrix):
            raise ArtefactError(
                f"statistics of {len(self.mean)} dimensions can't be carried from a space of {len(matrix)}; restore "
                "the memory from a backup"
            )
        wide = matrix.astype(np.float64)
        mean, factors = self.mean @ wide, self.factors @ wide
        length = float(np.linalg.norm(self.mean)) / max(float(np.linalg.norm(mean)), 1e-12)
        trace = np.square(factors).sum() + self.rest * np.square(wide).sum() / len(self.mean)
        return SiteStatistics(_inside(mean * length), (factors / max(float(trace), 1e-12) ** 0.5).astype(np.float32))

    def to_arrays(self) -> dict[str, NDArray[np.float16]]:
        """Return the arrays that a memory keeps."""
        return {MEAN: self.mean.astype(np.float16), FACTORS: self.factors.astype(np.float16)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> SiteStatistics | None:
        """Read them from a memory's arrays; None if its method kept none. Raises ArtefactError if malformed."""
        if MEAN not in arrays and FACTORS not in arrays:
            return None
        mean, factors = (np.asarray(arrays.get(name, ()), np.float32) for name in (MEAN, FACTORS))
        try:
            return cls._checked(mean, factors)
        except ValueError as error:
            raise ArtefactError(f"{error}; restore the memory from a backup") from error

    @classmethod
    def _checked(cls, mean: Float32s, factors: Float32s) -> SiteStatistics:
        """Return the statistics that arrays from elsewhere hold; raises ValueError if they hold none."""
        if mean.ndim != 1 or not len(mean) or factors.ndim != 2 or factors.shape[1] != len(mean):
            raise ValueError(
                f"a site's statistics must be a mean [D] and factors [r, D], found {mean.shape} and {factors.shape}"
            )
        if not (np.isfinite(mean).all() and np.isfinite(factors).all()):
            raise ValueError("a site's statistics hold values that are not finite")
        if not np.linalg.norm(mean) < 1 or np.square(factors, dtype=np.float64).sum() > 1.01:
            raise ValueError(
                "a site's statistics are not those of unit vectors: the mean must be shorter than 1, and the trace "
                "at most 1"
            )
        return cls(mean, factors)


def sites_to_bytes(sites: Mapping[str, SiteStatistics]) -> bytes:
    """Return the statistics of sites as npz, in fp16; their names are kept elsewhere, in the same order."""
    buffer = io.BytesIO()
    arrays = {
        f"{number}.{name}": array
        for number, site in enumerate(sites.values())
        for name, array in site.to_arrays().items()
    }
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def sites_from_bytes(data: bytes, names: Sequence[str], dim: int, *, limit: int) -> dict[str, SiteStatistics]:
    """Read what :func:`sites_to_bytes` wrote.

    Args:
        data: the bytes.
        names: of the sites, in order.
        dim: dimensions that they must have.
        limit: the most bytes that they may unpack to.

    Raises:
        ValueError: it is damaged, or holds the statistics of more or fewer sites, or of other dimensions.
    """
    keys = [(f"{number}.{MEAN}", f"{number}.{FACTORS}") for number in range(len(names))]
    stored = read_npz(data, limit=limit, names=[key for pair in keys for key in pair])
    found = {}
    for name, (mean, factors) in zip(names, ((stored[one], stored[other]) for one, other in keys), strict=True):
        if {mean.dtype, factors.dtype} != {np.dtype(np.float16)} or mean.shape != (dim,) or len(factors) > dim:
            raise ValueError(
                f"the statistics of {name!r:.60} are {mean.dtype} {mean.shape} and {factors.dtype} {factors.shape}, "
                f"not fp16 of {dim} dimensions"
            )
        found[name] = SiteStatistics._checked(mean.astype(np.float32), factors.astype(np.float32))
    return found


@dataclass(frozen=True, eq=False)
class Metric:
    """A map of unit vectors, ``y = unit((x - mean)(I - shrinkᵀ shrink))``, which can be undone.

    Attributes:
        mean: ``[D]`` float32, of length below 1.
        shrink: ``[k, D]`` float32, orthogonal rows shorter than 1: what each direction loses is the square of its
            length.
    """

    mean: Float32s
    shrink: Float32s

    def to_bytes(self) -> bytes:
        """Return it as npz."""
        buffer = io.BytesIO()
        np.savez(buffer, mean=self.mean, shrink=self.shrink)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, dim: int) -> Metric:
        """Read what :meth:`to_bytes` wrote; raises ValueError if it is damaged or of another number of dimensions."""
        stored = read_npz(data, limit=8 * (dim + 1) * dim + 2**16, names=("mean", "shrink"))
        return cls.from_arrays(stored["mean"], stored["shrink"], dim)

    @classmethod
    def from_arrays(cls, mean: NDArray[np.generic], shrink: NDArray[np.generic], dim: int) -> Metric:
        """Return a metric of this number of dimensions from arrays of elsewhere; raises ValueError if it is none."""
        shapes = mean.shape, shrink.shape[1:]
        if {mean.dtype, shrink.dtype} != {np.dtype(np.float32)} or shapes != ((dim,), (dim,)):
            raise ValueError(f"its metric has the shapes {mean.shape} and {shrink.shape}, not of {dim} dimensions")
        found = cls(mean.astype(np.float32), shrink.astype(np.float32))
        if len(shrink) > dim or not (np.isfinite(found.mean).all() and np.isfinite(found.shrink).all()):
            raise ValueError("its metric is not finite, or has too many rows")
        gram = found.shrink.astype(np.float64) @ found.shrink.T.astype(np.float64)
        if not np.linalg.norm(found.mean) < 1 or (len(gram) and not np.linalg.eigvalsh(gram)[-1] < 1):
            raise ValueError("its metric can't be undone")
        return found

    @property
    def matrix(self) -> Float64s:
        """The symmetric matrix ``[D, D]``, positive definite, with no eigenvalue above 1."""
        shrink = self.shrink.astype(np.float64)
        return np.asarray(np.eye(len(self.mean)) - shrink.T @ shrink)

    @cached_property
    def _inverse(self) -> Float64s:
        """The inverse of the matrix, computed once, as a service undoes the same metric for every query."""
        return np.asarray(np.linalg.inv(self.matrix))

    def __call__(self, embeddings: Float32s) -> Float32s:
        """Map unit vectors ``[N, D]`` to unit vectors."""
        centred = embeddings - self.mean
        return _unit(centred - (centred @ self.shrink.T) @ self.shrink)

    def undone(self, vectors: Float32s) -> Float32s:
        """Return the unit vectors ``[N, D]`` that are mapped to these.

        They lie on the rays ``mean + s u`` with ``u = y matrix^(-1)``, each of which leaves the unit sphere once, as it
        starts inside: ``s`` is the positive root of ``|mean + s u|² = 1``.
        """
        mean = self.mean.astype(np.float64)
        rays = vectors.astype(np.float64) @ self._inverse
        rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-12)
        along = rays @ mean
        length = -along + np.sqrt(np.square(along) + 1 - mean @ mean)
        return np.asarray(mean + length[:, None] * rays, np.float32)

    @classmethod
    def own(cls, site: SiteStatistics, *, share: float = SHARE) -> Metric:
        """The metric of one site: its own mean and covariance."""
        return cls._of(site.mean, [(share, site)], share)

    @classmethod
    def pooled(cls, sites: Sequence[SiteStatistics], *, share: float = SHARE) -> Metric:
        """One metric for everybody: the mean of the sites' means and covariances.

        Raises:
            ConfigError: there is no site, or they have different numbers of dimensions.
        """
        return cls._of(_mean(sites), [(share / len(sites), site) for site in sites], share)

    @classmethod
    def mixed(
        cls, site: SiteStatistics, sites: Sequence[SiteStatistics], *, share: float = SHARE, pooled: float = POOLED
    ) -> Metric:
        """The metric for one site's queries in a gallery of all sites: the pooled metric with most of the share given
        to the site's own covariance.

        The mean is the pooled one: taking off the site's own would move the other sites' crops towards its people.

        Raises:
            ConfigError: as :meth:`pooled`.
        """
        parts = [(share - pooled, site), *((pooled / len(sites), other) for other in sites)]
        return cls._of(_mean(sites), parts, share)

    @classmethod
    def _of(cls, mean: Float32s, parts: Sequence[tuple[float, SiteStatistics]], share: float) -> Metric:
        """``(Σ w S + (1 - share) I / D)^(-1/2)``, scaled to a largest eigenvalue of at most 1, from factors alone."""
        dim = len(mean)
        floor = (1 - share + sum(weight * site.rest for weight, site in parts)) / dim
        stacked = np.concatenate([weight**0.5 * site.factors.astype(np.float64) for weight, site in parts])
        values, vectors = _spectrum(stacked)
        lost = 1 - (floor / (floor + values)) ** 0.5
        return cls(mean, np.asarray((vectors * np.sqrt(lost)).T, np.float32))


def pairs_of_crops(
    people: NDArray[np.int64], cameras: NDArray[np.int64], *, limit: int = PAIRS, seed: int = 0
) -> NDArray[np.int64]:
    """Return pairs of crops of the same person, as rows ``[P, 2]``: of different cameras where the person has them.

    Args:
        people: identity of each crop, ``[N]``.
        cameras: camera of each crop, ``[N]``.
        limit: number of pairs that one person has at most, drawn without replacement from all of them.
        seed: for the draws.
    """
    rng = np.random.default_rng(seed)
    order = np.lexsort((cameras, people))
    starts = np.flatnonzero(np.r_[True, np.diff(people[order]) != 0])
    chosen = [_person_pairs(rows, cameras[rows], limit, rng) for rows in np.split(order, starts[1:]) if len(rows) > 1]
    return np.concatenate(chosen) if chosen else np.empty((0, 2), np.int64)


def _person_pairs(
    rows: NDArray[np.int64], cameras: NDArray[np.int64], limit: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows are sorted by camera, so the partners of a crop are those behind it, from another camera's first on; pairs
    are drawn by their number, without listing them.
    """
    count = len(rows)
    first = np.searchsorted(cameras, cameras, side="right")
    if cameras[0] == cameras[-1]:
        first = np.arange(count) + 1
    ends = np.cumsum(count - first)
    total = int(ends[-1])
    number = np.arange(total) if total <= limit else np.sort(rng.choice(total, limit, replace=False))
    left = np.searchsorted(ends, number, side="right")
    right = count - (ends[left] - number)
    return np.stack([rows[left], rows[right]], axis=1)


def _factors(scaled: Float64s, rank: int) -> Float32s:
    """The largest ``rank`` eigenvectors of ``scaledᵀ scaled``, times the roots of their eigenvalues."""
    values, vectors = _spectrum(scaled)
    kept = np.argsort(values)[::-1][:rank]
    return np.asarray((vectors[:, kept] * np.sqrt(values[kept])).T, np.float32)


def _spectrum(rows: Float64s) -> tuple[Float64s, Float64s]:
    """Eigenvalues ``[k]`` above 0 and eigenvectors ``[D, k]`` of ``rowsᵀ rows``, from the smaller of two products."""
    if len(rows) >= rows.shape[1]:
        values, vectors = np.linalg.eigh(rows.T @ rows)
        held = values > 1e-12 * max(float(values[-1]), 1e-300)
        return values[held], vectors[:, held]
    values, left = np.linalg.eigh(rows @ rows.T)
    held = values > 1e-12 * max(float(values[-1]), 1e-300) if len(values) else np.zeros(0, bool)
    values = values[held]
    return values, rows.T @ left[:, held] / np.sqrt(values)


def _mean(sites: Sequence[SiteStatistics]) -> Float32s:
    """The mean of the sites' means."""
    if len(dims := {len(site.mean) for site in sites}) != 1:
        raise ConfigError(
            f"a metric of several sites needs statistics of at least one, all of one network; found {len(sites)} with "
            f"{', '.join(map(str, sorted(dims))) or 'no'} dimensions"
        )
    return np.asarray(np.mean([site.mean for site in sites], axis=0, dtype=np.float64), np.float32)


def _inside(mean: Float64s) -> Float32s:
    """Keep a mean shorter than 1, also once it is in fp16: rays from it then leave the unit sphere once."""
    length = float(np.linalg.norm(mean))
    return np.asarray(mean * min(1.0, 0.999 / max(length, 1e-12)), np.float32)


def _unit(vectors: NDArray[np.floating]) -> Float32s:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)
