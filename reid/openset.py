"""Score a domain both ways: as a closed set, and with people who are not in the gallery."""

from __future__ import annotations

from typing import Any

from domains.domain import Domain
from domains.openset import open_set
from reid.evaluate import Embed, Retrieval
from reid.loader import StoreCache


def evaluate_open_set(domain: Domain, embed: Embed, stores: StoreCache, *, rerank: bool = False) -> dict[str, Any]:
    """What :func:`reid.evaluate.evaluate` gives, as plain values, and ``open_set`` (:mod:`domains.openset`), from one pass over the crops.

    Open-set metrics are of the cosine even with ``rerank``: a re-ranked distance is made for one query and can't be held against one threshold.

    Raises:
        DataError: no split to score, or no query that can be scored.
    """
    found = Retrieval.of(domain, embed, stores)
    known = open_set(found.asked, found.held, *found.people, same_camera=found.same_camera)
    return {**found.scores(rerank=rerank).to_dict(), "open_set": known.to_dict()}
