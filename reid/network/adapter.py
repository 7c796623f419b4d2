"""Adapters: small changes to some of a backbone's weights, written from outside and merged exactly.

There are two kinds. *Low rank* (LoRA, Hu et al., ICLR 2022), for linear layers and ungrouped convolutions:
``ΔW = B A``, where A starts as a random matrix drawn from the slot's name and B as 0. *Scale and shift* (SSF, Lian et
al., NeurIPS 2022), for the affine weights of a BatchNorm: two numbers per channel. A merged network has the same
shapes, graph and cost as before.
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
"""What can be adapted: a ViT's linear layers in attention and MLP, a CNN's convolutions and BatchNorms."""


@dataclass(frozen=True)
class Slot:
    """One weight that an adapter changes.

    Attributes:
        name: the parameter's name within the backbone.
        shape: the parameter's shape.
        rank: rank of the change; 0 for any change, element by element.
    """

    name: str
    shape: tuple[int, ...]
    rank: int

    @property
    def columns(self) -> int:
        """Columns of the weight, as a matrix of output channels × the rest."""
        return torch.Size(self.shape[1:]).numel()

    @property
    def length(self) -> int:
        """Number of values that encode the change."""
        return self.rank * (self.shape[0] + self.columns) if self.rank else self.columns * self.shape[0]

    def change(self, numbers: Tensor) -> Tensor:
        """Decode ``[length]`` values into the change, of the parameter's shape; zeros give no change."""
        if not self.rank:
            return numbers.reshape(self.shape)
        left, right = torch.split(numbers, [self.shape[0] * self.rank, self.rank * self.columns])
        right = right.reshape(self.rank, self.columns) + _initial(self.name, self.rank, self.columns).to(numbers)
        change: Tensor = (left.reshape(self.shape[0], self.rank) @ right).reshape(self.shape)
        return change


@lru_cache(maxsize=1024)
def _initial(name: str, rank: int, columns: int) -> Tensor:
    """A's initial value ``[rank, columns]``, with rows of length about 1; the same for a name wherever it is drawn."""
    return torch.randn(rank, columns, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))) / math.sqrt(
        columns
    )


def find_slots(backbone: nn.Module, *, rank: int, where: Sequence[str]) -> list[Slot]:
    """Return the weights of a backbone that can be adapted, in its own order; raises ConfigError if there are none."""
    if unknown := sorted(set(where) - set(WHERE)):
        raise ConfigError(f"an adapter can change {', '.join(WHERE)}, not {', '.join(unknown)}")
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
    """Whether the backbone has attention that can be adapted, as a ViT has or a transformer whose features are a
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
    """Decode one vector ``[sum of lengths]`` into all changes, by parameter."""
    parts = torch.split(numbers, [slot.length for slot in slots])
    return {slot.name: slot.change(part) for slot, part in zip(slots, parts, strict=True)}


@torch.no_grad()
def merge(backbone: nn.Module, changed: Mapping[str, Tensor]) -> None:
    """Add changes to the weights themselves."""
    for name, change in changed.items():
        backbone.get_parameter(name).add_(change)
