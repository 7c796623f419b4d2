"""Distillation from the previous model: its logits, its relations and its embeddings."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from domains.choice import check_choice
from reid.network.distribution import affinity
from reid.terms import losses
from reid.terms.term import Batch, Term, View

Direction = Literal["forward", "reverse"]


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
        """Return L_lwf, a scalar."""
        old = batch.teacher("old").logits
        return losses.logit_distillation(batch.output().logits[:, : old.shape[1]], old, self.temperature)


class RelationDistillation(Term):
    """L_rel: KL(R_old ‖ R_new) between the row-softmax affinities of a batch, as in LSTKC (AAAI 2024) and DASK (AAAI
    2025).

    Args:
        weight: factor of the loss.
        view: the crops that the loss is computed on.
        temperature: τ of the affinity's softmax.
        direction: ``forward`` as above; ``reverse`` is KL(R_new ‖ R_old), as in DKP++ (TPAMI 2025).
    """

    teachers = ("old",)

    def __init__(
        self, weight: float = 1.0, view: View = "plain", temperature: float = 0.1, direction: Direction = "forward"
    ) -> None:
        super().__init__(weight, view)
        check_choice("direction", direction, Direction, ValueError)
        self.temperature = temperature
        self.reverse = direction == "reverse"

    def loss(self, batch: Batch) -> Tensor:
        """Return L_rel, a scalar."""
        student, teacher = batch.output(self.view).embedding, batch.teacher("old", self.view).embedding
        return losses.relation_distillation(student, teacher, self.temperature, reverse=self.reverse)


class RectifiedDistillation(Term):
    """L_KL of LSTKC (AAAI 2024): KL(T ‖ R_new), the old model's relations corrected by the new model's and by the
    labels.

    Args:
        weight: factor of the loss.
        view: the crops that the loss is computed on.
        temperature: τ of the affinity's softmax.
        detach: stop the gradient at the target; as published, it flows through both sides.
    """

    teachers = ("old",)

    def __init__(
        self, weight: float = 1.0, view: View = "plain", temperature: float = 0.1, detach: bool = False
    ) -> None:
        super().__init__(weight, view)
        self.temperature, self.detach = temperature, detach

    def loss(self, batch: Batch) -> Tensor:
        """Return L_KL, a scalar."""
        student = batch.output(self.view).embedding
        new = affinity(student, self.temperature).exp()
        old = affinity(batch.teacher("old", self.view).embedding, self.temperature).exp()
        target = losses.rectified_affinity(old, new.detach() if self.detach else new, batch.labels)
        return losses.affinity_divergence(target, student, self.temperature)


class TwoTeacherDistillation(Term):
    """L_KL of LSTKC++ (TPAMI 2025): KL(T ‖ R_new), T combined from a short-term teacher (the last step's model before
    fusion) and a long-term one.

    Args:
        weight: factor of the loss.
        view: the crops that the loss is computed on.
        temperature: τ of the affinity's softmax.
    """

    teachers = ("short", "long")

    def __init__(self, weight: float = 1.0, view: View = "plain", temperature: float = 0.1) -> None:
        super().__init__(weight, view)
        self.temperature = temperature

    def loss(self, batch: Batch) -> Tensor:
        """Return L_KL, a scalar."""
        with torch.no_grad():
            short, long = (
                affinity(batch.teacher(name, self.view).embedding, self.temperature).exp() for name in self.teachers
            )
            target = losses.rectified_affinity(short, long, batch.labels, mean=True)
        return losses.affinity_divergence(target, batch.output(self.view).embedding, self.temperature)


class EmbeddingDistillation(Term):
    """L_emb: mean of 1 - cos between the embedding and the old model's, so that the feature space itself does not
    move.

    Args:
        weight: factor of the loss.
        view: the crops that the loss is computed on.
    """

    teachers = ("old",)

    def loss(self, batch: Batch) -> Tensor:
        """Return L_emb, a scalar."""
        return losses.embedding_distance(batch.output(self.view).embedding, batch.teacher("old", self.view).embedding)
