"""The objectives as plain functions of tensors. Each has a naive oracle in ``tests/reid/terms/test_losses.py``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reid.network.distribution import affinity


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of logits ``[B, K]`` with labels ``[B]``, smoothed as by Szegedy et al. (CVPR 2016): 1 - ε on
    the label, ε/K on each.
    """
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def pairwise_distance(left: Tensor, right: Tensor) -> Tensor:
    """Euclidean distances ``[A, B]`` between rows; squares are clamped at 1e-12, so that the gradient stays finite at
    zero.
    """
    squared = left.square().sum(1, keepdim=True) + right.square().sum(1) - 2 * left @ right.T
    return squared.clamp(min=1e-12).sqrt()


def batch_hard_triplet(embedding: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
    """Batch-hard triplet loss (Hermans et al., 2017) of embeddings ``[B, D]`` with labels ``[B]``.

    With the farthest crop of the same identity at d⁺ and the nearest of another at d⁻, the mean over anchors of max(0,
    margin + d⁺ - d⁻), or of the soft margin log(1 + exp(d⁺ - d⁻)) where ``margin`` is None. An anchor is its own
    positive only if it has no other. An anchor without a negative counts as zero.
    """
    distance = pairwise_distance(embedding.float(), embedding.float())
    same = labels[:, None] == labels[None, :]
    hardest_positive = distance.masked_fill(~same, 0).amax(1)
    hardest_negative = distance.masked_fill(same, torch.inf).amin(1)
    gap = hardest_positive - hardest_negative
    loss = F.softplus(gap) if margin is None else F.relu(gap + margin)
    return loss.mean()


def logit_distillation(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Learning without forgetting (Li & Hoiem, TPAMI 2018): T² · KL(softmax(teacher/T) ‖ softmax(student/T)), mean over
    the rows of ``[B, K]``.
    """
    target = F.log_softmax(teacher.float() / temperature, 1)
    return temperature**2 * F.kl_div(
        F.log_softmax(student.float() / temperature, 1), target, reduction="batchmean", log_target=True
    )


def relation_distillation(
    student: Tensor, teacher: Tensor, temperature: float = 0.1, *, reverse: bool = False
) -> Tensor:
    """KL(R_old ‖ R_new) between the affinities of teacher and student embeddings ``[B, ·]``, mean over rows (as in
    LSTKC and DASK).

    ``reverse`` gives KL(R_new ‖ R_old), the direction of DKP++, which penalises relations that the teacher does not
    see.
    """
    new, old = affinity(student, temperature), affinity(teacher, temperature)
    estimate, target = (old, new) if reverse else (new, old)
    return F.kl_div(estimate, target, reduction="batchmean", log_target=True)


def set_triplet(anchors: Tensor, anchor_labels: Tensor, centres: Tensor, labels: Tensor) -> Tensor:
    """Soft-margin batch-hard triplet between draws and centres (DKP, CVPR 2024): mean over anchors of log(1 + exp(d⁺ -
    d⁻)).

    Args:
        anchors: ``[A, D]``.
        anchor_labels: ``[A]``.
        centres: the candidates, ``[B, D]``; an anchor's own centre counts as a positive.
        labels: ``[B]``.

    Every anchor's label must be among ``labels``; an anchor without a negative counts as zero.
    """
    distance = pairwise_distance(anchors.float(), centres.float())
    same = anchor_labels[:, None] == labels[None, :]
    return F.softplus(distance.masked_fill(~same, 0).amax(1) - distance.masked_fill(same, torch.inf).amin(1)).mean()


def rectified_affinity(first: Tensor, second: Tensor, labels: Tensor, *, mean: bool = False) -> Tensor:
    """Correct one affinity matrix by another and by the labels: the target of LSTKC (AAAI 2024), and with ``mean`` of
    LSTKC++ (TPAMI 2025).

    In row i, let P be the largest value of another identity and N the smallest of the same one, excluding the diagonal.
    A value of the same identity is right above P (the diagonal always is), one of another identity is right unless
    above N. The target takes the first matrix where it is right, else the second where that is; where both are right,
    ``mean`` takes their average. Where both are wrong it takes the larger P of the two for the same identity and the
    smaller N for another. Rows are rescaled to sum to 1.

    Args:
        first: ``[B, B]``, rows of probabilities.
        second: as ``first``.
        labels: ``[B]``.
        mean: average the values where both are right.
    """
    same = labels[:, None] == labels[None, :]
    own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)

    def judged(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        highest_negative = rows.masked_fill(same, 0).amax(1, keepdim=True)
        lowest_positive = rows.masked_fill(~same | own, torch.inf).amin(1, keepdim=True)
        return (
            torch.where(same, (rows > highest_negative) | own, rows <= lowest_positive),
            highest_negative,
            lowest_positive,
        )

    right, first_p, first_n = judged(first)
    right_too, second_p, second_n = judged(second)
    neither = torch.where(same, torch.maximum(first_p, second_p), torch.minimum(first_n, second_n))
    both = 0.5 * (first + second) if mean else first
    target = torch.where(right & right_too, both, torch.where(right, first, torch.where(right_too, second, neither)))
    return target / target.sum(1, keepdim=True)


def affinity_divergence(target: Tensor, student: Tensor, temperature: float = 0.1) -> Tensor:
    """KL(T ‖ R_new) of a target affinity ``[B, B]`` and that of student embeddings ``[B, D]``, mean over rows."""
    return F.kl_div(
        affinity(student, temperature), target.clamp(min=1e-12).log(), reduction="batchmean", log_target=True
    )


def embedding_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cos between rows ``[B, D]``."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=1)).mean()


def prototype_transfer(
    centre: Tensor, drawn: Tensor, *, assign: float = 0.1, relate: float = 0.1, detach: bool = False
) -> Tensor:
    """Return L_proto, a scalar: how far the relations in a batch are from those seen through old identities.

    s_i = softmax_k(cos(c_i, g_k)/λ₁) assigns each crop to old identities;
    L = mean over i of KL(rowsoftmax(cos(s_i, s_j)/λ₂) ‖ rowsoftmax(cos(c_i, c_j)/λ₂)).

    Args:
        centre: means of the crops, ``[B, D]``.
        drawn: one draw of each stored prototype, ``[K, D]``.
        assign: λ₁.
        relate: λ₂.
        detach: stop the gradient at the target; as published, it flows through both sides.
    """
    soft = F.softmax(F.normalize(centre, dim=1) @ F.normalize(drawn, dim=1).T / assign, 1)
    target = affinity(soft, relate)
    return F.kl_div(
        affinity(centre, relate), target.detach() if detach else target, reduction="batchmean", log_target=True
    )
