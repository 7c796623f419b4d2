"""The backbone, which maps normalised images ``[B, 3, H, W]`` to a feature map ``[B, C, h, w]`` (CNN, ONNX) or tokens
``[B, N, C]`` (ViT).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

VECTOR = 16
"""Floats in the widest vector register of a CPU."""


@dataclass(frozen=True)
class InputRule:
    """The input that a backbone expects: channel order, and mean and standard deviation in 0..255 in that order."""

    channels: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Backbone(nn.Module):
    """A feature extractor and its properties.

    Attributes:
        net: maps ``[B, 3, H, W]`` to ``[B, C, h, w]`` or ``[B, N, C]``.
        head: the part of an ONNX graph between its last map and its embedding, else None.
        width: C, or the width of the head's output.
        channels: C of the map or tokens; by default the width.
        norm: the norm that some ViTs (BEiT, EVA-02) apply after pooling instead of to every token (timm's
            ``fc_norm``), else None.
        prefix_tokens: number of a ViT's tokens that are not part of the grid; -1 for a CNN.
        signed: whether the map can have negative values; generalised means need non-negative ones.
        rule: the input that the weights expect.
        planar: whether it trains in planar order (NCHW) on a CPU, where channels-last is faster but not safe.
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
        """Return the map or the tokens of images ``[B, 3, H, W]``."""
        features: Tensor = self.net(images.contiguous() if self.planar and images.device.type == "cpu" else images)
        return features


def _overruns(module: nn.Module) -> bool:
    """Whether oneDNN's weight gradient of this convolution writes past its workspace in channels-last order (oneDNN
    #6035, seen with torch 2.14).

    This concerns strided 1×1 convolutions with fewer channels than fill a vector: the stems of FastViT, MobileOne and
    RepVGG. Processes crashed, or continued with wrong gradients.
    """
    if not isinstance(module, nn.Conv2d) or module.kernel_size != (1, 1):
        return False
    return module.stride != (1, 1) and module.in_channels // module.groups < VECTOR
