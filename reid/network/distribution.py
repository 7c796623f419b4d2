"""Instance-level distribution modelling: a crop is a Gaussian in the embedding space, with a mean and a standard
deviation per dimension (DKP, CVPR 2024).

The mean is the unit-length embedding. The standard deviation comes from a separate head that trains with the model and
is never exported.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.choice import check_choice

FLOOR = 1e-4
"""Added to lengths before dividing, and to standard deviations, as published."""
KERNEL = 8
RANK = 16

HeadKind = Literal["pooled", "convolution"]


class Gaussians(NamedTuple):
    """The network's output for a batch, as distributions.

    Attributes:
        centre: mean of each crop, ``[B, D]``, unit length.
        spread: standard deviation of each crop, ``[B, D]``, positive.
        samples: unit-length draws, ``[M, B, D]``.
        logits: logits of the centres, then of each draw, ``[(1 + M)·B, K]``, from one pass through neck and classifier.
    """

    centre: Tensor
    spread: Tensor
    samples: Tensor
    logits: Tensor


def unit(vectors: Tensor) -> Tensor:
    """``z / (‖z‖ + 1e-4)`` over the last axis: DKP's normalisation, which is smooth at zero."""
    out: Tensor = vectors / (torch.linalg.vector_norm(vectors, dim=-1, keepdim=True) + FLOOR)
    return out


def sample(centre: Tensor, spread: Tensor, noise: Tensor) -> Tensor:
    """Draw ``unit(c + v⊙ε)``: ``[B, D]``, ``[B, D]``, ``[M, B, D]`` → ``[M, B, D]``.

    A full covariance would give the same numbers at D times the memory.
    """
    return unit(centre + spread * noise)


class DistributionHead(nn.Module):
    """Backbone features → standard deviation of each embedding dimension, ``relu(unit(r)) + 1e-4``, ``[B, D]`` float32.

    Args:
        channels: C of the features.
        dim: D of the embedding.
        kind: ``pooled`` maps the features' spatial deviation through a bottleneck of 16 (about 30,000 weights);
            ``convolution`` is the published 8×8 convolution, C² · 64 weights, for maps of at least 8×8.
        prefix_tokens: number of tokens before a ViT's grid; negative for feature maps.
    """

    def __init__(self, channels: int, dim: int, kind: HeadKind = "pooled", prefix_tokens: int = -1) -> None:
        super().__init__()
        check_choice("the head", kind, HeadKind, ValueError)
        if kind == "convolution" and prefix_tokens >= 0:
            raise ValueError(
                "the published variance convolution needs a feature map, but this backbone outputs tokens; use "
                "head: pooled"
            )
        self.kind = kind
        self.prefix_tokens = prefix_tokens
        if kind == "convolution":
            self.convolution = nn.Conv2d(channels, channels, KERNEL, bias=False)
            self.project: nn.Module = nn.Linear(channels, dim)
        else:
            self.project = nn.Sequential(
                nn.LayerNorm(channels), nn.Linear(channels, RANK), nn.ReLU(), nn.Linear(RANK, dim)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map features ``[B, C, h, w]`` or ``[B, N, C]`` to standard deviations ``[B, D]``."""
        if self.kind == "convolution":
            if min(features.shape[2:]) < KERNEL:
                raise ValueError(
                    f"the variance convolution needs maps of at least {KERNEL}×{KERNEL}, got "
                    f"{features.shape[2]}×{features.shape[3]}"
                )
            response = (
                _convolve(features, self.convolution.weight).float().clamp(min=1e-6).pow(3).mean(1).pow(1 / 3) + FLOOR
            )
        else:
            grid = features.flatten(2).transpose(1, 2) if self.prefix_tokens < 0 else features[:, self.prefix_tokens :]
            response = (grid.float().var(1, unbiased=False) + FLOOR).sqrt()
        return F.relu(unit(self.project(response).float())) + FLOOR


def _convolve(features: Tensor, weight: Tensor) -> Tensor:
    """Convolution without padding, ``[B, C, h, w]`` and ``[O, C, k, k]`` → ``[B, P, O]`` over the P positions, as
    one matrix product.

    A kernel nearly as large as the map has few positions and many weights, a case in which CPU convolutions run at an
    eighth of the speed.
    """
    size, rows = weight.shape[2], features.permute(0, 2, 3, 1)
    positions = [(top, left) for top in range(rows.shape[1] - size + 1) for left in range(rows.shape[2] - size + 1)]
    windows = torch.stack([rows[:, top : top + size, left : left + size].flatten(1) for top, left in positions], 1)
    return windows @ weight.permute(0, 2, 3, 1).flatten(1).T


def affinity(vectors: Tensor, temperature: float = 0.1) -> Tensor:
    """Log of the relations in a batch: row-wise log-softmax of cosine/τ, ``[B, D]`` → ``[B, B]``, diagonal included
    (LSTKC, AAAI 2024).
    """
    rows = F.normalize(vectors, dim=1)
    return F.log_softmax(rows @ rows.T / temperature, 1)


def draw(mean: Tensor, spread: Tensor, generator: torch.Generator) -> Tensor:
    """Draw ``unit(μ + σ⊙ε)`` once from each Gaussian, ``[K, D]``."""
    return unit(mean + spread * torch.randn(mean.shape, generator=generator).to(mean.device))
