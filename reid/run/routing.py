"""Routes: a site is served by the network that its own domain's adapter gives, where a run's method keeps one per
domain.

A learned site is known by its name. Where the step's own network is for all sites and adapters stand beside it, another
site is served by that network. Where there is nothing but adapters, another site is known by its look alone: the
learned domains' adapters are mixed by how near their twelve style numbers are to those of the crops that ask. What is
in a gallery has no say, and a gallery holds embeddings of one route.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains.style import StyleStatistics
from prototypes.memory import Memory
from reid.config import Method, validated
from reid.network.adapter import find_slots
from reid.network.model import ReidModel
from reid.terms.hypernetwork import KIND, HyperNetworkTerm, hypernetwork

REACH = 5.0
"""τ, in grey levels: a domain whose twelve numbers differ by this much (root mean square) weighs 0.6 of one that is the
same.
"""

Write = Callable[[Tensor], Mapping[str, Tensor]]
"""A domain's embedding → the weights that it changes, by parameter of the backbone."""


@dataclass(frozen=True)
class Router:
    """The routes of one sealed step.

    Attributes:
        write: gives the weights of any embedding.
        embeddings: of the learned domains, ``[32]`` each, by name.
        looks: the learned domains' twelve numbers, by name.
        shared: whether the step's own network is for every site that has no adapter.
    """

    write: Write
    embeddings: Mapping[str, Tensor]
    looks: Mapping[str, StyleStatistics]
    shared: bool = False

    def place(self, site: str, look: StyleStatistics | None) -> Tensor | None:
        """Embedding of a site: a learned one's own; else None where the step's own network is for all, and ``Σ π_n
        e_n`` where it is not.

        There ``π_n ∝ exp(-|s - s_n|² / 2τ²)``, and the mean serves where no look is known.
        """
        if site in self.embeddings:
            return self.embeddings[site]
        if self.shared:
            return None
        known = [name for name in self.embeddings if name in self.looks]
        if look is None or not known:
            return torch.stack(list(self.embeddings.values())).mean(0)
        away = np.array([np.square(self.looks[name].numbers - look.numbers).mean() for name in known])
        share = torch.softmax(torch.from_numpy(-away / (2 * REACH**2)), 0).float()
        return (share[:, None] * torch.stack([self.embeddings[name] for name in known])).sum(0)

    @torch.no_grad()
    def route(self, model: ReidModel, place: Tensor) -> ReidModel:
        """Put the weights of a place into a network, and return it."""
        for name, weight in self.write(place).items():
            model.backbone.get_parameter(name).copy_(weight)
        return model


def routing_term(card: Mapping[str, Any]) -> HyperNetworkTerm | None:
    """Return the term by which a step's method routes, if it does."""
    if not card.get("method"):
        return None
    method = validated(Method, card["method"], "method")
    terms = [
        hypernetwork(**entry[KIND]) for entry in (*method.terms, *method.adapter) if KIND in entry
    ]  # other terms may be a user's own
    return next((term for term in terms if term.routes), None)


def router_of(
    model: ReidModel, term: HyperNetworkTerm, kept: Mapping[str, Mapping[str, Tensor]], memories: Sequence[Memory]
) -> Router | None:
    """Return the routes of a step, or None if nothing has been routed yet.

    Args:
        model: the step's network.
        term: what :func:`routing_term` gave.
        kept: further weights that the step sealed.
        memories: of the domains learned up to it.
    """
    if KIND not in kept:
        return None
    slots = find_slots(model.backbone, rank=term.adapter.rank, where=term.places(model.backbone))
    net = term.network(kept[KIND], slots)
    base = term.below(model.backbone, kept, slots)

    def write(place: Tensor) -> Mapping[str, Tensor]:
        return {
            name: base[name] + term.adapter.share * change for name, change in term.written(net, slots, place).items()
        }

    found = {memory.domain: memory.arrays for memory in memories}
    embeddings = {
        name: torch.from_numpy(np.asarray(arrays[f"{KIND}.embedding"]))
        for name, arrays in found.items()
        if f"{KIND}.embedding" in arrays
    }
    looks = {
        name: StyleStatistics.from_array(arrays["style.statistics"])
        for name, arrays in found.items()
        if "style.statistics" in arrays
    }
    if not embeddings:  # all that was routed is erased
        return None
    return Router(write, embeddings, looks, shared=term.beside)
