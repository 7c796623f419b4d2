"""Embed a domain's query and gallery with a model and score the retrieval."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.arrays import Embed, Float32s
from domains.domain import Domain, SameCamera
from domains.errors import DataError
from domains.openset import open_set
from domains.reranking import k_reciprocal
from domains.scoring import Labels, Scores, score_domain, score_similarities
from domains.text import logger
from reid.batches.loader import StoreCache

BATCH = 128
UNREADABLE = 0.01
"""Share of a domain's test images that may be unreadable; with more, scores would describe other data."""
log = logger(__name__)


def batches(crops: NDArray[np.uint8], size: int = BATCH) -> Iterator[NDArray[np.uint8]]:
    """Return crops batch by batch, so that computing on a large split needs memory for one batch only."""
    return (crops[start : start + size] for start in range(0, len(crops), size))


def can_be_scored(domain: Domain) -> str | None:
    """Return None, or why a domain can't be scored: no query and gallery, or missing images."""
    if not len(domain.query) or not len(domain.gallery):
        return "it has no query and gallery splits"
    gone = [
        split for split in (domain.query, domain.gallery) if not any(file.is_file() for file in domain.files(split))
    ]
    return "its images are gone" if gone else None


@dataclass(frozen=True)
class Retrieval:
    """A domain's queries and gallery, embedded: all that scoring needs.

    Attributes:
        asked: unit-length embeddings of the queries, ``[Q, D]``.
        held: unit-length embeddings of the gallery, ``[G, D]``.
        people: identities and cameras of the queries and of the gallery.
        same_camera: the domain's camera rule.
        left_out: one line per image that can't be read and is left out.
    """

    asked: Float32s
    held: Float32s
    people: tuple[Labels, Labels]
    same_camera: SameCamera
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, domain: Domain, embed: Embed, stores: StoreCache, gallery_embed: Embed | None = None) -> Retrieval:
        """Embed both splits; raises DataError if there is nothing to score, or too many images can't be read."""
        why = can_be_scored(domain)
        if why:
            raise DataError(f"domain {domain.name} can't be scored: {why}{domain.remarks}")
        query, gallery = stores.get(domain, domain.query), stores.get(domain, domain.gallery)
        left_out = tuple(
            f"{image.path} can't be read and is left out: {image.reason}"
            for image in (*query.left_out, *gallery.left_out)
        )
        tested = len(domain.query) + len(domain.gallery)
        if len(left_out) > UNREADABLE * tested:
            raise DataError(
                f"domain {domain.name} can't be scored: {len(left_out)} of its {tested} test images can't be read; "
                f"{left_out[0]}"
            )
        people = Labels.from_split(query.split), Labels.from_split(gallery.split)
        return cls(embed(query.crops), (gallery_embed or embed)(gallery.crops), people, domain.same_camera, left_out)

    def scores(self, *, rerank: bool = False) -> Scores:
        """Return the retrieval scores; raises DataError if no query can be scored."""
        if rerank:
            return score_similarities(k_reciprocal(self.asked, self.held), *self.people, same_camera=self.same_camera)
        return score_domain(self.asked, self.held, *self.people, same_camera=self.same_camera)


def evaluate(
    domain: Domain, embed: Embed, stores: StoreCache, *, gallery_embed: Embed | None = None, rerank: bool = False
) -> Scores:
    """Score a domain under its own camera rule.

    Args:
        domain: needs query and gallery splits.
        embed: the model.
        stores: decodes splits and caches them.
        gallery_embed: embeds the gallery, if another model does: an older one whose vectors are carried over, for
            example.
        rerank: k-reciprocal re-ranking (Zhong et al., CVPR 2017) before scoring.

    Raises:
        DataError: no split to score, no query that can be scored, or more than 1 % of the images unreadable; fewer only
            give a warning.
    """
    retrieval = Retrieval.of(domain, embed, stores, gallery_embed)
    for line in retrieval.left_out:
        log.warning("domain %s: %s", domain.name, line)
    return retrieval.scores(rerank=rerank)


def evaluate_open_set(domain: Domain, embed: Embed, stores: StoreCache, *, rerank: bool = False) -> dict[str, Any]:
    """Return :func:`evaluate`'s scores as plain values, and ``open_set`` (:mod:`domains.openset`), from one pass over
    the crops.

    Open-set metrics use the cosine even with ``rerank``: re-ranked distances are relative to their query and can't be
    compared with one threshold.

    Raises:
        DataError: no split to score, or no query that can be scored.
    """
    retrieval = Retrieval.of(domain, embed, stores)
    known = open_set(retrieval.asked, retrieval.held, *retrieval.people, same_camera=retrieval.same_camera)
    return {**retrieval.scores(rerank=rerank).to_dict(), "open_set": known.to_dict()}
