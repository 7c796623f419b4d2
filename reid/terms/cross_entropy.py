"""Identity classification, L_ce."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from reid import losses
from reid.terms.term import Batch, Term, View


class CrossEntropy(Term):
    """L_ce: cross-entropy of the neck's logits with label smoothing (Luo et al., "bag of tricks", CVPRW 2019).

    Args:
        weight: factor of the loss.
        view: which crops it looks at.
        smoothing: ε of label smoothing.
        classes: ``current`` compares the identities of this step only; ``all`` keeps every earlier identity in the softmax, as DKP does, where old
            rows can only be pushed away, since none of their people are seen.
    """

    def __init__(self, weight: float = 1.0, view: View = "plain", smoothing: float = 0.1, classes: Literal["current", "all"] = "current") -> None:
        super().__init__(weight, view)
        self.smoothing = smoothing
        if classes not in ("current", "all"):
            raise ValueError(f'classes must be "current" or "all", got {classes!r}')
        self.current_only = classes == "current"

    def loss(self, batch: Batch) -> Tensor:
        """Scalar."""
        skip = batch.step.old_classes if self.current_only else 0
        return losses.cross_entropy(batch.output(self.view).logits[:, skip:], batch.labels - skip, self.smoothing)
