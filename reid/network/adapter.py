"""Adapters: small changes of some of a backbone's weights, written from outside and merged exactly.

Two kinds. *Low rank* (LoRA, Hu et al., ICLR 2022), for linear layers and undivided convolutions: ``ΔW = B A``, A
beginning at a random matrix drawn from the slot's name and B at 0. *Scale and shift* (SSF, Lian et al., NeurIPS 2022),
for the affine weights of a BatchNorm: two numbers per channel. Merged, a network has the shapes, the graph and the cost
that it had.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from domains.errors import ConfigError

WHERE = ("attention", "mlp", "convolution", "norm")
"""What may be adapted: attention's and MLP's linear layers of a ViT, convolutions and BatchNorms of a CNN."""


@dataclass(frozen=True)
class Slot:
    """One weight that an adapter changes.

    Attributes:
        name: of the parameter, within the backbone.
        shape: of the parameter.
        rank: of the change; 0: any change, number by number.
    """

    name: str
    shape: tuple[int, ...]
    rank: int

    @property
    def columns(self) -> int:
        """Length of a row, as the change sees the weight: output channels × the rest."""
        return torch.Size(self.shape[1:]).numel()

    @property
    def length(self) -> int:
        """How many numbers write the change."""
        return self.rank * (self.shape[0] + self.columns) if self.rank else self.columns * self.shape[0]

    def change(self, numbers: Tensor) -> Tensor:
        """``[length]`` → the change, of the parameter's shape; zeros give no change."""
        if not self.rank:
            return numbers.reshape(self.shape)
        left, right = torch.split(numbers, [self.shape[0] * self.rank, self.rank * self.columns])
        right = right.reshape(self.rank, self.columns) + _beginning(self.name, self.rank, self.columns).to(numbers)
        change: Tensor = (left.reshape(self.shape[0], self.rank) @ right).reshape(self.shape)
        return change


@lru_cache(maxsize=1024)
def _beginning(name: str, rank: int, columns: int) -> Tensor:
    """A's first value, ``[rank, columns]``, rows of length 1 in the mean; the same for a name wherever it is drawn."""
    return torch.randn(rank, columns, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))) / math.sqrt(
        columns
    )


def find_slots(backbone: nn.Module, *, rank: int, where: Sequence[str]) -> list[Slot]:
    """Return the weights of a backbone that can be adapted, in its own order; raises ConfigError if there are none."""
    if unknown := sorted(set(where) - set(WHERE)):
        raise ConfigError(f"an adapter goes into {', '.join(WHERE)}, not {', '.join(unknown)}")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"an adapter's rank must be a whole number of 1 or more, got {rank!r}")
    slots = []
    for name, module in backbone.named_modules():
        if (kind := _kind(name, module)) not in where:
            continue
        if kind == "norm":
            slots += [
                Slot(f"{name}.{part}", tuple(weight.shape), 0)
                for part, weight in module.named_parameters(recurse=False)
            ]
        else:
            shape = tuple(module.get_parameter("weight").shape)
            slots.append(Slot(f"{name}.weight", shape, min(rank, shape[0], torch.Size(shape[1:]).numel())))
    if not slots:
        raise ConfigError(f"this backbone has nothing to adapt in {', '.join(where)}; choose among {', '.join(WHERE)}")
    return slots


def has_attention(backbone: nn.Module) -> bool:
    """Whether the backbone has attention that can be adapted: a ViT's, or that of a transformer whose features are a
    map.
    """
    return any(_kind(name, module) == "attention" for name, module in backbone.named_modules())


def _kind(name: str, module: nn.Module) -> str | None:
    parts = name.split(".")
    if isinstance(module, nn.Linear):
        return "attention" if {"attn", "attention"} & set(parts) else "mlp" if "mlp" in parts else None
    if isinstance(module, nn.BatchNorm2d):
        return "norm"
    if isinstance(module, nn.Conv2d) and module.groups == 1 and module.in_channels > 3:
        return "convolution"
    return None


def changes(slots: Sequence[Slot], numbers: Tensor) -> dict[str, Tensor]:
    """All changes from one vector ``[sum of lengths]``, by parameter."""
    parts = torch.split(numbers, [slot.length for slot in slots])
    return {slot.name: slot.change(part) for slot, part in zip(slots, parts, strict=True)}


@torch.no_grad()
def merge(backbone: nn.Module, changed: Mapping[str, Tensor]) -> None:
    """Add changes to the weights themselves."""
    for name, change in changed.items():
        backbone.get_parameter(name).add_(change)
