"""How long a gallery keeps its entries: a rule for each camera, or one for all others, in days."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from deploy.store import Store
from deploy.store.audit import write_audit
from domains.errors import GalleryError

EVERY = 3600.0
"""Seconds after which an open gallery applies its rules again."""
MOST_DAYS = 36500

_AGE = "coalesce(utc, added)"
"""An entry without a time is as old as its stay in the gallery."""


def set_rule(store: Store, days: int | None, camera: str | None) -> None:
    """Keep entries of a camera, or of every camera without its own rule, for ``days``; None removes the rule. Raises
    GalleryError if ``days`` is out of range.
    """
    if days is not None and (isinstance(days, bool) or not isinstance(days, int) or not 1 <= days <= MOST_DAYS):
        raise GalleryError(f"entries are kept for 1 to {MOST_DAYS} days, got {days!r}")
    with store.holding():
        store.change("DELETE FROM retention WHERE camera = ?", [(camera or "",)])
        if days is not None:
            store.change("INSERT INTO retention VALUES (?, ?)", [(camera or "", days)])
        write_audit(store, "keep", days=days, rule="one camera" if camera else "all")


def rules(store: Store) -> dict[str, int]:
    """Days by camera; the empty name stands for every other camera."""
    return dict(store.ask("SELECT camera, days FROM retention ORDER BY camera"))


def older_than(store: Store, days: int) -> list[int]:
    """Return the ids of entries more than ``days`` old; raises GalleryError if ``days`` is out of range."""
    if isinstance(days, bool) or not isinstance(days, int) or not 0 <= days <= MOST_DAYS:
        raise GalleryError(f"an age is 0 to {MOST_DAYS} days, got {days!r}")
    return [row[0] for row in store.ask(f"SELECT id FROM entry WHERE {_AGE} < ? ORDER BY id", (_limit(days),))]  # noqa: S608 - a constant


def expired(store: Store) -> list[int]:
    """Return the ids of entries that the rules no longer allow."""
    numbers, known = [], rules(store)
    for camera, days in known.items():
        if camera:
            query, values = "camera = ?", [camera]
        else:
            query, values = f"camera NOT IN ({','.join('?' * (len(known) - 1))})", [name for name in known if name]
        rows = store.ask(f"SELECT id FROM entry WHERE {query} AND {_AGE} < ?", (*values, _limit(days)))  # noqa: S608 - constants and question marks
        numbers += [row[0] for row in rows]
    return sorted(numbers)


def _limit(days: int) -> int:
    return int((datetime.now(UTC) - timedelta(days=days)).timestamp() * 1e6)
