"""Score a domain both ways: as a closed set, and with people who are not in the gallery."""

from __future__ import annotations

from typing import Any

from domains.domain import Domain
from domains.errors import DataError
from domains.openset import open_set
from domains.reranking import k_reciprocal
from domains.scoring import Labels, score_domain, score_similarities
from reid.evaluate import Embed, can_be_scored
from reid.loader import StoreCache


def evaluate_open_set(domain: Domain, embed: Embed, stores: StoreCache, *, rerank: bool = False) -> dict[str, Any]:
    """What :func:`reid.evaluate.evaluate` gives, as plain values, and ``open_set`` (:mod:`domains.openset`), from one pass over the crops.

    Open-set metrics are of the cosine even with ``rerank``: a re-ranked distance is made for one query and can't be held against one threshold.

    Raises:
        DataError: no split to score, or no query that can be scored.
    """
    why = can_be_scored(domain)
    if why:
        raise DataError(f"domain {domain.name} can't be scored: {why}")
    query, gallery = stores.get(domain, domain.query), stores.get(domain, domain.gallery)
    people = Labels.from_split(query.split), Labels.from_split(gallery.split)
    asked, held = embed(query.crops), embed(gallery.crops)
    if rerank:
        scores = score_similarities(k_reciprocal(asked, held), *people, same_camera=domain.same_camera)
    else:
        scores = score_domain(asked, held, *people, same_camera=domain.same_camera)
    return {**scores.to_dict(), "open_set": open_set(asked, held, *people, same_camera=domain.same_camera).to_dict()}
