"""Device and precision: where and how a network computes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import nn

from domains.errors import DeviceError


@dataclass(frozen=True)
class Runtime:
    """The device and precision to compute with.

    Attributes:
        device: torch device.
        dtype: arithmetic of convolutions and linear layers. Weights and losses are float32; under bf16 the outputs of
            linear layers, and so embeddings, are rounded to bf16.
    """

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def choose(cls, device: str, precision: str, model: nn.Module) -> Runtime:
        """Resolve ``auto`` precision.

        bf16 pays off where dense convolutions and matrix products dominate and the device has instructions for it;
        depthwise convolutions are memory-bound and run slower (``benchmarks/training.py`` measures both).

        Raises:
            DeviceError: a CUDA device is requested but not available.
        """
        chosen = torch.device(device)
        if chosen.type == "cuda" and (
            not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()
        ):
            raise DeviceError(
                f"device {device} was requested and torch sees {torch.cuda.device_count()} CUDA devices; use --device "
                "cpu or a CUDA build of torch"
            )
        if precision == "auto":
            has_bf16 = (
                torch.cuda.is_bf16_supported(including_emulation=False) if chosen.type == "cuda" else cpu_has_bf16()
            )
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
