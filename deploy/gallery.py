"""The durable store of embeddings that answers "which of my cameras has seen this person, and when?"."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from deploy.audit import check_audit, read_audit, write_audit
from deploy.bundle import MAX_DIM, Bundle
from deploy.embeddings import Embeddings
from deploy.entry import MAX_SOURCE, Entry
from deploy.incoming import one_each, unit_vectors
from deploy.index import Index, drop_cache, why_stale
from deploy.match import Match
from deploy.retention import EVERY, expired, older_than, rules, set_rule
from deploy.selection import Selection
from deploy.store import Facts, Store
from deploy.upgrade import Plan, Tick, carry, drop_old, go_back, plan_upgrade
from domains.artefact import sealing
from domains.errors import ArtefactError, GalleryError, UsageError

DATABASE = "gallery.db"

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
        self._looked = monotonic()

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
            gallery._retain()
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
        unit = unit_vectors(vectors, "vector", self._store.facts)
        count = len(unit)
        cameras, times, labels = (one_each(name, value, count) for name, value in (("camera", camera), ("time", time), ("label", label)))
        if isinstance(source, str) and count != 1:
            raise GalleryError(f"source must be a list with one text per vector: {count} vectors, got one text")
        sources = one_each("source", source, count)
        entries = [Entry(*texts) for texts in zip(cameras, sources, times, labels, strict=True)]
        space = vectors.feature_space if isinstance(vectors, Embeddings) else None
        if monotonic() - self._looked > EVERY:
            self._retain()
        return self._store.append(unit.astype(np.float16), entries, space)

    def search(
        self, vectors: ArrayLike, k: int = 10, camera: str | None = None, after: str | None = None, before: str | None = None,
        label: str | None = None, source: str | None = None,
    ) -> list[list[Match]]:  # fmt: skip
        """Find the most similar entries, exactly: by cosine of the stored vectors, ties by id.

        Args:
            vectors: queries ``[Q, D]`` (or one, ``[D]``), as for :meth:`add`.
            k: how many per query; there are fewer if fewer entries are allowed.
            camera: only this camera's entries.
            after: only from this time on (ISO 8601 with zone); entries without a time are left out.
            before: only before this time; the same.
            label: only entries of this label.
            source: only entries whose source begins so.

        Raises:
            GalleryError: as for :meth:`add`; ``k`` below 1; ``after`` not before ``before``.
            DeviceError: FAISS is not installed.
        """
        if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
            raise GalleryError(f"k must be a whole number from 1, got {k!r}")
        wanted = Selection(camera, after, before, label, source)
        if monotonic() - self._looked > EVERY:
            self._retain()
        with self._store.reading():
            unit = unit_vectors(vectors, "query", self._store.facts)
            index = self._current_index()
            found = index.search(unit, int(k), index.candidates(wanted, self._store))
            origins = self._store.entries(sorted({number for ids, _ in found for number in ids.tolist()}))
        return [_matches(ids.tolist(), scores.tolist(), origins) for ids, scores in found]

    def select(
        self, camera: str | None = None, after: str | None = None, before: str | None = None, label: str | None = None, source: str | None = None
    ) -> list[int]:
        """Ids of the entries that a search with these filters could return; without any filter, of all."""
        with self._store.reading():
            return Selection(camera, after, before, label, source).ids(self._store)

    def forget(self, ids: Iterable[int], *, reason: str = "ids") -> int:
        """Erase entries: afterwards their bytes are nowhere in the folder, and their ids are never given again.

        The file is rewritten, which takes time in proportion to the gallery: forget many at once rather than one by one. Erased is what the
        folder's files hold; a disk may keep old blocks until it uses them again, and backups are not touched.

        Args:
            ids: of the entries.
            reason: what made the choice, for the audit: a word like ``label`` or ``age``, nothing about the person.

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
                write_audit(self._store, "forget", entries=removed, by=reason)
                drop_cache(self.path)
        if self._store.unwiped() and not self._wipe():
            raise GalleryError(
                f"{removed} entries are removed, but another process keeps reading {self.path}, so their bytes are still in its log; try again"
            )
        return removed

    def upgrade(self, bundle: str | PathLike[str], via: Sequence[str | PathLike[str]] = (), *, tick: Tick | None = None) -> int:
        """Carry all entries into a bundle's feature space, while searches go on; see :mod:`deploy.upgrade`.

        Args:
            bundle: the new bundle.
            via: bundles of the models between, where the new one's transport does not begin at the present space.
            tick: told how many entries were carried, now and then.

        Returns:
            How many were carried.

        Raises:
            GalleryError: no transport leads there; nothing is changed.
        """
        carried = carry(self._store, self.plan_upgrade(bundle, via), tick=tick)
        self._drop_cache()
        return carried

    def plan_upgrade(self, bundle: str | PathLike[str], via: Sequence[str | PathLike[str]] = ()) -> Plan:
        """What :meth:`upgrade` would do."""
        return plan_upgrade(self._store, [Bundle.load(path) for path in (*via, bundle)])

    def go_back(self, *, tick: Tick | None = None) -> int:
        """Return to the space and the bundle before the last upgrade; raises GalleryError if the old copy was dropped."""
        carried = go_back(self._store, tick=tick)
        self._drop_cache()
        return carried

    def drop_old(self, *, tick: Tick | None = None) -> int:
        """Keep the present space's vectors alone; going back is possible no more. The bytes of the others are gone from the folder."""
        dropped = drop_old(self._store, tick=tick)
        self._wipe()
        return dropped

    def keep(self, days: int | None, camera: str | None = None) -> None:
        """Set how long entries are kept, of one camera or of all without a rule of their own; None: for ever. Older ones are erased at once."""
        set_rule(self._store, days, camera)
        self._retain()

    def retention(self) -> dict[str, int]:
        """Days that entries are kept, by camera; the empty name stands for every other camera."""
        return rules(self._store)

    def older_than(self, days: int) -> list[int]:
        """Ids of entries that are more than so many days old; one without a time is as old as its stay in the gallery."""
        return older_than(self._store, days)

    def _retain(self) -> None:
        self._looked = monotonic()
        if rules(self._store) and (numbers := expired(self._store)):
            self.forget(numbers, reason="retention")

    def backup(self, path: str | PathLike[str]) -> int:
        """Copy the gallery into a new folder while it is used, and check the copy; returns its entries. A backup is a gallery.

        Raises:
            GalleryError: the folder exists, or the copy is not whole.
        """
        folder = Path(path)
        try:
            with sealing(folder) as temporary:
                self._store.copy(temporary / DATABASE)
                copy = Store(temporary / DATABASE)
                try:
                    copy.check()
                    count = copy.count()
                finally:
                    copy.close()
        except ArtefactError as error:
            raise GalleryError(f"can't make a backup: {error}") from error
        with self._store.holding():
            row = (str(folder.absolute()), datetime.now(UTC).isoformat(timespec="seconds"))
            self._store.change("INSERT OR REPLACE INTO backup VALUES (?, ?)", [row])
            write_audit(self._store, "backup", entries=count)
        return count

    def backups(self) -> list[str]:
        """Folders of the backups that were made and are there still: erasures do not reach them."""
        return [path for (path,) in self._store.ask("SELECT path FROM backup ORDER BY time") if (Path(path) / DATABASE).is_file()]

    def audit(self) -> list[dict[str, Any]]:
        """What was done to the gallery, oldest first; raises GalleryError if a record was changed."""
        return read_audit(self._store)

    def entries(self, ids: Iterable[int]) -> dict[int, Entry]:
        """Origins of entries; raises GalleryError for an id that is not there."""
        return self._store.entries(list(ids))

    def vectors(self, ids: Iterable[int]) -> tuple[list[int], Embeddings]:
        """Stored vectors in the present space, for comparing entries with each other (:mod:`deploy.refine`).

        Returns:
            Those of the ids that are still there, ascending, and their unit vectors float32 ``[n, D]``.

        Raises:
            GalleryError: a damaged entry.
        """
        wanted = json.dumps(sorted({int(number) for number in ids}))
        with self._store.reading():
            facts = self._store.facts
            rows = self._store.ask(
                "SELECT e.id, CASE e.space WHEN ? THEN e.vector ELSE c.vector END FROM entry e LEFT JOIN carried c ON c.space = ? AND c.id = e.id "
                "WHERE e.id IN (SELECT value FROM json_each(?)) ORDER BY e.id",
                (facts.space, facts.space, wanted),
            )
            numbers = [number for number, _ in rows]
            self._store.entries(numbers)  # which compares every byte with its checksum
        stored = np.frombuffer(b"".join(blob for _, blob in rows), np.float16).reshape(-1, facts.dim).astype(np.float32)
        return numbers, Embeddings(stored / np.linalg.norm(stored, axis=1, keepdims=True), facts.feature_space)

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
            "spaces": self._store.spaces(),
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
            audit = f"audit: {check_audit(self._store)} records, the chain holds"
            stale = why_stale(self.path, self._store.facts, state, count)
            self._index = None
            index, start = self._current_index(), 0
            for part in self._store.vectors():
                if stale is None and not np.array_equal(part, index.vectors(start, start + len(part))):
                    stale = "its vectors differ"
                start += len(part)
        if stale is None:
            return [*found, "index: agrees with it", audit]
        with self._store.holding():
            drop_cache(self.path)
        self._index = None
        with self._store.reading():
            self._current_index()
        self._save_index()
        return [*found, f"index: made anew, because {stale}", audit]

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
        self._drop_cache()
        return self._store.wipe()

    def _drop_cache(self) -> None:
        with self._store.holding():
            drop_cache(self.path)


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
