"""The optimiser of a network and of a method's terms, and its learning rate."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from reid.config import TrainConfig
from reid.network.model import ReidModel


def build_optimiser(model: ReidModel, config: TrainConfig, extra: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
    """Build AdamW or SGD, fused; each group's ``scale`` (``backbone_lr`` for the backbone) multiplies the rate.

    In the network, only weights of two or more axes decay, except those that the backbone's family exempts (timm's
    ``no_weight_decay``: position embeddings, class token). All of ``extra``, the parameters of terms, decays.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    exempt = _exempt(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = config.backbone_lr if name.startswith("backbone.") else 1.0
            decay = config.weight_decay if parameter.ndim > 1 and name not in exempt else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    extra = list(extra)
    if extra:
        groups.setdefault((1.0, config.weight_decay), []).extend(extra)
    rows = [
        {"params": params, "lr": config.lr * scale, "weight_decay": decay, "scale": scale}
        for (scale, decay), params in groups.items()
    ]
    if config.optimiser == "sgd":
        return torch.optim.SGD(rows, lr=config.lr, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(rows, lr=config.lr, fused=True)


def _exempt(model: nn.Module) -> set[str]:
    """Return the names of the parameters that the backbone's family exempts from decay."""
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if path.startswith("backbone.") and callable(getattr(module, "no_weight_decay", None))
        for name in module.no_weight_decay()
    }


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's learning rate to ``rate`` times its scale."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]
