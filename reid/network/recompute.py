"""Gradient checkpointing, less memory for more time: activations of a backbone's blocks are recomputed for the gradient
instead of being kept (Chen et al., 2016).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from domains.errors import ConfigError


class Recomputed(nn.Sequential):
    """A row of blocks, the first ``count`` of which keep only their input while training; weights are named as in the
    row that it replaces.
    """

    count: int

    def forward(self, features: Tensor) -> Tensor:
        """Compute what the row itself would: the same values, gradients and statistics."""
        for position, block in enumerate(self):
            if position < self.count and self.training and torch.is_grad_enabled():
                features = checkpoint(
                    block,
                    features,
                    use_reentrant=False,
                    context_fn=lambda block=block: (nullcontext(), _frozen_statistics(block)),  # type: ignore[misc]
                )
            else:
                features = block(features)
        return features


@contextmanager
def recomputing(network: nn.Module, count: int) -> Iterator[None]:
    """Recompute the first ``count`` residual (or transformer) blocks while the context is active.

    Raises:
        ConfigError: the network has fewer blocks.
    """
    rows = _rows(network) if count else []
    if count > (available := sum(len(row) for _, _, row in rows)):
        raise ConfigError(
            f"train.recompute={count} is more than this backbone's {available} blocks; set it to {available} at most"
        )
    left = count
    try:
        for parent, name, row in rows:
            recomputed = Recomputed(*row)
            recomputed.count, left = left, max(0, left - len(row))
            recomputed.training = row.training  # of the row alone: blocks may be in another mode
            setattr(parent, name, recomputed)
        yield
    finally:
        for parent, name, row in rows:
            row.training = getattr(parent, name).training
            setattr(parent, name, row)


def _rows(network: nn.Module) -> list[tuple[nn.Module, str, nn.Sequential]]:
    """Return rows of blocks in order, each with its parent and name: plain sequences of modules that have children."""
    rows: list[tuple[nn.Module, str, nn.Sequential]] = []
    for name, child in network.named_children():
        blocks = list(child) if type(child) is nn.Sequential else []
        if blocks and all(
            next(block.children(), None) is not None and type(block) is not nn.Sequential for block in blocks
        ):
            rows.append((network, name, child))  # type: ignore[arg-type]
        else:
            rows += _rows(child)
    return rows


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Freeze BatchNorm's running statistics, which include this batch already, while it is recomputed."""
    norms = [
        module
        for module in block.modules()
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    ]
    before = [
        (module.momentum, None if module.num_batches_tracked is None else module.num_batches_tracked.clone())
        for module in norms
    ]
    for module in norms:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, (momentum, counted) in zip(norms, before, strict=True):
            module.momentum = momentum
            if counted is not None and module.num_batches_tracked is not None:
                module.num_batches_tracked.copy_(counted)
