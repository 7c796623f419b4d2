"""What a score means: "same person", "unsure" or "no match", by thresholds that were measured, not guessed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deploy.bundle import Bundle
from deploy.match import Match, Verdict
from domains.errors import ArtefactError, UsageError

_ORDER: tuple[Verdict, ...] = ("no match", "unsure", "same person")


@dataclass(frozen=True)
class Thresholds:
    """Two scores that divide the answers of one model into three.

    Attributes:
        same: lowest cosine that means "same person".
        unsure: lowest cosine that means "unsure"; below it, "no match". At most ``same``.
        name: the domain they were calibrated on, or a description of the score that was given.
        fpr: share of pairs of different people that reach ``same``, as chosen at calibration; None where the score was
            given.
    """

    same: float
    unsure: float
    name: str
    fpr: float | None = None

    def __post_init__(self) -> None:
        """Check both scores; raises UsageError."""
        if (
            not all(math.isfinite(score) and -1 <= score <= 1 for score in (self.same, self.unsure))
            or self.unsure > self.same
        ):
            raise UsageError(
                f"a threshold must be a cosine from -1 to 1, and the one for unsure at most the other, got {self.same} "
                f"and {self.unsure}"
            )

    @classmethod
    def from_bundle(cls, bundle: Bundle, choice: str | float | None = None) -> Thresholds | None:
        """The thresholds to judge a bundle's answers by.

        Args:
            bundle: the bundle of the model that gave the scores.
            choice: a domain that the bundle was calibrated on, or a score that separates "same person" from "no match".
                By default the most conservative calibrated domain: the one with the highest score for "same person".

        Returns:
            None if nothing was chosen and the bundle was never calibrated.

        Raises:
            UsageError: a domain that it was not calibrated on (the message lists those it was), or a score outside
                [-1, 1].
            ArtefactError: the manifest's entry is invalid.
        """
        known = bundle.thresholds
        if choice is None:
            return max(
                (cls._of(bundle, name) for name in known), key=lambda entry: (entry.same, entry.name), default=None
            )
        if choice in known:
            return cls._of(bundle, str(choice))
        try:
            score = float(choice)
        except ValueError:
            calibrated = (
                f"it is calibrated on {', '.join(sorted(known))}"
                if known
                else "it is not calibrated on any domain; run reid calibrate"
            )
            raise UsageError(f"{bundle.folder} has no threshold {choice!r}: {calibrated}, or give a score") from None
        return cls(score, score, f"a score of {score:g}")

    @classmethod
    def _of(cls, bundle: Bundle, name: str) -> Thresholds:
        entry = bundle.thresholds[name]
        try:
            return cls(float(entry["score"]), float(entry.get("unsure", entry["score"])), name, float(entry["fpr"]))
        except (UsageError, TypeError, ValueError) as error:
            raise ArtefactError(
                f"{bundle.folder}: the threshold of {name!r:.80} can't be used: {error}; run reid calibrate again"
            ) from error

    def verdict(self, score: float) -> Verdict:
        """What a cosine means."""
        return "same person" if score >= self.same else "unsure" if score >= self.unsure else "no match"

    def judge(self, matches: Sequence[Match]) -> list[Match]:
        """The same matches with their verdicts, each by its score in the metric that the thresholds are for."""
        return [replace(match, verdict=self.verdict(match.judged)) for match in matches]


def unsure(matches: Sequence[Match]) -> list[Match]:
    """The same matches, none of which says more than "unsure": the query can't be a crop of one person
    (:mod:`domains.crop_shape`), whatever its scores are.
    """
    return [replace(match, verdict="unsure") for match in matches]


def answer(matches: Sequence[Match]) -> Verdict | None:
    """Return the verdict on a whole query: the best of its matches' verdicts, impossible matches aside; "no match" if
    there are none, None if not all were judged.
    """
    if any(match.verdict is None for match in matches):
        return None
    ranks = [
        _ORDER.index(match.verdict) for match in matches if match.verdict is not None and match.possible is not False
    ]
    return _ORDER[max(ranks, default=0)]
