"""Keeps a gallery's index and its files on disk in step with the store, whichever process changes it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from deploy.index.codes import FaissError, naming_faiss
from deploy.index.files import abandoned, describe, drop_cache, load, save, why_stale
from deploy.index.index import Answer, Index, is_many
from deploy.store import Store
from deploy.store.selection import Selection
from deploy.store.store import State
from domains.arrays import Float64s
from domains.errors import first_line
from domains.text import logger

log = logger("deploy")


class Keeper:
    """The index of one open gallery, built on first use."""

    def __init__(self, folder: Path, store: Store) -> None:
        """Start without an index."""
        self.folder = folder
        self.store = store
        self.index: Index | None = None

    @naming_faiss("the index can't be built")
    def current(self, state: State | None = None) -> Index:
        """Return the index of the store's current state; call it in a transaction.

        New entries are appended and removed ones dropped. The index is loaded from the files, or built from the store,
        only at first, after an upgrade, and whenever there are four times as many entries as its lists were trained
        for.
        """
        state, index = state or self.store.state(), self.index
        if index is not None and index.state == state:
            return index
        self.index = None  # in case the update fails half-way
        if index is None or index.state.moves != state.moves:
            index = Index(self.store.facts.dim, state)
            reason = load(index, self.folder, self.store, state)
            if reason is not None:
                log.debug("the index of %s is built from the database: %s", self.folder, reason)
                index = Index(self.store.facts.dim, state)
                index.build(self.store)
        if index.state != state:
            if index.state.erasures != state.erasures:
                index.drop_missing(self.store.ids())
            last = int(index.ids[-1]) if len(index) else 0
            index.extend(self.store.columns(last), self.store.vectors(last))
            index.state = state
        return self._built(state) if index.outgrown else self._kept(index)

    def search(
        self, queries: Float64s, k: int, wanted: Selection, state: State, *, exact: bool = False
    ) -> list[Answer]:
        """Search the index of the store's current state, as :meth:`deploy.index.Index.search` does; call it in a
        transaction. One that fails is built anew from the store, once.
        """
        try:
            index = self.current(state)
            return index.search(queries, k, index.allowed(wanted, self.store), exact=exact)
        except (IndexError, KeyError, FaissError) as error:
            log.warning("the index of %s is built anew from the database: %s", self.folder, first_line(error))
            index = self._built(state)
            return index.search(queries, k, index.allowed(wanted, self.store), exact=exact)

    @naming_faiss("the index can't be built")
    def _built(self, state: State) -> Index:
        """Build the index from the store, whatever the files hold."""
        self.index = None
        index = Index(self.store.facts.dim, state)
        index.build(self.store)
        return self._kept(index)

    def _kept(self, index: Index) -> Index:
        self.index = index
        return index

    @property
    def is_costly(self) -> bool:
        """Whether there is an index, in memory or on disk, that is slow to rebuild, and FAISS to maintain it."""
        return (self.index is not None or describe(self.folder) is not None) and self.prepares

    @property
    def prepares(self) -> bool:
        """Whether there are too many entries to leave the index to the next search, and FAISS to build it."""
        return is_many(self.store.count()) and find_spec("faiss") is not None

    def save(self) -> bool:
        """Write the index unless it is already on disk or the store has changed; returns whether it was written."""
        return self.index is not None and save(self.index, self.folder, self.store)

    def drop(self) -> None:
        """Remove the files."""
        with self.store.holding():
            drop_cache(self.folder)

    def clear_away(self) -> None:
        """Remove what a killed process left while it wrote the files. Raises OSError."""
        if abandoned(self.folder):
            with self.store.holding():  # whoever still writes holds it, too
                for file in abandoned(self.folder):
                    file.unlink(missing_ok=True)

    @naming_faiss("the index can't be checked")
    def check(self) -> str | None:
        """Compare the files with the store, value by value; returns what is wrong with them. Call it in a transaction.

        Afterwards the index in memory agrees with the store, or there is none.
        """
        store, state = self.store, self.store.state()
        self.index = None
        stale = why_stale(self.folder, store.facts, state, store.based_on(), store.count())
        index = self.current()
        if stale is None:
            stale = _difference(index, store)
            if stale is not None:
                self.index = None
        return stale

    def describe(self) -> dict[str, Any]:
        """Describe how searches are answered, as plain values, from the index in memory or from its files."""
        if self.index is not None:
            lists = self.index.codes.lists
            plain = None if lists is None else lists.to_dict()
        else:
            plain = describe(self.folder)
        return (
            {"search": "exact"} if plain is None else {"search": "exact below 50,000 candidates, else lists", **plain}
        )


def _difference(index: Index, store: Store) -> str | None:
    """Return how an index differs from the store, or ``None`` if it does not."""
    columns, codes = store.columns(), np.empty(0, np.int32)
    if len(columns.names):
        codes = np.array([index.camera_codes.get(name, -1) for name in columns.names], np.int32)[columns.cameras]
    if not (
        np.array_equal(columns.ids, index.ids)
        and np.array_equal(columns.utc, index.utc)
        and np.array_equal(codes, index.camera)
    ):
        return "its filters differ"
    start = 0
    for part in store.vectors():
        if not np.array_equal(part, index.codes.vectors(start, start + len(part))):
            return "its vectors differ"
        start += len(part)
    return None
