"""Less memory for more time: blocks of a backbone whose activations are computed again for the gradient instead of
being kept (Chen et al., 2016).
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
    """Blocks in a row, the first of which keep nothing but their input while training; names of weights are those of
    the row that it stands for.
    """

    count: int

    def forward(self, features: Tensor) -> Tensor:
        """As the row itself: the same values, gradients and statistics."""
        for place, block in enumerate(self):
            if place < self.count and self.training and torch.is_grad_enabled():
                features = checkpoint(
                    block,
                    features,
                    use_reentrant=False,
                    context_fn=lambda block=block: (nullcontext(), _statistics_held(block)),  # type: ignore[misc]
                )
            else:
                features = block(features)
        return features


@contextmanager
def recomputing(network: nn.Module, count: int) -> Iterator[None]:
    """Compute the first ``count`` residual (or transformer) blocks again, as long as the block runs.

    Raises:
        ConfigError: the network has fewer.
    """
    rows = _rows(network) if count else []
    if count > (found := sum(len(row) for _, _, row in rows)):
        raise ConfigError(
            f"train.recompute={count} is more than this backbone's {found} blocks in a row; set less, or 0"
        )
    left = count
    try:
        for parent, name, row in rows:
            made = Recomputed(*row)
            made.count, left = left, max(0, left - len(row))
            made.training = row.training  # of the row alone: blocks may be held in another mode
            setattr(parent, name, made)
        yield
    finally:
        for parent, name, row in rows:
            row.training = getattr(parent, name).training
            setattr(parent, name, row)


def _rows(network: nn.Module) -> list[tuple[nn.Module, str, nn.Sequential]]:
    """Rows of blocks in order, each with where it hangs: plain sequences of at least two modules that are no layers."""
    found: list[tuple[nn.Module, str, nn.Sequential]] = []
    for name, child in network.named_children():
        blocks = list(child) if type(child) is nn.Sequential else []
        if blocks and all(
            next(block.children(), None) is not None and type(block) is not nn.Sequential for block in blocks
        ):
            found.append((network, name, child))  # type: ignore[arg-type]
        else:
            found += _rows(child)
    return found


@contextmanager
def _statistics_held(block: nn.Module) -> Iterator[None]:
    """BatchNorm has counted this batch already: computing it again must leave its running statistics alone."""
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
