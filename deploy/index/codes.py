"""A gallery's vectors in memory, as FAISS scans them: fp16 codes in one flat array, or in lists around trained centres
once there are many.

Both hold the stored fp16 values unchanged, so that reading them back gives bit for bit what SQLite holds. Rows are
numbered from 0 without gaps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from domains.arrays import Float32s
from domains.errors import DeviceError, GalleryError, first_line

Halves = NDArray[np.float16]

PART = 4096

DEPTHS = (30, 100)
"""Numbers of nearest entries, besides 10, that lists are measured for. The last is the most that a service returns."""


class Depth(NamedTuple):
    """How many lists are searched for the best ``top`` among all entries, and the recall that this reaches."""

    top: int
    probes: int
    recall: float


@dataclass(frozen=True)
class Lists:
    """How the lists were built, and the recall they reach.

    Attributes:
        lists: number of lists.
        probes: number of lists searched for the best 10 among all entries.
        trained: number of entries when the centres were trained.
        recall: share of the 10 nearest entries found with ``probes``, measured against exact search; the queries are
            stored vectors that were used neither to train the centres nor to choose ``probes``.
        queries: number of queries that the recall was measured with.
        deeper: the same for more than 10 nearest entries, by number; empty if never measured.
    """

    lists: int
    probes: int
    trained: int
    recall: float
    queries: int
    deeper: tuple[Depth, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Lists:
        """Read what :meth:`to_dict` gave; raises KeyError, TypeError or ValueError."""
        made = cls(**{**values, "deeper": tuple(Depth(**depth) for depth in values["deeper"])})
        steps = [Depth(10, made.probes, made.recall), *made.deeper]
        counts = [made.lists, *(number for step in steps for number in step[:2])]
        if not all(type(number) is int and 1 <= number < 2**40 for number in counts):
            raise ValueError("a number of lists, probes or entries is wrong")
        if not all(type(number) is int and 0 <= number < 2**40 for number in (made.trained, made.queries)):
            raise ValueError("a number of entries or queries is wrong")
        if not all(type(step.recall) in (int, float) and 0 <= step.recall <= 1 for step in steps):
            raise ValueError("a recall is wrong")
        if [step.top for step in steps] != sorted({step.top for step in steps}):
            raise ValueError("the recalls are not in order")
        return made

    def probes_for(self, k: int) -> int:
        """Return how many lists to search for the best ``k`` among all entries: as many as the next larger number needs
        that was measured, and in proportion beyond.
        """
        steps = (Depth(10, self.probes, self.recall), *self.deeper)
        for step in steps:
            if k <= step.top:
                return step.probes
        return math.ceil(steps[-1].probes * k / steps[-1].top)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "deeper": [depth._asdict() for depth in self.deeper]}


class Proposal(NamedTuple):
    """What FAISS proposes for queries: inner products ``[Q, n]``, best first, and row numbers ``[Q, n]`` (-1: none)."""

    scores: Float32s
    rows: NDArray[np.int64]


class Codes:
    """A FAISS index, reduced to what a gallery needs."""

    def __init__(self, dim: int, lists: Lists | None = None, index: Any = None) -> None:
        """Start without vectors or lists, or wrap an index that was read or trained; raises DeviceError if FAISS is not
        installed.
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
        """Create empty lists around the centres of a sample ``[n, D]``, by spherical k-means with a fixed seed."""
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
        """Whether an index that was read has the expected type, dimension and size, and its lists hold each row once,
        where its direct map says.
        """
        faiss, index = self.faiss, self.index
        if (index.d, index.ntotal, index.metric_type) != (dim, count, faiss.METRIC_INNER_PRODUCT):
            return False
        kind = faiss.IndexScalarQuantizer if self.lists is None else faiss.IndexIVFScalarQuantizer
        if type(index) is not kind or index.sq.qtype != faiss.ScalarQuantizer.QT_fp16 or not index.is_trained:
            return False
        if (index.sq.d, index.sq.code_size, index.code_size) != (dim, 2 * dim, 2 * dim):
            return False
        if self.lists is None:
            return bool(index.codes.size() == 2 * dim * count)
        return self._has_centres(dim) and self._has_each_row(count)

    def _has_centres(self, dim: int) -> bool:
        """Whether there is one centre ``[D]`` for each list, and nothing else decides where a vector goes."""
        index, lists = self.index, self.lists
        centres = self.faiss.downcast_index(index.quantizer)
        return bool(
            lists is not None
            and index.nlist == lists.lists
            and not index.by_residual
            and type(centres) in (self.faiss.IndexFlatIP, self.faiss.IndexFlat)
            and (centres.d, centres.ntotal, centres.metric_type) == (dim, index.nlist, self.faiss.METRIC_INNER_PRODUCT)
            and centres.codes.size() == 4 * dim * index.nlist
        )

    def _has_each_row(self, count: int) -> bool:
        """Whether the lists are in memory and hold each row below ``count`` once, where the direct map says."""
        faiss, index = self.faiss, self.index
        held = faiss.downcast_InvertedLists(index.invlists)
        if type(held) is not faiss.ArrayInvertedLists or (held.nlist, held.code_size) != (index.nlist, index.code_size):
            return False
        if index.direct_map.type != faiss.DirectMap.Array:
            return False
        where = np.full(count, -1, np.int64)
        sizes = [held.list_size(which) for which in range(index.nlist)]
        if sum(sizes) != count:
            return False
        for which, size in enumerate(sizes):
            if size:
                rows = faiss.rev_swig_ptr(held.get_ids(which), size)
                if not 0 <= rows.min() <= rows.max() < count:
                    return False
                where[rows] = (which << 32) + np.arange(size)
        return bool((where >= 0).all() and np.array_equal(where, faiss.vector_to_array(index.direct_map.array)))

    def add(self, vectors: Float32s, places: NDArray[np.int64] | None = None) -> None:
        """Append vectors ``[n, D]`` of fp16 values, each to the list of its nearest centre or to the one in ``places
        [n]``; the centres do not change.
        """
        if places is None:
            self.index.add(vectors)
            return
        vectors, places = np.ascontiguousarray(vectors), np.ascontiguousarray(places)
        if vectors.shape != (len(places), self.dim) or (
            len(places) and not 0 <= places.min() <= places.max() < self.index.nlist
        ):
            raise ValueError(
                f"each vector needs {self.dim} values and one of {self.index.nlist} lists, got vectors "
                f"{list(vectors.shape)} and {len(places)} lists"
            )
        pointer = self.faiss.swig_ptr
        self.index.add_core(len(vectors), pointer(vectors), None, pointer(places))

    def places(self, vectors: Float32s) -> NDArray[np.int64]:
        """Return the list ``[n]`` whose centre is nearest to each vector ``[n, D]``."""
        nearest: NDArray[np.int64] = self.index.quantizer.search(vectors, 1)[1][:, 0]
        return nearest

    def reserve(self, places: NDArray[np.int64]) -> None:
        """Reserve room in these lists, one vector for each: a list that grows one by one is moved, which fragments
        memory.
        """
        for which, count in enumerate(np.bincount(places, minlength=self.index.nlist).tolist()):
            size = self.index.invlists.list_size(which)
            self.index.invlists.resize(which, size + count)
            self.index.invlists.resize(which, size)

    def remove(self, keep: NDArray[np.bool_]) -> None:
        """Drop the rows where ``keep [n]`` is false, and renumber the others without gaps, in order."""
        gone = self.faiss.IDSelectorBitmap(np.packbits(~keep, bitorder="little"))
        if self.lists is None:
            self.index.remove_ids(gone)  # the others move up
            return
        self.index.make_direct_map(False)  # FAISS can't keep an array map up to date here
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
            count: number of rows, at most the number of vectors.
            probes: number of lists to search; all by default.
            bits: one bit per row, lowest first: whether it may be returned.
        """
        faiss = self.faiss
        selector = None if bits is None else faiss.IDSelectorBitmap(bits)
        if self.lists is None:
            parameters = None if selector is None else faiss.SearchParameters(sel=selector)
        else:
            parameters = faiss.SearchParametersIVF(nprobe=probes or self.index.nlist, sel=selector)
        return Proposal(*self.index.search(queries, count, params=parameters))

    def pick(self, rows: NDArray[np.int64]) -> Float32s:
        """Return the vectors ``[n, D]`` of some rows, with exactly the stored fp16 values."""
        vectors: Float32s = self.index.reconstruct_batch(rows)
        return vectors

    def vectors(self, start: int, stop: int) -> Halves:
        """Return the vectors of rows ``start`` to ``stop``, exclusive."""
        out: Float32s = self.index.reconstruct_n(start, stop - start)
        return out.astype(np.float16)

    def measure(self, truth: Truth, target: float) -> None:
        """Choose the fewest probes that reach a target recall on the first half of some queries, and report the recall
        on the other half, for 10 nearest entries and each of ``DEPTHS``.

        A neighbour is found if and only if its list is searched, so the rank of its list for the query is the number of
        probes that it takes.
        """
        if self.lists is None:
            return
        count = self.lists.lists
        _, order = self.index.quantizer.search(truth.queries, count)
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(count)[None], axis=1)
        homes = self.faiss.vector_to_array(self.index.direct_map.array)[truth.nearest] >> 32
        needed = np.take_along_axis(ranks, homes, axis=1) + 1
        choosing, judging = needed[: len(needed) // 2], needed[len(needed) // 2 :]

        def depth(top: int, least: int = 1) -> Depth:
            several = np.sort(choosing[:, :top], axis=None)
            probes = max(least, int(several[math.ceil(target * several.size) - 1]))
            return Depth(top, probes, float((judging[:, :top] <= probes).mean()))

        usual = depth(10)
        deeper: list[Depth] = []
        for top in DEPTHS:
            deeper.append(depth(top, (deeper or [usual])[-1].probes))
        self.lists = Lists(count, usual.probes, len(self), usual.recall, len(judging), tuple(deeper))


class Truth:
    """The exact nearest neighbours of some stored vectors, gathered as all vectors stream past.

    Attributes:
        queries: float32 ``[Q, D]``.
        rows: numbers ``[Q, k]`` of the nearest so far, in no particular order; a query is not its own neighbour.
    """

    def __init__(self, queries: Halves, own: NDArray[np.int64], k: int) -> None:
        """Use queries ``[Q, D]``, which are themselves rows ``own [Q]``."""
        self.queries = queries.astype(np.float32)
        self.rows = np.zeros((len(queries), k), np.int64)
        self._own = own
        self._best = np.full((len(queries), k), -np.inf, np.float32)
        self._seen = 0

    @property
    def nearest(self) -> NDArray[np.int64]:
        """The same numbers ``[Q, k]``, nearest first."""
        return np.take_along_axis(self.rows, np.argsort(-self._best, axis=1, kind="stable"), axis=1)

    def see(self, part: Float32s) -> None:
        """Take the next vectors ``[n, D]`` into account."""
        scores = self.queries @ part.T
        own = np.flatnonzero((self._own >= self._seen) & (self._own < self._seen + len(part)))
        scores[own, self._own[own] - self._seen] = -np.inf
        better = scores > self._best.min(axis=1, keepdims=True)
        k = self.rows.shape[1]
        for query in np.flatnonzero(better.any(axis=1)):
            which = np.flatnonzero(better[query])
            best = np.concatenate([self._best[query], scores[query, which]])
            rows = np.concatenate([self.rows[query], which + self._seen])
            nearest = np.argpartition(-best, k - 1)[:k]
            self._best[query], self.rows[query] = best[nearest], rows[nearest]
        self._seen += len(part)


class FaissError(GalleryError):
    """FAISS could not do something."""


@contextmanager
def naming_faiss(what: str) -> Iterator[None]:
    """Raise FaissError in place of the errors that FAISS raises, a full disk among them; ``what`` could not be done.

    Too little memory is left to the store's transaction.
    """
    try:
        yield
    except RuntimeError as error:
        said = first_line(error).rpartition("Error: ")[2]
        raise FaissError(
            f"{what}: FAISS failed ({said:.150}); check free disk space and memory, and try again"
        ) from error


def load_faiss() -> Any:
    """Import FAISS on demand, since most of the edge package works without it; raises DeviceError if it is not
    installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise DeviceError("FAISS is not installed: pip install 'lifelong-reid[cpu]', or [gpu]") from error
    return faiss
