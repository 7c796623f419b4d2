"""The durable store of embeddings that answers "which of my cameras has seen this person, and when?"."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from deploy.bundle import Bundle
from deploy.bundle.bundle import MAX_DIM
from deploy.embeddings import Embeddings
from deploy.gallery.incoming import one_each, unit_vectors
from deploy.gallery.kept_crops import encode_crops, kept_crop
from deploy.gallery.retention import EVERY
from deploy.gallery.upkeep import Upkeep
from deploy.index.files import why_stale
from deploy.match import Match
from deploy.store import Store
from deploy.store.access import bytes_in, is_there, make_parents
from deploy.store.audit import check_audit
from deploy.store.check import check_store
from deploy.store.entry import MAX_SOURCE, Entry
from deploy.store.memory import enough_memory
from deploy.store.selection import Selection
from deploy.store.store import DATABASE, Facts
from deploy.store.summary import spaces, summary
from domains.artefact import sealing
from domains.crops import Crop
from domains.errors import ArtefactError, GalleryError, UsageError
from domains.text import logger
from prototypes.passage import Passage

log = logger("deploy")


class Gallery(Upkeep):
    """One open gallery folder.

    Several processes may have it open; each search sees everything that any of them acknowledged before it.
    Writers wait for each other. Each process opens it for itself: one that is open is not sent to another process, and
    in a process that was forked from this one it raises GalleryError, as SQLite's locks would not hold there.
    """

    @classmethod
    def create(
        cls,
        path: str | PathLike[str],
        dim: int,
        feature_space: str,
        bundle: str | PathLike[str] | Bundle | None = None,
        *,
        keep_crops: bool = False,
    ) -> Gallery:
        """Create an empty gallery; its folder appears complete or not at all.

        Args:
            path: a folder that does not exist yet.
            dim: length of its vectors.
            feature_space: name of their space; ``encoder.feature_space``.
            bundle: the bundle that produces its vectors, or its folder, used by default for queries. From a bundle the
                gallery keeps the metric, so that it can be carried into another of the same network.
            keep_crops: keep a small picture of each crop given to :meth:`add`. Off by default: a gallery need not hold
                pictures of people.

        Raises:
            GalleryError: the folder exists, or an invalid dim or name.
        """
        folder = Path(path)
        if not isinstance(dim, int) or isinstance(dim, bool) or not 1 <= dim <= MAX_DIM:
            raise GalleryError(f"dim must be a whole number from 1 to {MAX_DIM}, got {dim!r}")
        if not isinstance(feature_space, str) or not 1 <= len(feature_space) <= 128 or not feature_space.isprintable():
            raise GalleryError(f"feature_space must be a name of 1 to 128 characters, got {feature_space!r:.150}")
        made_by = bundle if isinstance(bundle, Bundle) else None
        place = bundle.folder if isinstance(bundle, Bundle) else bundle
        recorded = None if place is None else str(Path(place).absolute())
        if recorded is not None and len(recorded) > MAX_SOURCE:
            raise GalleryError(f"the bundle's path is longer than {MAX_SOURCE} characters")
        try:
            make_parents(folder)
            with sealing(folder) as temporary:
                way = None if made_by is None else Passage(made_by.network, into=made_by.metric()).to_bytes()
                Store.create(temporary / DATABASE, Facts(dim, feature_space, recorded), keep_crops, way)
        except ArtefactError as error:
            raise GalleryError(f"can't create a gallery: {error}") from error
        except OSError as error:
            raise GalleryError(f"can't create a gallery at {folder}: {error.strerror or error}") from error
        return cls.open(folder)

    @classmethod
    def open(cls, path: str | PathLike[str], *, read_only: bool = False) -> Gallery:
        """Open an existing gallery; an interrupted erasure is finished first, and the log is checked for damage.

        Args:
            path: its folder.
            read_only: change nothing in it. A gallery that can't be written is opened so in any case: it answers
                queries, :meth:`info` and :meth:`verify`; whatever would change it raises GalleryError.

        Raises:
            GalleryError: it is not a gallery or is damaged; :meth:`repair` tells whether it can be repaired.
        """
        folder = Path(path)
        if not is_there(folder / DATABASE):
            raise GalleryError(f"{folder} is not a gallery: it has no {DATABASE}; create one with reid gallery add")
        gallery = cls(folder, Store(folder / DATABASE, read_only=read_only))
        try:
            gallery._clear_away()
            if gallery._store.unwiped():
                gallery._wipe_or_warn()
            gallery._retain_or_warn()
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
    def generation(self) -> int:
        """Number of changes so far, by any process."""
        return self._store.state().generation

    @property
    def bundle(self) -> Path:
        """The bundle that it was created with; raises GalleryError if none was recorded."""
        if self._store.facts.bundle is None:
            raise GalleryError(f"{self.path} has no bundle recorded; name one (--bundle)")
        return Path(self._store.facts.bundle)

    def __len__(self) -> int:
        """Return the number of entries."""
        return self._store.count()

    def ids(self) -> list[int]:
        """Ids of all entries, ascending."""
        ids: list[int] = self._store.ids().tolist()
        return ids

    def add(
        self,
        vectors: ArrayLike,
        camera: str | Sequence[str],
        source: str | Sequence[str],
        time: str | Sequence[str | None] | None = None,
        label: str | Sequence[str | None] | None = None,
        *,
        crops: Sequence[Crop] | None = None,
    ) -> list[int]:
        """Store vectors with their origins, all or none.

        Args:
            vectors: ``[N, D]`` (or one, ``[D]``) of unit length, kept as fp16. ``Embeddings`` must be of this gallery's
                space; other arrays are trusted to be.
            camera: one name for all, or one per vector.
            source: where each crop came from, one per vector; if it is a path, pictures of matches are read from it.
            time: ISO 8601 with zone, one for all or one per vector, ``None`` where unknown.
            label: name of the person, one for all or one per vector, ``None`` where unknown.
            crops: uint8 RGB ``[H, W, 3]``, one per vector, of which a small JPEG is kept; only for a gallery
                created with ``keep_crops``.

        Returns:
            One id per vector, once all are on disk.

        Raises:
            GalleryError: vectors of another space, dimension or length, or not finite; a count that does not match; an
                invalid text or time.

        Example:
            >>> from deploy import Encoder, Gallery
            >>> from domains.crops import read_crop
            >>> encoder = Encoder.load("bundle", provider="cpu")
            >>> files = ["sites/north/crops/0008_c1_0.jpg", "sites/north/crops/0009_c1_0.jpg"]
            >>> with Gallery.create("gallery", encoder.dim, encoder.feature_space) as gallery:
            ...     gallery.add(encoder([read_crop(file) for file in files]), camera="yard", source=files)
            [1, 2]
        """
        return [
            number
            for number in self._add(vectors, camera, source, time, label, crops, once=False)
            if number is not None
        ]

    def add_new(
        self,
        vectors: ArrayLike,
        camera: str | Sequence[str],
        source: str | Sequence[str],
        time: str | Sequence[str | None] | None = None,
        label: str | Sequence[str | None] | None = None,
        *,
        crops: Sequence[Crop] | None = None,
    ) -> list[int | None]:
        """Like :meth:`add`, but skip a crop whose source, camera and time match an entry or an earlier crop of the
        call; its id is None.

        Check and addition are one transaction, so that a request may safely be repeated.
        """
        return self._add(vectors, camera, source, time, label, crops, once=True)

    @enough_memory("these vectors can't be added")
    def _add(
        self,
        vectors: ArrayLike,
        camera: str | Sequence[str],
        source: str | Sequence[str],
        time: str | Sequence[str | None] | None,
        label: str | Sequence[str | None] | None,
        crops: Sequence[Crop] | None,
        *,
        once: bool,
    ) -> list[int | None]:
        self._store.check_writable()
        unit = unit_vectors(vectors, "vector", self._store.facts)
        count = len(unit)
        cameras, times, labels = (
            one_each(name, value, count) for name, value in (("camera", camera), ("time", time), ("label", label))
        )
        if isinstance(source, str) and count != 1:
            raise GalleryError(f"source must be a list with one text per vector: {count} vectors, got one text")
        sources = one_each("source", source, count)
        entries = [Entry(*texts) for texts in zip(cameras, sources, times, labels, strict=True)]
        pictures = () if crops is None else encode_crops(self._store, crops, count)
        space = vectors.feature_space if isinstance(vectors, Embeddings) else None
        self._retain_in_time()
        return self._store.append(unit.astype(np.float16), entries, space, pictures, once=once)

    @enough_memory("this can't be searched for")
    def search(
        self,
        vectors: ArrayLike,
        k: int = 10,
        camera: str | None = None,
        after: str | None = None,
        before: str | None = None,
        label: str | None = None,
        source: str | None = None,
        *,
        exact: bool = False,
    ) -> list[list[Match]]:
        """Find the most similar entries by cosine of the stored vectors, ties by id.

        With fewer than 50,000 candidates (entries that the filters allow), every one is scored. With more, only those
        in the most promising lists are: :meth:`info` gives the measured share of the 10 nearest found this way. Scores
        are always exact.

        Args:
            vectors: queries ``[Q, D]`` (or one, ``[D]``), as for :meth:`add`.
            k: number of matches per query; fewer if fewer entries are allowed.
            camera: only this camera's entries.
            after: only from this time on (ISO 8601 with zone); entries without a time are left out.
            before: only before this time; likewise.
            label: only entries of this label.
            source: only entries whose source has this prefix.
            exact: score every candidate, however many there are.

        Raises:
            GalleryError: as for :meth:`add`; ``k`` below 1; ``after`` not before ``before``.
            DeviceError: FAISS is not installed.

        Example:
            >>> from deploy import Encoder, Gallery
            >>> from domains.crops import read_crop
            >>> encoder = Encoder.load("bundle", provider="cpu")
            >>> query = encoder([read_crop("sites/north/crops/0009_c1_0.jpg")])
            >>> with Gallery.open("gallery") as gallery:
            ...     (matches,) = gallery.search(query, k=1, camera="yard")
            >>> matches[0].id, matches[0].camera, round(matches[0].score, 2)
            (2, 'yard', 1.0)
        """
        if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
            raise GalleryError(f"k must be a whole number of at least 1, got {k!r}")
        wanted = Selection(camera, after, before, label, source)
        self._retain_in_time()
        with self._store.reading():
            state, facts = self._store.present()
            unit = unit_vectors(vectors, "query", facts)
            results = self._keeper.search(unit, int(k), wanted, state, exact=exact)
            origins = self._store.entries(sorted({number for ids, _ in results for number in ids.tolist()}), facts)
        return [_matches(ids.tolist(), scores.tolist(), origins) for ids, scores in results]

    def select(
        self,
        camera: str | None = None,
        after: str | None = None,
        before: str | None = None,
        label: str | None = None,
        source: str | None = None,
    ) -> list[int]:
        """Return the ids of entries that a search with these filters could return; without filters, all."""
        with self._store.reading():
            return Selection(camera, after, before, label, source).ids(self._store)

    def _retain_in_time(self) -> None:
        if monotonic() - self._retained > EVERY:
            self._retain_or_warn()

    @property
    def keeps_crops(self) -> bool:
        """Whether small pictures of crops are kept."""
        return bool(self._store.ask("SELECT crops FROM gallery")[0][0])

    def crop(self, number: int) -> Crop | None:
        """Return the small picture kept of an entry, uint8 RGB ``[H, W, 3]``, or ``None``; raises GalleryError if it is
        damaged.
        """
        return kept_crop(self._store, number)

    def entries(self, ids: Iterable[int]) -> dict[int, Entry]:
        """Return the origins of entries; raises GalleryError for an id that does not exist."""
        return self._store.entries(list(ids))

    @enough_memory("these vectors can't be read")
    def vectors(self, ids: Iterable[int]) -> tuple[list[int], Embeddings]:
        """Return vectors in the present space, to compare entries with each other (:mod:`deploy.answers.refine`).

        Returns:
            The ids that still exist, ascending, and their unit vectors float32 ``[n, D]``.

        Raises:
            GalleryError: a damaged entry.
        """
        wanted = json.dumps(sorted({int(number) for number in ids}))
        with self._store.reading():
            facts = self._store.facts
            rows = self._store.ask(
                "SELECT e.id, CASE e.space WHEN ? THEN e.vector ELSE c.vector END FROM entry e LEFT JOIN carried c ON "
                "c.space = ? AND c.id = e.id "
                "WHERE e.id IN (SELECT value FROM json_each(?)) ORDER BY e.id",
                (facts.space, facts.space, wanted),
            )
            numbers = [number for number, _ in rows]
            self._store.entries(numbers)  # which verifies every checksum
        stored = np.frombuffer(b"".join(blob for _, blob in rows), np.float16).reshape(-1, facts.dim).astype(np.float32)
        return numbers, Embeddings(stored / np.linalg.norm(stored, axis=1, keepdims=True), facts.feature_space)

    def has(self, entry: Entry) -> bool:
        """Whether an entry with the same source, camera and time exists."""
        return self._store.holds(entry)

    def info(self) -> dict[str, Any]:
        """Describe what the gallery holds, as plain values."""
        facts = self._store.facts
        with self._store.reading():
            state, count, held = self._store.state(), len(self), summary(self._store)
            stale = why_stale(self.path, facts, state, self._store.based_on(), count, check_bytes=False)
        return {
            "entries": count,
            "dim": facts.dim,
            "feature_space": facts.feature_space,
            "bundle": facts.bundle,
            "spaces": spaces(self._store),
            "generation": state.generation,
            "read_only": self.read_only,
            **held,
            "bytes": bytes_in(self.path),
            "index": "ready" if stale is None else f"will be built at the next query ({stale})",
            **self._keeper.describe(),
        }

    def verify(self) -> list[str]:
        """Check every byte that matters, and rebuild the index if it disagrees.

        Returns:
            The findings, one per line.

        Raises:
            GalleryError: the store itself is damaged; the message says where.
        """
        with self._store.reading():
            check_store(self._store)
            entries = f"{DATABASE}: {len(self)} entries, all intact"
            audit = f"audit: {check_audit(self._store)} records, the chain is intact"
            stale = self._keeper.check()
        if stale is None:
            return [entries, "index: agrees with the database", audit, *self._store.notes]
        if self.read_only:
            index = f"index: built for this check and not saved, because {stale} and the gallery can't be written"
            return [entries, index, audit, *self._store.notes]
        self._keeper.drop()
        self.prepare()
        self._save_or_warn()
        return [entries, f"index: rebuilt, because {stale}", audit, *self._store.notes]

    def close(self) -> None:
        """Save the index for the next start and close the files; if it can't be saved, only time is lost."""
        if self._store.is_inherited:  # another process has it open
            return
        try:
            self._save_or_warn()
        finally:
            self._keeper.index = None
            self._store.close()

    def __reduce__(self) -> NoReturn:
        """Refuse to be sent to another process, or to be copied; raises UsageError that says what to do."""
        raise UsageError(
            f"an open gallery belongs to its process and can't be sent to another; send its path, and open it there "
            f"with Gallery.open({str(self.path)!r})"
        )

    def __enter__(self) -> Gallery:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _matches(ids: list[int], scores: list[float], origins: Mapping[int, Entry]) -> list[Match]:
    rows = [(score, number, origins[number]) for number, score in zip(ids, scores, strict=True)]
    return [
        Match(rank, score, number, entry.source, entry.camera, entry.time, entry.label)
        for rank, (score, number, entry) in enumerate(rows, 1)
    ]
