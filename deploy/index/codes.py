"""The vectors of a gallery in memory, as FAISS scans them: fp16 codes in one row, or in lists around trained centres
once there are many.

Both hold the stored fp16 values unchanged, so that what comes back is bit for bit what SQLite holds. Rows are numbered
from 0 without gaps.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from domains.arrays import Float32s
from domains.errors import DeviceError

Halves = NDArray[np.float16]

PART = 4096


@dataclass(frozen=True)
class Lists:
    """How the lists were made, and how well they find.

    Attributes:
        lists: how many there are.
        probes: how many are looked at for the best 10 among all entries.
        trained: number of entries when the centres were trained.
        recall: share of the 10 nearest entries that is found with so many probes; measured against exact search, with
            stored vectors as queries that took no part in training, nor in the choice of ``probes``.
        queries: how many queries that was measured with.
    """

    lists: int
    probes: int
    trained: int
    recall: float
    queries: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Proposal(NamedTuple):
    """What FAISS found for queries: inner products ``[Q, n]`` best first, row numbers ``[Q, n]`` (-1: none)."""

    scores: Float32s
    rows: NDArray[np.int64]


class Codes:
    """FAISS's index object behind what a gallery needs of it."""

    def __init__(self, dim: int, lists: Lists | None = None, index: Any = None) -> None:
        """Start without vectors and without lists, or take an index that was read or trained; raises DeviceError if
        FAISS is not installed.
        """
        self.faiss = load_faiss()
        self.dim = dim
        self.lists = lists
        kind = self.faiss.ScalarQuantizer.QT_fp16
        self.index: Any = (
            self.faiss.IndexScalarQuantizer(dim, kind, self.faiss.METRIC_INNER_PRODUCT) if index is None else index
        )

    @classmethod
    def trained(cls, sample: Halves, lists: int) -> Codes:
        """Empty lists around the centres of a sample ``[n, D]``, by spherical k-means from a fixed seed."""
        faiss, dim = load_faiss(), sample.shape[1]
        centres = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFScalarQuantizer(
            centres, dim, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
        )
        index.cp.niter, index.cp.spherical, index.cp.min_points_per_centroid = 8, True, 1
        index.train(sample.astype(np.float32))
        index.make_direct_map(True)
        return cls(dim, Lists(lists, lists, 0, 1.0, 0), index)

    def __len__(self) -> int:
        """Return the number of vectors."""
        return int(self.index.ntotal)

    def fits(self, dim: int, count: int) -> bool:
        """Whether an index that was read is of the kind, dimension and size that it should be."""
        faiss = self.faiss
        if (self.index.d, self.index.ntotal, self.index.metric_type) != (dim, count, faiss.METRIC_INNER_PRODUCT):
            return False
        kind = faiss.IndexScalarQuantizer if self.lists is None else faiss.IndexIVFScalarQuantizer
        if type(self.index) is not kind or self.index.sq.qtype != faiss.ScalarQuantizer.QT_fp16:
            return False
        return self.lists is None or (self.index.nlist == self.lists.lists and not self.index.by_residual)

    def add(self, vectors: Float32s, places: NDArray[np.int64] | None = None) -> None:
        """Append vectors ``[n, D]`` of fp16 values; each goes into the list of its nearest centre, or of its ``places
        [n]``; the centres stay.
        """
        if places is None:
            self.index.add(vectors)
            return
        vectors, places = np.ascontiguousarray(vectors), np.ascontiguousarray(places)
        if vectors.shape != (len(places), self.dim) or (
            len(places) and not 0 <= places.min() <= places.max() < self.index.nlist
        ):
            raise ValueError(
                f"{len(vectors)} vectors of {self.dim} values need a list each among {self.index.nlist}, got "
                f"{len(places)}"
            )
        pointer = self.faiss.swig_ptr
        self.index.add_core(len(vectors), pointer(vectors), None, pointer(places))

    def places(self, vectors: Float32s) -> NDArray[np.int64]:
        """The list ``[n]`` of the nearest centre of each vector ``[n, D]``."""
        found: NDArray[np.int64] = self.index.quantizer.search(vectors, 1)[1][:, 0]
        return found

    def reserve(self, places: NDArray[np.int64]) -> None:
        """Make room for one vector in each of these lists: a list that grows one by one is moved, and leaves holes in
        memory behind.
        """
        for which, count in enumerate(np.bincount(places, minlength=self.index.nlist).tolist()):
            size = self.index.invlists.list_size(which)
            self.index.invlists.resize(which, size + count)
            self.index.invlists.resize(which, size)

    def remove(self, keep: NDArray[np.bool_]) -> None:
        """Drop the rows where ``keep [n]`` is false, and number the others without gaps, in their order."""
        gone = self.faiss.IDSelectorBitmap(np.packbits(~keep, bitorder="little"))
        if self.lists is None:
            self.index.remove_ids(gone)  # the others move up
            return
        self.index.make_direct_map(False)  # FAISS can't keep an array of places up to date here
        self.index.remove_ids(gone)
        numbers = np.cumsum(keep, dtype=np.int64) - 1
        for which in range(self.index.nlist):
            if size := self.index.invlists.list_size(which):
                ids = self.faiss.rev_swig_ptr(self.index.invlists.get_ids(which), size)
                ids[:] = numbers[ids]
        self.index.make_direct_map(True)

    def search(
        self, queries: Float32s, count: int, probes: int | None = None, bits: NDArray[np.uint8] | None = None
    ) -> Proposal:
        """Propose up to ``count`` rows for each query ``[Q, D]``.

        Args:
            queries: unit vectors.
            count: how many, at most the number of vectors.
            probes: how many lists to look at; all by default.
            bits: one bit per row, lowest first: whether it may be returned.
        """
        faiss = self.faiss
        chosen = None if bits is None else faiss.IDSelectorBitmap(bits)
        if self.lists is None:
            parameters = None if chosen is None else faiss.SearchParameters(sel=chosen)
        else:
            parameters = faiss.SearchParametersIVF(nprobe=probes or self.index.nlist, sel=chosen)
        return Proposal(*self.index.search(queries, count, params=parameters))

    def pick(self, rows: NDArray[np.int64]) -> Float32s:
        """Vectors ``[n, D]`` of some rows, whose values are the stored fp16 ones."""
        found: Float32s = self.index.reconstruct_batch(rows)
        return found

    def vectors(self, start: int, stop: int) -> Halves:
        """Vectors of rows ``start`` to ``stop``."""
        out: Float32s = self.index.reconstruct_n(start, stop - start)
        return out.astype(np.float16)

    def measure(self, truth: Truth, target: float) -> None:
        """Choose the fewest probes that reach a recall on the first half of some queries, and report the recall on the
        other half.

        A neighbour is found if and only if its list is looked at, so that the rank of its list for the query says how
        many probes that takes.
        """
        if self.lists is None:
            return
        count = self.lists.lists
        _, order = self.index.quantizer.search(truth.queries, count)
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(count)[None], axis=1)
        homes = self.faiss.vector_to_array(self.index.direct_map.array)[truth.rows] >> 32
        needed = np.take_along_axis(ranks, homes, axis=1) + 1
        choosing, judging = needed[: len(needed) // 2], needed[len(needed) // 2 :]
        probes = int(np.sort(choosing, axis=None)[math.ceil(target * choosing.size) - 1])
        self.lists = Lists(count, probes, len(self), float((judging <= probes).mean()), len(judging))


class Truth:
    """The nearest neighbours of some stored vectors by exact search, gathered while the vectors go by.

    Attributes:
        queries: float32 ``[Q, D]``.
        rows: numbers ``[Q, k]`` of the nearest so far, in no order; a query is not its own neighbour.
    """

    def __init__(self, queries: Halves, own: NDArray[np.int64], k: int) -> None:
        """Use queries ``[Q, D]`` that lie in rows ``own [Q]`` themselves."""
        self.queries = queries.astype(np.float32)
        self.rows = np.zeros((len(queries), k), np.int64)
        self._own = own
        self._best = np.full((len(queries), k), -np.inf, np.float32)
        self._seen = 0

    def see(self, part: Float32s) -> None:
        """Take note of the next vectors ``[n, D]``."""
        scores = self.queries @ part.T
        own = np.flatnonzero((self._own >= self._seen) & (self._own < self._seen + len(part)))
        scores[own, self._own[own] - self._seen] = -np.inf
        better = scores > self._best.min(axis=1, keepdims=True)
        k = self.rows.shape[1]
        for query in np.flatnonzero(better.any(axis=1)):
            which = np.flatnonzero(better[query])
            best = np.concatenate([self._best[query], scores[query, which]])
            rows = np.concatenate([self.rows[query], which + self._seen])
            kept = np.argpartition(-best, k - 1)[:k]
            self._best[query], self.rows[query] = best[kept], rows[kept]
        self._seen += len(part)


def load_faiss() -> Any:
    """Import FAISS where it is needed, for most of the edge package works without; raises DeviceError if it is not
    installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise DeviceError("FAISS is not installed: pip install 'lifelong-reid[cpu]', or [gpu]") from error
    return faiss
