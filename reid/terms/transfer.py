"""Prototype-based knowledge transfer from the domains learned before, L_proto."""

from __future__ import annotations

import torch
from torch import Tensor

from domains.choice import check_choice
from domains.errors import ConfigError
from prototypes.prototype import DistributionPrototypes
from reid.network.distribution import draw, unit
from reid.terms.losses import prototype_transfer
from reid.terms.term import Batch, LearnedDomains, Step, Term, View


class PrototypeTransfer(Term):
    """L_proto: relations between crops must agree with those seen through old identities (PKT of DKP, CVPR 2024).

    Args:
        weight: factor of the loss; published 0.1 (DKP) and 1.5 (DKP++).
        view: the crops that the loss is computed on.
        domains: ``last`` uses the prototypes of the previous domain, as published; ``all`` those of every domain, which
            a transport must keep up to date.
        assign: λ₁, temperature of the assignment to old identities.
        relate: λ₂, temperature of the relations.
        detach: stop the gradient at the target; as published, it flows through both sides.
    """

    reads = ("prototypes",)

    def __init__(
        self,
        weight: float = 1.0,
        view: View = "plain",
        domains: LearnedDomains = "last",
        assign: float = 0.1,
        relate: float = 0.1,
        detach: bool = False,
    ) -> None:
        super().__init__(weight, view)
        check_choice("domains", domains, LearnedDomains, ValueError)
        self.every = domains == "all"
        self.assign, self.relate, self.detach = assign, relate, detach
        self.mean = self.spread = torch.empty(0)

    def begin(self, step: Step) -> None:
        """Load the prototypes."""
        domains = [found for memory in step.memories if (found := DistributionPrototypes.from_arrays(memory.arrays))]
        domains = domains if self.every else domains[-1:]
        if not domains:
            raise ConfigError("prototype_transfer has no prototypes to transfer")
        self.mean = torch.cat([torch.from_numpy(domain.mean) for domain in domains]).to(step.runtime.device)
        self.spread = torch.cat([torch.from_numpy(domain.spread) for domain in domains]).to(step.runtime.device)

    def loss(self, batch: Batch) -> Tensor:
        """Return L_proto, a scalar."""
        drawn = draw(self.mean, self.spread, batch.generator("prototypes"))
        centre = unit(batch.output(self.view).embedding)
        return prototype_transfer(centre, drawn, assign=self.assign, relate=self.relate, detach=self.detach)
