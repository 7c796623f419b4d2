"""Device, precision, optimiser and learning-rate schedule."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from domains.errors import DeviceError
from reid.config import TrainConfig
from reid.model import ReidModel


@dataclass(frozen=True)
class Runtime:
    """Where and how numbers are computed.

    Attributes:
        device: torch device.
        dtype: of the arithmetic of convolutions and linear layers. Weights are float32 and losses are computed in it; under bf16 what linear layers
            give, so embeddings too, is rounded to bf16 on the way.
    """

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def choose(cls, device: str, precision: str, model: nn.Module) -> Runtime:
        """Resolve ``auto`` precision.

        bf16 pays where dense convolutions and matrix products dominate and the device has instructions for it; depthwise convolutions are bound
        by memory and run slower (``benchmarks/training.py`` measures both).

        Raises:
            DeviceError: CUDA is asked for and not there.
        """
        chosen = torch.device(device)
        if chosen.type == "cuda" and (not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()):
            raise DeviceError(
                f"device {device} was asked for and torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu or a CUDA build of torch"
            )
        if precision == "auto":
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if chosen.type == "cuda" else cpu_has_bf16()
            precision = "bf16" if has_bf16 and not (chosen.type == "cpu" and is_depthwise(model)) else "fp32"
        return cls(chosen, torch.bfloat16 if precision == "bf16" else torch.float32)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context of the forward pass."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AVX-512 BF16 or AMX); elsewhere it is emulated and slow."""
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(probe()) for probe in probes if probe is not None)


def is_depthwise(model: nn.Module) -> bool:
    """Whether a quarter or more of the convolutions are depthwise."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    depthwise = sum(module.groups == module.in_channels > 1 for module in convolutions)
    return depthwise * 4 >= len(convolutions) > 0


def build_optimiser(model: ReidModel, config: TrainConfig, extra: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
    """AdamW or SGD, fused; each group's ``scale`` (``backbone_lr`` for the backbone) multiplies the scheduled rate.

    Of the network, only weights of two or more axes decay, and not those that the backbone's family exempts (timm's ``no_weight_decay``: position
    embeddings, class token). ``extra``, the parameters of terms, decays whole.
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
    rows = [{"params": params, "lr": config.lr * scale, "weight_decay": decay, "scale": scale} for (scale, decay), params in groups.items()]
    if config.optimiser == "sgd":
        return torch.optim.SGD(rows, lr=config.lr, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(rows, lr=config.lr, fused=True)


def _exempt(model: nn.Module) -> set[str]:
    """Names of the parameters that the backbone's family holds from decay."""
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if path.startswith("backbone.") and callable(getattr(module, "no_weight_decay", None))
        for name in module.no_weight_decay()
    }


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """Rate of one iteration: linear warm-up, then cosine to zero, steps, or constant."""
    warmup = round(config.warmup * config.iterations)
    if iteration < warmup:
        return config.lr * (iteration + 1) / warmup
    if config.schedule == "cosine":
        done = (iteration - warmup) / max(1, config.iterations - warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "multistep":
        passed = sum(iteration >= round(milestone * config.iterations) for milestone in config.milestones)
        return config.lr * config.gamma**passed
    return config.lr


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of ``rate``."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]
