"""The vectors of a gallery in memory, as FAISS scans them: fp16 codes in one row, or in lists around trained centres once there are many.

Both hold the stored fp16 values unchanged, so that what comes back is bit for bit what SQLite holds. Rows are numbered from 0 without gaps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
        recall: share of the 10 nearest entries that is found with so many probes; measured against exact search, with stored vectors as queries that
            took no part in training, nor in the choice of ``probes``.
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
    """What FAISS found for queries: inner products ``[Q, n]`` best first, row numbers ``[Q, n]`` (-1: none), fp16 vectors ``[Q, n, D]``."""

    scores: NDArray[np.float32]
    rows: NDArray[np.int64]
    vectors: Halves


class Codes:
    """FAISS's index object behind what a gallery needs of it."""

    def __init__(self, dim: int, lists: Lists | None = None, index: Any = None) -> None:
        """Start without vectors and without lists, or take an index that was read or trained; raises DeviceError if FAISS is not installed."""
        self.faiss = load_faiss()
        self.dim = dim
        self.lists = lists
        kind = self.faiss.ScalarQuantizer.QT_fp16
        self.index: Any = self.faiss.IndexScalarQuantizer(dim, kind, self.faiss.METRIC_INNER_PRODUCT) if index is None else index

    @classmethod
    def trained(cls, sample: Halves, lists: int) -> Codes:
        """Empty lists around the centres of a sample ``[n, D]``, by spherical k-means from a fixed seed."""
        faiss, dim = load_faiss(), sample.shape[1]
        centres = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFScalarQuantizer(centres, dim, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False)
        index.cp.niter, index.cp.spherical, index.cp.min_points_per_centroid = 8, True, 1
        index.train(sample.astype(np.float32))
        return cls(dim, Lists(lists, lists, 0, 1.0, 0), index)

    def __len__(self) -> int:
        """Return the number of vectors."""
        return int(self.index.ntotal)

    def fits(self, dim: int, count: int) -> bool:
        """Whether an index that was read is of the kind, dimension and size that it should be."""
        faiss = self.faiss
        if (self.index.d, self.index.ntotal, self.index.metric_type) != (dim, count, faiss.METRIC_INNER_PRODUCT):
            return False
        if self.index.sq.qtype != faiss.ScalarQuantizer.QT_fp16 if hasattr(self.index, "sq") else True:
            return False
        if self.lists is None:
            return type(self.index) is faiss.IndexScalarQuantizer
        return type(self.index) is faiss.IndexIVFScalarQuantizer and self.index.nlist == self.lists.lists and not self.index.by_residual

    def add(self, vectors: Halves) -> None:
        """Append vectors ``[n, D]``; each goes into the list of its nearest centre, the centres stay."""
        for start in range(0, len(vectors), PART):
            part = vectors[start : start + PART].astype(np.float32)
            self.index.add(part)

    def remove(self, keep: NDArray[np.bool_]) -> None:
        """Drop the rows where ``keep [n]`` is false, and number the others without gaps, in their order."""
        gone = self.faiss.IDSelectorBitmap(np.packbits(~keep, bitorder="little"))
        self.index.remove_ids(gone)
        if self.lists is None:
            return  # moved up already
        numbers = np.cumsum(keep, dtype=np.int64) - 1
        for which in range(self.index.nlist):
            if size := self.index.invlists.list_size(which):
                ids = self.faiss.rev_swig_ptr(self.index.invlists.get_ids(which), size)
                ids[:] = numbers[ids]

    def search(self, queries: NDArray[np.float32], count: int, probes: int | None = None, bits: NDArray[np.uint8] | None = None) -> Proposal:
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
            scores, rows = self.index.search(queries, count, params=None if chosen is None else faiss.SearchParameters(sel=chosen))
            found = self.index.reconstruct_batch(np.maximum(rows, 0).ravel()).astype(np.float16)
        else:
            parameters = faiss.SearchParametersIVF(nprobe=probes or self.index.nlist, sel=chosen)
            scores, rows, found = self.index.search_and_return_codes(queries, count, params=parameters)
            found = found.view(np.float16)
        return Proposal(scores, rows, found.reshape(len(queries), count, self.dim))

    def vectors(self, start: int, stop: int) -> Halves:
        """Vectors of rows ``start`` to ``stop``."""
        out: NDArray[np.float32] = self.index.reconstruct_n(start, stop - start)
        return out.astype(np.float16)

    def measure(self, choosing: Truth, judging: Truth, target: float) -> None:
        """Choose the fewest probes that reach a recall on some queries, and report the recall on others."""
        if self.lists is None:
            return
        low, high = 0, self.lists.lists
        while high - low > max(1, high // 32):
            middle = (low + high) // 2
            low, high = (low, middle) if choosing.recall(self, middle) >= target else (middle, high)
        self.lists = Lists(self.lists.lists, high, len(self), judging.recall(self, high), len(judging))


class Truth:
    """The nearest neighbours of some stored vectors by exact search, gathered while the vectors go by."""

    def __init__(self, queries: Halves, rows: NDArray[np.int64], k: int) -> None:
        """Use queries ``[Q, D]`` that lie in the given rows; each counts for all but itself."""
        self._queries = queries.astype(np.float32)
        self._rows = rows
        self._best = np.full((len(queries), k), -np.inf, np.float32)
        self._seen = 0

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self._queries)

    def see(self, part: Halves) -> None:
        """Take note of the next vectors ``[n, D]``."""
        scores = self._queries @ part.astype(np.float32).T
        own = np.flatnonzero((self._rows >= self._seen) & (self._rows < self._seen + len(part)))
        scores[own, self._rows[own] - self._seen] = -np.inf
        k = self._best.shape[1]
        self._best = -np.partition(-np.concatenate([self._best, scores], axis=1), k - 1, axis=1)[:, :k]
        self._seen += len(part)

    def recall(self, codes: Codes, probes: int) -> float:
        """Share of the ``k`` nearest that a search with so many probes returns; equally near ones count for each other."""
        k = self._best.shape[1]
        scores, rows, _ = codes.search(self._queries, k + 1, probes)
        hits = (scores >= self._best.min(axis=1, keepdims=True) - 1e-5) & (rows != self._rows[:, None]) & (rows >= 0)
        return float(np.minimum(hits.sum(axis=1), k).mean() / k)


def load_faiss() -> Any:
    """Import FAISS where it is needed, for most of the edge package works without; raises DeviceError if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise DeviceError("FAISS is not installed: pip install 'lifelong-reid[cpu]', or [gpu]") from error
    return faiss
