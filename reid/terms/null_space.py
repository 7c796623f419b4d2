"""Soft null-space updates: the weights of a layer move least along the inputs that it has in domains learned before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from domains.errors import ArtefactError
from reid.network.embedding import evaluating
from reid.network.model import ReidModel
from reid.terms.term import Step, Term

KIND = "null_space"
CROPS, BATCH = 512, 64

Layer = nn.Conv2d | nn.Linear


class NullSpace(Term):
    """Projects each update of a 1×1 convolution or linear layer away from the layer's inputs in earlier domains.

    Kin of Adam-NSCL (Wang et al., CVPR 2021, arXiv 2103.07113), which projects onto the eigenvectors of the smallest
    eigenvalues of C, the uncentred second moment of a layer's inputs. Here the projection is soft, P = ε(C + εI)⁻¹ with
    ε = a·tr(C)/n for n inputs: a direction of energy λ keeps ε/(λ + ε) of the update. C is the sum of the moments that
    the domains' memories hold, each scaled to a mean energy of 1; they are of the finished model's inputs, so after
    fusion. Nothing is projected in the first step, or where no memory holds moments.

    The term has no loss. What the optimiser does in one iteration, weight decay included, is projected once, after its
    step; so list the term before ``moving_average``, which then averages the projected weights. Other convolutions,
    normalisation and biases move freely, and so does a layer that the network does not call as a module.

    Args:
        amount: a; small for hard protection, large for ordinary training.

    Attributes:
        free_share: mean of tr(P)/n over the projected layers: the part of their inputs' space that is free; 1 if none
            is projected.
    """

    keeps = KIND  # it reads its kind too, without `reads`: a term that needs memories would not keep the first

    def __init__(self, amount: float = 0.1) -> None:
        super().__init__()
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < math.inf:
            raise ValueError(f"amount must be a number above 0, got {amount!r}")
        self.amount = amount
        self.free_share = 1.0
        self._projected: list[tuple[Layer, Tensor]] = []
        self._before: list[Tensor] = []

    def begin(self, step: Step) -> None:
        """Make the projections from the memories; they follow from them, so they are no part of the resume state."""
        self._projected, shares = [], []
        for key, layer in eligible_layers(step.model).items():
            total = _total(step, f"{KIND}.{key}", _inputs(layer))
            if not layer.weight.requires_grad or not total.diagonal().sum() > 0:
                continue
            matrix = projection(total.to(step.runtime.device), self.amount)
            shares.append(float(matrix.diagonal().mean()))
            self._projected.append((layer, matrix.float()))
        self.free_share = sum(shares) / len(shares) if shares else 1.0

    @torch.no_grad()
    def after_backward(self, step: Step) -> None:
        """Remember the weights before the update."""
        self._before = [layer.weight.detach().clone() for layer, _ in self._projected]

    @torch.no_grad()
    def after_update(self, step: Step) -> None:
        """Replace the update by its projection, W ← W₀ + (W - W₀)P."""
        for (layer, matrix), before in zip(self._projected, self._before, strict=True):
            update = (layer.weight - before).flatten(1) @ matrix
            layer.weight.copy_(before + update.view_as(before))
        self._before = []

    def end(self, step: Step) -> Mapping[str, Tensor]:
        """Return ``layer0``, ``layer1``, …: each layer's moment ``[n, n]`` with a mean diagonal of 1, in float16."""
        if step.survey is None:
            raise ValueError("moments are computed from a survey of the step's crops, and the step has none")
        sample = step.survey.sample(CROPS, step.config.seed, step.index, KIND)
        layers = {key: layer for key, layer in eligible_layers(step.model).items() if layer.weight.requires_grad}
        found = moments(step.model, layers, (crops for crops, _ in sample.batches(BATCH)))
        return {key: _scaled(moment).half().cpu() for key, moment in found.items()}


def projection(moment: Tensor, amount: float) -> Tensor:
    """Return P = ε(C + εI)⁻¹ with ε = ``amount``·tr(C)/n for a moment C ``[n, n]``, in float64; the identity for C = 0.

    It is computed from C's eigenvalues, none of them taken below 0: rounding to float16 can make C indefinite by more
    than a small ε.
    """
    values, vectors = torch.linalg.eigh(moment.double())
    epsilon = amount * moment.double().diagonal().mean()
    if not epsilon > 0:
        return torch.eye(len(moment), dtype=torch.float64, device=moment.device)
    matrix: Tensor = (vectors * (epsilon / (values.clamp(min=0) + epsilon))) @ vectors.T
    return matrix


def eligible_layers(model: nn.Module) -> dict[str, Layer]:
    """Return the layers that can be projected: the backbone's ungrouped 1×1 convolutions and linear layers, and the
    linear embedding.

    They are named by their place among them, ``layer0``, ``layer1``, …, whether they are trained or not.
    """
    found = [
        module
        for name, module in model.named_modules()
        if (name.startswith("backbone.") or name == "embedding") and isinstance(module, nn.Conv2d | nn.Linear)
    ]
    suited = [layer for layer in found if isinstance(layer, nn.Linear) or _is_pointwise(layer)]
    return {f"layer{at}": layer for at, layer in enumerate(suited)}


def moments(model: ReidModel, layers: Mapping[str, Layer], batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return the uncentred second moment XᵀX/rows ``[n, n]`` of each layer's inputs X ``[rows, n]``, by name.

    The model is in eval mode. A row is a position of a convolution's output or a token; layers that the network does
    not call are left out.

    Args:
        model: the network.
        layers: some of its layers.
        batches: crops ``[B, H, W, 3]`` on the model's device.
    """
    sums: dict[str, Tensor] = {}
    rows = dict.fromkeys(layers, 0)
    with evaluating(model), _watching(layers, sums, rows):
        for crops in batches:
            model.embed(crops)
    return {key: sums[key] / rows[key] for key in layers if rows[key]}


@contextmanager
def _watching(layers: Mapping[str, Layer], sums: dict[str, Tensor], rows: dict[str, int]) -> Iterator[None]:
    """Add XᵀX and the number of rows of each layer's inputs to ``sums`` and ``rows`` while the network runs."""

    def watch(key: str, layer: Layer) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found = _rows(layer, inputs[0])
            product = found.T @ found
            sums[key] = sums[key] + product if key in sums else product
            rows[key] += len(found)

        return layer.register_forward_pre_hook(hook)

    with ExitStack() as hooks:
        for key, layer in layers.items():
            hooks.callback(watch(key, layer).remove)
        yield


def _rows(layer: Layer, inputs: Tensor) -> Tensor:
    """Return a layer's inputs ``[B, n, h, w]`` or ``[…, n]`` as rows ``[rows, n]``, only those that a stride reads."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(-1, inputs.shape[-1])
    down, across = layer.stride
    return inputs[..., ::down, ::across].movedim(-3, -1).reshape(-1, layer.in_channels)


def _is_pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and layer.groups == 1


def _inputs(layer: Layer) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _scaled(moment: Tensor) -> Tensor:
    """Return a moment with a mean diagonal of 1, which float16 can hold; zeros stay zeros."""
    mean = moment.diagonal().mean()
    return moment / mean if mean > 0 else moment


def _total(step: Step, name: str, size: int) -> Tensor:
    """Return the sum of the memories' moments of a layer, ``[n, n]`` float64; zeros if none holds it."""
    total = np.zeros((size, size))
    for memory in step.memories:
        if name not in memory.arrays:
            continue
        stored = memory.arrays[name].astype(np.float64)
        if stored.shape != total.shape or not np.isfinite(stored).all():
            raise ArtefactError(
                f"{name} of the memory of {memory.domain} should be a finite matrix of {size} rows and columns, and "
                f"its shape is {stored.shape}"
            )
        total += stored
    return torch.from_numpy(total)
