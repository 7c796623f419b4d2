"""Open-set metrics: what a threshold does to people who are in the gallery, and to people who are not.

A *pair* is a query crop with a gallery crop under the rules of :mod:`domains.scoring`: junk makes no pair; two crops of
one person are a *genuine* pair, but under ``same_camera="drop"`` only if two cameras saw them; two crops of different
people are an *impostor* pair, whatever the cameras. A gallery identity that no query has (a distractor) makes impostor
pairs alone. A score is accepted if it lies **above** a threshold's highest refused score, so that equal scores share
their fate and no rate is ever above the one that was asked for.

**TPR at FPR f** (verification, also TAR at FAR): the share of genuine pairs above the score that at most a share f of
the impostor pairs is above.

**DIR at FPIR f** (open-set identification: Phillips, Grother and Micheals, "Evaluation Methods in Face Recognition",
Handbook of Face Recognition, 2nd edition 2011, chapter 21; as 1 - FNIR in Grother and Ngan, "Face Recognition Vendor
Test: Performance of Face Identification Algorithms", NIST IR 8009, 2014): the share of searches with a mate whose first
answer is a mate and above the score that at most a share f of the searches without a mate returns anything above. The
closed sets of the field have a mate for nearly every query, so **each query searches twice** (leave-mates-out): once as
it is, and once with every crop of its person left out of the gallery, from whatever camera. Queries of people who are
not in the gallery search without a mate anyhow. So there are as many searches without a mate as queries that are not
junk, and DIR at FPIR 1 is rank-1.

A rate that is seen less than once in the pairs or searches at hand is not reported. No matrix of all pairs is ever
held: two passes over blocks.
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
"""Similarities of unit vectors to half precision lie inside."""


class PairCount(NamedTuple):
    """Numbers of genuine and of impostor pairs."""

    genuine: int
    impostor: int


class PairBlock(NamedTuple):
    """Similarities of some queries to the whole gallery ``[n, G]``, overwritten by the next block, and which pairs are
    genuine or impostors.
    """

    start: int
    similarity: Float32s
    genuine: Mask
    impostor: Mask


@dataclass(frozen=True)
class OpenSet:
    """Open-set metrics of a domain, in percent; None where the data are too few to see the rate.

    Attributes:
        tpr: true-positive rate by false-positive rate.
        dir: detection and identification rate at rank 1, by false-positive identification rate.
        pairs: how many pairs there are.
        mated: searches with a mate.
        nonmated: searches without.
    """

    tpr: dict[float, float | None]
    dir: dict[float, float | None]
    pairs: PairCount
    mated: int
    nonmated: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, rates as text."""
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

    Time is that of two products ``query @ gallery.T``; memory one block of them with its masks, and the genuine
    similarities.

    Args:
        query: float32 ``[Q, D]``, rows of unit length.
        gallery: float32 ``[G, D]``, rows of unit length.
        query_labels: of the query rows.
        gallery_labels: of the gallery rows.
        same_camera: see :mod:`domains.scoring`.
        fpr: rates in (0, 1].
        fpir: rates in (0, 1].
        chunk: queries whose similarities are held at once; see :func:`domains.scoring.similarity_blocks`.

    Raises:
        DataError: features that are no unit vectors, labels that do not fit, or no genuine or no impostor pair.
        UsageError: an unknown rule, or a rate outside (0, 1].
    """
    if wrong := [rate for rate in (*fpr, *fpir) if not 0 < rate <= 1]:
        raise UsageError(f"a rate lies above 0 and up to 1, got {wrong[0]}")
    check_features(query, gallery)
    count = count_pairs(query_labels, gallery_labels, same_camera=same_camera)
    if not count.genuine or not count.impostor:
        raise DataError(
            f"open-set metrics need pairs of one person and of two, got {count.genuine} and {count.impostor}; check "
            "labels and cameras"
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
        found = np.where(mates[rows, first], listed[rows, first], -np.inf)
        mated.append(found[mates.any(axis=1)])
    scores, found, nearest = np.concatenate(genuine), np.concatenate(mated), -np.sort(-np.concatenate(stranger))
    shown = [rate for rate in fpr if _allowed(rate, count.impostor)]
    levels = _levels(blocks, counts, count.impostor, shown)
    tpr: dict[float, float | None] = dict.fromkeys(fpr)
    tpr |= {rate: _percent(scores > level) for rate, level in zip(shown, levels, strict=True)}
    refused = {
        rate: nearest[allowed] if allowed < len(nearest) else -np.inf
        for rate in fpir
        if (allowed := _allowed(rate, len(nearest)))
    }
    detected: dict[float, float | None] = dict.fromkeys(fpir)
    detected |= {rate: _percent(found > level) for rate, level in refused.items()}
    return OpenSet(tpr, detected, count, len(found), len(nearest))


def count_pairs(query: Labels, gallery: Labels, *, same_camera: SameCamera = "drop") -> PairCount:
    """Number of pairs; it needs the labels alone. Raises UsageError for an unknown rule."""
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
            f"{len(gallery_labels)} for {len(gallery)} others"
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
    """For each rate the highest score that must be refused, so that at most that share of the impostor pairs lies above
    it.

    Exact, to the last bit, without holding the scores: the first pass counts them in bins, the second keeps those of
    the bins that matter.

    Args:
        blocks: begins a pass over the pairs.
        impostors: how many impostor pairs there are.
        rates: in (0, 1]; for 1 the answer is minus infinity.
    """
    counts = np.zeros(_BINS, np.int64)
    for block in blocks() if rates else ():
        counts += _histogram(block.similarity[block.impostor])
    return _levels(blocks, counts, impostors, rates)


def _levels(
    blocks: Callable[[], Iterator[PairBlock]], counts: NDArray[np.int64], impostors: int, rates: Sequence[float]
) -> list[float]:
    """The second pass of :func:`impostor_levels`, after the scores were counted."""
    above = np.cumsum(counts[::-1])[::-1]
    places = [_allowed(rate, impostors) for rate in rates]
    wanted = {place: int(np.flatnonzero(above > place)[-1]) for place in places if place < impostors}
    kept = {number: (np.empty(0, np.float32), np.empty(0, np.int64)) for number in wanted.values()}
    for block in blocks() if kept else ():
        scores = block.similarity[block.impostor]
        at = _bins(scores)
        for number, held in kept.items():
            kept[number] = _merged(held, np.unique(scores[at == number], return_counts=True))
    levels = []
    for place in places:
        if place not in wanted:
            levels.append(-np.inf)
            continue
        values, times = kept[wanted[place]]
        higher = above[wanted[place] + 1] if wanted[place] + 1 < _BINS else 0
        levels.append(float(values[::-1][np.searchsorted(np.cumsum(times[::-1]), place - higher, side="right")]))
    return levels


def _allowed(rate: float, count: int) -> int:
    """How many of ``count`` may be accepted at a rate; a product that rounding left just under a whole number counts as
    that number.
    """
    return min(count, int(rate * count + 1e-6))


def _bins(scores: Float32s) -> NDArray[np.int32]:
    """A bin for every score, higher for higher ones."""
    found: NDArray[np.int32] = np.clip(
        (scores + np.float32(_LIMIT)) * np.float32(_BINS / (2 * _LIMIT)), 0, _BINS - 1
    ).astype(np.int32)
    return found


def _histogram(scores: Float32s) -> NDArray[np.int64]:
    return np.bincount(_bins(scores), minlength=_BINS)


def _merged(
    one: tuple[Float32s, NDArray[np.int64]], other: tuple[Float32s, NDArray[np.int64]]
) -> tuple[Float32s, NDArray[np.int64]]:
    values, inverse = np.unique(np.concatenate([one[0], other[0]]), return_inverse=True)
    return values, np.bincount(inverse, weights=np.concatenate([one[1], other[1]])).astype(np.int64)


def _percent(hits: Mask) -> float:
    return 100 * float(hits.mean())
