"""The objectives as plain functions of tensors. Each has a naive oracle in ``tests/reid/test_losses.py``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of logits ``[B, K]`` with labels ``[B]``, smoothed as by Szegedy et al. (CVPR 2016): 1 - ε on the label, ε/K on each."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def pairwise_distance(left: Tensor, right: Tensor) -> Tensor:
    """Euclidean distances ``[A, B]`` of rows; the root is taken of at least 1e-12, so that its gradient stays finite at zero."""
    squared = left.square().sum(1, keepdim=True) + right.square().sum(1) - 2 * left @ right.T
    return squared.clamp(min=1e-12).sqrt()


def batch_hard_triplet(embedding: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
    """Batch-hard triplet loss (Hermans et al., 2017) of embeddings ``[B, D]`` with labels ``[B]``.

    With the farthest crop of the same identity at d⁺ and the nearest of another at d⁻, the mean over anchors of max(0, margin + d⁺ - d⁻), or of
    the soft margin log(1 + exp(d⁺ - d⁻)) where ``margin`` is None. An anchor is its own positive only if it has no other. An anchor without a
    negative counts as zero.
    """
    distance = pairwise_distance(embedding.float(), embedding.float())
    same = labels[:, None] == labels[None, :]
    hardest_positive = distance.masked_fill(~same, 0).amax(1)
    hardest_negative = distance.masked_fill(same, torch.inf).amin(1)
    gap = hardest_positive - hardest_negative
    loss = F.softplus(gap) if margin is None else F.relu(gap + margin)
    return loss.mean()


def logit_distillation(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Learning without forgetting (Li & Hoiem, TPAMI 2018): T² · KL(softmax(teacher/T) ‖ softmax(student/T)), mean over the rows of ``[B, K]``."""
    target = F.log_softmax(teacher.float() / temperature, 1)
    return temperature**2 * F.kl_div(F.log_softmax(student.float() / temperature, 1), target, reduction="batchmean", log_target=True)


def affinity(embedding: Tensor, temperature: float = 0.1) -> Tensor:
    """Log of the relations in a batch: log row-softmax of cosine/τ, ``[B, D]`` → ``[B, B]``, the diagonal kept (LSTKC, AAAI 2024)."""
    unit = F.normalize(embedding.float(), dim=1)
    return F.log_softmax(unit @ unit.T / temperature, 1)


def relation_distillation(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """KL(R_old ‖ R_new) between the affinities of teacher and student embeddings ``[B, ·]``, mean over rows (as in LSTKC and DASK)."""
    return F.kl_div(affinity(student, temperature), affinity(teacher, temperature), reduction="batchmean", log_target=True)
