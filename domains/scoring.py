"""Ranking scores of a camera domain: exact mAP, CMC and mINP by the field's rules, with every unscored query
accounted for.

The rules, in order. A query of identity ``JUNK`` is not scored. Gallery crops of identity ``JUNK`` are removed: neither
match nor miss. With ``same_camera="drop"`` (Market-1501's protocol) gallery crops of the query's identity from the
query's own camera are removed too; ``"keep"`` ranks them, for domains with a single camera. The rest is ranked by
similarity, highest first, with **equal similarities in gallery order**, as a stable sort leaves them; a match is a crop
of the query's identity. A query without a match is not scored either; it is listed with the rule that dropped it.

Rankings are counted, not sorted, unless a query has very many matches. A score needs only the ranks of the matches, and
a match's rank is one plus the number of gallery crops ahead of it: those with a greater similarity, and those with an
equal one that come earlier in the gallery. Counting them takes a few passes over one row, ten times cheaper than
sorting it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from domains.arrays import Float32s, Float64s
from domains.choice import check_choice
from domains.domain import JUNK, SameCamera, Split
from domains.errors import DataError, UsageError

TILE = 128
"""Queries per matrix product. Fixed, and the last product is padded to it, because BLAS rounds differently for
different numbers of rows.
"""
BLOCK_BYTES = 64 * 2**20
UNIT_TOLERANCE = 1e-2
"""How far a squared length may be from one: half precision passes, a feature that was never normalised does not."""
MANY = 256
"""Number of matches of one query above which a stable sort of the row is cheaper than counting for each match."""

JUNK_QUERY = "the query is junk (identity -1)"
NOT_IN_GALLERY = "its identity is not in the gallery"
OWN_CAMERA = 'every gallery crop of its identity is from its own camera, which same_camera="drop" removes'
_REMEDY = {
    JUNK_QUERY: "give the queries identities",
    NOT_IN_GALLERY: "query and gallery must label the same people with the same codes",
    OWN_CAMERA: 'check the camera labels, or score with same_camera="keep"',
}


@dataclass(frozen=True, eq=False)
class Labels:
    """Identity and camera of each row of a feature matrix.

    Attributes:
        pids: int64 ``[N]``, identity codes from 0, or ``JUNK``; query and gallery share the codes.
        camids: int64 ``[N]``, camera codes, also shared.
    """

    pids: NDArray[np.int64]
    camids: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check and freeze; raises DataError unless both are whole numbers ``[N]`` with no identity below -1."""
        for name in ("pids", "camids"):
            values = np.asarray(getattr(self, name))
            if values.ndim != 1 or values.dtype.kind not in "iu":
                raise DataError(f"{name} must be whole numbers [N], got {values.dtype} {values.shape}")
            values = values.astype(np.int64)
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if len(self.pids) != len(self.camids):
            raise DataError(
                f"there must be one camera per identity code, got {len(self.pids)} pids and {len(self.camids)} camids"
            )
        if len(self) and self.pids.min() < JUNK:
            raise DataError(
                f"identity codes start at 0, or are {JUNK} for junk; row {int(self.pids.argmin())} has "
                f"{self.pids.min()}"
            )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.pids)

    @classmethod
    def from_split(cls, split: Split) -> Labels:
        """Labels of a domain's split, in its order."""
        return cls(split.pids, split.camids)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of every query that could be scored, and why the others could not. ``V`` is the number of scored queries.

    Attributes:
        ap: float64 ``[V]`` in (0, 1], average precision as Market-1501 and torchreid define it: the mean over matches
            of (matches so far / rank). It is not the interpolated area of the Oxford tool, which gives higher values.
        rank: int64 ``[V]``, the rank of the first match, from 1.
        inp: float64 ``[V]`` in (0, 1], inverse negative penalty: number of matches / rank of the last (hardest) match
            (Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", TPAMI 2021). It tells how
            far one must scroll to see every match.
        scored: int64 ``[V]``, ascending, the query that each entry belongs to.
        dropped: ``(query, reason)`` for each query that was not scored.
    """

    ap: Float64s
    rank: NDArray[np.int64]
    inp: Float64s
    scored: NDArray[np.int64]
    dropped: tuple[tuple[int, str], ...] = ()

    @property
    def queries(self) -> int:
        """Number of scored queries."""
        return len(self.scored)

    @cached_property
    def mAP(self) -> float:  # noqa: N802 - the field's own name
        """Mean average precision over scored queries, in percent."""
        return 100 * float(self.ap.mean())

    @cached_property
    def mINP(self) -> float:  # noqa: N802 - the field's own name
        """Mean inverse negative penalty over scored queries, in percent."""
        return 100 * float(self.inp.mean())

    def cmc(self, k: int) -> float:
        """CMC: percent of scored queries with a match among the first ``k``; raises UsageError if ``k`` < 1."""
        if k < 1:
            raise UsageError(f"a rank must be at least 1, got {k}")
        return 100 * float((self.rank <= k).mean())

    @property
    def rank1(self) -> float:
        """``cmc(1)``, in percent."""
        return self.cmc(1)

    @property
    def rank5(self) -> float:
        """``cmc(5)``, in percent."""
        return self.cmc(5)

    @property
    def rank10(self) -> float:
        """``cmc(10)``, in percent."""
        return self.cmc(10)

    def to_dict(self) -> dict[str, float | int]:
        """Percentages and the number of scored queries, for JSON and tables."""
        return {
            "mAP": self.mAP,
            "rank1": self.rank1,
            "rank5": self.rank5,
            "rank10": self.rank10,
            "mINP": self.mINP,
            "queries": self.queries,
        }


def score_domain(
    query: Float32s,
    gallery: Float32s,
    query_labels: Labels,
    gallery_labels: Labels,
    *,
    same_camera: SameCamera = "drop",
    chunk: int | None = None,
) -> Scores:
    """Score features by cosine similarity, holding the similarities of a few queries at a time.

    On one machine the result depends on the inputs alone, to the last bit: each product has ``TILE`` rows, whatever the
    chunk size.

    Args:
        query: float32 ``[Q, D]``, rows of unit length.
        gallery: float32 ``[G, D]``, rows of unit length.
        query_labels: labels of the query rows.
        gallery_labels: labels of the gallery rows.
        same_camera: see the module docstring.
        chunk: number of queries whose similarities are held at once, rounded up to whole products; by default as many
            as fit in 64 MB. They take 4·chunk·G bytes.

    Raises:
        DataError: features of the wrong type, shape or length, or not finite (the message names the row); labels that
            don't match them; or no query that can be scored.
        UsageError: an unknown rule, or a chunk below 1.
    """
    check_features(query, gallery)
    _check_rows(query, query_labels, "query")
    _check_rows(gallery, gallery_labels, "gallery")
    blocks = similarity_blocks(query, gallery, chunk=chunk)
    return _score(blocks, query_labels, gallery_labels, same_camera)


def score_similarities(
    similarity: Float32s, query_labels: Labels, gallery_labels: Labels, *, same_camera: SameCamera = "drop"
) -> Scores:
    """Score a similarity matrix, for example a re-ranked one; for distances, pass ``-distance``.

    Args:
        similarity: float32 ``[Q, G]``, higher is closer, any finite scale. It is neither changed nor copied.
        query_labels: labels of the rows.
        gallery_labels: labels of the columns.
        same_camera: see the module docstring.

    Raises:
        DataError: a wrong type or shape, a value that is not finite (the message gives its position), labels that don't
            match, or no query that can be scored.
        UsageError: an unknown rule.
    """
    _check_matrix(similarity, "similarity", "[Q, G]")
    _check_rows(similarity, query_labels, "query")
    _check_rows(similarity.T, gallery_labels, "gallery")
    blocks = ((start, similarity[start : start + TILE]) for start in range(0, len(similarity), TILE))
    return _score(blocks, query_labels, gallery_labels, same_camera)


def dropped_queries(query: Labels, gallery: Labels, *, same_camera: SameCamera = "drop") -> tuple[tuple[int, str], ...]:
    """List the queries that can't be scored as ``(query, reason)``, in query order.

    Only the labels are needed, so a folder can be checked before any training.

    Raises:
        UsageError: an unknown rule.
    """
    check_choice("same_camera", same_camera, SameCamera)
    seen = _occurrences(query.pids, gallery.pids)
    own = np.zeros(len(query), np.int64)
    if same_camera == "drop":
        people = np.unique(np.concatenate([query.pids, gallery.pids]), return_inverse=True)[1]
        cameras, camera = np.unique(np.concatenate([query.camids, gallery.camids]), return_inverse=True)
        pair = people * len(cameras) + camera
        own = _occurrences(pair[: len(query)], pair[len(query) :])
    junk = query.pids == JUNK
    reasons = np.where(junk, JUNK_QUERY, np.where(seen == 0, NOT_IN_GALLERY, OWN_CAMERA))
    return tuple((int(row), str(reasons[row])) for row in np.flatnonzero(junk | (seen == own)))


def similarity_blocks(rows: Float32s, columns: Float32s, *, chunk: int | None = None) -> Iterator[tuple[int, Float32s]]:
    """Yield ``(start, rows[start : start + n] @ columns.T)`` block by block; each block is overwritten by the next.

    Args:
        rows: float32 ``[N, D]``.
        columns: float32 ``[G, D]``.
        chunk: rows per block, rounded up to a multiple of ``TILE``; by default as many as fit in 64 MB, at least
            ``TILE``. The values do not depend on it.

    Raises:
        UsageError: a chunk below 1.
    """
    if chunk is not None and chunk < 1:
        raise UsageError(f"chunk must be at least 1 query, got {chunk}")
    wanted = BLOCK_BYTES // (4 * TILE * max(len(columns), 1)) if chunk is None else -(-chunk // TILE)
    return _blocks(rows, columns, max(1, min(wanted, -(-len(rows) // TILE))))


def _blocks(rows: Float32s, columns: Float32s, tiles: int) -> Iterator[tuple[int, Float32s]]:
    block = np.empty((tiles * TILE, len(columns)), np.float32)
    for start in range(0, len(rows), len(block)):
        size = min(len(block), len(rows) - start)
        for at in range(0, size, TILE):
            part = rows[start + at : start + at + TILE]
            if len(part) < TILE:
                part = np.concatenate([part, np.zeros((TILE - len(part), rows.shape[1]), np.float32)])
            np.matmul(part, columns.T, out=block[at : at + TILE])
        yield start, block[:size]


def check_features(query: Float32s, gallery: Float32s) -> None:
    """Raise DataError unless both are finite float32 ``[N, D]`` with the same D and rows of unit length.

    Unit length is checked to half precision; the message names the row.
    """
    _check_unit(query, "query")
    _check_unit(gallery, "gallery")
    if query.shape[1] != gallery.shape[1]:
        raise DataError(
            f"query and gallery features must come from the same model, got {query.shape[1]} and "
            f"{gallery.shape[1]} values per row"
        )


def bootstrap_interval(
    values: Float64s, *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of one value per query, in the values' own unit (``100 * scores.ap``
    for mAP in percent).

    Queries are resampled, not gallery crops, so it answers: how much would the score change with other queries from
    these cameras? The values may be paired differences, such as the AP of one query after two steps.

    Raises:
        DataError, UsageError: as :func:`bootstrap_mean`.
    """
    return bootstrap_mean([values], samples=samples, seed=seed, level=level)


def bootstrap_mean(
    per_domain: Sequence[Float64s], *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the plain mean over domains of each domain's mean (Seen-Avg, Unseen-Avg).

    Queries are resampled within each domain independently, so that a small domain contributes its own, larger
    uncertainty (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13: one draw per sample
    of a several-sample statistic, and the percentile interval).

    Args:
        per_domain: one array ``[V]`` of finite per-query values per domain.
        samples: number of bootstrap samples.
        seed: the same seed and values give the same interval.
        level: share of samples inside the interval, in (0, 1).

    Returns:
        Lower and upper end, in the unit of the values.

    Raises:
        DataError: no domain, or values that are empty, not finite or not one-dimensional.
        UsageError: samples below 1, or a level outside (0, 1).
    """
    if samples < 1 or not 0 < level < 1:
        raise UsageError(f"a bootstrap needs at least 1 sample and a level between 0 and 1, got {samples} and {level}")
    if not len(per_domain):
        raise DataError("a bootstrap interval needs the values of at least one domain, got none")
    rng = np.random.default_rng(seed)
    means = np.zeros(samples)
    for number, scores in enumerate(per_domain):
        values = np.asarray(scores, np.float64)
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
            raise DataError(
                f"a bootstrap interval needs finite values [V], at least one; domain {number} has shape {values.shape}"
            )
        step = max(1, 2**20 // len(values))
        for start in range(0, samples, step):
            draws = rng.integers(len(values), size=(min(step, samples - start), len(values)))
            means[start : start + step] += values[draws].mean(axis=1) / len(per_domain)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _score(blocks: Iterator[tuple[int, Float32s]], query: Labels, gallery: Labels, same_camera: SameCamera) -> Scores:
    dropped = dropped_queries(query, gallery, same_camera=same_camera)
    if len(dropped) == len(query):
        raise DataError(_nothing_scored(dropped))
    order = np.argsort(gallery.pids, kind="stable")
    first, last = (np.searchsorted(gallery.pids[order], query.pids, side) for side in ("left", "right"))
    junk = np.flatnonzero(gallery.pids == JUNK)
    unscored = {row for row, _ in dropped}
    scored = np.array([row for row in range(len(query)) if row not in unscored], np.int64)
    ap, inp, rank = np.empty(len(scored)), np.empty(len(scored)), np.empty(len(scored), np.int64)
    position = 0
    for start, block in blocks:
        _check_finite(block, start)
        for at, similarity in enumerate(block, start):
            if at in unscored:
                continue
            person = order[first[at] : last[at]]
            own = gallery.camids[person] == query.camids[at] if same_camera == "drop" else np.zeros(len(person), bool)
            row = similarity.copy()
            row[junk] = row[person[own]] = -np.inf
            ranks = match_ranks(row, person[~own])
            ap[position] = (np.arange(1, len(ranks) + 1) / ranks).mean()
            inp[position] = len(ranks) / ranks[-1]
            rank[position] = ranks[0]
            position += 1
    return Scores(ap, rank, inp, scored, dropped)


def match_ranks(row: Float32s, matches: NDArray[np.intp]) -> NDArray[np.int64]:
    """Ranks from 1, ascending, of the columns ``matches`` in a contiguous row whose removed columns hold -inf."""
    if len(matches) > MANY:
        hit = np.zeros(len(row), bool)
        hit[matches] = True
        return np.flatnonzero(hit[np.argsort(-row, kind="stable")]) + 1
    before = np.empty(len(row), bool)
    ranks = np.empty(len(matches), np.int64)
    for position, (column, value) in enumerate(zip(matches.tolist(), row[matches], strict=True)):
        np.greater_equal(row[:column], value, out=before[:column])
        np.greater(row[column:], value, out=before[column:])
        ranks[position] = np.count_nonzero(before) + 1
    ranks.sort()
    return ranks


def _occurrences(values: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count how often each of ``values`` occurs in ``among``."""
    ordered = np.sort(among)
    return np.searchsorted(ordered, values, "right") - np.searchsorted(ordered, values, "left")


def _nothing_scored(dropped: tuple[tuple[int, str], ...]) -> str:
    if not dropped:
        return "there are no queries to score; a domain needs a query split to be scored"
    reason, count = Counter(reason for _, reason in dropped).most_common(1)[0]
    return f"none of the {len(dropped)} queries can be scored; for {count} of them {reason}: {_REMEDY[reason]}"


def _check_matrix(values: Float32s, name: str, shape: str) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.ndim != 2:
        actual = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise DataError(f"{name} must be a float32 array {shape}, got {actual}")


def _check_unit(features: Float32s, name: str) -> None:
    _check_matrix(features, f"{name} features", "[N, D]")
    squared = np.einsum("nd,nd->n", features, features)
    bad = np.flatnonzero(~(np.abs(squared - 1) <= UNIT_TOLERANCE))
    if not len(bad):
        return
    row = int(bad[0])
    if not np.isfinite(features[row]).all():
        raise DataError(
            f"{name} feature {row} holds NaN or infinity ({len(bad)} unusable rows in all); check the model and its "
            "input"
        )
    length = float(squared[row]) ** 0.5
    raise DataError(
        f"{name} feature {row} has length {length:.4g} instead of 1 ({len(bad)} such rows); normalise the features "
        "first"
    )


def _check_rows(matrix: Float32s, labels: Labels, name: str) -> None:
    if len(matrix) != len(labels):
        raise DataError(
            f"there must be one {name} label per {name} row, got {len(matrix)} rows and {len(labels)} labels"
        )


def _check_finite(block: Float32s, start: int) -> None:
    finite = np.isfinite(block)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise DataError(
            f"the similarity of query {start + row} and gallery row {column} is {block[row, column]}; similarities "
            "must be finite"
        )
