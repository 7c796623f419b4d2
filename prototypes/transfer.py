"""Prototype-based knowledge transfer, L_proto (DKP, CVPR 2024; see ``docs/methods.md``)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from prototypes.distribution import affinity


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
