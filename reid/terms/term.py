"""What a term is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from domains.choice import check_choice
from domains.domain import Domain
from prototypes.distribution import Gaussians, HeadKind, sample, unit
from prototypes.memory import Memory
from reid.config import Config
from reid.network.model import Output, ReidModel
from reid.network.runtime import Runtime
from reid.randomness import torch_generator
from reid.terms.survey import Survey

View = Literal["plain", "aligned"]
"""``plain``: the augmented crop; ``aligned``: the same crop in the look of a domain learned before."""

LearnedDomains = Literal["last", "all"]
"""Which of the domains learned before a term looks at: the last one, or all of them."""

MakeView = Callable[[Tensor, torch.Generator], Tensor]
"""Augmented crops ``[B, H, W, 3]`` → another view of them."""


@dataclass
class Step:
    """One domain being learned.

    Attributes:
        index: t, from 1.
        domain: the domain; only its train split is used.
        config: settings in force.
        runtime: device and precision.
        model: the network being trained, already grown to the new identities.
        teachers: frozen networks by name, those that the method's terms declare; ``old`` is M_{t-1}.
        old_classes: classifier rows that earlier steps filled.
        memories: what is kept of each domain learned before, in order, carried into the feature space of M_{t-1}.
        survey: reads the step's train crops without augmentation.
        kept: further weights that the step before sealed, by name.
        views: how views beside ``plain`` are made, by name; a term that makes one puts it here in ``begin``.
        finished: whether ``model`` is M_t already, and what is trained now is the adapter beside it.
    """

    index: int
    domain: Domain
    config: Config
    runtime: Runtime
    model: ReidModel
    teachers: Mapping[str, ReidModel]
    old_classes: int
    memories: Sequence[Memory] = ()
    survey: Survey | None = None
    kept: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    views: dict[str, MakeView] = field(default_factory=dict)
    finished: bool = False


@dataclass
class Batch:
    """One training batch; views and outputs are computed once and only when asked for, each from random numbers of its
    own.

    Attributes:
        crops: augmented crops, the ``plain`` view, ``[B, H, W, 3]`` in 0..255.
        labels: classifier row of each crop, ``[B]``.
        cameras: camera code of each crop, ``[B]``.
        step: where the batch belongs.
        iteration: its number, from 0.
    """

    crops: Tensor
    labels: Tensor
    cameras: Tensor
    step: Step
    iteration: int = 0
    _views: dict[str, Tensor] = field(default_factory=dict)
    _outputs: dict[str, Output] = field(default_factory=dict)
    _taught: dict[tuple[str, str], Output] = field(default_factory=dict)
    _gaussians: dict[tuple[str, int], Gaussians] = field(default_factory=dict)

    def generator(self, purpose: str) -> torch.Generator:
        """Return a CPU generator that depends on the run's seed, the step, the iteration and the purpose alone."""
        return torch_generator(self.step.config.seed, self.step.index, self.iteration, purpose)

    def view(self, name: str = "plain") -> Tensor:
        """Crops ``[B, H, W, 3]`` of a view."""
        if name == "plain":
            return self.crops
        if name not in self._views:
            with torch.no_grad():
                self._views[name] = self.step.views[name](self.crops, self.generator(name))
        return self._views[name]

    def output(self, view: str = "plain") -> Output:
        """What the network in training says of a view."""
        if view not in self._outputs:
            with self.step.runtime.autocast():
                self._outputs[view] = self.step.model(self.view(view))
        return self._outputs[view]

    def teacher(self, name: str, view: str = "plain") -> Output:
        """What a frozen teacher says of a view, without gradient."""
        if (name, view) not in self._taught:
            with torch.no_grad(), self.step.runtime.autocast():
                self._taught[name, view] = self.step.teachers[name](self.view(view))
        return self._taught[name, view]

    def gaussians(self, view: str = "plain", samples: int = 6) -> Gaussians:
        """What the network in training says of a view as distributions, with draws from each."""
        if (view, samples) not in self._gaussians:
            output, model = self.output(view), self.step.model
            with self.step.runtime.autocast():
                spread = model.spread(output.features)
            centre = unit(output.embedding)
            noise = torch.randn(samples, *centre.shape, generator=self.generator(f"noise {view}")).to(centre.device)
            drawn = sample(centre, spread, noise)
            logits = model.classify(torch.cat([centre[None], drawn]).flatten(0, 1))
            self._gaussians[view, samples] = Gaussians(centre, spread, drawn, logits)
        return self._gaussians[view, samples]


class Term(nn.Module):
    """One objective of a lifelong method, named after its paper's symbol in the docstring.

    A term's parameters are trained with the model's; its parameters and buffers are part of the resume state.

    Args:
        weight: factor of the loss.
        view: which crops it looks at.
    """

    teachers: ClassVar[tuple[str, ...]] = ()
    """Frozen networks that the term asks for. A term with a teacher has no part in the first step, where there is none.
    """
    reads: ClassVar[tuple[str, ...]] = ()
    """Kinds of memory that it can't do without, as ``prototypes``; it has no part in a step before which none is kept.
    """
    keeps: ClassVar[str | None] = None
    """The kind of memory that it keeps."""
    head: HeadKind | None = None
    """The distribution head that the network must have, if any."""

    def __init__(self, weight: float = 1.0, view: View = "plain") -> None:
        super().__init__()
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise TypeError(f"weight must be a number, got {weight!r}")
        check_choice("view", view, View, ValueError)
        self.weight = weight
        self.view = view

    def makes(self, memories: Sequence[Memory]) -> tuple[str, ...]:
        """Views beside ``plain`` that it can make, given what is kept of earlier domains."""
        return ()

    def check(self, model: ReidModel) -> None:
        """Raise ConfigError if the term can't be used with this model; asked of every step, before anything is decoded
        or trained.
        """

    def begin(self, step: Step) -> None:
        """Once, before training on the domain; may train something of its own."""

    def loss(self, batch: Batch) -> Tensor | None:
        """Scalar, every iteration, before ``weight``; None from a term that has no objective."""
        return None

    def after_backward(self, step: Step) -> None:
        """Look-ahead or gradient surgery."""

    def after_update(self, step: Step) -> None:
        """Update moving averages and the like."""

    def after_training(self, step: Step) -> None:
        """Once, after the last iteration and before fusion; not part of the resume state, so it is done again if the
        step's end is cut short.
        """

    def weights_for_next(self, step: Step) -> Mapping[str, Mapping[str, Tensor]]:
        """Return further weights that the next step needs, by name; sealed beside the model, and those of the step
        before are needed no more.
        """
        return {}

    def end(self, step: Step) -> Mapping[str, Tensor]:
        """Return what goes into the domain's memory, by name."""
        return {}
