"""What a term is, and what it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from domains.domain import Domain
from prototypes.memory import Memory
from reid.config import Config
from reid.model import Output, ReidModel
from reid.optim import Runtime


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
        memories: what is kept of each domain learned before, in order.
    """

    index: int
    domain: Domain
    config: Config
    runtime: Runtime
    model: ReidModel
    teachers: Mapping[str, ReidModel]
    old_classes: int
    memories: Sequence[Memory] = ()


@dataclass
class Batch:
    """One training batch; outputs are computed once and only when asked for.

    Attributes:
        views: crops by view name, ``[B, H, W, 3]`` in 0..255; ``plain`` is the augmented crop.
        labels: classifier row of each crop, ``[B]``.
        cameras: camera code of each crop, ``[B]``.
        step: where the batch belongs.
    """

    views: Mapping[str, Tensor]
    labels: Tensor
    cameras: Tensor
    step: Step
    _outputs: dict[str, Output] = field(default_factory=dict)
    _taught: dict[tuple[str, str], Output] = field(default_factory=dict)

    def output(self, view: str = "plain") -> Output:
        """What the network in training says of a view."""
        if view not in self._outputs:
            with self.step.runtime.autocast():
                self._outputs[view] = self.step.model(self.views[view])
        return self._outputs[view]

    def teacher(self, name: str, view: str = "plain") -> Output:
        """What a frozen teacher says of a view, without gradient."""
        if (name, view) not in self._taught:
            with torch.no_grad(), self.step.runtime.autocast():
                self._taught[name, view] = self.step.teachers[name](self.views[view])
        return self._taught[name, view]


class Term(nn.Module):
    """One objective of a lifelong method, named after its paper's symbol in the docstring.

    A term's parameters are trained with the model's; its parameters and buffers are part of the resume state.

    Args:
        weight: factor of the loss.
    """

    teachers: ClassVar[tuple[str, ...]] = ()
    """Frozen networks that the term asks for. A term with a teacher has no part in the first step, where there is none."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def begin(self, step: Step) -> None:
        """Once, before training on the domain; may train something of its own."""

    def loss(self, batch: Batch) -> Tensor:
        """Scalar, every iteration, before ``weight``."""
        raise NotImplementedError

    def after_backward(self, step: Step) -> None:
        """Look-ahead or gradient surgery."""

    def after_update(self, step: Step) -> None:
        """Update moving averages and the like."""

    def end(self, step: Step) -> Mapping[str, Tensor]:
        """Return what goes into the domain's memory, by name."""
        return {}
