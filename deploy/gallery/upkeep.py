"""What the owner of a gallery does with it besides adding and searching: erase, carry into another space, back up,
repair.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from deploy.bundle import Bundle
from deploy.gallery.backup import backup, backups, clear_copies, restore
from deploy.gallery.retention import Ageing, ageing, expired, older_than, rules, set_rule, trust_clock
from deploy.gallery.upgrade import Plan, Tick, carry, drop_old, go_back, plan_back, plan_drop, plan_upgrade
from deploy.index.files import drop_cache
from deploy.index.keeper import Keeper
from deploy.store import Store
from deploy.store.audit import read_audit, write_audit
from deploy.store.check import repair
from deploy.store.scratch import remove_leftovers
from deploy.store.store import DATABASE
from deploy.store.turn import turn
from domains.errors import ClockError, GalleryError, ReidError
from domains.text import logger

log = logger("deploy")


class Upkeep:
    """The maintenance half of :class:`deploy.gallery.Gallery`."""

    def __init__(self, path: Path, store: Store) -> None:
        """Use :meth:`open` or :meth:`create`."""
        self.path = path
        self._store = store
        self._keeper = Keeper(path, store)
        self._retained = monotonic()

    @property
    def read_only(self) -> bool:
        """Whether nothing can be added, changed or erased: that was asked for, or the folder can't be written."""
        return self._store.read_only

    def prepare(self) -> None:
        """Load the index into memory now, so that the first search need not wait for it."""
        with self._store.reading():
            self._keeper.current()

    def forget(self, ids: Iterable[int], *, reason: str = "ids") -> int:
        """Erase entries: afterwards their bytes are nowhere in the folder, and their ids are never reused.

        The file is rewritten, which takes time in proportion to the gallery, so forget many at once rather than one by
        one. Only the folder's files are erased: a disk may keep old blocks until it reuses them, and backups are not
        touched.

        Args:
            ids: ids of the entries.
            reason: what chose them, for the audit: a word like ``label`` or ``age``, nothing about the person.

        Returns:
            Number of entries erased; ids that do not exist (or no longer do) are ignored.

        Raises:
            GalleryError: something is not an id; or another process kept reading, or the disk is too full to rewrite
                the file. In these two cases the entries are removed for good, but their bytes are still there until the
                next ``forget`` or ``open`` finishes the erasure.
        """
        removed = self._erase(list(ids), reason)
        return 0 if removed is None else removed

    def _erase(self, numbers: Sequence[int], reason: str, *, wait: bool = True) -> int | None:
        """Erase entries as :meth:`forget` does; returns None if another erasure is going on that is not waited for."""
        for number in numbers:
            if not isinstance(number, (int, np.integer)) or isinstance(number, bool) or not 0 < number < 2**63:
                raise GalleryError(f"an id is a whole number from 1, got {number!r:.80}")
        self._store.check_writable()
        costly = bool(numbers) and self._keeper.is_costly
        if costly:
            # from the files, before they are dropped: removing entries is faster than rebuilding lists
            self._prepare_if_possible()
        with turn(self.path, wait=wait) as mine:  # a second erasure waits for the first, however long it takes
            if not mine:
                return None
            with self._store.holding():
                removed = self._store.remove(int(number) for number in numbers)
                if removed:
                    write_audit(self._store, "forget", entries=removed, by=reason)
                    drop_cache(self.path)
            if self._store.unwiped():
                self._wipe(f"{removed} entries were removed")
        if costly:
            self._prepare_if_possible()
        return removed

    def upgrade(
        self, bundle: str | PathLike[str], via: Sequence[str | PathLike[str]] = (), *, tick: Tick | None = None
    ) -> int:
        """Carry all entries into a bundle's feature space, while searches continue; see :mod:`deploy.gallery.upgrade`.

        Args:
            bundle: the new bundle.
            via: bundles of the models in between, if the new one's transport does not start at the present space.
            tick: called now and then with the number of entries just carried.

        Returns:
            Number of entries carried.

        Raises:
            GalleryError: no transport leads there; nothing is changed.
        """
        carried = carry(self._store, self.plan_upgrade(bundle, via), tick=tick)
        self._renew_index()
        return carried

    def plan_upgrade(self, bundle: str | PathLike[str], via: Sequence[str | PathLike[str]] = ()) -> Plan:
        """Plan what :meth:`upgrade` would do."""
        return plan_upgrade(self._store, [Bundle.load(path) for path in (*via, bundle)])

    def go_back(self, *, tick: Tick | None = None) -> int:
        """Return to the space and the bundle before the last upgrade; raises GalleryError if the old copy was
        dropped.
        """
        carried = go_back(self._store, tick=tick)
        self._renew_index()
        return carried

    def plan_back(self) -> str:
        """Say what :meth:`go_back` would do; raises what it would raise."""
        return plan_back(self._store)

    def plan_drop(self) -> str:
        """Say what :meth:`drop_old` would do; raises what it would raise, but for a process that keeps reading."""
        return plan_drop(self._store)

    def drop_old(self, *, tick: Tick | None = None) -> int:
        """Keep only the present space's vectors; going back is then no longer possible. The bytes of the others are
        erased from the folder.

        Raises:
            GalleryError: as for :meth:`forget`, if another process keeps reading.
        """
        self._store.check_writable()
        with turn(self.path):
            dropped = drop_old(self._store, tick=tick)
            self._wipe(f"the older vectors of {dropped} entries were dropped")
        return dropped

    def keep(self, days: int | None, camera: str | None = None) -> None:
        """Set how long entries are kept, for one camera or for all without their own rule; None: for ever. Older ones
        are erased at once.

        Raises:
            ClockError: the rule is set, but nothing is erased yet, as the clock can't be trusted.
        """
        set_rule(self._store, days, camera)
        try:
            self.retain()
        except ClockError as error:
            raise ClockError(f"the rules are changed, but {error}") from error

    def retention(self) -> dict[str, int]:
        """Return the days that entries are kept, by camera; the empty name stands for every other camera."""
        return rules(self._store)

    def older_than(self, days: int, *, preview: bool = False) -> list[int]:
        """Return the ids of entries more than ``days`` old; one without a time is as old as its stay in the gallery.

        Args:
            days: their least age.
            preview: only to show them, so that it does not matter whether the clock is right.

        Raises:
            ClockError: the clock moved by more than is plausible since it was last read; see :meth:`trust_clock`.
        """
        return older_than(self._store, days, preview=preview)

    def ageing(self) -> Ageing:
        """Say what the clock reads, whether it can be trusted, and what the rules would erase; erases nothing."""
        with self._store.reading():
            return ageing(self._store)

    def trust_clock(self, *, from_now: bool = False) -> int:
        """Accept what the clock reads on a person's word, apply the rules, and return the number of entries erased.

        Args:
            from_now: the time before was the wrong one: entries count as added now, whenever they were added.

        Raises:
            GalleryError: the clock reads a time that can't be.
        """
        trust_clock(self._store, from_now=from_now)
        return self.retain()

    def backup(self, path: str | PathLike[str]) -> int:
        """Copy the gallery into a new folder while it is in use, and check the copy; returns its number of entries. A
        backup is itself a gallery.

        Raises:
            GalleryError: the folder exists, or the copy is damaged.
        """
        return backup(self._store, path)

    def backups(self) -> list[str]:
        """List the folders of backups that still exist: erasures do not reach them."""
        return backups(self._store)

    @staticmethod
    def restore(source: str | PathLike[str], path: str | PathLike[str]) -> tuple[int, Path | None]:
        """Restore a backup to a gallery's path; see :func:`deploy.gallery.backup.restore`."""
        return restore(source, path)

    @staticmethod
    def repair(path: str | PathLike[str]) -> list[str]:
        """Repair what can be repaired of a damaged gallery without a backup; returns the findings, one per line, none
        if it is intact.

        The index, the database's own indices and its seal are rebuilt. Of a damaged log, the part before the damage is
        kept. Damaged entries are listed and stay. Raises GalleryError if the database can't even be opened.
        """
        folder = Path(path)
        store = Store(folder / DATABASE, repair=True)
        try:
            found = [*store.notes, *repair(store)]
            if found:
                Keeper(folder, store).drop()
        finally:
            store.close()
        return found

    def audit(self) -> list[dict[str, Any]]:
        """Return what was done to the gallery, oldest first; raises GalleryError if a record was changed."""
        return read_audit(self._store)

    def retain(self) -> int:
        """Erase what the rules no longer allow, and return the number of entries erased; otherwise the next addition or
        search after an hour does it.

        Raises:
            ClockError: nothing was erased, as the clock moved by more than is plausible since it was last read; see
                :meth:`trust_clock`.
        """
        return self._retain(wait=True)

    def _retain(self, *, wait: bool) -> int:
        self._retained = monotonic()
        numbers = expired(self._store) if rules(self._store) and not self.read_only else []
        if numbers and self._erase(numbers, "retention", wait=wait) is None:
            log.info("expired entries of %s stay until another process has done erasing", self.path)
            return 0
        return len(numbers)

    def _wipe_or_warn(self) -> None:
        """Finish an interrupted erasure if that is possible now; otherwise the next opening does it. One that is still
        going on is left to the process that works on it.
        """
        try:
            self._store.check_writable()
            with turn(self.path, wait=False) as mine:
                if mine and self._store.unwiped():
                    self._wipe("some entries were removed")
        except GalleryError as error:
            log.warning("an erasure is not finished: %s", error)

    def _clear_away(self) -> None:
        """Remove what killed processes left of rewrites of this gallery, and copies of it that were never finished."""
        if self.read_only:
            return
        try:
            remove_leftovers(self.path)
            clear_copies(self._store)
            self._keeper.clear_away()
        except (OSError, GalleryError) as error:
            log.warning("what a stopped process left of %s can't be removed: %s", self.path, error)

    def _retain_or_warn(self) -> None:
        """Like :meth:`retain`, for callers who came for something else: a failed erasure is logged, and retried an hour
        later, and so is one that would have to wait for another.
        """
        try:
            self._retain(wait=False)
        except GalleryError as error:
            log.error("expired entries could not be erased: %s", error)

    def _prepare_if_possible(self) -> None:
        """Load the index into memory if possible: a damaged entry, say, must not prevent an erasure."""
        try:
            self.prepare()
        except ReidError as error:
            log.warning("the index of %s is left to the next search: %s", self.path, error)

    def _renew_index(self) -> None:
        self._drop_cache()
        if self._keeper.prepares:
            self.prepare()
            self._save_or_warn()

    def _save_index(self) -> None:
        self._keeper.save()

    def _save_or_warn(self) -> None:
        """Write the index to its files if possible; otherwise only time is lost."""
        if self.read_only:
            return
        try:
            self._save_index()
        except GalleryError as error:
            log.warning("the index of %s was not saved (%s); it will be rebuilt", self.path, error)

    def _wipe(self, what: str) -> None:
        self._drop_cache()
        try:
            done = self._store.wipe()
        except GalleryError as error:
            raise GalleryError(f"{what}, but their bytes are still in the file: {error}") from error
        if not done:
            raise GalleryError(
                f"{what}, but another process keeps reading {self.path}, so their bytes are still in its log; try again"
            )

    def _drop_cache(self) -> None:
        self._keeper.drop()
