"""Which entries a search or an erasure is about."""

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
        before: only before this time; the same.
        label: only this label.
        source: only sources that begin so.
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
                raise GalleryError(f"{name} must be one name, got {type(value).__name__}")
            if value is not None and any(ord(letter) in SURROGATES for letter in value):
                raise GalleryError(f"{name} {value!r:.80} is no Unicode, and no entry has such")
        if self.start is not None and self.end is not None and self.start >= self.end:
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
        found, values = ["1"], list[Any]()
        # A prefix is a range, so that the index on sources serves it and no pattern character has a meaning.
        for condition, given in (
            ("camera = ?", self.camera),
            ("label = ?", self.label),
            ("utc >= ?", self.start),
            ("utc < ?", self.end),
            ("source >= ?", self.source),
            ("source < ?", None if self.source is None else _after(self.source)),
        ):
            if given is not None:
                found.append(condition)
                values.append(given)
        query = f"SELECT id FROM entry WHERE {' AND '.join(found)} ORDER BY id"  # noqa: S608 - conditions are the constants above
        return [row[0] for row in store.ask(query, values)]


def _after(prefix: str) -> str | None:
    """The least text that is above every text with a prefix, in the order of code points, which is that of SQLite;
    ``None`` if there is none.
    """
    for at in range(len(prefix) - 1, -1, -1):
        if (code := ord(prefix[at])) < LAST_LETTER:
            return prefix[:at] + chr(code + 1 if code + 1 not in SURROGATES else SURROGATES.stop)
    return None
