"""Vectorised augmentation of a batch of training crops: flip, pad-and-crop, colour jitter, random erasing.

Works on RGB crops ``[B, H, W, 3]`` in 0..255 on any device; all random numbers are drawn on the CPU from one generator,
so a GPU sees the same crops as a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reid.config import AugmentConfig

LUMA = (0.299, 0.587, 0.114)
ERASE_TRIES = 10


class Augment:
    """Random training-time augmentation.

    Args:
        config: probabilities and strengths.
        fill: RGB in 0..255 painted by padding and erasing: the model's mean, so that it is zero after normalisation.
    """

    def __init__(self, config: AugmentConfig, fill: Sequence[float]) -> None:
        self.config = config
        self.fill = torch.tensor(list(fill), dtype=torch.float32)

    def __call__(self, crops: Tensor, generator: torch.Generator) -> Tensor:
        """Augment uint8 crops ``[B, H, W, 3]``; returns uint8 of the same shape, or float32 if colours change."""
        fill = self.fill.round().to(torch.uint8).to(crops.device)
        crops = self._moved(crops, generator, fill)
        if self.config.colour:
            crops = self._recoloured(crops, generator)
        return self._erased(crops, generator, fill)

    def _moved(self, crops: Tensor, generator: torch.Generator, fill: Tensor) -> Tensor:
        """Flip and shift with one gather of rows and one of columns; pixels from outside the crop are painted."""
        batch, height, width, _ = crops.shape
        pad = round(self.config.shift * height)
        flips = torch.rand(batch, generator=generator) < self.config.flip
        rows = torch.arange(height) + torch.randint(-pad, pad + 1, (batch, 1), generator=generator)
        columns = torch.arange(width) + torch.randint(-pad, pad + 1, (batch, 1), generator=generator)
        columns = torch.where(flips[:, None], width - 1 - columns, columns)
        outside_rows = (rows < 0) | (rows >= height)
        outside_columns = (columns < 0) | (columns >= width)
        device = crops.device
        take = taken_at_once if crops.is_cuda else taken_one_by_one
        crops = take(crops, rows.clamp(0, height - 1).to(device), columns.clamp(0, width - 1).to(device))
        outside = (outside_rows[:, :, None] | outside_columns[:, None, :]).to(device)
        return torch.where(outside[..., None], fill, crops) if pad else crops

    def _recoloured(self, crops: Tensor, generator: torch.Generator) -> Tensor:
        """Jitter brightness, contrast about the crop's mean, and saturation about its grey, each by a factor within
        1 ± strength.
        """
        factors = (1 + self.config.colour * (2 * torch.rand(3, crops.shape[0], 1, 1, 1, generator=generator) - 1)).to(
            crops.device
        )
        pixels = crops.float() * factors[0]
        mean = pixels.mean((1, 2, 3), keepdim=True)
        pixels = mean + (pixels - mean) * factors[1]
        grey = (pixels * torch.tensor(LUMA, device=crops.device)).sum(-1, keepdim=True)
        return (grey + (pixels - grey) * factors[2]).clamp(0, 255)

    def _erased(self, crops: Tensor, generator: torch.Generator, fill: Tensor) -> Tensor:
        """Paint one rectangle per chosen crop (Zhong et al., AAAI 2020): the first of ten drawn shapes that fits."""
        batch, height, width, _ = crops.shape
        low, high = self.config.erase_area
        chosen = torch.rand(batch, generator=generator) < self.config.erase
        area = height * width * (low + (high - low) * torch.rand(batch, ERASE_TRIES, generator=generator))
        ratio = self.config.erase_ratio + (1 / self.config.erase_ratio - self.config.erase_ratio) * torch.rand(
            batch, ERASE_TRIES, generator=generator
        )
        tall = (area * ratio).sqrt().round().long()
        wide = (area / ratio).sqrt().round().long()
        fits = (tall < height) & (wide < width) & (tall > 0) & (wide > 0)
        first = fits.float().argmax(1, keepdim=True)
        tall, wide = tall.gather(1, first)[:, 0], wide.gather(1, first)[:, 0]
        top = (torch.rand(batch, generator=generator) * (height - tall + 1)).long()
        left = (torch.rand(batch, generator=generator) * (width - wide + 1)).long()
        chosen &= fits.any(1)
        boxes = torch.stack([top, top + tall, left, left + wide], 1) * chosen[:, None]  # an empty one paints nothing
        paint = painted_at_once if crops.is_cuda else painted_one_by_one
        return paint(crops, boxes, fill.to(crops.dtype))


def taken_one_by_one(crops: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Crops ``[B, H, W, 3]`` by their rows ``[B, H]`` and columns ``[B, W]``: the fastest way on a processor.

    Only a flat gather moves a pixel's three bytes as one element; selecting columns crop by crop keeps the copies in
    cache.
    """
    crops = crops[torch.arange(len(crops), device=crops.device)[:, None], rows]
    return torch.stack([crop.index_select(1, index) for crop, index in zip(crops, columns, strict=True)])


def taken_at_once(crops: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The same in one operation, of which each costs a GPU's driver about the same, however small it is."""
    return crops[torch.arange(len(crops), device=crops.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def painted_one_by_one(crops: Tensor, boxes: Tensor, paint: Tensor) -> Tensor:
    """Crops ``[B, H, W, 3]`` with one box painted in each; boxes ``[B, 4]`` are top, bottom, left, right."""
    out = crops.clone()
    for crop, (top, bottom, left, right) in zip(out, boxes.tolist(), strict=True):
        crop[top:bottom, left:right] = paint
    return out


def painted_at_once(crops: Tensor, boxes: Tensor, paint: Tensor) -> Tensor:
    """The same in a few operations."""
    _, height, width, _ = crops.shape
    top, bottom, left, right = boxes.to(crops.device).T[:, :, None]
    rows, columns = torch.arange(height, device=crops.device), torch.arange(width, device=crops.device)
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
    return torch.where(inside[..., None], paint, crops)
