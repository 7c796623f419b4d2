"""Crops to embeddings with a torch network: in eval mode, in float32, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from domains.arrays import Crops, Embed, Float32s
from reid.network.model import ReidModel

BATCH = 128


@contextmanager
def evaluating(model: ReidModel) -> Iterator[None]:
    """Put a model in eval mode, without gradients, and restore its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def embeddings(model: ReidModel, batches: Iterable[torch.Tensor]) -> Float32s:
    """Return unit-length embeddings ``[N, D]`` of batches of crops ``[n, H, W, 3]`` that are on the model's device."""
    with evaluating(model):
        return np.concatenate([model.embed(crops).cpu().numpy() for crops in batches])


def embedder(model: ReidModel, device: torch.device | None = None, batch: int = BATCH) -> Embed:
    """Return a function that embeds crops in float32, whatever the training precision, so that scores are those of a
    float32 export.
    """
    device = device or torch.device("cpu")

    def embed(crops: Crops) -> Float32s:
        if not len(crops):
            return np.empty((0, model.dim), np.float32)
        starts = range(0, len(crops), batch)
        return embeddings(
            model, (torch.from_numpy(np.ascontiguousarray(crops[at : at + batch])).to(device) for at in starts)
        )

    return embed
