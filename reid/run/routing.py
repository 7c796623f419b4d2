"""Routes: where a run's method keeps an adapter per domain, a site is served by the network with its own adapter.

A learned site is identified by its name. Where the step's own network serves all sites and adapters sit beside it, any
other site is served by that network. Where there are only adapters, any other site is identified by its look alone: the
learned domains' adapters are mixed by how close their twelve style numbers are to those of the query crops. The content
of a gallery plays no part, and a gallery holds embeddings of one route only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains.errors import ConfigError
from domains.style import StyleStatistics
from domains.text import shown
from prototypes.memory import Memory
from reid.config import Method, validated
from reid.network.adapter import find_slots
from reid.network.model import ReidModel
from reid.terms.hypernetwork import KIND, HyperNetworkTerm

REACH = 5.0
"""τ, in grey levels: a domain whose twelve numbers differ by this much (root mean square) gets 0.6 times the weight of
an identical one.
"""

Write = Callable[[Tensor], Mapping[str, Tensor]]
"""Maps a domain's embedding to the weights it changes, by name of the backbone's parameter."""


@dataclass(frozen=True)
class Router:
    """The routes of one sealed step.

    Attributes:
        write: returns the weights for any embedding.
        embeddings: the learned domains' embeddings, ``[32]`` each, by name.
        looks: the learned domains' twelve numbers, by name.
        shared: whether the step's own network serves every site that has no adapter.
    """

    write: Write
    embeddings: Mapping[str, Tensor]
    looks: Mapping[str, StyleStatistics]
    shared: bool = False

    def place(self, site: str, look: StyleStatistics | None) -> Tensor | None:
        """Return a site's embedding: its own if learned, else None if the network is shared, or ``Σ π_n e_n`` if not.

        There ``π_n ∝ exp(-|s - s_n|² / 2τ²)``; where no look is known, the plain mean is used.
        """
        if site in self.embeddings:
            return self.embeddings[site]
        if self.shared:
            return None
        known = [name for name in self.embeddings if name in self.looks]
        if look is None or not known:
            return torch.stack(list(self.embeddings.values())).mean(0)
        distances = np.array([np.square(self.looks[name].numbers - look.numbers).mean() for name in known])
        share = torch.softmax(torch.from_numpy(-distances / (2 * REACH**2)), 0).float()
        return (share[:, None] * torch.stack([self.embeddings[name] for name in known])).sum(0)

    @torch.no_grad()
    def route(self, model: ReidModel, place: Tensor) -> ReidModel:
        """Load the weights for a site's embedding into a network, and return it."""
        for name, weight in self.write(place).items():
            model.backbone.get_parameter(name).copy_(weight)
        return model


def routing_term(card: Mapping[str, Any]) -> HyperNetworkTerm | None:
    """Return the term that a step's method routes by, if any."""
    if not card.get("method"):
        return None
    method = validated(Method, card["method"], "method")
    try:
        terms = [
            HyperNetworkTerm.build(**entry[KIND]) for entry in (*method.terms, *method.adapter) if KIND in entry
        ]  # other terms may be a user's own
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the card of a step has a term {KIND} that can't be built: {shown(str(error)):.200}"
        ) from error
    return next((term for term in terms if term.routes), None)


def router_of(
    model: ReidModel, term: HyperNetworkTerm, kept: Mapping[str, Mapping[str, Tensor]], memories: Sequence[Memory]
) -> Router | None:
    """Return the routes of a step, or None if nothing has been routed yet.

    Args:
        model: the step's network.
        term: as returned by :func:`routing_term`.
        kept: further weights that the step sealed.
        memories: those of the domains learned up to this step.
    """
    if KIND not in kept:
        return None
    slots = find_slots(model.backbone, rank=term.adapter.rank, where=term.places(model.backbone))
    net = term.network(kept[KIND], slots)
    base = term.below(model.backbone, kept, slots)

    def write(embedding: Tensor) -> Mapping[str, Tensor]:
        changes = term.written(net, slots, embedding)
        return {name: base[name] + term.adapter.share * change for name, change in changes.items()}

    stored = {memory.domain: memory.arrays for memory in memories}
    embeddings = {
        name: torch.from_numpy(np.asarray(arrays[f"{KIND}.embedding"]))
        for name, arrays in stored.items()
        if f"{KIND}.embedding" in arrays
    }
    looks = {
        name: StyleStatistics.from_array(arrays["style.statistics"])
        for name, arrays in stored.items()
        if "style.statistics" in arrays
    }
    if not embeddings:  # every routed domain has been erased
        return None
    return Router(write, embeddings, looks, shared=term.beside)
