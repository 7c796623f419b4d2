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
Classes = Literal["current", "all"]
"""Where new classifier rows begin."""


def start_at_centres(step: Step) -> None:
    """Put the classifier rows of new identities at the unit-length mean of their embeddings under M_{t-1} (DKP, CVPR
    2024).

    A row that is drawn at random has to be found before it can teach the network anything, and with hundreds of
    identities and a hundred iterations each is seen a few times only; meanwhile the gradient pulls embeddings towards
    places that mean nothing. A step without a survey of its crops has no centres, and its rows stay as they are.

    Raises:
        TrainingError: embeddings are not finite, as some deep networks' are with random weights before BatchNorm has
            seen a batch.
    """
    if step.survey is None:
        return
    sums = torch.zeros(step.model.classes - step.old_classes, step.model.dim)
    sums.index_add_(0, torch.from_numpy(step.survey.labels), torch.from_numpy(step.survey.embeddings(step.model)))
    if not torch.isfinite(sums).all():
        raise TrainingError(
            f"step {step.index} ({step.domain.name}): the network's embeddings are not finite before any training, so "
            "identities have no centres to "
            "begin at; begin from trained weights (model.weights), or with a method whose classifier rows begin at "
            "random, as fine_tune"
        )
    with torch.no_grad():
        step.model.classifier.weight[step.old_classes :] = F.normalize(sums, dim=1).to(step.runtime.device)


def checked_start(start: str) -> bool:
    """Whether rows begin at their centres; raises ValueError for a word that says neither."""
    check_choice("start", start, Start, ValueError)
    return start == "centre"


class CrossEntropy(Term):
    """L_ce: cross-entropy of the neck's logits with label smoothing (Luo et al., "bag of tricks", CVPRW 2019).

    Args:
        weight: factor of the loss.
        view: which crops it looks at.
        smoothing: ε of label smoothing.
        classes: ``current`` compares the identities of this step only; ``all`` keeps every earlier identity in the
            softmax, as DKP does, where old rows can only be pushed away, since none of their people are seen.
        start: where new classifier rows begin: ``random`` and small, or at their identity's mean ``centre``
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
        """Put new classifier rows where they begin."""
        if self.from_centres and self.view == "plain":
            start_at_centres(step)

    def loss(self, batch: Batch) -> Tensor:
        """Scalar."""
        skip = batch.step.old_classes if self.current_only else 0
        return losses.cross_entropy(batch.output(self.view).logits[:, skip:], batch.labels - skip, self.smoothing)
