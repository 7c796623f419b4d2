"""Filters for the entries that a search or an erasure covers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deploy.store.entry import instant
from deploy.store.store import Store
from domains.errors import GalleryError

LAST_LETTER = 0x10FFFF
SURROGATES = range(0xD800, 0xE000)


@dataclass(frozen=True)
class Selection:
    """Filters, all of which must hold.

    Attributes:
        camera: only this camera.
        after: only from this time on (ISO 8601 with zone); entries without a time are left out.
        before: only before this time; likewise.
        label: only this label.
        source: only sources with this prefix.
    """

    camera: str | None = None
    after: str | None = None
    before: str | None = None
    label: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        """Check every filter; raises GalleryError."""
        for name in ("camera", "label", "source"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise GalleryError(f"{name} must be a single name, got {type(value).__name__}")
            if value is not None and any(ord(letter) in SURROGATES for letter in value):
                raise GalleryError(f"{name} {value!r:.80} is not valid Unicode, so no entry has it")
        start, end = self.start, self.end  # each is read, whether or not the other is given
        if start is not None and end is not None and start >= end:
            raise GalleryError(f"no time is both after {self.after} and before {self.before}; swap them")

    @property
    def start(self) -> int | None:
        """``after`` in microseconds since 1970 UTC."""
        return None if self.after is None else instant(self.after)

    @property
    def end(self) -> int | None:
        """``before``, likewise."""
        return None if self.before is None else instant(self.before)

    @property
    def is_all(self) -> bool:
        """Whether nothing is filtered."""
        return self == Selection()

    def ids(self, store: Store) -> list[int]:
        """Ids of the entries, ascending."""
        conditions, values = ["1"], list[Any]()
        # A prefix is matched as a range, so that the index on sources serves it and no character is a wildcard.
        for condition, value in (
            ("camera = ?", self.camera),
            ("label = ?", self.label),
            ("utc >= ?", self.start),
            ("utc < ?", self.end),
            ("source >= ?", self.source),
            ("source < ?", None if self.source is None else _prefix_end(self.source)),
        ):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        query = f"SELECT id FROM entry WHERE {' AND '.join(conditions)} ORDER BY id"  # noqa: S608 - conditions are the constants above
        return [row[0] for row in store.ask(query, values)]


def _prefix_end(prefix: str) -> str | None:
    """Return the smallest text above every text with the prefix, in SQLite's order, which is by code point; ``None`` if
    no text is.
    """
    for at in range(len(prefix) - 1, -1, -1):
        if (code := ord(prefix[at])) < LAST_LETTER:
            return prefix[:at] + chr(code + 1 if code + 1 not in SURROGATES else SURROGATES.stop)
    return None
