"""One answer of a gallery."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Match:
    """One stored crop that looks like the query.

    Attributes:
        rank: 1 is the best.
        score: cosine similarity, in [-1, 1].
        id: the gallery's id of the crop; never used again once it is forgotten.
        source: where the crop came from, as given when it was added.
        camera: the camera that saw it.
        time: ISO 8601 with zone, as given, or ``None``.
        label: optional name of the person, or ``None``.
    """

    rank: int
    score: float
    id: int
    source: str
    camera: str
    time: str | None
    label: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in the order that the command line prints."""
        return asdict(self)
