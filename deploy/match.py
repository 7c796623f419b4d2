"""One answer of a gallery."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["same person", "unsure", "no match"]
RankedBy = Literal["cosine", "expansion", "k-reciprocal"]


@dataclass(frozen=True)
class Match:
    """One stored crop that looks like the query.

    Attributes:
        rank: 1 is the best.
        score: cosine similarity, in [-1, 1], whatever the ranking is by; with several images as one query, the mean of
            their cosines.
        id: the gallery's id of the crop; never used again once it is forgotten.
        source: where the crop came from, as given when it was added.
        camera: the camera that saw it.
        time: ISO 8601 with zone, as given, or ``None``.
        label: optional name of the person, or ``None``.
        verdict: what a calibrated threshold says of the score (:class:`deploy.answers.thresholds.Thresholds`), or
            ``None`` where there is none.
        ranked_by: what the ranks are by; anything but ``cosine`` need not agree with the order of the scores
            (:mod:`deploy.answers.refine`).
        possible: whether somebody could have got from the query's camera to this one in time
            (:mod:`deploy.answers.transitions`), or ``None`` where that was not asked or is not known.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in the order that the command line prints."""
        return asdict(self)
