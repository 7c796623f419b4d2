"""Averaging over a step's iterations: the moving average of the weights replaces them at the end of training."""

from __future__ import annotations

import torch
from torch import Tensor

from reid.network.model import NOT_EMBEDDING
from reid.terms.term import Step, Term


class MovingAverage(Term):
    """Exponential moving average of the embedding path's weights (Polyak & Juditsky, 1992), swapped in after the last
    iteration.

    It has no loss. It starts at the weights before the step and forgets them quickly: the decay of update t is at most
    t / (t + 10).

    Args:
        decay: decay of the average per iteration.
    """

    updates: Tensor

    def __init__(self, decay: float = 0.95) -> None:
        super().__init__()
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise ValueError(f"decay must lie in 0..1, excluding 1, got {decay!r}")
        self.decay = decay
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def begin(self, step: Step) -> None:
        """Start at the current weights; the averages are buffers, so that a step can be resumed."""
        self.places = {name: f"average{at}" for at, name in enumerate(_weights(step))}
        for name, weight in _weights(step).items():
            self.register_buffer(self.places[name], weight.detach().clone())

    def after_update(self, step: Step) -> None:
        """Update the average; after the last iteration, make it the weights."""
        learning = _weights(step)  # fewer than at the start if a term begun later has frozen some
        if not learning:  # only an adapter learns, which is not among the model's weights
            return
        weights = list(learning.values())
        averages = [self.get_buffer(self.places[name]) for name in learning]
        self.updates += 1
        done = int(self.updates)
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - min(self.decay, done / (done + 10)))
            if done == step.config.train.iterations:
                torch._foreach_copy_(weights, averages)


def _weights(step: Step) -> dict[str, Tensor]:
    return {
        name: weight
        for name, weight in step.model.named_parameters()
        if weight.requires_grad and not name.startswith(NOT_EMBEDDING)
    }
