"""The fast half of a gallery: every vector in memory for FAISS, with what filters need of each entry.

With fewer than 50,000 candidates a search is exact. Beyond that, the vectors lie in lists, and enough of them are
searched to reach a stated recall, which is measured against exact search whenever the lists are built. A filter raises
the number of lists searched in proportion to what it excludes, and with fewer than 50,000 allowed entries all lists are
searched, so that the answer is exact again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.index.codes import DEPTHS, PART, Codes, FaissError, Truth, naming_faiss
from deploy.store import Store
from deploy.store.selection import Selection
from deploy.store.store import NO_TIME, Columns, State
from domains.arrays import Float64s

EXACT_BELOW = 50_000
"""With fewer candidates than this, every one of them is scored."""

TARGET = 0.985
"""Recall of the 10 nearest that the number of probes is chosen for: slightly above the 0.98 aimed at for other queries.
"""

GROWTH = 4
"""The centres are retrained once there are this many times as many entries as when they were trained."""

SPARE = 16
"""Extra candidates that are fetched at first, so that near ties are mostly settled in one go."""

_SAMPLE = 64
"""Training vectors per list; k-means needs about 40."""

_QUERIES = 256
"""Stored vectors used to choose the number of probes; as many others are used to report the recall."""

_MASKS = 16

Answer = tuple[NDArray[np.int64], Float64s]


def is_many(count: int) -> bool:
    """Whether there are too many candidates to score every one."""
    return count >= EXACT_BELOW


class Allowed(NamedTuple):
    """Which entries a search may return: one bit per row, lowest first (``None``: all), and their number."""

    bits: NDArray[np.uint8] | None
    size: int


class Index:
    """Cosine search over fp16 vectors, with filters.

    FAISS scans the fp16 codes and proposes candidates, which are ranked by their cosine in float64. More are fetched
    until no other vector in the searched lists could be among the best ``k``, so that the order is exact and ties are
    ordered by id.
    """

    def __init__(self, dim: int, state: State) -> None:
        """Start empty, as the index of ``state``; raises DeviceError if FAISS is not installed."""
        self.state = state
        self.kept: State | None = None
        """The state of the cache files when this index last read or wrote them."""
        self.kept_count = 0
        self.ids = np.empty(0, np.int64)
        self.utc = np.empty(0, np.int64)
        self.camera = np.empty(0, np.int32)
        self.camera_codes: dict[str, int] = {}
        self.codes = Codes(dim)
        self._allowed: dict[Selection, Allowed] = {}
        # Stored vectors had unit length before they were rounded to fp16: relative error 2^-11, 2^-25 for each
        # subnormal. FAISS sums in float32.
        self._slack = 2.0 * (2**-11 + math.sqrt(dim) * 2**-25 + dim * 2**-24)

    def __len__(self) -> int:
        """Return the number of vectors."""
        return len(self.ids)

    @property
    def outgrown(self) -> bool:
        """Whether there are now enough entries to put the vectors into lists, or into new ones."""
        lists = self.codes.lists
        return is_many(len(self)) if lists is None else len(self) >= GROWTH * max(lists.trained, 1)

    def build(self, store: Store) -> None:
        """Fill an empty index from the store; lists are trained if there are enough entries."""
        columns = store.columns()
        if is_many(len(columns.ids)):
            self._into_lists(columns.ids, store)
            self.extend(columns, ())
        else:
            self.extend(columns, store.vectors())

    def extend(self, columns: Columns, vectors: Iterable[NDArray[np.float16]]) -> None:
        """Append entries, whose vectors ``[n, D]`` come in parts."""
        self._allowed.clear()
        self.ids = np.concatenate([self.ids, columns.ids])
        self.utc = np.concatenate([self.utc, columns.utc])
        codes = np.array(
            [self.camera_codes.setdefault(name, len(self.camera_codes)) for name in columns.names], np.int32
        )
        self.camera = np.concatenate([self.camera, codes[columns.cameras]])
        for part in vectors:
            self.codes.add(part.astype(np.float32))

    def drop_missing(self, ids: NDArray[np.int64]) -> None:
        """Drop every entry whose id is not among ``ids``."""
        keep = np.isin(self.ids, ids, assume_unique=True)
        if keep.all():
            return
        self._allowed.clear()
        self.codes.remove(keep)
        self.ids, self.utc, self.camera = self.ids[keep], self.utc[keep], self.camera[keep]
        used, codes = np.unique(
            self.camera, return_inverse=True
        )  # the name of a camera without entries is dropped, too
        names = {code: name for name, code in self.camera_codes.items()}
        self.camera, self.camera_codes = (
            codes.astype(np.int32),
            {names[int(old)]: new for new, old in enumerate(used)},
        )

    def allowed(self, wanted: Selection, store: Store) -> Allowed:
        """Find the entries that a search may return; cameras and times are in memory, other filters query the store.
        The last few results are cached.
        """
        if wanted.is_all:
            return Allowed(None, len(self))
        if wanted not in self._allowed:
            mask = self._mask(wanted, store)
            while len(self._allowed) >= _MASKS:
                del self._allowed[next(iter(self._allowed))]
            self._allowed[wanted] = Allowed(np.packbits(mask, bitorder="little"), int(np.count_nonzero(mask)))
        return self._allowed[wanted]

    @naming_faiss("the index can't be searched")
    def search(self, queries: Float64s, k: int, allowed: Allowed, *, exact: bool = False) -> list[Answer]:
        """Return the ids and cosines of the best ``k`` entries for each query ``[Q, D]``; fewer if fewer are allowed.

        Args:
            queries: unit vectors.
            k: number of entries per query.
            allowed: entries that may be returned.
            exact: score every allowed entry, however many there are.
        """
        if not allowed.size or not len(queries):
            return [(np.empty(0, np.int64), np.empty(0))] * len(queries)
        k = min(k, allowed.size)
        probes = self._probes(k, allowed.size, exact=exact)
        answers: list[Answer | None] = [None] * len(queries)
        missing = np.arange(len(queries))
        fetch = min(allowed.size, k + SPARE)
        singles = queries.astype(np.float32)
        while missing.size:
            proposal = self.codes.search(singles[missing], fetch, probes, allowed.bits)
            short = False
            for at, query in enumerate(missing.tolist()):
                rows = proposal.rows[at]
                full = bool(rows[-1] >= 0)
                rows = rows if full else rows[rows >= 0]
                if len(rows) < k and probes is not None:
                    short = True
                    continue
                if len(rows) < k:
                    raise FaissError("the index can't be searched: it has fewer vectors than entries that are allowed")
                cosines = self._cosines(queries[query], rows)
                order = np.lexsort((rows, -cosines))[:k]
                if not full or fetch == allowed.size or cosines[order[-1]] > proposal.scores[at, -1] + self._slack:
                    answers[query] = self.ids[rows[order]], cosines[order]
            missing = np.array([query for query in missing.tolist() if answers[query] is None], np.intp)
            if short and probes is not None:  # the filter left too few in the searched lists
                probes = probes * 4 if probes * 4 < self.codes.index.nlist else None
            else:
                fetch = min(allowed.size, 4 * fetch)
        return [answer for answer in answers if answer is not None]

    def _probes(self, k: int, count: int, *, exact: bool) -> int | None:
        """Return how many lists to search, ``None`` for all: more for a large ``k`` or a filter that excludes much."""
        lists = self.codes.lists
        if lists is None or exact or not is_many(count):
            return None
        probes = math.ceil(lists.probes_for(k) * len(self) / count)
        return probes if probes < lists.lists else None

    def _cosines(self, query: Float64s, rows: NDArray[np.int64]) -> Float64s:
        """Return cosines ``[n]``; each row is summed alone in a fixed order, so that equal vectors score equally."""
        cosines = np.empty(len(rows))
        for start in range(0, len(rows), PART):
            vectors = self.codes.pick(rows[start : start + PART]).astype(np.float64)
            cosines[start : start + PART] = (vectors * query).sum(axis=1) / np.sqrt((vectors * vectors).sum(axis=1))
        return np.minimum(np.maximum(cosines, -1.0), 1.0)

    def _mask(self, wanted: Selection, store: Store) -> NDArray[np.bool_]:
        start, end = wanted.start, wanted.end
        masks: list[NDArray[np.bool_]] = []
        if wanted.camera is not None:
            masks.append(self.camera == self.camera_codes.get(wanted.camera, -1))
        if start is not None or end is not None:
            masks.append(self.utc >= (NO_TIME + 1 if start is None else start))
        if end is not None:
            masks.append(self.utc < end)
        if wanted.label is not None or wanted.source is not None:
            mask = np.zeros(len(self), np.bool_)
            mask[np.searchsorted(self.ids, Selection(label=wanted.label, source=wanted.source).ids(store))] = True
            masks.append(mask)
        every: NDArray[np.bool_] = np.logical_and.reduce(masks)
        return every

    def _into_lists(self, ids: NDArray[np.int64], store: Store) -> None:
        """Train centres on some vectors, put all into their lists, and measure the recall with vectors that were not
        used for training.

        The store is read twice, so that each list is allocated at its final length before the first vector goes in:
        growing lists would take half as much memory again.
        """
        count = len(ids)
        lists = 2 ** round(math.log2(math.sqrt(count)))
        order = np.random.default_rng(0).permutation(count)
        own, sample = np.split(order[: 2 * _QUERIES + _SAMPLE * lists], [2 * _QUERIES])
        halves = [np.sort(half) for half in np.split(own, 2)]
        codes = Codes.trained(store.pick(ids[sample].tolist()), lists)
        truth = Truth(
            np.concatenate([store.pick(ids[half].tolist()) for half in halves]), np.concatenate(halves), DEPTHS[-1]
        )
        assigned = []
        for part in store.vectors():
            vectors = part.astype(np.float32)
            assigned.append(codes.places(vectors))
            truth.see(vectors)
        codes.reserve(np.concatenate(assigned))
        for part, places in zip(store.vectors(), assigned, strict=True):
            codes.add(part.astype(np.float32), places)
        codes.measure(truth, TARGET)
        self.codes = codes
