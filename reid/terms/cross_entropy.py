"""Identity classification, L_ce."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.choice import check_choice
from domains.errors import TrainingError
from reid.terms import losses
from reid.terms.term import Batch, Step, Term, View

Start = Literal["centre", "random"]
"""Initial values of new classifier rows."""
Classes = Literal["current", "all"]
"""The identities in the softmax: those of this step, or all learned so far."""


def start_at_centres(step: Step) -> None:
    """Put the classifier rows of new identities at the unit-length mean of their embeddings under M_{t-1} (DKP, CVPR
    2024).

    A random row has to find its place before it can teach the network anything, and with hundreds of identities and a
    hundred iterations each is seen only a few times; meanwhile the gradient pulls embeddings towards meaningless
    places. A step without a survey of its crops has no centres, and its rows are unchanged.

    Raises:
        TrainingError: embeddings are not finite, as in some deep networks with random weights before BatchNorm has seen
            a batch.
    """
    if step.survey is None:
        return
    sums = torch.zeros(step.model.classes - step.old_classes, step.model.dim)
    sums.index_add_(0, torch.from_numpy(step.survey.labels), torch.from_numpy(step.survey.embeddings(step.model)))
    if not torch.isfinite(sums).all():
        raise TrainingError(
            f"step {step.index} ({step.domain.name}): the network's embeddings are not finite before any training, so "
            "identities have no centres; start from trained weights (model.weights), or use a method whose classifier "
            "rows start at random, such as fine_tune"
        )
    with torch.no_grad():
        step.model.classifier.weight[step.old_classes :] = F.normalize(sums, dim=1).to(step.runtime.device)


def checked_start(start: str) -> bool:
    """Return whether rows start at their identities' centres; raises ValueError for an unknown word."""
    check_choice("start", start, Start, ValueError)
    return start == "centre"


class CrossEntropy(Term):
    """L_ce: cross-entropy of the neck's logits with label smoothing (Luo et al., "bag of tricks", CVPRW 2019).

    Args:
        weight: factor of the loss.
        view: the crops that the loss is computed on.
        smoothing: ε of label smoothing.
        classes: ``current`` compares only the identities of this step; ``all`` keeps every earlier identity in the
            softmax, as DKP does, where old rows can only be pushed away, since none of their people are seen.
        start: initial values of new classifier rows: ``random``, small noise, or ``centre``, their identity's mean
            (:func:`start_at_centres`).
    """

    def __init__(
        self,
        weight: float = 1.0,
        view: View = "plain",
        smoothing: float = 0.1,
        classes: Classes = "current",
        start: Start = "random",
    ) -> None:
        super().__init__(weight, view)
        self.from_centres = checked_start(start)
        self.smoothing = smoothing
        check_choice("classes", classes, Classes, ValueError)
        self.current_only = classes == "current"

    def begin(self, step: Step) -> None:
        """Initialise new classifier rows."""
        if self.from_centres and self.view == "plain":
            start_at_centres(step)

    def loss(self, batch: Batch) -> Tensor:
        """Return L_ce, a scalar."""
        skip = batch.step.old_classes if self.current_only else 0
        return losses.cross_entropy(batch.output(self.view).logits[:, skip:], batch.labels - skip, self.smoothing)
