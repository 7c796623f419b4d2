"""Elastic feature consolidation: prototypes of earlier domains decide in which directions embeddings may drift."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from domains.arrays import Float32s, Float64s
from domains.errors import ConfigError
from prototypes.prototype import DistributionPrototypes
from reid.network.distribution import unit
from reid.randomness import numpy_generator
from reid.terms.term import Batch, Step, Term

DRAWS, BLOCK = 512, 128
ALIKE = 1e-24
"""Mean squared distance of prototypes, as weighted in E, below which it is rounding error."""


class Elastic(Term):
    """L_efm: mean of (f - f_old)ᵀ(Ē + ηI)(f - f_old) over the crops of a batch, the retrieval form of elastic feature
    consolidation (EFC, Magistri et al., ICLR 2024, arXiv 2402.03917).

    EFC weighs drift by the Fisher information of the last task's classifier with respect to the feature. A re-ID model
    is not matched through its classifier, so here the class probabilities are those of a domain's prototypes:
    p(f) = softmax(f·μ/τ) over unit-length means. The information of each domain learned before, at features drawn from
    its prototypes, is scaled to trace D, and Ē is the mean over domains. Directions that tell similar people apart are
    held, and the others are free up to η.

    Args:
        weight: factor of the loss.
        temperature: τ of the assignment to prototypes.
        floor: η, held in every direction; the published ratio to the factor of E is 0.01, but E is not scaled there.
        isotropic: a control that replaces Ē by the multiple of I with the same trace.

    Attributes:
        root: L, lower triangular with L Lᵀ = Ē + ηI, ``[D, D]`` float32; made anew at the beginning of a step and when
            a step is resumed.
        effective_rank: tr(Ē)² / (D tr(Ē²)), from 1/D for a single direction to 1 for all alike; 0 if Ē is 0.
    """

    teachers = ("old",)
    reads = ("prototypes",)

    def __init__(
        self, weight: float = 1.0, temperature: float = 0.1, floor: float = 0.05, isotropic: bool = False
    ) -> None:
        super().__init__(weight)
        for name, value in (("temperature", temperature), ("floor", floor)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if not isinstance(isotropic, bool):
            raise ValueError(f"isotropic must be true or false, got {isotropic!r}")
        self.temperature, self.floor, self.isotropic = temperature, floor, isotropic
        self.root = torch.empty(0)
        self.effective_rank = 0.0

    def begin(self, step: Step) -> None:
        """Compute Ē from the prototypes of all domains learned before."""
        domains = [found for memory in step.memories if (found := DistributionPrototypes.from_arrays(memory.arrays))]
        if not domains:
            raise ConfigError("elastic has no prototypes to compute the information from")
        rng = numpy_generator(step.config.seed, step.index, "elastic")
        held = np.mean([self._scaled_information(domain, rng) for domain in domains], axis=0)
        trace, dim = float(np.trace(held)), len(held)
        if self.isotropic:
            held = np.eye(dim) * (trace / dim)
        self.effective_rank = trace**2 / float(np.square(held).sum()) / dim if trace else 0.0
        root = np.linalg.cholesky(held + self.floor * np.eye(dim))
        self.root = torch.from_numpy(root.astype(np.float32)).to(step.runtime.device)

    def loss(self, batch: Batch) -> Tensor:
        """Return L_efm, a scalar."""
        drift = unit(batch.output(self.view).embedding) - unit(batch.teacher("old", self.view).embedding)
        return (drift @ self.root).square().sum(1).mean()

    def _scaled_information(self, domain: DistributionPrototypes, rng: np.random.Generator) -> Float64s:
        """Return the information of a domain with trace D, or zeros if its prototypes do not differ, ``[D, D]``."""
        mean = _unit_rows(domain.mean.astype(np.float64))
        information = retrieval_information(mean, domain.spread, rng, temperature=self.temperature)
        trace = float(np.trace(information))
        if trace * self.temperature**2 <= ALIKE:
            return np.zeros_like(information)
        return information * (len(information) / trace)


def retrieval_information(
    mean: Float64s,
    spread: Float32s | Float64s,
    rng: np.random.Generator,
    *,
    temperature: float,
    draws: int = DRAWS,
) -> Float64s:
    """Return E, the mean of Cov_p(μ)/τ² over features f = unit(μ_k + σ_k⊙ε) of people k drawn uniformly, ``[D, D]``.

    Cov_p(μ) = Σ_k p_k (μ_k - μ̄)(μ_k - μ̄)ᵀ, with p = softmax(f·μ/τ) and μ̄ = Σ_k p_k μ_k. Divided by τ², it is the
    Fisher information of p with respect to f, and so the Hessian of KL(p(f₀) ‖ p(f)) at f = f₀. It is computed from
    pairs of people, Cov_p(μ) = Σ_{k<l} p_k p_l (μ_k - μ_l)(μ_k - μ_l)ᵀ, which stays accurate where one p_k is nearly 1.

    Args:
        mean: μ, unit-length means, ``[K, D]``.
        spread: σ, standard deviations, ``[K, D]``.
        rng: the source of the draws; how they are split into blocks changes nothing.
        temperature: τ.
        draws: number of features.
    """
    people, dim = mean.shape
    chosen = rng.integers(people, size=draws)
    pairs = np.zeros((people, people))
    for start in range(0, draws, BLOCK):
        rows = chosen[start : start + BLOCK]
        features = _unit_rows(mean[rows] + spread[rows] * rng.standard_normal((len(rows), dim)))
        logits = features @ mean.T / temperature
        powers = np.exp(logits - logits.max(1, keepdims=True))
        likely = powers / powers.sum(1, keepdims=True)
        pairs += likely.T @ likely
    np.fill_diagonal(pairs, 0)
    laplacian = np.diag(pairs.sum(1)) - pairs
    centred = mean - mean.mean(0)
    information: Float64s = centred.T @ laplacian @ centred / (draws * temperature**2)
    return information


def _unit_rows(vectors: Float64s) -> Float64s:
    rows: Float64s = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return rows
