"""Which entries a request to forget covers: one rule for the command line and the service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy.embeddings import Embeddings
from deploy.gallery.gallery import Gallery
from domains.errors import UsageError

FIRST = 256
"""Matches fetched at first, then eight times as many, until the last ones are too dissimilar."""


@dataclass(frozen=True)
class ErasureRequest:
    """Criteria for entries to forget, all of which must hold if set.

    Attributes:
        ids: only these ids.
        label: only this label.
        camera: only this camera.
        source: only sources with this prefix.
        before: only before this time (ISO 8601 with zone).
        older_than: only entries older than this many days.
        least: lowest cosine at which an entry counts as like a person given to :meth:`of`.
    """

    ids: Sequence[int] | None = None
    label: str | None = None
    camera: str | None = None
    source: str | None = None
    before: str | None = None
    older_than: int | None = None
    least: float = 0.7

    def __post_init__(self) -> None:
        """Check what would otherwise erase everything or nothing.

        Raises:
            UsageError: an id that no entry can have, or a cosine outside [-1, 1].
        """
        for number in self.ids or ():
            if not isinstance(number, (int, np.integer)) or isinstance(number, bool) or not 0 < number < 2**63:
                raise UsageError(f"an id is a whole number from 1, got {number!r:.80}")
        if not -1 <= self.least <= 1:  # nor is NaN
            raise UsageError(f"--score must be a cosine from -1 to 1, got {self.least:g}")

    @property
    def filters(self) -> dict[str, str]:
        """Filters that a search accepts, by name."""
        named = {"label": self.label, "camera": self.camera, "source": self.source, "before": self.before}
        return {name: value for name, value in sorted(named.items()) if value is not None}

    @property
    def names_nothing(self) -> bool:
        """Whether no criterion is set, so that only a query image could select entries."""
        return not self.ids and not self.filters and self.older_than is None

    def unknown(self, gallery: Gallery) -> list[int]:
        """Return those of the ids that no entry has, ascending."""
        return sorted({int(number) for number in self.ids or ()}.difference(gallery.ids() if self.ids else ()))

    def of(
        self, gallery: Gallery, vectors: Embeddings | None = None, *, preview: bool = False
    ) -> tuple[list[int], str]:
        """Find the entries.

        Args:
            gallery: the gallery to search.
            vectors: embeddings of people, ``[N, D]``; entries must be like one of them.
            preview: only to show them, so that an age may be judged by a clock that can't be trusted, and ids that no
                entry has are left out.

        Returns:
            Ids, ascending, and the names of the criteria that chose them, as recorded in the audit.

        Raises:
            GalleryError: the vectors are in another feature space.
            UsageError: a time that can't be read.
            ClockError: an age was given, and the clock can't be trusted.
        """
        choices: dict[str, set[int]] = {}
        if self.ids:
            choices["ids"] = set(self.ids).difference(self.unknown(gallery) if preview else ())
        if self.filters:
            choices["+".join(self.filters)] = set(gallery.select(**self.filters))
        if self.older_than is not None:
            choices["age"] = set(gallery.older_than(self.older_than, preview=preview))
        if vectors is not None:
            choices["like"] = self._like(gallery, vectors)
        return (sorted(set.intersection(*choices.values())), "+".join(choices)) if choices else ([], "")

    def _like(self, gallery: Gallery, vectors: Embeddings) -> set[int]:
        count = FIRST
        while True:
            results = gallery.search(vectors, k=count, exact=True, **self.filters)
            if all(len(matches) < count or matches[-1].score < self.least for matches in results):
                return {match.id for matches in results for match in matches if match.score >= self.least}
            count *= 8
