"""Probes: the crops on which two models are compared to learn the map from one feature space to the other.

A step's own crops cover only a part of the space, and a map fitted there moves the rest almost at random. Two kinds of
crops reach further and cost no memory: the step's crops with permuted colour channels, and drawn people
(``benchmarks/transports.py`` compares them).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.crops import CropSpec
from domains.synthetic import golden_crops
from prototypes.transport import SHRINKAGE, Transport, TransportKind, fit_transport
from reid.network.embedding import BATCH, embeddings
from reid.network.model import ReidModel
from reid.terms.survey import Survey

ORDERS = tuple(itertools.permutations(range(3)))[1:]
OWN = 4000
"""Maximum number of a step's own crops to fit a map on; with five recolourings, each is embedded twelve times."""
DRAWN, DRAWN_HEIGHT, DRAWN_WIDTH = 256, 128, 64


@dataclass(frozen=True, kw_only=True)
class TransportSettings:
    """What a method's transport is fitted on, and how.

    Attributes:
        kind: see :func:`prototypes.transport.fit_transport`.
        shrinkage: likewise.
        recoloured: how many of the five permutations of colour channels are added, 0 to 5.
        drawn: number of drawn people added.
    """

    kind: TransportKind = "ridge"
    shrinkage: float = SHRINKAGE
    recoloured: int = 5
    drawn: int = DRAWN


def learn_transport(
    survey: Survey,
    old: ReidModel,
    new: ReidModel,
    spec: CropSpec,
    settings: TransportSettings | None = None,
    *,
    source: str = "",
    target: str = "",
    seed: int = 0,
) -> Transport:
    """Fit the transport from the old model to the new.

    Args:
        survey: the step's crops; if more than ``OWN``, a sample that shows everyone if there is room.
        old: M_{t-1}, on the survey's device.
        new: M_t.
        spec: the run's crop rule.
        settings: how to fit; the defaults as shipped.
        source: name of the old feature space.
        target: name of the new one.
        seed: for the sample.
    """
    fit = settings or TransportSettings()
    probes = Probes(survey.sample(OWN, seed, "transport"), spec, recoloured=fit.recoloured, drawn=fit.drawn)
    before, after = embeddings(old, probes), embeddings(new, probes)
    return fit_transport(
        before, after, kind=fit.kind, shrinkage=fit.shrinkage, sources=probes.sources, source=source, target=target
    )


class Probes:
    """The probe crops, batch by batch: the step's own, the same in each permutation of channels, and drawn people."""

    def __init__(self, survey: Survey, spec: CropSpec, *, recoloured: int, drawn: int) -> None:
        self.survey, self.spec = survey, spec
        self.orders, self.drawn = ORDERS[:recoloured], drawn

    @property
    def sources(self) -> NDArray[np.int64]:
        """The original that each probe shows; a crop and its recoloured copies have the same one."""
        own = np.tile(np.arange(len(self.survey)), 1 + len(self.orders))
        return np.concatenate([own, len(self.survey) + np.arange(self.drawn)])

    def __iter__(self) -> Iterator[Tensor]:
        """Yield crops ``[n, H, W, 3]`` uint8."""
        for order in ((0, 1, 2), *self.orders):
            for crops, _ in self.survey.batches():
                yield crops[..., list(order)]
        for start in range(0, self.drawn, BATCH):
            yield torch.from_numpy(_drawn(self.drawn, self.spec)[start : start + BATCH]).to(self.survey.device)


@lru_cache(maxsize=2)
def _drawn(count: int, spec: CropSpec) -> NDArray[np.uint8]:
    """Return drawn people at the run's crop size; drawn at one size, so that all crop sizes take the same time."""
    return spec.batch(list(golden_crops(count, height=DRAWN_HEIGHT, width=DRAWN_WIDTH)))
