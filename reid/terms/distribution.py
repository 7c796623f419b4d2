"""Instance-level distribution modelling: the base objectives of DKP (CVPR 2024), and its memory of a domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from domains.choice import check_choice
from prototypes.prototype import DistributionPrototypes, PrototypeStream
from reid.network.distribution import HeadKind
from reid.network.model import ReidModel
from reid.terms import losses
from reid.terms.cross_entropy import Classes, Start, checked_start, start_at_centres
from reid.terms.survey import Survey
from reid.terms.term import Batch, Step, Term, View

PrototypeHead = Literal["pooled", "convolution", "none"]
"""The head that a crop's deviations come from; with ``none``, a crop is a point."""

SPREAD = 0.01
"""Deviation of people in a domain that has one crop of each, where nothing says how far crops of a person differ."""


class DistributionTerm(Term):
    """The base of all terms on distributions.

    Args:
        weight: factor of the loss.
        view: the crops that the loss is computed on.
        samples: m, draws per crop.
        head: ``pooled`` (small) or ``convolution`` (as published); all terms of a method must agree.
    """

    def __init__(self, weight: float = 1.0, view: View = "plain", samples: int = 6, head: HeadKind = "pooled") -> None:
        super().__init__(weight, view)
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples must be a whole number of at least 1, got {samples!r}")
        check_choice("head", head, HeadKind, ValueError)
        self.samples = samples
        self.head = head


class DistributionCrossEntropy(DistributionTerm):
    """L_ce-d: mean cross-entropy of the centre and m draws of each crop.

    Args:
        weight: factor of the loss.
        view: the crops that the loss is computed on.
        samples: m, draws per crop.
        head: which distribution head.
        smoothing: ε of label smoothing; none as published.
        classes: ``all`` keeps every earlier identity in the softmax, as published; ``current`` only those of this step.
        start: initial values of new classifier rows: ``centre``, their identity's mean, as published, or ``random``,
            small noise.
    """

    def __init__(
        self,
        weight: float = 1.0,
        view: View = "plain",
        samples: int = 6,
        head: HeadKind = "pooled",
        smoothing: float = 0.0,
        classes: Classes = "all",
        start: Start = "centre",
    ) -> None:
        super().__init__(weight, view, samples, head)
        self.from_centres = checked_start(start)
        check_choice("classes", classes, Classes, ValueError)
        self.smoothing = smoothing
        self.current_only = classes == "current"

    def begin(self, step: Step) -> None:
        """Initialise new classifier rows."""
        if self.from_centres and self.view == "plain":
            start_at_centres(step)

    def loss(self, batch: Batch) -> Tensor:
        """Return L_ce-d, a scalar."""
        skip = batch.step.old_classes if self.current_only else 0
        logits = batch.gaussians(self.view, self.samples).logits[:, skip:]
        return losses.cross_entropy(logits, (batch.labels - skip).repeat(self.samples + 1), self.smoothing)


class DistributionTriplet(DistributionTerm):
    """L_tri-d: soft-margin batch-hard triplet, every draw against the centres."""

    def loss(self, batch: Batch) -> Tensor:
        """Return L_tri-d, a scalar."""
        gaussians = batch.gaussians(self.view, self.samples)
        return losses.set_triplet(
            gaussians.samples.flatten(0, 1), batch.labels.repeat(self.samples), gaussians.centre, batch.labels
        )


class JointTriplet(DistributionTerm):
    """L_tri-joint of DKP++: draws of the aligned crop, and centre and draws of the plain one, against the aligned
    centres.
    """

    def __init__(self, weight: float = 1.0, samples: int = 6, head: HeadKind = "pooled") -> None:
        super().__init__(weight, "aligned", samples, head)

    def loss(self, batch: Batch) -> Tensor:
        """Return L_tri-joint, a scalar."""
        plain, aligned = batch.gaussians("plain", self.samples), batch.gaussians("aligned", self.samples)
        anchors = torch.cat([aligned.samples, plain.centre[None], plain.samples])
        return losses.set_triplet(
            anchors.flatten(0, 1), batch.labels.repeat(len(anchors)), aligned.centre, batch.labels
        )


class Prototypes(DistributionTerm):
    """Keeps a Gaussian per identity, estimated with the finished model in one pass (DPG of DKP); has no objective.

    Args:
        head: which distribution head the deviations of single crops come from. With ``none``, the network needs no
            head: mean and deviation are those of a person's unit-length embeddings.
    """

    keeps = "prototypes"

    def __init__(self, head: PrototypeHead = "pooled") -> None:
        check_choice("head", head, PrototypeHead, ValueError)
        super().__init__(head="pooled" if head == "none" else head)
        if head == "none":
            self.head = None

    def end(self, step: Step) -> Mapping[str, Tensor]:
        """Return ``mean`` and ``spread``, ``[K, D]`` fp16, in the order of the step's classifier rows."""
        if step.survey is None:
            raise ValueError("prototypes are computed from a survey of the step's crops, and the step has none")
        gather = _of_points if self.head is None else _of_gaussians
        prototypes = gather(step.survey, step.model, step.model.classes - step.old_classes)
        return {"mean": torch.from_numpy(prototypes.mean).half(), "spread": torch.from_numpy(prototypes.spread).half()}


def _of_gaussians(survey: Survey, model: ReidModel, identities: int) -> DistributionPrototypes:
    """Prototypes of crops that are Gaussians, by the model's distribution head."""
    stream = PrototypeStream(identities, model.dim)
    for centre, spread, labels in survey.gaussians(model):
        stream.add(centre, spread, labels)
    return stream.finish()


def _of_points(survey: Survey, model: ReidModel, identities: int) -> DistributionPrototypes:
    """Prototypes of crops that are points, their unit-length embeddings.

    One crop says nothing of how far others of the person lie from it, so such a person gets the root mean square
    deviation, per dimension, of those with more.
    """
    vectors = survey.embeddings(model)
    stream = PrototypeStream(identities, model.dim)
    stream.add(vectors, np.zeros_like(vectors), survey.labels)
    found = stream.finish()
    single = stream.count == 1
    usual = SPREAD if single.all() else np.sqrt(np.square(found.spread[~single], dtype=np.float64).mean(0))
    return DistributionPrototypes(found.mean, np.where(single[:, None], usual, found.spread).astype(np.float32))
