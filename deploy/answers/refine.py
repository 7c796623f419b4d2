"""Better answers at query time: several images as one query, query expansion, k-reciprocal re-ranking, and ruling out
matches by camera and time.

Everything works on the best candidates of a gallery's ordinary search (``depth`` of them) and on one query at a time,
so that no answer depends on other queries. A match's ``score`` stays the cosine to the original query, which is what
thresholds were calibrated on; ``ranked_by`` says when ranks follow something else. With a site's metric the score is
the cosine in that metric, ``metric`` names it, and ``pooled`` keeps the one for thresholds.

**Several images as one query.** ``mean``: candidates are ranked by the mean of the unit vectors; a score is the mean of
the cosines, which never exceeds the largest of them, so that a threshold for one image stays on the safe side.
``max``: candidates are ranked by the largest cosine; n images then have up to n times the false matches of one.

**Query expansion.** The query is replaced by the average of itself and its top matches, weighted by s^α for cosine s,
and searched again (α-QE: Radenović, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI
2019; α = 0 is the plain average of Chum et al., "Total Recall", ICCV 2007). Only matches with at least a minimum score
take part: a stranger in the average attracts more strangers.

**k-reciprocal re-ranking** (:mod:`domains.reranking`) within the candidates. The rest of the gallery is not considered,
so a candidate's neighbours are its neighbours among the candidates.

**A site's metric** (:mod:`deploy.answers.site_metric`). The gallery finds candidates in its own, pooled metric: ten for
each match that is wanted, 200 at least. Their vectors and the query's are moved into the metric for the query's site,
and scored exactly there.

**Impossible matches** (:mod:`deploy.answers.transitions`) are moved behind all others, or removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from deploy.answers.site_metric import SiteMetric
from deploy.answers.transitions import Sighting, Transitions
from deploy.embeddings import Embeddings
from deploy.gallery import Gallery
from deploy.gallery.incoming import unit_vectors
from deploy.match import Match
from deploy.store.store import Facts
from domains.arrays import Float32s
from domains.choice import check_choice
from domains.errors import DataError, GalleryError, UsageError
from domains.reranking import k_reciprocal

Together = Literal["mean", "max"]

ALPHA = 3.0
DEPTH = 100
CANDIDATES, PER_MATCH = 200, 10
"""Candidates that are scored in a site's metric: so many at least, and so many for each match that is wanted."""
MOVED = 4096
"""Vectors that are moved into a site's metric at a time."""

EXPANDED_SITE = "a query is expanded in the gallery's own metric, not in that of a site; leave out one of them"


@dataclass(frozen=True)
class Refinement:
    """What to do with a query and its candidates; nothing by default.

    Attributes:
        together: all images show one person and get one answer, by the mean of their vectors or by the largest cosine.
            None: one answer for each.
        expand: number of top matches averaged into the query; 0 for none.
        alpha: exponent of their weights.
        least: minimum cosine of a match averaged into it.
        rerank: k-reciprocal re-ranking.
        k1: neighbours that must be reciprocal (20, as published).
        k2: neighbours whose weights are averaged (6, as published).
        weight: share of the original distance (0.3, as published).
        depth: number of candidates considered.
        seen: where and when the query was taken.
        transitions: what is possible between cameras; needs ``seen``.
        remove_impossible: leave out impossible matches instead of listing them last.
        site: the metric for the query's site, in which candidates are scored and ranked.
    """

    together: Together | None = None
    expand: int = 0
    alpha: float = ALPHA
    least: float = -1.0
    rerank: bool = False
    k1: int = 20
    k2: int = 6
    weight: float = 0.3
    depth: int = DEPTH
    seen: Sighting | None = None
    transitions: Transitions | None = None
    remove_impossible: bool = False
    site: SiteMetric | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without a query; raises UsageError."""
        if self.together is not None:
            check_choice("together", self.together, Together)
        if self.together == "max" and (self.expand or self.rerank):
            raise UsageError('expansion and re-ranking need one query vector: use together="mean" with them')
        if self.expand and self.site is not None:
            raise UsageError(EXPANDED_SITE)
        if self.expand < 0 or self.depth < 1 or not self.alpha >= 0 or not -1 <= self.least <= 1:
            raise UsageError(
                "a refinement needs expand ≥ 0, depth ≥ 1, alpha ≥ 0 and least from -1 to 1, got "
                f"expand={self.expand}, depth={self.depth}, alpha={self.alpha}, least={self.least}"
            )
        if (self.transitions is None) != (self.seen is None):
            raise UsageError(
                "which matches are possible depends on the query's camera and time and on a file of transitions: give "
                "both or neither"
            )
        if self.remove_impossible and self.transitions is None:
            raise UsageError(
                "impossible matches can be removed only if a file of transitions says what is impossible; give one, "
                "with --seen-at"
            )

    @property
    def is_plain(self) -> bool:
        """Whether a search with it is the gallery's ordinary search."""
        return (
            self.together is None
            and not self.expand
            and not self.rerank
            and self.transitions is None
            and self.site is None
        )


def search(
    gallery: Gallery, vectors: ArrayLike, k: int = 10, refinement: Refinement | None = None, **filters: Any
) -> list[list[Match]]:
    """Search a gallery with refinements.

    Args:
        gallery: the gallery.
        vectors: queries ``[Q, D]``, as for :meth:`deploy.gallery.Gallery.search`.
        k: number of matches per query; those beyond the refinement's depth are ranked by cosine. With a site's metric
            there are ten times as many candidates, and 200 or the depth at least.
        refinement: what to do; nothing by default.
        filters: ``camera``, ``after``, ``before``, ``label``, ``source``, ``exact``, as the gallery takes them.

    Returns:
        One list of matches per query, or a single one with ``together``. There may be fewer than k where impossible
        matches are removed.

    Raises:
        GalleryError: as for the gallery's search; it was upgraded meanwhile; or the site's metric is of another space.
        DataError: the images of one query have nothing in common.
    """
    if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
        raise GalleryError(f"k must be a whole number from 1, got {k!r}")
    wanted = refinement or Refinement()
    space = vectors.feature_space if isinstance(vectors, Embeddings) else gallery.feature_space
    fetch = max(int(k), wanted.depth)
    if wanted.site is not None:
        if wanted.site.feature_space != space:
            raise GalleryError(
                f"the metric {wanted.site.name} is of another feature space than the gallery {gallery.path}; use the "
                "gallery's bundle, or upgrade the gallery"
            )
        fetch = max(fetch, CANDIDATES, PER_MATCH * int(k))
    request = _Request(gallery, space, wanted, fetch, filters)
    if wanted.is_plain or not np.size(vectors):
        return gallery.search(vectors, k, **filters)
    units = unit_vectors(vectors, "query", Facts(gallery.dim, gallery.feature_space, None)).astype(np.float32)
    images = [units[index : index + 1] for index in range(len(units))] if wanted.together is None else [units]
    if wanted.together == "mean":
        units = mean_query(units)[None]
        results = [request.nearest(units[0])]
    else:
        results = gallery.search(vectors, request.fetch, **filters)
    if wanted.together == "max":
        units, results = units[:1], [best_of(results)[: request.fetch]]
    return [
        _ranked(request.refined(query, shown, candidates), k)
        for query, shown, candidates in zip(units, images, results, strict=True)
    ]


def mean_query(vectors: Float32s) -> Float32s:
    """Mean ``[D]`` of unit vectors ``[n, D]``, not normalised: a product with it is the mean of the cosines.

    Raises:
        DataError: they cancel out.
    """
    mean = np.asarray(vectors, np.float32).mean(axis=0)
    if np.linalg.norm(mean) < 1e-3:
        raise DataError(
            f"the {len(vectors)} images have nothing in common, so they do not show one person; search for each alone"
        )
    return np.asarray(mean, np.float32)


def best_of(found: Sequence[Sequence[Match]]) -> list[Match]:
    """Merge the answers of several images: each entry once with its highest score, the highest first, ties by id.

    The first k are exact if every list holds at least k, because an entry with k better ones in its own list has k
    better ones overall.
    """
    best: dict[int, Match] = {}
    for match in (match for matches in found for match in matches):
        if match.id not in best or match.score > best[match.id].score:
            best[match.id] = match
    return sorted(best.values(), key=lambda match: (-match.score, match.id))


def expanded(query: Float32s, matches: Float32s, *, alpha: float = ALPHA) -> Float32s:
    """Return the expanded unit query ``[D]``: the average of ``query`` and unit matches ``[n, D]``, weighted by s^α; a
    cosine s below 0 counts as 0.
    """
    unit = query / np.linalg.norm(query)
    total = unit + np.maximum(matches @ unit, 0) ** alpha @ matches
    return np.asarray(total / np.linalg.norm(total), np.float32)


@dataclass(frozen=True, eq=False)
class _Request:
    """One call of :func:`search`: what is searched for in which gallery and feature space."""

    gallery: Gallery
    space: str | None
    wanted: Refinement
    fetch: int
    filters: Mapping[str, Any]

    def nearest(self, query: Float32s) -> list[Match]:
        """Candidates by cosine to a query ``[D]`` of any length; scores are the products with it."""
        length = float(np.linalg.norm(query))
        matches = self.gallery.search(Embeddings(query / length, self.space), self.fetch, **self.filters)[0]
        return [replace(match, score=match.score * length) for match in matches]

    def refined(self, query: Float32s, images: Float32s, candidates: list[Match]) -> list[Match]:
        """Candidates of a query ``[D]``, made of images ``[n, D]``, in their final order; ranks are not updated yet."""
        vector = query
        if self.wanted.site is not None:
            vector, candidates = self._in_metric(self.wanted.site, images, candidates)
        if self.wanted.expand:
            vector, candidates = self._expanded(query, candidates)
        if self.wanted.rerank:
            candidates = self._reranked(vector, candidates)
        seen, transitions = self.wanted.seen, self.wanted.transitions
        if seen is None or transitions is None:
            return candidates
        judged = [replace(match, possible=transitions.possible(seen, match)) for match in candidates]
        left = [match for match in judged if match.possible is not False]
        return (
            left if self.wanted.remove_impossible else [*left, *(match for match in judged if match.possible is False)]
        )

    def _in_metric(self, site: SiteMetric, images: Float32s, candidates: list[Match]) -> tuple[Float32s, list[Match]]:
        """Return the query ``[D]`` in a site's metric, and the candidates scored and ordered there, ties by id."""
        asked = site.passage(images)
        if self.wanted.together == "mean":
            asked = mean_query(asked)[None]
        scores: dict[int, float] = {}
        for start in range(0, len(candidates), MOVED):
            vectors = self._vectors([match.id for match in candidates[start : start + MOVED]])
            if vectors:
                cosines = np.stack(list(vectors.values())) @ asked.T
                scores |= dict(zip(vectors, cosines.max(axis=1).tolist(), strict=True))
        scored = [
            replace(match, score=scores[match.id], pooled=match.score, metric=site.name)
            for match in candidates
            if match.id in scores
        ]
        return asked[0], sorted(scored, key=lambda match: (-match.score, match.id))

    def _expanded(self, query: Float32s, candidates: list[Match]) -> tuple[Float32s, list[Match]]:
        """Return the average of the query and its top matches, and the candidates it finds, scored against the query
        itself.
        """
        vectors = self._vectors(
            [match.id for match in candidates[: self.wanted.expand] if match.score >= self.wanted.least]
        )
        if not vectors:
            return query, candidates
        average = expanded(query, np.stack(list(vectors.values())), alpha=self.wanted.alpha)
        matches, scores = self.nearest(average), {match.id: match.score for match in candidates}
        scores |= {
            number: float(vector @ query)
            for number, vector in self._vectors([m.id for m in matches if m.id not in scores]).items()
        }
        return average, [
            replace(match, score=scores[match.id], ranked_by="expansion") for match in matches if match.id in scores
        ]

    def _reranked(self, query: Float32s, candidates: list[Match]) -> list[Match]:
        """Order the first ``depth`` candidates by k-reciprocal distance, with the others unchanged behind them."""
        vectors = self._vectors([match.id for match in candidates[: self.wanted.depth]])
        first = [match for match in candidates[: self.wanted.depth] if match.id in vectors]
        if not first:
            return candidates[self.wanted.depth :]
        unit = (query / np.linalg.norm(query))[None]
        stored = np.stack([vectors[match.id] for match in first])
        closeness = k_reciprocal(unit, stored, k1=self.wanted.k1, k2=self.wanted.k2, weight=self.wanted.weight)[0]
        order = np.argsort(-closeness, kind="stable").tolist()
        return [
            replace(match, ranked_by="k-reciprocal")
            for match in (*(first[index] for index in order), *candidates[self.wanted.depth :])
        ]

    def _vectors(self, ids: list[int]) -> dict[int, Float32s]:
        """Unit vectors of entries, in the metric of the answer; entries forgotten since the search are missing."""
        numbers, vectors = self.gallery.vectors(ids)
        if vectors.feature_space != self.space:
            raise GalleryError(
                f"the gallery {self.gallery.path} was upgraded meanwhile; embed with its new bundle and search again"
            )
        found = np.asarray(vectors)
        if self.wanted.site is not None and len(found):
            found = self.wanted.site.passage(found)
        return dict(zip(numbers, found, strict=True))


def _ranked(matches: list[Match], k: int) -> list[Match]:
    return [replace(match, rank=rank) for rank, match in enumerate(matches[:k], 1)]
