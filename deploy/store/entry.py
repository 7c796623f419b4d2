"""What a gallery knows about a crop besides its vector, checked before it is stored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from domains.errors import GalleryError

MAX_LABEL = 256
MAX_SOURCE = 4096
MAX_TIME = 64

_NOT_TEXT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Entry:
    """Origin of one crop.

    Attributes:
        camera: the camera's name.
        source: file, address or any text that leads back to the crop.
        time: ISO 8601 with zone, kept as given, or ``None``.
        label: optional name of the person, or ``None``.
    """

    camera: str
    source: str
    time: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        """Check every text; raises GalleryError."""
        _check_text("camera", self.camera, MAX_LABEL)
        _check_text("source", self.source, MAX_SOURCE)
        if self.label is not None:
            _check_text("label", self.label, MAX_LABEL)
        if self.time is not None:
            instant(self.time)

    @classmethod
    def stored(cls, camera: str, source: str, time: str | None, label: str | None) -> Entry:
        """Build an entry from a stored row without checks: they were made when it was added, and its checksum has just
        been verified.
        """
        entry = object.__new__(cls)
        entry.__dict__.update(camera=camera, source=source, time=time, label=label)
        return entry

    @property
    def utc(self) -> int | None:
        """Microseconds since 1970 (UTC), by which times are compared."""
        return None if self.time is None else instant(self.time)


def instant(time: str) -> int:
    """Microseconds since 1970 (UTC) of an ISO 8601 time.

    Raises:
        GalleryError: not a valid time, or one without a zone: times from two zones could not be ordered.
    """
    if not isinstance(time, str) or len(time) > MAX_TIME or _NOT_TEXT.search(time):
        raise GalleryError(f"a time must be ISO 8601 text, got {time!r:.80}; write it like 2026-01-31T12:00:00+01:00")
    try:
        moment = datetime.fromisoformat(time)
    except ValueError as error:
        raise GalleryError(f"{time!r} is not an ISO 8601 time; write it like 2026-01-31T12:00:00+01:00") from error
    if moment.tzinfo is None:
        raise GalleryError(f"the time {time!r} has no zone; add one, like +01:00, or Z for UTC")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _check_text(name: str, value: str, limit: int) -> None:
    if not isinstance(value, str):
        raise GalleryError(f"{name} must be text, got {type(value).__name__}")
    if not value.strip() or len(value) > limit:
        raise GalleryError(f"{name} must have 1 to {limit} characters, got {len(value)}")
    if _NOT_TEXT.search(value):
        raise GalleryError(f"{name} {value!r:.80} has control characters or invalid Unicode; rename it")
