"""Open-set metrics: what a threshold does to people who are in the gallery, and to people who are not.

A *pair* is a query crop with a gallery crop under the rules of :mod:`domains.scoring`: junk forms no pairs; two crops
of one person are a *genuine* pair, but under ``same_camera="drop"`` only if two cameras saw them; two crops of
different people are an *impostor* pair, whatever the cameras. A gallery identity that no query has (a distractor) forms
only impostor pairs. A score is accepted if it lies **above** the highest score that a threshold rejects, so equal
scores are treated alike and no rate ever exceeds the one requested.

**TPR at FPR f** (verification, also TAR at FAR): the share of genuine pairs above the score that at most a share f of
the impostor pairs exceeds.

**DIR at FPIR f** (open-set identification: Phillips, Grother and Micheals, "Evaluation Methods in Face Recognition",
Handbook of Face Recognition, 2nd edition 2011, chapter 21; as 1 - FNIR in Grother and Ngan, "Face Recognition Vendor
Test: Performance of Face Identification Algorithms", NIST IR 8009, 2014): the share of searches with a mate whose top
answer is a mate and above the score that at most a share f of the searches without a mate exceed with any answer. In
the field's closed sets nearly every query has a mate, so **each query searches twice** (leave-mates-out): once as it
is, and once with every crop of its person removed from the gallery, whatever the camera. Queries of people who are not
in the gallery have no mate to begin with. So there are as many searches without a mate as queries that are not junk,
and DIR at FPIR 1 is rank-1.

A rate that allows less than one error among the pairs or searches at hand is not reported. The matrix of all pairs is
never held: two passes over blocks are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from domains.arrays import Float32s
from domains.choice import check_choice
from domains.domain import JUNK, SameCamera
from domains.errors import DataError, UsageError
from domains.scoring import Labels, check_features, similarity_blocks

FPR = (1e-1, 1e-2, 1e-3, 1e-4)
FPIR = (1e-1, 1e-2)

Mask = NDArray[np.bool_]

_BINS = 2**16
_LIMIT = 1.02
"""Similarities of unit vectors, to half precision, stay within this."""


class PairCount(NamedTuple):
    """Numbers of genuine and impostor pairs."""

    genuine: int
    impostor: int


class PairBlock(NamedTuple):
    """Similarities of some queries to the whole gallery ``[n, G]``, and masks of the genuine and the impostor pairs.

    The next block overwrites the similarities.
    """

    start: int
    similarity: Float32s
    genuine: Mask
    impostor: Mask


@dataclass(frozen=True)
class OpenSet:
    """Open-set metrics of a domain, in percent; None where there is too little data to measure the rate.

    Attributes:
        tpr: true-positive rate by false-positive rate.
        dir: detection and identification rate at rank 1, by false-positive identification rate.
        pairs: numbers of pairs.
        mated: number of searches with a mate.
        nonmated: number of searches without one.
    """

    tpr: dict[float, float | None]
    dir: dict[float, float | None]
    pairs: PairCount
    mated: int
    nonmated: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with rates as text."""
        return {
            "tpr_at_fpr": {f"{rate:g}": value for rate, value in self.tpr.items()},
            "dir_at_fpir": {f"{rate:g}": value for rate, value in self.dir.items()},
            "genuine_pairs": self.pairs.genuine,
            "impostor_pairs": self.pairs.impostor,
            "mated_searches": self.mated,
            "nonmated_searches": self.nonmated,
        }


def open_set(
    query: Float32s,
    gallery: Float32s,
    query_labels: Labels,
    gallery_labels: Labels,
    *,
    same_camera: SameCamera = "drop",
    fpr: Sequence[float] = FPR,
    fpir: Sequence[float] = FPIR,
    chunk: int | None = None,
) -> OpenSet:
    """Measure TPR at FPR and DIR at FPIR, as the module defines them.

    It takes the time of two products ``query @ gallery.T``, and memory for one block of them with its masks and for the
    genuine similarities.

    Args:
        query: float32 ``[Q, D]``, rows of unit length.
        gallery: float32 ``[G, D]``, rows of unit length.
        query_labels: labels of the query rows.
        gallery_labels: labels of the gallery rows.
        same_camera: see :mod:`domains.scoring`.
        fpr: false-positive rates, in (0, 1].
        fpir: false-positive identification rates, in (0, 1].
        chunk: number of queries whose similarities are held at once; see :func:`domains.scoring.similarity_blocks`.

    Raises:
        DataError: features that are not unit vectors, labels that don't match, or no genuine or no impostor pairs.
        UsageError: an unknown rule, or a rate outside (0, 1].
    """
    if wrong := [rate for rate in (*fpr, *fpir) if not 0 < rate <= 1]:
        raise UsageError(f"a rate must be above 0 and at most 1, got {wrong[0]}")
    check_features(query, gallery)
    count = count_pairs(query_labels, gallery_labels, same_camera=same_camera)
    if not count.genuine or not count.impostor:
        raise DataError(
            f"open-set metrics need genuine and impostor pairs, got {count.genuine} and {count.impostor}; check labels "
            "and cameras"
        )

    def blocks() -> Iterator[PairBlock]:
        return pair_blocks(query, gallery, query_labels, gallery_labels, same_camera=same_camera, chunk=chunk)

    genuine, mated, stranger = [], [], []
    counts = np.zeros(_BINS, np.int64)
    for _, similarity, mates, strangers in blocks():
        counts += _histogram(similarity[strangers])
        genuine.append(similarity[mates])
        others = np.where(strangers, similarity, -np.inf)
        stranger.append(others.max(axis=1)[strangers.any(axis=1)])
        listed = np.where(mates, similarity, others)
        first = listed.argmax(axis=1)
        rows = np.arange(len(first))
        top = np.where(mates[rows, first], listed[rows, first], -np.inf)
        mated.append(top[mates.any(axis=1)])
    scores, top, nearest = np.concatenate(genuine), np.concatenate(mated), -np.sort(-np.concatenate(stranger))
    measurable = [rate for rate in fpr if _allowed(rate, count.impostor)]
    levels = _levels(blocks, counts, count.impostor, measurable)
    tpr: dict[float, float | None] = dict.fromkeys(fpr)
    tpr |= {rate: _percent(scores > level) for rate, level in zip(measurable, levels, strict=True)}
    refused = {
        rate: nearest[allowed] if allowed < len(nearest) else -np.inf
        for rate in fpir
        if (allowed := _allowed(rate, len(nearest)))
    }
    detected: dict[float, float | None] = dict.fromkeys(fpir)
    detected |= {rate: _percent(top > level) for rate, level in refused.items()}
    return OpenSet(tpr, detected, count, len(top), len(nearest))


def count_pairs(query: Labels, gallery: Labels, *, same_camera: SameCamera = "drop") -> PairCount:
    """Count pairs from the labels alone; raises UsageError for an unknown rule."""
    check_choice("same_camera", same_camera, SameCamera)
    real = gallery.pids != JUNK
    genuine = same = 0
    for pid, camid in zip(query.pids, query.camids, strict=True):
        if pid != JUNK:
            person = gallery.pids == pid
            same += int(person.sum())
            genuine += int((person & (gallery.camids != camid)).sum() if same_camera == "drop" else person.sum())
    return PairCount(genuine, int((query.pids != JUNK).sum()) * int(real.sum()) - same)


def pair_blocks(
    query: Float32s,
    gallery: Float32s,
    query_labels: Labels,
    gallery_labels: Labels,
    *,
    same_camera: SameCamera = "drop",
    chunk: int | None = None,
) -> Iterator[PairBlock]:
    """Yield the pairs of a few queries at a time; arguments as for :func:`open_set`, which checks them."""
    if len(query) != len(query_labels) or len(gallery) != len(gallery_labels):
        raise DataError(
            f"there must be one label per row, got {len(query_labels)} for {len(query)} queries and "
            f"{len(gallery_labels)} for {len(gallery)} gallery rows"
        )
    for start, similarity in similarity_blocks(query, gallery, chunk=chunk):
        rows = slice(start, start + len(similarity))
        pids, camids = query_labels.pids[rows, None], query_labels.camids[rows, None]
        same = pids == gallery_labels.pids
        impostor = ~same & (pids != JUNK) & (gallery_labels.pids != JUNK)
        genuine = same & (pids != JUNK)
        if same_camera == "drop":
            genuine &= camids != gallery_labels.camids
        yield PairBlock(start, similarity, genuine, impostor)


def impostor_levels(blocks: Callable[[], Iterator[PairBlock]], impostors: int, rates: Sequence[float]) -> list[float]:
    """Return, for each rate, the highest score to reject so that at most that share of impostor pairs lies above it.

    This is exact to the last bit without holding all scores: the first pass counts them in bins, the second keeps those
    in the bins that matter.

    Args:
        blocks: starts a pass over the pairs.
        impostors: number of impostor pairs.
        rates: rates in (0, 1]; the level for 1 is minus infinity.
    """
    counts = np.zeros(_BINS, np.int64)
    for block in blocks() if rates else ():
        counts += _histogram(block.similarity[block.impostor])
    return _levels(blocks, counts, impostors, rates)


def _levels(
    blocks: Callable[[], Iterator[PairBlock]], counts: NDArray[np.int64], impostors: int, rates: Sequence[float]
) -> list[float]:
    """Run the second pass of :func:`impostor_levels`, once the scores are counted."""
    above = np.cumsum(counts[::-1])[::-1]
    limits = [_allowed(rate, impostors) for rate in rates]
    wanted = {limit: int(np.flatnonzero(above > limit)[-1]) for limit in limits if limit < impostors}
    tallies = {number: (np.empty(0, np.float32), np.empty(0, np.int64)) for number in wanted.values()}
    for block in blocks() if tallies else ():
        scores = block.similarity[block.impostor]
        at = _bins(scores)
        for number, tally in tallies.items():
            tallies[number] = _merged(tally, np.unique(scores[at == number], return_counts=True))
    levels = []
    for limit in limits:
        if limit not in wanted:
            levels.append(-np.inf)
            continue
        values, times = tallies[wanted[limit]]
        higher = above[wanted[limit] + 1] if wanted[limit] + 1 < _BINS else 0
        levels.append(float(values[::-1][np.searchsorted(np.cumsum(times[::-1]), limit - higher, side="right")]))
    return levels


def _allowed(rate: float, count: int) -> int:
    """How many of ``count`` a rate lets pass; a product rounded to just below a whole number counts as that number."""
    return min(count, int(rate * count + 1e-6))


def _bins(scores: Float32s) -> NDArray[np.int32]:
    """Assign a bin to every score, a higher bin to a higher score."""
    bins: NDArray[np.int32] = np.clip(
        (scores + np.float32(_LIMIT)) * np.float32(_BINS / (2 * _LIMIT)), 0, _BINS - 1
    ).astype(np.int32)
    return bins


def _histogram(scores: Float32s) -> NDArray[np.int64]:
    return np.bincount(_bins(scores), minlength=_BINS)


def _merged(
    first: tuple[Float32s, NDArray[np.int64]], second: tuple[Float32s, NDArray[np.int64]]
) -> tuple[Float32s, NDArray[np.int64]]:
    values, inverse = np.unique(np.concatenate([first[0], second[0]]), return_inverse=True)
    return values, np.bincount(inverse, weights=np.concatenate([first[1], second[1]])).astype(np.int64)


def _percent(hits: Mask) -> float:
    return 100 * float(hits.mean())
