"""Terms, and the step and the batches that they are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from domains.choice import check_choice
from domains.domain import Domain
from prototypes.memory import Memory
from reid.config import Config, nearest
from reid.network.distribution import Gaussians, HeadKind, sample, unit
from reid.network.model import Output, ReidModel
from reid.network.runtime import Runtime
from reid.randomness import torch_generator
from reid.terms.survey import Survey

View = Literal["plain", "aligned"]
"""``plain``: the augmented crop; ``aligned``: the same crop in the look of a domain learned before."""

LearnedDomains = Literal["last", "all"]
"""Which of the domains learned before a term uses: the last, or all."""

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
        old_classes: number of classifier rows of earlier steps.
        memories: the memory of each domain learned before, in order, carried into the feature space of M_{t-1}.
        survey: reads the step's train crops without augmentation.
        kept: further weights that the previous step sealed, by name.
        views: functions that make views other than ``plain``, by name; a term that makes one adds it in ``begin``.
        finished: whether ``model`` is M_t already, and only the adapter beside it is being trained.
        judge: scores a network, in percent mAP, on people of the domain who are kept out of its training, if any are.
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
    judge: Callable[[ReidModel], float] | None = None


@dataclass
class Batch:
    """One training batch; views and outputs are computed once, on demand, each from its own random numbers.

    Attributes:
        crops: augmented crops, the ``plain`` view, ``[B, H, W, 3]`` in 0..255.
        labels: classifier row of each crop, ``[B]``.
        cameras: camera code of each crop, ``[B]``.
        step: the step that the batch belongs to.
        iteration: number of the batch, from 0.
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
        """Return the crops ``[B, H, W, 3]`` of a view."""
        if name == "plain":
            return self.crops
        if name not in self._views:
            with torch.no_grad():
                self._views[name] = self.step.views[name](self.crops, self.generator(name))
        return self._views[name]

    def output(self, view: str = "plain") -> Output:
        """Return the output of the network being trained for a view."""
        if view not in self._outputs:
            with self.step.runtime.autocast():
                self._outputs[view] = self.step.model(self.view(view))
        return self._outputs[view]

    def teacher(self, name: str, view: str = "plain") -> Output:
        """Return a frozen teacher's output for a view, without gradient."""
        if (name, view) not in self._taught:
            with torch.no_grad(), self.step.runtime.autocast():
                self._taught[name, view] = self.step.teachers[name](self.view(view))
        return self._taught[name, view]

    def gaussians(self, view: str = "plain", samples: int = 6) -> Gaussians:
        """Return the output of the network being trained for a view as distributions, with draws from each."""
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


def check_known(parameters: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ValueError for the first parameter that is not a known one, naming the nearest."""
    for name in parameters:
        if name not in known:
            raise ValueError(f"unknown parameter {name!r}{nearest(name, known)}")


class Term(nn.Module):
    """One objective of a lifelong method; the docstring gives its symbol in the paper.

    A term's parameters are trained with the model's; its parameters and buffers are part of the resume state.

    Args:
        weight: factor of the loss.
        view: the crops that the loss is computed on.

    Example:
        >>> import reid
        >>> class Length(reid.Term):
        ...     def loss(self, batch):
        ...         return (batch.output(self.view).embedding.norm(dim=1) - 1).square().mean()
        >>> Length(weight=0.1).weight
        0.1
    """

    teachers: ClassVar[tuple[str, ...]] = ()
    """Frozen networks that the term needs. A term with a teacher has no part in the first step, which has none."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Kinds of memory that the term needs, such as ``prototypes``; it has no part in a step without them."""
    keeps: ClassVar[str | None] = None
    """The kind of memory that the term keeps."""
    head: HeadKind | None = None
    """The distribution head that the network must have, if any."""

    def __init__(self, weight: float = 1.0, view: View = "plain") -> None:
        super().__init__()
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise TypeError(f"weight must be a number, got {weight!r}")
        check_choice("view", view, View, ValueError)
        self.weight = weight
        self.view = view

    @classmethod
    def build(cls, **parameters: Any) -> Term:
        """Build the term from a method's entry; raises TypeError or ValueError for a parameter it does not take."""
        known = inspect.signature(cls).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            check_known(parameters, known)
        return cls(**parameters)

    def makes(self, memories: Sequence[Memory]) -> tuple[str, ...]:
        """Return the views other than ``plain`` that it can make from the memories of earlier domains."""
        return ()

    def check(self, model: ReidModel) -> None:
        """Raise ConfigError if the term can't be used with this model; called in every step, before anything is decoded
        or trained.
        """

    def begin(self, step: Step) -> None:
        """Run once, before training on the domain; may train something of its own."""

    def loss(self, batch: Batch) -> Tensor | None:
        """Return the loss of an iteration, a scalar, before ``weight``; None from a term without an objective."""
        return None

    def after_backward(self, step: Step) -> None:
        """Change gradients before the update, as look-ahead or gradient surgery do."""

    def after_update(self, step: Step) -> None:
        """Update moving averages and the like."""

    def after_training(self, step: Step) -> None:
        """Run once, after the last iteration and before fusion; not part of the resume state, so it runs again if the
        step's end is interrupted.
        """

    def weights_for_next(self, step: Step) -> Mapping[str, Mapping[str, Tensor]]:
        """Return further weights that the next step needs, by name; sealed beside the model, and replacing those of the
        previous step.
        """
        return {}

    def end(self, step: Step) -> Mapping[str, Tensor]:
        """Return what goes into the domain's memory, by name."""
        return {}
