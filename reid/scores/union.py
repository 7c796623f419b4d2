"""One gallery for all sites: the queries of each site, asked of everybody's crops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from domains.arrays import Float32s
from domains.domain import JUNK
from domains.scoring import Labels, Scores, score_domain
from prototypes.metric import Metric
from reid.scores.evaluate import Retrieval


def score_union(
    sites: Mapping[str, Retrieval],
    metric: Callable[[str], Metric | None] = lambda site: None,
    asking: Iterable[str] | None = None,
) -> dict[str, Scores]:
    """Score each site's queries against the galleries of all sites at once.

    People and cameras of different sites are different, so a site's camera rule is about its own crops alone.

    Args:
        sites: all sites with their vectors, in one feature space, without a metric.
        metric: the metric for the queries of a site, in which the whole gallery is then compared; None for the cosine
            as it is.
        asking: whose queries are scored; by default those of all sites.

    Returns:
        Scores by site.

    Raises:
        DataError: no query of a site can be scored.
        KeyError: a site that asks is not among the sites.
    """
    held = np.concatenate([site.held for site in sites.values()])
    asked, holding = _apart([site.people for site in sites.values()])
    everybody = Labels(np.concatenate([one.pids for one in holding]), np.concatenate([one.camids for one in holding]))
    whose = dict(zip(sites, asked, strict=True))
    last: tuple[Metric | None, Float32s] = (None, held)
    scores: dict[str, Scores] = {}
    for name in sites if asking is None else asking:
        site, chosen = sites[name], metric(name)
        if last[0] is not chosen:
            last = chosen, held if chosen is None else chosen(held)
        query = site.asked if chosen is None else chosen(site.asked)
        scores[name] = score_domain(query, last[1], whose[name], everybody, same_camera=site.same_camera)
    return scores


def _apart(people: Iterable[tuple[Labels, Labels]]) -> tuple[list[Labels], list[Labels]]:
    """Return the labels of queries and galleries with codes that no two sites share."""
    asked, held, first, camera = list[Labels](), list[Labels](), 0, 0
    for pair in people:
        for moved, labels in zip((asked, held), pair, strict=True):
            pids = np.where(labels.pids == JUNK, JUNK, labels.pids + first)
            moved.append(Labels(pids, labels.camids + camera))
        first += _codes([labels.pids for labels in pair])
        camera += _codes([labels.camids for labels in pair])
    return asked, held


def _codes(parts: list[NDArray[np.int64]]) -> int:
    """The number of codes that are in use, counted from 0."""
    return max((int(values.max()) + 1 for values in parts if len(values)), default=0)
