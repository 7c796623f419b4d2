"""Input-side distribution modelling: terms that keep a domain's look and make an ``aligned`` view from earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from domains.choice import check_choice
from domains.style import StyleStatistics
from prototypes.memory import Memory
from reid.network.style import StyleNetwork, restyle
from reid.randomness import torch_generator
from reid.terms.survey import Survey
from reid.terms.term import LearnedDomains, Step, Term

PREFIX = "network."


class Aligner(Term):
    """The base of both aligners; ``look`` is the name prefix of what one keeps.

    Args:
        domains: ``last`` aligns to the previous domain, as published; ``all`` draws one of the learned domains for each
            crop (or batch, for a network).
    """

    look: ClassVar[str]

    def __init__(self, domains: LearnedDomains = "last") -> None:
        super().__init__()
        check_choice("domains", domains, LearnedDomains, ValueError)
        self.every = domains == "all"

    def makes(self, memories: Sequence[Memory]) -> tuple[str, ...]:
        """Return ``aligned`` if a look of this kind is kept."""
        return ("aligned",) if any(name.startswith(self.look) for memory in memories for name in memory.arrays) else ()


class StyleStatisticsTerm(Aligner):
    """Twelve numbers per domain: the spread of channel means and deviations over its crops. Aligns by channel."""

    keeps = "style"
    look = "style.statistics"

    def begin(self, step: Step) -> None:
        """Offer the ``aligned`` view, if any look is kept."""
        looks = [
            StyleStatistics.from_array(memory.arrays["style.statistics"]).numbers
            for memory in step.memories
            if "style.statistics" in memory.arrays
        ]
        if not looks:
            return
        styles = torch.stack([torch.from_numpy(numbers) for numbers in (looks if self.every else looks[-1:])])

        def aligned(crops: Tensor, generator: torch.Generator) -> Tensor:
            which = torch.randint(len(styles), (len(crops),), generator=generator)
            noise = torch.randn(len(crops), 2, 3, generator=generator)
            return restyle(crops, styles[which].to(crops.device), noise.to(crops.device)).clamp(0, 255)

        step.views["aligned"] = aligned

    def end(self, step: Step) -> Mapping[str, Tensor]:
        """Return ``statistics``, ``[4, 3]``."""
        if step.survey is None:
            raise ValueError("a style is computed from a survey of the step's crops, and the step has none")
        return {"statistics": torch.from_numpy(_looks(step.survey).numbers)}


class StyleNetworkTerm(Aligner):
    """A network per domain that pulls any crop towards its look: DTNet of DKP++ (TPAMI 2025), AKPNet of DASK (AAAI
    2025); 2.2 MB in fp16.

    Trained at the end of the step, on its crops alone, to undo random changes to their channel statistics (Adam, β =
    (0, 0.999)).

    Args:
        domains: which of the learned domains to align to.
        iterations: number of its training iterations; published 20,000.
        batch: crops per iteration; published 128.
        lr: learning rate of Adam; published 2e-4.
    """

    keeps = "style"
    look = f"style.{PREFIX}"

    def __init__(
        self, domains: LearnedDomains = "last", iterations: int = 300, batch: int = 64, lr: float = 2e-4
    ) -> None:
        super().__init__(domains)
        self.iterations, self.batch, self.lr = iterations, batch, lr

    def begin(self, step: Step) -> None:
        """Offer the ``aligned`` view, if any look is kept."""
        networks = []
        for memory in step.memories:
            weights = {
                name.removeprefix(f"style.{PREFIX}"): array
                for name, array in memory.arrays.items()
                if name.startswith(f"style.{PREFIX}")
            }
            if weights:
                network = _network(step)
                network.load_arrays(weights)
                networks.append(network.eval().requires_grad_(False).to(step.runtime.device))
        networks = networks if self.every else networks[-1:]
        if not networks:
            return

        def aligned(crops: Tensor, generator: torch.Generator) -> Tensor:
            which = int(torch.randint(len(networks), (), generator=generator))
            out: Tensor = networks[which](crops)
            return out

        step.views["aligned"] = aligned

    def end(self, step: Step) -> Mapping[str, Tensor]:
        """Train the domain's network and return its weights."""
        if step.survey is None:
            raise ValueError("a style is learned from a survey of the step's crops, and the step has none")
        seed = (step.config.seed, step.index)
        looks = _looks(step.survey)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_generator(*seed, "style network").initial_seed())
            network = _network(step, looks).to(step.runtime.device).train()
        optimiser = torch.optim.Adam(network.parameters(), lr=self.lr, betas=(0.0, 0.999), fused=True)
        store, positions = step.survey.store, step.survey.positions
        for iteration in range(self.iterations):
            generator = torch_generator(*seed, "style", iteration)
            rows = positions[torch.randint(len(positions), (self.batch,), generator=generator).numpy()]
            crops = torch.from_numpy(store.crops[rows]).to(step.runtime.device)
            loss = network.loss(crops, torch.randn(len(crops), 2, 3, generator=generator).to(crops.device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return {PREFIX + name: torch.from_numpy(array) for name, array in network.to_arrays().items()}


def _looks(survey: Survey) -> StyleStatistics:
    return StyleStatistics.of(crops.cpu().numpy() for crops, _ in survey.batches())


def _network(step: Step, looks: StyleStatistics | None = None) -> StyleNetwork:
    rule = step.model.normalise
    order = [2, 1, 0] if rule.flip else [0, 1, 2]
    return StyleNetwork(rule.mean[order].cpu(), rule.std[order].cpu(), looks)
