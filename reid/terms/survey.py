"""A step's train crops, unaugmented and seen in eval mode: what the end of a step is computed from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from domains.arrays import Float32s
from reid.batches.loader import CropStore
from reid.network.distribution import unit
from reid.network.embedding import BATCH, embeddings, evaluating
from reid.network.model import ReidModel
from reid.randomness import numpy_generator


class Survey:
    """The usable train crops of a step and their identities, in float32 whatever the training precision.

    Args:
        store: the decoded crops.
        positions: which of them are usable, ``[N]``.
        labels: identity of each usable crop, from 0 in the order of the step's classifier rows, ``[N]``.
        device: where models are.
    """

    def __init__(
        self, store: CropStore, positions: NDArray[np.int64], labels: NDArray[np.int64], device: torch.device
    ) -> None:
        self.store = store
        self.positions = positions
        self.labels = labels
        self.device = device

    def __len__(self) -> int:
        """Return N."""
        return len(self.positions)

    @property
    def cameras(self) -> NDArray[np.int64]:
        """Camera code of each crop, ``[N]``."""
        return self.store.split.camids[self.positions]

    def batches(self, size: int = BATCH) -> Iterator[tuple[torch.Tensor, NDArray[np.int64]]]:
        """Yield crops ``[n, H, W, 3]`` uint8 on the device, with their identities, in order."""
        for start in range(0, len(self), size):
            rows = self.positions[start : start + size]
            yield torch.from_numpy(self.store.crops[rows]).to(self.device), self.labels[start : start + size]

    def shuffled(self, *seed: int) -> Survey:
        """Return the same crops in random order, for anything that depends on batches: a table's rows are sorted by
        person.
        """
        order = numpy_generator(*seed, "survey").permutation(len(self))
        return Survey(self.store, self.positions[order], self.labels[order], self.device)

    def sample(self, count: int, *seed: int | str) -> Survey:
        """Return at most ``count`` of the crops, drawn without replacement and kept in order, with one of each identity
        while there is room.
        """
        if len(self) <= count:
            return self
        order = numpy_generator(*seed, "sample").permutation(len(self))
        first = np.sort(np.unique(self.labels[order], return_index=True)[1])
        rows = np.sort(order[np.concatenate([first, np.delete(np.arange(len(self)), first)])][:count])
        return Survey(self.store, self.positions[rows], self.labels[rows], self.device)

    def embeddings(self, model: ReidModel) -> Float32s:
        """Return unit-length embeddings ``[N, D]``."""
        return embeddings(model, (crops for crops, _ in self.batches()))

    def gaussians(self, model: ReidModel) -> Iterator[tuple[Float32s, Float32s, NDArray[np.int64]]]:
        """Yield centres and deviations ``[n, D]`` of crops, with their identities, batch by batch."""
        for crops, labels in self.batches():
            with evaluating(model):
                output = model(crops)
                centre, spread = unit(output.embedding).cpu().numpy(), model.spread(output.features).cpu().numpy()
            yield centre, spread, labels
