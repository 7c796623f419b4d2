"""How long a gallery keeps its entries: a rule for each camera, or one for all others, in days.

An entry is as old as its time says, but no younger than its stay in the gallery; one without a time is as old as its
stay. Both are judged by the clock, and only while that can be trusted: see :mod:`deploy.store.clock`.
"""

from __future__ import annotations

from typing import NamedTuple

from deploy.store import Store
from deploy.store.audit import write_audit
from deploy.store.clock import DAY, Reading, as_text
from deploy.store.metadata import MOST_DAYS, is_rule, is_text
from domains.errors import ClockError, GalleryError

EVERY = 3600.0
"""Seconds after which an open gallery applies its rules again."""


class Ageing(NamedTuple):
    """What the rules would erase now, and whether they may.

    Attributes:
        reading: what the clock reads, and the last trusted time.
        due: ids of entries that the rules no longer allow, if the clock is right.
        dated: those of them that are due by their own time, wherever ages count from.
    """

    reading: Reading
    due: list[int]
    dated: list[int]


def set_rule(store: Store, days: int | None, camera: str | None) -> None:
    """Keep entries of a camera, or of every camera without its own rule, for ``days``; None removes the rule. Raises
    GalleryError if ``days`` is out of range, or the camera is not valid text.
    """
    if camera is not None and not is_text(camera):
        raise GalleryError(f"a camera's name must be text without NUL and valid Unicode, got {camera!a:.80}")
    if days is not None and (isinstance(days, bool) or not isinstance(days, int) or not 1 <= days <= MOST_DAYS):
        raise GalleryError(f"entries are kept for 1 to {MOST_DAYS} days, got {days!r}")
    with store.holding():
        store.change("DELETE FROM retention WHERE camera = ?", [(camera or "",)])
        if days is not None:
            store.change("INSERT INTO retention VALUES (?, ?)", [(camera or "", days)])
        write_audit(store, "keep", days=days, rule="one camera" if camera else "all")


def rules(store: Store) -> dict[str, int]:
    """Days by camera; the empty name stands for every other camera. Raises GalleryError if a rule is damaged."""
    rows = store.ask("SELECT camera, days FROM retention ORDER BY camera")
    if not all(is_rule(*row) for row in rows):
        raise GalleryError(f"{store.file}: a rule is damaged; restore a backup, or try reid gallery verify --repair")
    return dict(rows)


def older_than(store: Store, days: int, *, preview: bool = False) -> list[int]:
    """Return the ids of entries more than ``days`` old.

    Args:
        store: the gallery's store.
        days: their least age.
        preview: only to show them, so that it does not matter whether the clock is right.

    Raises:
        GalleryError: ``days`` is out of range.
        ClockError: the clock can't be trusted.
    """
    if isinstance(days, bool) or not isinstance(days, int) or not 0 <= days <= MOST_DAYS:
        raise GalleryError(f"an age is 0 to {MOST_DAYS} days, got {days!r}")
    if not store.read_only:
        store.keep_time(store.clock(days))
    reading = store.clock(days)
    limit = reading.time - days * DAY
    numbers = [
        row[0]
        for row in store.ask("SELECT id FROM entry WHERE utc < ? OR id <= ? ORDER BY id", (limit, store.covered(limit)))
    ]
    if not preview:
        check_clock(store, reading, len(numbers))
    return numbers


def check_clock(store: Store, reading: Reading, count: int) -> None:
    """Raise ClockError if the clock can't be trusted; ``count``: how many entries it would erase. If none, a clock that
    nothing speaks against may still wait to be trusted.
    """
    if not reading.right and (count or not reading.waiting):
        raise ClockError(
            f"nothing is erased by age: {reading}; {count} {'entry' if count == 1 else 'entries'} would go. If the "
            f"clock is right, run reid gallery clock {store.file.parent} --trust; if not, set it"
        )


def ageing(store: Store) -> Ageing:
    """Say what the rules would erase, without erasing it."""
    reading, due, dated, known = store.clock(), set[int](), set[int](), rules(store)
    for camera, days in known.items():
        limit = reading.time - days * DAY
        if camera:
            query, values = "camera = ?", [camera]
        else:
            query, values = f"camera NOT IN ({','.join('?' * (len(known) - 1))})", [name for name in known if name]
        for found, condition, value in ((dated, "utc < ?", limit), (due, "id <= ?", store.covered(limit))):
            rows = store.ask(f"SELECT id FROM entry WHERE {query} AND {condition}", (*values, value))  # noqa: S608 - constants and question marks
            found.update(row[0] for row in rows)
    return Ageing(reading, sorted(due | dated), sorted(dated))


def expired(store: Store) -> list[int]:
    """Return the ids of entries that the rules no longer allow; raises ClockError if the clock can't be trusted."""
    store.keep_time(store.clock())
    state = ageing(store)
    check_clock(store, state.reading, len(state.due))
    return state.due


def trust_clock(store: Store, *, from_now: bool) -> None:
    """Accept the clock's reading on a person's word; with ``from_now``, entries count as added now.

    Raises:
        GalleryError: the clock reads a time that can't be.
    """
    with store.holding():
        reading = store.clock()
        store.trust(reading, from_now=from_now)
        write_audit(
            store, "trust clock", before=as_text(reading.trusted), now=as_text(reading.time), from_now=int(from_now)
        )
