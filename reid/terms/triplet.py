"""Metric learning, L_tri."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from reid.terms import losses
from reid.terms.term import Batch, Term, View


class Triplet(Term):
    """L_tri: batch-hard triplet on the embedding before the neck (Hermans et al., 2017).

    Args:
        weight: factor of the loss.
        view: the crops that the loss is computed on.
        margin: a number, or None for the soft margin.
        unit: compare embeddings at unit length, as in matching. If off, as in "bag of tricks", the soft margin is most
            easily lowered by making all embeddings short and alike, and unit vectors discriminate less with every
            domain (docs/methods.md).
    """

    def __init__(
        self, weight: float = 1.0, view: View = "plain", margin: float | None = None, unit: bool = True
    ) -> None:
        super().__init__(weight, view)
        self.margin = margin
        self.unit = unit

    def loss(self, batch: Batch) -> Tensor:
        """Return L_tri, a scalar."""
        embedding = batch.output(self.view).embedding
        return losses.batch_hard_triplet(
            F.normalize(embedding, dim=1) if self.unit else embedding, batch.labels, self.margin
        )
