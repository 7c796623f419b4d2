"""Carrying a memory into a later feature space: all of its parts that live in one follow the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prototypes.memory import Memory
from prototypes.metric import SiteStatistics
from prototypes.prototype import DistributionPrototypes
from prototypes.transport import Transport


def renewed(memory: Memory, transports: Sequence[Transport]) -> Memory:
    """Carry a memory's prototypes and statistics through consecutive transports; everything else is unchanged.

    Raises:
        ArtefactError: they have another number of dimensions than the transports.
    """
    prototypes = DistributionPrototypes.from_arrays(memory.arrays)
    site = SiteStatistics.from_arrays(memory.arrays)
    if not transports or (prototypes is None and site is None):
        return memory
    for transport in transports:
        prototypes = prototypes and transport.prototypes(prototypes)
        site = site and site.carried(transport.matrix)
    carried = (prototypes.to_arrays() if prototypes else {}) | (site.to_arrays() if site else {})
    return replace(memory, feature_space=transports[-1].target, arrays={**memory.arrays, **carried})
