"""Repairs after fusion, from the step's crops and the stored prototypes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from domains.errors import ConfigError
from prototypes.prototype import DistributionPrototypes
from reid.config import Entry, nearest
from reid.network.distribution import draw
from reid.randomness import torch_generator
from reid.step.fusion import check_parameters
from reid.terms import losses
from reid.terms.survey import Survey
from reid.terms.term import Step

EVERY = 10**6
"""A step that no run reaches."""

Gaussians = list[tuple[slice, DistributionPrototypes]]
"""Classifier rows and the prototypes of their identities, one pair per domain."""


def batchnorm(step: Step, survey: Survey, *, share: float = 1.0, until: int = EVERY) -> None:
    """Re-estimate BatchNorm's statistics on the step's crops: an average of two models' statistics belongs to neither
    network.

    All layers are estimated in one pass in training mode; the result is ``share`` of the new estimate and the rest of
    the old. ``until`` is the last step that is repaired: the first alone where later ones freeze the statistics
    (:class:`reid.terms.normalisation.FixedStatistics`).
    """
    if step.index > until:
        return
    layers = [
        layer
        for layer in step.model.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer is not step.model.neck
    ]
    if not layers:
        return
    before = [(layer.running_mean.clone(), layer.running_var.clone(), layer.momentum) for layer in layers]  # type: ignore[union-attr]
    step.model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over batches
        layer.train()
    with torch.no_grad():
        for crops, _ in survey.shuffled(step.config.seed, step.index).batches():
            if len(crops) > 1:
                step.model.embed(crops)
    for layer, (mean, variance, momentum) in zip(layers, before, strict=True):
        layer.momentum = momentum
        layer.running_mean = torch.lerp(mean, layer.running_mean, share)  # type: ignore[arg-type]
        layer.running_var = torch.lerp(variance, layer.running_var, share)  # type: ignore[arg-type]
    step.model.eval()


def classifier(step: Step, gaussians: Gaussians, *, iterations: int = 100, batch: int = 256, lr: float = 1e-3) -> None:
    """Align neck and classifier on draws from all stored Gaussians, old and current alike, with the rest frozen (SLCA,
    ICCV 2023, adapted to re-ID).

    The embedding lies before the neck, so no feature moves.
    """
    model = step.model
    mean = torch.cat([torch.from_numpy(domain.mean) for _, domain in gaussians]).to(step.runtime.device)
    spread = torch.cat([torch.from_numpy(domain.spread) for _, domain in gaussians]).to(step.runtime.device)
    rows = torch.from_numpy(np.concatenate([np.arange(where.start, where.stop) for where, _ in gaussians])).to(
        step.runtime.device
    )
    learned = [
        parameter
        for part in (model.neck, model.classifier)
        for parameter in part.parameters()
        if parameter.requires_grad
    ]
    optimiser = torch.optim.AdamW(learned, lr=lr, weight_decay=0.0)
    model.neck.train()
    for iteration in range(iterations):
        generator = torch_generator(step.config.seed, step.index, "classifier", iteration)
        chosen = torch.randint(len(rows), (min(batch, 4 * len(rows)),), generator=generator).to(step.runtime.device)
        drawn = draw(mean[chosen], spread[chosen], generator)
        loss = losses.cross_entropy(model.classify(drawn)[:, rows], chosen)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    model.neck.eval()


BEFORE: Mapping[str, Callable[..., None]] = {"batchnorm": batchnorm}
"""Repairs that change the embedding, before the transport is fitted and prototypes are computed."""
AFTER: Mapping[str, Callable[..., None]] = {"classifier": classifier}
"""Repairs of neck and classifier, once this domain's prototypes are there."""


def check_repairs(entries: tuple[Entry, ...]) -> None:
    """Raise ConfigError before any training if a repair is unknown or its parameters are wrong."""
    known = {**BEFORE, **AFTER}
    for entry in entries:
        ((name, parameters),) = entry.items()
        if name not in known:
            raise ConfigError(f"unknown repair {name!r}{nearest(name, known)}")
        check_parameters(f"repair {name}", known[name], parameters)
