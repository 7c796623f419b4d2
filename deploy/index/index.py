"""The fast half of a gallery: every vector in memory for FAISS, with what filters need of each entry.

Under 50,000 candidates a search is exact. Beyond, the vectors lie in lists, of which so many are looked at that a
stated recall is reached; it is measured against exact search whenever the lists are made. A filter raises the number of
lists in proportion to what it leaves out, and under 50,000 allowed entries all lists are looked at, so that the answer
is exact again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.index.codes import PART, Codes, Truth
from deploy.store import Store
from deploy.store.selection import Selection
from deploy.store.store import NO_TIME, Columns, State
from domains.arrays import Float64s

EXACT_BELOW = 50_000
"""With fewer candidates than this every one of them is looked at."""

TARGET = 0.985
"""Recall of the 10 nearest that the number of probes is chosen for: a little more than the 0.98 that is to be found
with other queries.
"""

GROWTH = 4
"""When so many times as many entries are there as the centres were trained with, they are trained again."""

SPARE = 16
"""How many more candidates than asked for are fetched at first, so that near ties are mostly settled in one go."""

_SAMPLE = 64
"""Vectors per list that the centres are trained with; k-means needs some 40."""

_QUERIES = 256
"""Stored vectors that the number of probes is chosen with, and as many others that the recall is reported for."""

_MASKS = 16

Answer = tuple[NDArray[np.int64], Float64s]


def is_many(count: int) -> bool:
    """Whether so many candidates are too many to look at each of them."""
    return count >= EXACT_BELOW


class Allowed(NamedTuple):
    """Which entries a search may return: one bit per row, lowest first (``None``: all), and how many they are."""

    bits: NDArray[np.uint8] | None
    size: int


class Index:
    """Cosine search over fp16 vectors, with filters.

    FAISS scans the fp16 codes and proposes candidates; they are ranked by their cosine in float64. More are fetched
    until no vector left out of the lists looked at could be among the best ``k``, so that the order is exact and ties
    are in the order of ids.
    """

    def __init__(self, dim: int, state: State) -> None:
        """Start empty, as the index of ``state``; raises DeviceError if FAISS is not installed."""
        self.state = state
        self.kept: State | None = None
        """The state that the cache files hold as far as this index knows, for it read or wrote them."""
        self.kept_count = 0
        self.ids = np.empty(0, np.int64)
        self.utc = np.empty(0, np.int64)
        self.camera = np.empty(0, np.int32)
        self.camera_codes: dict[str, int] = {}
        self.codes = Codes(dim)
        self._allowed: dict[Selection, Allowed] = {}
        # Stored vectors had unit length before they were rounded to fp16: relative error 2^-11, 2^-25 for each
        # subnormal. FAISS adds up in float32.
        self._slack = 2.0 * (2**-11 + math.sqrt(dim) * 2**-25 + dim * 2**-24)

    def __len__(self) -> int:
        """Return the number of vectors."""
        return len(self.ids)

    @property
    def outgrown(self) -> bool:
        """Whether there are now so many entries that the vectors should be put into lists, or into new ones."""
        lists = self.codes.lists
        return is_many(len(self)) if lists is None else len(self) >= GROWTH * max(lists.trained, 1)

    def build(self, store: Store) -> None:
        """Take everything from the store; the index is empty before. Lists are trained where there are enough
        entries.
        """
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
        used, places = np.unique(
            self.camera, return_inverse=True
        )  # the name of a camera that has no entry any more goes, too
        names = {code: name for name, code in self.camera_codes.items()}
        self.camera, self.camera_codes = (
            places.astype(np.int32),
            {names[int(code)]: place for place, code in enumerate(used)},
        )

    def allowed(self, wanted: Selection, store: Store) -> Allowed:
        """Entries that a search may return; cameras and times are in memory, the rest is asked of the store. The last
        few filters are remembered.
        """
        if wanted.is_all:
            return Allowed(None, len(self))
        if wanted not in self._allowed:
            mask = self._mask(wanted, store)
            while len(self._allowed) >= _MASKS:
                del self._allowed[next(iter(self._allowed))]
            self._allowed[wanted] = Allowed(np.packbits(mask, bitorder="little"), int(np.count_nonzero(mask)))
        return self._allowed[wanted]

    def search(self, queries: Float64s, k: int, allowed: Allowed, *, exact: bool = False) -> list[Answer]:
        """Ids and cosines of the best ``k`` entries for each query ``[Q, D]`` of unit length; fewer where fewer are
        allowed.

        Args:
            queries: unit vectors.
            k: how many.
            allowed: which entries.
            exact: look at every allowed entry, however many there are.
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
            found = self.codes.search(singles[missing], fetch, probes, allowed.bits)
            short = False
            for place, query in enumerate(missing.tolist()):
                rows = found.rows[place]
                full = bool(rows[-1] >= 0)
                rows = rows if full else rows[rows >= 0]
                if len(rows) < k and probes is not None:
                    short = True
                    continue
                cosines = self._cosines(queries[query], rows)
                order = np.lexsort((rows, -cosines))[:k]
                if not full or fetch == allowed.size or cosines[order[-1]] > found.scores[place, -1] + self._slack:
                    answers[query] = self.ids[rows[order]], cosines[order]
            missing = np.array([query for query in missing.tolist() if answers[query] is None], np.intp)
            if short and probes is not None:  # a filter left too few in the lists looked at
                probes = probes * 4 if probes * 4 < self.codes.index.nlist else None
            else:
                fetch = min(allowed.size, 4 * fetch)
        return [answer for answer in answers if answer is not None]

    def _probes(self, k: int, count: int, *, exact: bool) -> int | None:
        """How many lists to look at, or ``None`` for all: in proportion to ``k`` and to what the filter leaves out."""
        lists = self.codes.lists
        if lists is None or exact or not is_many(count):
            return None
        probes = math.ceil(lists.probes * max(1.0, k / 10) * len(self) / count)
        return probes if probes < lists.lists else None

    def _cosines(self, query: Float64s, rows: NDArray[np.int64]) -> Float64s:
        """Cosines ``[n]``; each row is added up alone and in one order, so that equal vectors have equal scores."""
        found = np.empty(len(rows))
        for start in range(0, len(rows), PART):
            vectors = self.codes.pick(rows[start : start + PART]).astype(np.float64)
            found[start : start + PART] = (vectors * query).sum(axis=1) / np.sqrt((vectors * vectors).sum(axis=1))
        return np.minimum(np.maximum(found, -1.0), 1.0)

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
        trained on.

        The store is read twice, so that lists are as long as they will be before the first vector goes in: lists that
        grow take half as much again.
        """
        count = len(ids)
        lists = 2 ** round(math.log2(math.sqrt(count)))
        order = np.random.default_rng(0).permutation(count)
        own, sample = np.split(order[: 2 * _QUERIES + _SAMPLE * lists], [2 * _QUERIES])
        halves = [np.sort(half) for half in np.split(own, 2)]
        codes = Codes.trained(store.pick(ids[sample].tolist()), lists)
        truth = Truth(np.concatenate([store.pick(ids[half].tolist()) for half in halves]), np.concatenate(halves), 10)
        places = []
        for part in store.vectors():
            vectors = part.astype(np.float32)
            places.append(codes.places(vectors))
            truth.see(vectors)
        codes.reserve(np.concatenate(places))
        for part, where in zip(store.vectors(), places, strict=True):
            codes.add(part.astype(np.float32), where)
        codes.measure(truth, TARGET)
        self.codes = codes
