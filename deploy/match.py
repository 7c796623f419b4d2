"""One result of a gallery search."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["same person", "unsure", "no match"]
RankedBy = Literal["cosine", "expansion", "k-reciprocal"]


@dataclass(frozen=True)
class Match:
    """One stored crop that looks like the query.

    Attributes:
        rank: 1 for the best match.
        score: cosine similarity in [-1, 1], however the matches are ranked; for a query of several images, the mean of
            their cosines. In the gallery's own metric, unless ``metric`` names another.
        id: the crop's id in the gallery; never reused after the crop is forgotten.
        source: where the crop came from, as given when it was added.
        camera: the camera that saw it.
        time: ISO 8601 with zone, as given, or ``None``.
        label: optional name of the person, or ``None``.
        verdict: a calibrated threshold's verdict on ``judged`` (:class:`deploy.answers.thresholds.Thresholds`), or
            ``None`` without a threshold.
        ranked_by: how the matches are ranked; unless by ``cosine``, ranks need not follow the order of the scores
            (:mod:`deploy.answers.refine`).
        possible: whether a person could have got from the query's camera to this one in time
            (:mod:`deploy.answers.transitions`), or ``None`` if that was not checked or is not known.
        metric: the metric of the score, such as ``mixed:north``, if it is not the gallery's own
            (:mod:`deploy.answers.site_metric`).
        pooled: then also the score in the gallery's own metric, the pooled one; otherwise ``None``.
    """

    rank: int
    score: float
    id: int
    source: str
    camera: str
    time: str | None
    label: str | None
    verdict: Verdict | None = None
    ranked_by: RankedBy = "cosine"
    possible: bool | None = None
    metric: str | None = None
    pooled: float | None = None

    @property
    def judged(self) -> float:
        """The score that thresholds apply to: that of the metric in which they were calibrated, the gallery's own."""
        return self.score if self.pooled is None else self.pooled

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, in the order in which the command line prints them."""
        return asdict(self)
