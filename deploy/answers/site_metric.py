"""The metric for the queries of one site in a gallery of all sites, from the statistics that a pooled bundle carries.

The gallery stays as it is, in the pooled metric. What it finds is moved: out of the pooled metric, which can be undone
exactly, and into one that takes most of its covariance from the query's site (:meth:`prototypes.metric.Metric.mixed`).
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

from deploy.bundle import Bundle
from deploy.known_names import known_names
from domains.errors import UsageError
from prototypes.metric import Metric
from prototypes.passage import Passage


@dataclass(frozen=True, eq=False)
class SiteMetric:
    """A metric that answers are scored in instead of their gallery's own.

    Attributes:
        name: ``mixed:`` and the site.
        feature_space: name of the space, that of a pooled bundle, from which its passage leads.
        passage: moves unit vectors ``[N, D]`` into it.
    """

    name: str
    feature_space: str
    passage: Passage


class SiteMetrics:
    """The metrics of all sites that a bundle has statistics of, each computed when it is first asked for."""

    def __init__(self, bundle: Bundle) -> None:
        """Read a bundle's statistics; raises ArtefactError if they are damaged."""
        self._bundle, self._sites, self._metric = bundle, bundle.sites(), bundle.metric()
        self._made: dict[str, SiteMetric] = {}
        self._lock = Lock()

    def of(self, site: str) -> SiteMetric:
        """Return the metric of a site's queries; raises UsageError, which names the nearest, if there is none."""
        if site not in self._sites:
            raise UsageError(self._unknown(site))
        with self._lock:
            if site not in self._made:
                mixed = Metric.mixed(self._sites[site], list(self._sites.values()))
                passage = Passage(self._bundle.network, out=self._metric, into=mixed)
                self._made[site] = SiteMetric(f"mixed:{site}", self._bundle.feature_space, passage)
            return self._made[site]

    def _unknown(self, site: str) -> str:
        known = sorted(self._sites)
        if not known:
            return (
                f"{self._bundle.folder} has no statistics of sites: export it with --metric pooled, from a run that "
                "measured some, and without --no-sites"
            )
        return f"{self._bundle.folder} has no statistics of the site {site!r:.100}; {known_names(site, known)}"
