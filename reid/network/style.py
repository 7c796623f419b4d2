"""Crops in another domain's look: by its twelve numbers, or by a learned network (``StyleNetwork``, the distribution
transfer network of DKP++, TPAMI 2025, which DASK, AAAI 2025, calls AKPNet).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from domains.errors import ArtefactError
from domains.style import NUMBERS, StyleStatistics

FLOOR = 1e-3
"""Minimum channel deviation in grey levels; an image of one colour has none."""
KERNEL_WEIGHTS = 3 * 3 * 3 * 3
REACH = 2.0
"""How many deviations from a domain's mean look its style network has learned to undo."""


def restyle(crops: Tensor, numbers: Tensor, noise: Tensor) -> Tensor:
    """Give crops another domain's colours: ``(x - m) / s · s̃ + m̃``, with m̃ and s̃ drawn from the domain's normal
    distributions.

    Args:
        crops: ``[B, H, W, 3]`` in 0..255.
        numbers: one style per crop, ``[B, 4, 3]``.
        noise: standard normal, ``[B, 2, 3]``.

    Returns:
        Float32 ``[B, H, W, 3]``, not clipped.
    """
    pixels = crops.float()
    mean = pixels.mean((1, 2), keepdim=True)
    deviation = pixels.std((1, 2), correction=0, keepdim=True).clamp(min=FLOOR)
    wanted_mean = numbers[:, 0] + numbers[:, 1] * noise[:, 0]
    wanted_deviation = (numbers[:, 2] + numbers[:, 3] * noise[:, 1]).clamp(min=FLOOR)
    return (pixels - mean) / deviation * wanted_deviation[:, None, None] + wanted_mean[:, None, None]


def _identity_layer(width: int, mean: Tensor, std: Tensor) -> nn.Linear:
    """The last layer, initialised to the kernel that changes nothing.

    From random weights, a short training leaves everything grey.
    """
    layer = nn.Linear(width, KERNEL_WEIGHTS + 3)
    with torch.no_grad():
        layer.weight.mul_(0.1)
        kernel, bias = layer.bias[:KERNEL_WEIGHTS].zero_().view(3, 3, 3, 3), layer.bias[KERNEL_WEIGHTS:]
        kernel[range(3), range(3), 1, 1] = 255 / std
        bias.copy_(-mean / std)
    return layer


class StyleNetwork(nn.Module):
    """Predicts, for each image, the 3×3 colour convolution that gives it one domain's look (DKP++ §DTNet; DASK's
    AKPNet).

    Max-pooled features of a MobileNetV3-small go through 576 → 288 → 84: 81 kernel weights and 3 biases. In all
    1.1 million weights, 2.2 MB in fp16.

    In training it sees only its own domain's look, perturbed at random, and its prediction for a crop of far higher
    contrast is noise. Such a crop is first brought to the edge of what the network knows (``looks``; not in the
    publications).

    Args:
        mean: the re-ID model's channel means, RGB in 0..255; the output is what its normalisation would give.
        std: its channel deviations.
        looks: the twelve numbers of the domain it learns; without them, every look counts as known.
    """

    mean: Tensor
    std: Tensor
    looks: Tensor

    def __init__(self, mean: Tensor, std: Tensor, looks: StyleStatistics | None = None) -> None:
        super().__init__()
        self.features = timm.create_model(
            "mobilenetv3_small_100", pretrained=False, features_only=True, out_indices=(4,)
        )
        width = int(self.features.feature_info.channels()[-1])
        self.head = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), _identity_layer(width // 2, mean, std))
        self.register_buffer("mean", mean.detach().clone().float())
        self.register_buffer("std", std.detach().clone().float())
        anything = torch.tensor([[0.0], [torch.inf], [0.0], [torch.inf]]).expand(NUMBERS)
        self.register_buffer("looks", torch.from_numpy(looks.numbers).clone() if looks else anything.clone())
        self.to(memory_format=torch.channels_last)

    def forward(self, crops: Tensor) -> Tensor:
        """Give crops ``[B, H, W, 3]`` in 0..255 the domain's look; the result is not clipped."""
        pixels = self._known(crops.float()).permute(0, 3, 1, 2) / 255
        batch, channels, height, width = pixels.shape
        predicted = self.head(self.features(pixels)[-1].amax((2, 3)))
        kernels = predicted[:, :KERNEL_WEIGHTS].reshape(3 * batch, 3, 3, 3)
        biases = predicted[:, KERNEL_WEIGHTS:].reshape(3 * batch)
        normalised = F.conv2d(
            pixels.reshape(1, batch * channels, height, width), kernels, biases, padding=1, groups=batch
        )
        return normalised.reshape(batch, 3, height, width).permute(0, 2, 3, 1) * self.std + self.mean

    def _known(self, pixels: Tensor) -> Tensor:
        """Bring channel means and deviations of ``[B, H, W, 3]`` to within ``REACH`` of the domain's.

        Crops already within it are unchanged.
        """
        mean, deviation = pixels.mean((1, 2)), pixels.std((1, 2), correction=0).clamp(min=FLOOR)
        low, high = self.looks[::2] - REACH * self.looks[1::2], self.looks[::2] + REACH * self.looks[1::2]
        target = torch.stack([mean, deviation], 1).clamp(low, high)
        gain = target[:, 1].clamp(min=FLOOR) / deviation
        return pixels * gain[:, None, None] + (target[:, 0] - mean * gain)[:, None, None]

    def loss(self, crops: Tensor, noise: Tensor) -> Tensor:
        """Return L_DTT, a scalar: how well a perturbation of the crops' channel statistics is undone.

        It is the mean absolute difference in normalised colours; ``noise`` ``[B, 2, 3]`` sets the perturbation.
        """
        pixels = crops.float()
        means, deviations = pixels.mean((1, 2)), pixels.std((1, 2), correction=0)
        numbers = torch.stack(
            [means.mean(0), means.std(0, correction=0), deviations.mean(0), deviations.std(0, correction=0)]
        )
        perturbed = restyle(crops, numbers.expand(len(crops), *NUMBERS), noise)
        difference: Tensor = (self(perturbed) - pixels) / self.std
        return difference.abs().mean()

    def to_arrays(self) -> Mapping[str, NDArray[np.float16]]:
        """Return the weights for a memory, in fp16 and without BatchNorm counters."""
        return {
            name: value.detach().cpu().numpy().astype(np.float16)
            for name, value in self.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }

    def load_arrays(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Load what :meth:`to_arrays` returned; raises ArtefactError if it does not fit."""
        arrays = {"looks": self.looks.numpy(), **arrays}  # the first memories have none
        state = self.state_dict()
        left_out = {name: value for name, value in state.items() if name.endswith("num_batches_tracked")}
        wanted = {name: tuple(value.shape) for name, value in state.items() if name not in left_out}
        actual = {name: array.shape for name, array in arrays.items()}
        for name in sorted(wanted.keys() | actual.keys()):
            if wanted.get(name) != actual.get(name):
                raise ArtefactError(
                    f"the style network in the memory does not fit this version: {name} should be "
                    f"{wanted.get(name, 'absent')} and is {actual.get(name, 'absent')}; "
                    "restore the memory from a backup"
                )
        self.load_state_dict(
            {name: torch.from_numpy(np.asarray(array, np.float32)) for name, array in arrays.items()} | left_out
        )
