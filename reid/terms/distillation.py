"""Distillation from the model before this step: of its logits, and of its relations."""

from __future__ import annotations

from torch import Tensor

from reid import losses
from reid.terms.term import Batch, Term


class LogitDistillation(Term):
    """L_lwf: learning without forgetting (Li & Hoiem, TPAMI 2018), on the classifier rows of earlier identities.

    Args:
        weight: factor of the loss.
        temperature: T.
    """

    teachers = ("old",)

    def __init__(self, weight: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__(weight)
        self.temperature = temperature

    def loss(self, batch: Batch) -> Tensor:
        """Scalar."""
        old = batch.teacher("old").logits
        return losses.logit_distillation(batch.output().logits[:, : old.shape[1]], old, self.temperature)


class RelationDistillation(Term):
    """L_rel: KL(R_old ‖ R_new) between the row-softmax affinities of a batch, as in LSTKC (AAAI 2024) and DASK (AAAI 2025).

    Args:
        weight: factor of the loss.
        temperature: τ of the affinity's softmax.
    """

    teachers = ("old",)

    def __init__(self, weight: float = 1.0, temperature: float = 0.1) -> None:
        super().__init__(weight)
        self.temperature = temperature

    def loss(self, batch: Batch) -> Tensor:
        """Scalar."""
        return losses.relation_distillation(batch.output().embedding, batch.teacher("old").embedding, self.temperature)
