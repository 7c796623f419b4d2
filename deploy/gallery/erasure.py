"""Which entries a request to forget is about: one rule for the command line and the service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.embeddings import Embeddings
from deploy.gallery.gallery import Gallery

FIRST = 256
"""Matches asked for at first; eight times as many until those that follow are too unlike."""


@dataclass(frozen=True)
class ErasureRequest:
    """Entries that fit every field which is set.

    Attributes:
        ids: these.
        label: with this label.
        camera: from this camera.
        source: whose source begins so.
        before: from before this time (ISO 8601 with zone).
        older_than: older than so many days.
        least: cosine from which an entry is like a person who is shown to :meth:`of`.
    """

    ids: Sequence[int] | None = None
    label: str | None = None
    camera: str | None = None
    source: str | None = None
    before: str | None = None
    older_than: int | None = None
    least: float = 0.7

    @property
    def filters(self) -> dict[str, str]:
        """What a search can be told, by name."""
        named = {"label": self.label, "camera": self.camera, "source": self.source, "before": self.before}
        return {name: value for name, value in sorted(named.items()) if value is not None}

    @property
    def names_nothing(self) -> bool:
        """Whether no field is set, so that only a picture could say what is meant."""
        return not self.ids and not self.filters and self.older_than is None

    def of(self, gallery: Gallery, vectors: Embeddings | None = None) -> tuple[list[int], str]:
        """Find the entries.

        Args:
            gallery: where they lie.
            vectors: people whom entries have to be like, ``[N, D]``; any of them.

        Returns:
            Ids, ascending, and the names of the fields that chose them, as the audit keeps them.

        Raises:
            GalleryError: the vectors are of another feature space.
            UsageError: a time that can't be read.
        """
        choices: dict[str, set[int]] = {}
        if self.ids:
            choices["ids"] = set(self.ids)
        if self.filters:
            choices["+".join(self.filters)] = set(gallery.select(**self.filters))
        if self.older_than is not None:
            choices["age"] = set(gallery.older_than(self.older_than))
        if vectors is not None:
            choices["like"] = self._like(gallery, vectors)
        return (sorted(set.intersection(*choices.values())), "+".join(choices)) if choices else ([], "")

    def _like(self, gallery: Gallery, vectors: Embeddings) -> set[int]:
        count = FIRST
        while True:
            found = gallery.search(vectors, k=count, exact=True, **self.filters)
            if all(len(matches) < count or matches[-1].score < self.least for matches in found):
                return {match.id for matches in found for match in matches if match.score >= self.least}
            count *= 8
