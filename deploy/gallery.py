"""The durable store of embeddings that answers "which of my cameras has seen this person, and when?"."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deploy.bundle import MAX_DIM, Bundle
from deploy.embeddings import Embeddings
from deploy.entry import MAX_SOURCE, Entry, instant
from deploy.index import Index, drop_cache, why_stale
from deploy.match import Match
from deploy.store import Facts, Store
from domains.artefact import sealing
from domains.errors import ArtefactError, GalleryError, UsageError

DATABASE = "gallery.db"
UNIT = 1e-2
"""How far from 1 the length of a vector may be: half precision and int8 graphs stay well inside, vectors that nobody normalised do not."""

log = logging.getLogger("deploy")


class Gallery:
    """One open gallery folder.

    Several processes may have it open; each search sees all that was acknowledged before it, by any of them. A writer waits for another writer.
    """

    def __init__(self, path: Path, store: Store) -> None:
        """Use :meth:`open` or :meth:`create`."""
        self.path = path
        self._store = store
        self._index: Index | None = None

    @classmethod
    def create(cls, path: str | PathLike[str], dim: int, feature_space: str, bundle: str | PathLike[str] | None = None) -> Gallery:
        """Make an empty gallery; the folder appears whole or not at all.

        Args:
            path: a folder that does not exist yet.
            dim: length of its vectors.
            feature_space: name of their space; ``encoder.feature_space``.
            bundle: the bundle folder that its vectors come from, to be used by default for queries.

        Raises:
            GalleryError: the folder exists, or an impossible dim or name.
        """
        folder = Path(path)
        if not isinstance(dim, int) or isinstance(dim, bool) or not 1 <= dim <= MAX_DIM:
            raise GalleryError(f"dim must be a whole number from 1 to {MAX_DIM}, got {dim!r}")
        if not isinstance(feature_space, str) or not 1 <= len(feature_space) <= 128 or not feature_space.isprintable():
            raise GalleryError(f"feature_space must be a name of 1 to 128 characters, got {feature_space!r:.150}")
        recorded = None if bundle is None else str(Path(bundle).absolute())
        if recorded is not None and len(recorded) > MAX_SOURCE:
            raise GalleryError(f"the bundle's path is longer than {MAX_SOURCE} characters")
        try:
            with sealing(folder) as temporary:
                Store.create(temporary / DATABASE, Facts(dim, feature_space, recorded))
        except ArtefactError as error:
            raise GalleryError(f"can't make a gallery: {error}") from error
        except OSError as error:
            raise GalleryError(f"can't make a gallery at {folder}: {error.strerror or error}") from error
        return cls.open(folder)

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Gallery:
        """Open an existing gallery; an erasure that was cut short is finished first. Raises GalleryError if it is no gallery or damaged."""
        folder = Path(path)
        if not (folder / DATABASE).is_file():
            raise GalleryError(f"{folder} is no gallery: it has no {DATABASE}; make one with reid gallery add")
        gallery = cls(folder, Store(folder / DATABASE))
        try:
            if gallery._store.unwiped():
                gallery._wipe()
        except BaseException:
            gallery._store.close()
            raise
        return gallery

    @property
    def dim(self) -> int:
        """Length of its vectors."""
        return self._store.facts.dim

    @property
    def feature_space(self) -> str:
        """Name of the space that its vectors live in."""
        return self._store.facts.feature_space

    @property
    def bundle(self) -> Path:
        """The bundle that it was made with; raises GalleryError if none was recorded."""
        if self._store.facts.bundle is None:
            raise GalleryError(f"{self.path} does not know its bundle; say which one (--bundle)")
        return Path(self._store.facts.bundle)

    def __len__(self) -> int:
        """Return the number of entries."""
        return self._store.count()

    def ids(self) -> list[int]:
        """Ids of all entries, ascending."""
        ids: list[int] = self._store.columns().ids.tolist()
        return ids

    def add(
        self,
        vectors: ArrayLike,
        camera: str | Sequence[str],
        source: str | Sequence[str],
        time: str | Sequence[str | None] | None = None,
        label: str | Sequence[str | None] | None = None,
    ) -> list[int]:
        """Store vectors with their origins, all or none.

        Args:
            vectors: ``[N, D]`` (or one, ``[D]``) of unit length, kept as fp16. ``Embeddings`` must be of this gallery's space; other arrays are
                taken at their word.
            camera: one name for all, or one per vector.
            source: where each crop came from, one per vector; a path is what pictures are drawn from.
            time: ISO 8601 with zone, one for all or one per vector, ``None`` where unknown.
            label: name of the person, one for all or one per vector, ``None`` where unknown.

        Returns:
            One id per vector, once all are on disk.

        Raises:
            GalleryError: vectors of another space, dimension or length, not finite; a count that does not fit; a text or time that can't be kept.
        """
        unit = self._checked(vectors, "vector")
        count = len(unit)
        cameras, times, labels = (_each(name, value, count) for name, value in (("camera", camera), ("time", time), ("label", label)))
        if isinstance(source, str) and count != 1:
            raise GalleryError(f"source must be a list with one text per vector: {count} vectors, got one text")
        sources = _each("source", source, count)
        entries = [Entry(*texts) for texts in zip(cameras, sources, times, labels, strict=True)]
        return self._store.append(unit.astype(np.float16), entries)

    def search(
        self, vectors: ArrayLike, k: int = 10, camera: str | None = None, after: str | None = None, before: str | None = None
    ) -> list[list[Match]]:
        """Find the most similar entries, exactly: by cosine of the stored vectors, ties by id.

        Args:
            vectors: queries ``[Q, D]`` (or one, ``[D]``), as for :meth:`add`.
            k: how many per query; there are fewer if fewer entries are allowed.
            camera: only this camera's entries.
            after: only from this time on (ISO 8601 with zone); entries without a time are left out.
            before: only before this time; the same.

        Raises:
            GalleryError: as for :meth:`add`; ``k`` below 1; ``after`` not before ``before``.
            DeviceError: FAISS is not installed.
        """
        unit = self._checked(vectors, "query")
        if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
            raise GalleryError(f"k must be a whole number from 1, got {k!r}")
        if camera is not None and not isinstance(camera, str):
            raise GalleryError(f"camera must be one name, got {type(camera).__name__}")
        start, end = (None if time is None else instant(time) for time in (after, before))
        if start is not None and end is not None and start >= end:
            raise GalleryError(f"no time is both after {after} and before {before}; swap them")
        with self._store.reading():
            index = self._current_index()
            found = index.search(unit, int(k), index.candidates(camera, start, end))
            origins = self._store.entries(sorted({number for ids, _ in found for number in ids.tolist()}))
        return [_matches(ids.tolist(), scores.tolist(), origins) for ids, scores in found]

    def forget(self, ids: Iterable[int]) -> int:
        """Erase entries: afterwards their bytes are nowhere in the folder, and their ids are never given again.

        The file is rewritten, which takes time in proportion to the gallery: forget many at once rather than one by one. Erased is what the
        folder's files hold; a disk may keep old blocks until it uses them again, and backups are not touched.

        Returns:
            How many entries there were; ids that are not (or no longer) there are passed over.

        Raises:
            GalleryError: something that is no id; or another process kept reading, so that the entries are removed and can't come back but
                their bytes are still in the log: the next ``forget`` or ``open`` finishes it.
        """
        numbers = list(ids)
        for number in numbers:
            if not isinstance(number, (int, np.integer)) or isinstance(number, bool) or not 0 < number < 2**63:
                raise GalleryError(f"an id is a whole number from 1, got {number!r:.80}")
        with self._store.holding():
            removed = self._store.remove(int(number) for number in numbers)
            if removed:
                drop_cache(self.path)
        if self._store.unwiped() and not self._wipe():
            raise GalleryError(
                f"{removed} entries are removed, but another process keeps reading {self.path}, so their bytes are still in its log; try again"
            )
        return removed

    def has(self, entry: Entry) -> bool:
        """Whether there is an entry of the same source, camera and time."""
        return self._store.holds(entry)

    def info(self) -> dict[str, Any]:
        """What the gallery holds, as plain values."""
        facts = self._store.facts
        with self._store.reading():
            state, count, summary = self._store.state(), len(self), self._store.summary()
        stale = why_stale(self.path, facts, state, count, check_bytes=False)
        return {
            "entries": count,
            "dim": facts.dim,
            "feature_space": facts.feature_space,
            "bundle": facts.bundle,
            "generation": state.generation,
            **summary,
            "bytes": sum(file.stat().st_size for file in self.path.iterdir() if file.is_file()),
            "index": "ready" if stale is None else f"will be made at the next query ({stale})",
        }

    def verify(self) -> list[str]:
        """Check every byte that counts, and make the index anew if it disagrees.

        Returns:
            What was found, a line each.

        Raises:
            GalleryError: the store itself is damaged; says where.
        """
        with self._store.reading():
            self._store.check()
            count, state = len(self), self._store.state()
            found = [f"{DATABASE}: {count} entries, all whole"]
            stale = why_stale(self.path, self._store.facts, state, count)
            self._index = None
            index, start = self._current_index(), 0
            for part in self._store.vectors():
                if stale is None and not np.array_equal(part, index.vectors(start, start + len(part))):
                    stale = "its vectors differ"
                start += len(part)
        if stale is None:
            return [*found, "index: agrees with it"]
        with self._store.holding():
            drop_cache(self.path)
        self._index = None
        with self._store.reading():
            self._current_index()
        self._save_index()
        return [*found, f"index: made anew, because {stale}"]

    def close(self) -> None:
        """Keep the index for the next start and close the files; without it nothing is lost but time."""
        try:
            self._save_index()
        except (OSError, RuntimeError, GalleryError) as error:
            log.warning("the index of %s was not kept (%s); it will be made anew", self.path, error)
        finally:
            self._index = None
            self._store.close()

    def __enter__(self) -> Gallery:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def _current_index(self) -> Index:
        """The index of the store's present state; call it in a transaction."""
        state, index = self._store.state(), self._index
        if index is not None and index.state.erasures == state.erasures:
            if index.state != state:
                last = int(index.ids[-1]) if len(index) else 0
                self._index = None  # if the following fails half-way
                index.extend(self._store.columns(last), self._store.vectors(last))
                index.state = state
        else:
            index = Index(self.dim, state)
            columns = self._store.columns()
            cached = index.read(self.path, self._store.facts, len(columns.ids)) is None
            index.extend(columns, None if cached else self._store.vectors())
        self._index = index
        return index

    def _save_index(self) -> None:
        """Write the index unless this very one is there already or the store has moved on."""
        index = self._index
        if index is None or index.kept == index.state:
            return
        with self._store.holding():
            if index.state == self._store.state():
                drop_cache(self.path)
                index.write(self.path, self._store.facts)

    def _wipe(self) -> bool:
        with self._store.holding():
            drop_cache(self.path)
        return self._store.wipe()

    def _checked(self, vectors: ArrayLike, name: str) -> NDArray[np.float64]:
        """Unit vectors float64 ``[N, D]``; everything that FAISS would take without a word is refused here."""
        if isinstance(vectors, Embeddings) and vectors.feature_space != self.feature_space:
            found = f"in space {vectors.feature_space:.12}…" if vectors.feature_space else "of mixed spaces"
            raise GalleryError(
                f"the embeddings are {found}, the gallery's in {self.feature_space:.12}…; use the gallery's bundle, or upgrade the gallery"
            )
        try:
            values = np.atleast_2d(np.asarray(vectors))
        except ValueError as error:
            raise GalleryError(f"vectors must be one array [N, {self.dim}]: {error}") from error
        if values.dtype.kind not in "fiu" or values.ndim != 2 or (values.shape[1] != self.dim and values.size):
            raise GalleryError(f"vectors must be numbers [N, {self.dim}], got {values.dtype} {list(values.shape)}")
        if not values.size:
            return np.empty((0, self.dim))
        exact = values.astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(exact).all(axis=1))
        if bad.size:
            raise GalleryError(f"{name} {bad[0]} has a value that is not finite; was the crop embedded by a damaged model?")
        with np.errstate(over="ignore"):
            lengths = np.sqrt((exact * exact).sum(axis=1))
        bad = np.flatnonzero(np.abs(lengths - 1) > UNIT)
        if bad.size:
            raise GalleryError(f"{name} {bad[0]} has length {lengths[bad[0]]:.4g}, it must be 1; divide it by its length")
        unit: NDArray[np.float64] = exact / lengths[:, None]
        return unit


def open_or_create(path: str | PathLike[str], bundle: str | PathLike[str] | None = None) -> Gallery:
    """Open a gallery, or make a missing one for ``bundle``, which it then remembers.

    Raises:
        UsageError: there is none yet and no bundle was named.
        GalleryError: ``bundle`` gives embeddings of another space than the gallery's.
    """
    made_for = None if bundle is None else Bundle.load(bundle, verify=False)
    if not (Path(path) / DATABASE).exists():
        if made_for is None or bundle is None:
            raise UsageError(f"there is no gallery at {path}; name the bundle to make it for (--bundle)")
        return Gallery.create(path, made_for.dim, made_for.feature_space, bundle)
    gallery = Gallery.open(path)
    if made_for is not None and made_for.feature_space != gallery.feature_space:
        gallery.close()
        raise GalleryError(f"{path} was made with another model than {bundle}; use its own bundle, or upgrade the gallery")
    return gallery


def _matches(ids: list[int], scores: list[float], origins: Mapping[int, Entry]) -> list[Match]:
    rows = ((rank, score, number, origins[number]) for rank, (number, score) in enumerate(zip(ids, scores, strict=True), 1))
    return [Match(rank, score, number, entry.source, entry.camera, entry.time, entry.label) for rank, score, number, entry in rows]


def _each(name: str, value: Any, count: int) -> list[Any]:
    """One value per vector."""
    if value is None or isinstance(value, str):
        return [value] * count
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise GalleryError(f"{name} must be text or a list of texts, got {type(value).__name__}")
    values = list(value)
    if len(values) != count:
        raise GalleryError(f"{name} must have one value per vector: {count} vectors, got {len(values)}")
    return values
