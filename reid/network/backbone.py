"""The backbone: what maps normalised images ``[B, 3, H, W]`` to a feature map ``[B, C, h, w]`` (CNN, ONNX) or tokens
``[B, N, C]`` (ViT).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

VECTOR = 16
"""Floats in the longest vector of a CPU."""


@dataclass(frozen=True)
class InputRule:
    """What a backbone was trained to see: channel order, and mean and standard deviation in 0..255 in that order."""

    channels: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Backbone(nn.Module):
    """A feature extractor and what has to be known about it.

    Attributes:
        net: maps ``[B, 3, H, W]`` to ``[B, C, h, w]`` or ``[B, N, C]``.
        head: what an ONNX graph itself does between its last map and its embedding, else None.
        width: C, or the width of the head's output.
        channels: C of maps and tokens, where it is not the width.
        norm: what a family of ViTs puts behind its pooling (timm's ``fc_norm``: BEiT, EVA-02) in place of a norm of
            every token, else None.
        prefix_tokens: how many of a ViT's tokens are not part of the grid; -1 for a CNN.
        signed: whether a map's values can be negative; generalised means suit only those that can't.
        rule: the input that the weights expect.
        planar: whether it trains in planar order (NCHW) on a CPU, where channels last is faster but not safe.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        width: int,
        rule: InputRule,
        channels: int | None = None,
        prefix_tokens: int = -1,
        head: nn.Module | None = None,
        norm: nn.Module | None = None,
        signed: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.head = head
        self.norm = norm
        self.width = width
        self.channels = channels or width
        self.prefix_tokens = prefix_tokens
        self.signed = signed
        self.rule = rule
        self.planar = any(_overruns(module) for module in net.modules())

    @property
    def has_tokens(self) -> bool:
        """Whether the output is tokens rather than a map."""
        return self.prefix_tokens >= 0

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` → the map or the tokens."""
        features: Tensor = self.net(images.contiguous() if self.planar and images.device.type == "cpu" else images)
        return features


def _overruns(module: nn.Module) -> bool:
    """Whether oneDNN's weight gradient of this convolution writes past its workspace in channels-last order (oneDNN
    #6035, seen with torch 2.14).

    Strided 1×1 convolutions of fewer channels than a vector is long: the stems of FastViT, MobileOne and RepVGG.
    Processes crashed, or went on with wrong gradients.
    """
    if not isinstance(module, nn.Conv2d) or module.kernel_size != (1, 1):
        return False
    return module.stride != (1, 1) and module.in_channels // module.groups < VECTOR
