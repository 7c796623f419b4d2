"""The metrics of a step, by name, made of the statistics of the sites it knows."""

from __future__ import annotations

from collections.abc import Mapping

from domains.arrays import Embed
from domains.errors import UsageError
from prototypes.metric import Metric, SiteStatistics
from reid.config import nearest

KINDS = ("none", "pooled", "site:NAME", "mixed:NAME")


def chosen_metric(name: str, sites: Mapping[str, SiteStatistics], step: str) -> Metric | None:
    """Return a metric by name.

    Args:
        name: ``none``; ``pooled``, one for all sites; ``site:NAME``, one site's own; or ``mixed:NAME``, for one site's
            queries in a gallery of all.
        sites: statistics by site.
        step: what the step is called, for messages.

    Raises:
        UsageError: there is no such metric.
    """
    kind, colon, site = name.partition(":")
    if name == "none":
        return None
    if name != "pooled" and (kind not in ("site", "mixed") or not colon):
        raise UsageError(f"a metric is one of {', '.join(KINDS)}, got {name!r:.80}")
    if not sites:
        raise UsageError(f"{step} has no site's statistics; learn a site with --method metric, or another that has one")
    if name == "pooled":
        return Metric.pooled(list(sites.values()))
    if site not in sites:
        raise UsageError(f"{step} has no statistics of {site!r:.80}{nearest(site, sites)}")
    return Metric.own(sites[site]) if kind == "site" else Metric.mixed(sites[site], list(sites.values()))


def in_metric(embed: Embed, metric: Metric | None) -> Embed:
    """Return an embedder whose vectors are those of a metric."""
    return embed if metric is None else lambda crops: metric(embed(crops))
