"""Prototype-based knowledge transfer from the domains learned before, L_proto."""

from __future__ import annotations

import torch
from torch import Tensor

from domains.choice import check_choice
from domains.errors import ConfigError
from prototypes.distribution import draw, unit
from prototypes.prototype import DistributionPrototypes
from prototypes.transfer import prototype_transfer
from reid.terms.term import Batch, LearnedDomains, Step, Term, View


class PrototypeTransfer(Term):
    """L_proto: relations between crops must agree with those seen through old identities (PKT of DKP, CVPR 2024).

    Args:
        weight: factor of the loss; published 0.1 (DKP) and 1.5 (DKP++).
        view: which crops it looks at.
        domains: ``last`` uses the prototypes of the domain before, as published; ``all`` those of every domain, which a
            transport must keep fresh.
        assign: λ₁, temperature of the assignment to old identities.
        relate: λ₂, temperature of the relations.
        detach: keep the gradient out of the target; published: it flows through both sides.
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
        """Take up the prototypes."""
        kept = [found for memory in step.memories if (found := DistributionPrototypes.from_arrays(memory.arrays))]
        kept = kept if self.every else kept[-1:]
        if not kept:
            raise ConfigError("prototype_transfer has no prototypes to transfer")
        self.mean = torch.cat([torch.from_numpy(found.mean) for found in kept]).to(step.runtime.device)
        self.spread = torch.cat([torch.from_numpy(found.spread) for found in kept]).to(step.runtime.device)

    def loss(self, batch: Batch) -> Tensor:
        """Scalar."""
        drawn = draw(self.mean, self.spread, batch.generator("prototypes"))
        centre = unit(batch.output(self.view).embedding)
        return prototype_transfer(centre, drawn, assign=self.assign, relate=self.relate, detach=self.detach)
