"""Where a new domain's embedding should lie among those of the learned ones, by how much each of them helps.

"Exploiting Task Relationships for Continual Learning Using Transferability-Aware Task Embeddings", NeurIPS 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from domains.arrays import Float32s
from domains.errors import DataError

ITERATIONS, RATE = 2000, 1e-3


@dataclass(frozen=True, eq=False)
class HEmbedding:
    """Where transferability puts a new domain among the learned ones.

    Attributes:
        vector: ``[E]`` float32.
        scale: γ.
        residual: root mean square of ``‖ê - e_n‖ - γ exp(-r_n)``.
    """

    vector: Float32s
    scale: float
    residual: float


def h_embedding(learned: ArrayLike, merits: ArrayLike, *, seed: int, iterations: int = ITERATIONS) -> HEmbedding:
    """Minimise ``Σ_n (‖ê - e_n‖ - γ exp(-r_n))²`` by Adam: the more a learned domain helps, the nearer the new one
    lies to it.

    With fewer learned domains than dimensions the solution is far from unique (a point on an intersection of spheres),
    so it depends on the seed; with one learned domain, only the distance to it has meaning.

    Args:
        learned: embeddings e_n of the learned domains, ``[n, E]``.
        merits: r_n from :func:`relations`, ``[n]``.
        seed: seed of the starting point, uniform in 0..1.
        iterations: number of Adam steps at 1e-3; γ starts at 1 and is learned only with two or more domains.

    Raises:
        DataError: shapes that do not match.
    """
    known, share = torch.tensor(np.asarray(learned, np.float32)), torch.tensor(np.asarray(merits, np.float32))
    if known.ndim != 2 or share.shape != known.shape[:1] or not len(known):
        raise DataError(
            f"an H-embedding needs embeddings [n, E] and n merits, got {tuple(known.shape)} and {tuple(share.shape)}"
        )
    vector = torch.rand(known.shape[1], generator=torch.Generator().manual_seed(seed)).requires_grad_()
    scale = torch.ones((), requires_grad=len(known) > 1)
    optimiser = torch.optim.Adam([vector, scale] if len(known) > 1 else [vector], lr=RATE)
    wanted = torch.exp(-share)
    for _ in range(iterations):
        loss = ((vector - known).norm(dim=1) - scale * wanted).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        residual = ((vector - known).norm(dim=1) - scale * wanted).square().mean().sqrt()
    return HEmbedding(vector.detach().numpy(), float(scale.detach()), float(residual))
