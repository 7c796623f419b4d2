"""The fast half of a gallery: every vector in memory for FAISS, and a file that spares reading them from SQLite again.

The file is a cache. It is used only if its sha256, the state's token, the number of vectors and the feature space all agree with the store; in any
other case it is thrown away and made anew.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.selection import Selection
from deploy.store import Columns, Facts, State, Store
from domains.artefact import fsync_folder, read_json, sha256_file, write_json
from domains.errors import ArtefactError, DeviceError

VECTORS = "index.faiss"
HEADER = "index.json"
SCHEMA = 1
NO_TIME = np.iinfo(np.int64).min
SPARE = 16
"""How many more candidates than asked for are fetched at first, so that near ties are mostly settled in one go."""


class Index:
    """Exact cosine search over fp16 vectors, with filters.

    FAISS scans the fp16 codes and proposes candidates; they are ranked by their cosine in float64. More are fetched until no vector left out could be
    among the best ``k``, so that the order is exact and ties are in the order of ids.
    """

    def __init__(self, dim: int, state: State) -> None:
        """Start empty, as the index of ``state``; raises DeviceError if FAISS is not installed."""
        self.state = state
        self.kept: State | None = None
        """The state that the cache files hold as far as this index knows, for it read or wrote them."""
        self.ids = np.empty(0, np.int64)
        self._utc = np.empty(0, np.int64)
        self._camera = np.empty(0, np.int32)
        self._camera_codes: dict[str, int] = {}
        self._dim = dim
        self._faiss = load_faiss()
        self._codes: Any = self._faiss.IndexScalarQuantizer(dim, self._faiss.ScalarQuantizer.QT_fp16, self._faiss.METRIC_INNER_PRODUCT)
        # Stored vectors had unit length before they were rounded to fp16: relative error 2^-11, 2^-25 for each subnormal. FAISS adds up in float32.
        self._slack = 2.0 * (2**-11 + math.sqrt(dim) * 2**-25 + dim * 2**-24)

    def __len__(self) -> int:
        """Return the number of vectors."""
        return len(self.ids)

    def extend(self, columns: Columns, vectors: Iterable[NDArray[np.float16]] | None) -> None:
        """Append entries; ``vectors`` ``[n, D]`` come in parts, or are ``None`` if :meth:`read` took them from the cache."""
        self.ids = np.concatenate([self.ids, columns.ids])
        self._utc = np.concatenate([self._utc, np.array([NO_TIME if utc is None else utc for utc in columns.utc], np.int64)])
        codes = [self._camera_codes.setdefault(camera, len(self._camera_codes)) for camera in columns.cameras]
        self._camera = np.concatenate([self._camera, np.array(codes, np.int32)])
        for part in vectors or ():
            self._codes.add(part.astype(np.float32))

    def candidates(self, wanted: Selection, store: Store) -> NDArray[np.bool_] | None:
        """Mask of the entries that a search may return, or ``None`` for all; cameras and times are in memory, the rest is asked of the store."""
        if wanted.is_all:
            return None
        start, end = wanted.start, wanted.end
        mask = np.ones(len(self), np.bool_)
        if wanted.camera is not None:
            mask &= self._camera == self._camera_codes.get(wanted.camera, -1)
        if start is not None or end is not None:
            mask &= self._utc != NO_TIME
        if start is not None:
            mask &= self._utc >= start
        if end is not None:
            mask &= self._utc < end
        if wanted.label is not None or wanted.source is not None:
            mask &= np.isin(self.ids, Selection(label=wanted.label, source=wanted.source).ids(store), assume_unique=True)
        return mask

    def search(self, queries: NDArray[np.float64], k: int, mask: NDArray[np.bool_] | None) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Ids and cosines of the best ``k`` entries for each query ``[Q, D]`` of unit length; fewer where fewer are allowed."""
        allowed = len(self) if mask is None else int(mask.sum())
        if not allowed or not len(queries):
            return [(np.empty(0, np.int64), np.empty(0))] * len(queries)
        parameters = None
        if mask is not None:
            parameters = self._faiss.SearchParameters(sel=self._faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little")))
        k = min(k, allowed)
        answers: dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        open_queries = np.arange(len(queries))
        fetch = min(allowed, k + SPARE)
        while open_queries.size:
            rough, positions = self._codes.search(queries[open_queries].astype(np.float32), fetch, params=parameters)
            for query, floor, places in zip(open_queries, rough[:, -1], positions, strict=True):
                cosines = self._cosines(queries[query], places)
                order = np.lexsort((places, -cosines))[:k]
                if fetch == allowed or cosines[order[-1]] > floor + self._slack:
                    answers[int(query)] = self.ids[places[order]], cosines[order]
            open_queries = np.array([query for query in open_queries if int(query) not in answers], np.intp)
            fetch = min(allowed, 4 * fetch)
        return [answers[query] for query in range(len(queries))]

    def vectors(self, start: int, stop: int) -> NDArray[np.float16]:
        """Vectors at positions ``start`` to ``stop``, as stored."""
        out: NDArray[np.float32] = self._codes.reconstruct_n(start, stop - start)
        return out.astype(np.float16)

    def write(self, folder: Path, facts: Facts) -> None:
        """Write the cache files; the caller holds the store, so that nobody else writes them or forgets an entry meanwhile.

        Raises:
            OSError, RuntimeError: the disk is full or failed; FAISS itself may fail silently, so the size is checked.
        """
        temporary = folder / f".{VECTORS}.{secrets.token_hex(4)}.tmp"
        try:
            self._faiss.write_index(self._codes, str(temporary))
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            if temporary.stat().st_size < 2 * self._dim * len(self):
                raise OSError(f"FAISS wrote only a part of {VECTORS}")
            digest = sha256_file(temporary)
            (folder / HEADER).unlink(missing_ok=True)
            temporary.replace(folder / VECTORS)
        finally:
            temporary.unlink(missing_ok=True)
        write_json(folder / HEADER, {**_header(facts, self.state, len(self)), "sha256": digest})
        self.kept = self.state

    def read(self, folder: Path, facts: Facts, count: int) -> str | None:
        """Take the vectors from the cache of this index's state; returns why not, or ``None`` if it did."""
        reason = why_stale(folder, facts, self.state, count)
        if reason is not None:
            return reason
        try:
            codes = self._faiss.read_index(str(folder / VECTORS))
        except RuntimeError as error:
            return f"FAISS can't read it: {str(error).splitlines()[0]:.100}"
        if type(codes) is not type(self._codes) or (codes.d, codes.ntotal, codes.metric_type) != (facts.dim, count, self._codes.metric_type):
            return "it is of another kind"
        self._codes, self.kept = codes, self.state
        return None

    def _cosines(self, query: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Cosines ``[n]``; each row is added up alone and in one order, so that equal vectors have equal scores."""
        rows: NDArray[np.float64] = self._codes.reconstruct_batch(places).astype(np.float64)
        cosines: NDArray[np.float64] = (rows * query).sum(axis=1) / np.sqrt((rows * rows).sum(axis=1))
        return np.clip(cosines, -1.0, 1.0)


def why_stale(folder: Path, facts: Facts, state: State, count: int, *, check_bytes: bool = True) -> str | None:
    """Why the cache does not belong to this state, or ``None`` if it does."""
    if not (folder / HEADER).is_file() or not (folder / VECTORS).is_file():
        return "there is none"
    try:
        header = read_json(folder / HEADER)
        digest = header.pop("sha256", None) if isinstance(header, dict) else None
        if header != _header(facts, state, count):
            return "it belongs to another state"
        if check_bytes and digest != sha256_file(folder / VECTORS):
            return "its bytes were changed"
    except ArtefactError as error:
        return str(error)
    return None


def drop_cache(folder: Path) -> None:
    """Remove the cache and whatever a killed process left of one, header first; the caller holds the store."""
    for file in (folder / HEADER, folder / VECTORS, *folder.glob(".index.*.tmp")):
        file.unlink(missing_ok=True)
    fsync_folder(folder)


def load_faiss() -> Any:
    """Import FAISS where it is needed, for most of the edge package works without; raises DeviceError if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise DeviceError("FAISS is not installed: pip install 'lifelong-reid[cpu]', or [gpu]") from error
    return faiss


def _header(facts: Facts, state: State, count: int) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "generation": state.generation,
        "token": state.token,
        "count": count,
        "dim": facts.dim,
        "feature_space": facts.feature_space,
    }
