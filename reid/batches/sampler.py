"""P×K sampling: each batch holds P identities with K crops of each, from as many cameras as possible."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from domains.errors import DataError
from reid.randomness import numpy_generator


class IdentitySampler:
    """Batches of ``identities × instances`` crop positions; batch ``i`` is a pure function of the seed and ``i``.

    Identities come in shuffled rounds, each once per round however many crops it has, so all are seen equally often.
    Where a batch spans two rounds, an identity that it already holds is replaced by another drawn at random, so there
    the counts are equal only on average. Crops of an identity are drawn from cameras not yet drawn as long as there are
    any; an identity with fewer than K crops repeats none until all have been used, so a batch always holds P·K
    positions.

    Args:
        labels: class of each crop, ``[N]``.
        cameras: camera of each crop, ``[N]``.
        identities: P; a domain with fewer is an error, since the triplet loss needs other identities.
        instances: K.
        groups: domain of each class; if given, batches are uniform over domains instead of identities.
        seed: entropy for every draw.

    Raises:
        DataError: fewer than P identities.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        cameras: NDArray[np.int64],
        *,
        identities: int,
        instances: int,
        groups: Sequence[int] | None = None,
        seed: Sequence[int | str] = (0,),
    ) -> None:
        self.classes = np.unique(labels)
        if len(self.classes) < identities:
            hint = (
                f"set train.identities={len(self.classes)}" if len(self.classes) > 1 else "training needs at least two"
            )
            raise DataError(f"a batch needs {identities} identities and the domain has {len(self.classes)}; {hint}")
        self.identities = identities
        self.instances = instances
        self.seed = tuple(seed)
        self.cameras = cameras
        order = np.argsort(labels, kind="stable")
        self.crops = dict(
            zip(self.classes.tolist(), np.split(order, np.flatnonzero(np.diff(labels[order])) + 1), strict=True)
        )
        self.groups = None if groups is None else np.asarray(groups)[self.classes]
        self._rounds: dict[int, NDArray[np.int64]] = {}

    def batch(self, iteration: int) -> NDArray[np.int64]:
        """Return the positions ``[P·K]`` of one batch, with an identity's crops side by side."""
        draw = numpy_generator(*self.seed, "crops", iteration)
        return np.concatenate([self._crops_of(int(identity), draw) for identity in self._identities(iteration)])

    def _identities(self, iteration: int) -> NDArray[np.int64]:
        if self.groups is not None:
            return self._by_domain(iteration)
        start = iteration * self.identities
        chosen: list[int] = []
        at = start
        while len(chosen) < self.identities:
            lap, offset = divmod(at, len(self.classes))
            identity = int(self._round(lap)[offset])
            if identity not in chosen:
                chosen.append(identity)
            else:
                free = np.setdiff1d(self.classes, chosen)
                chosen.append(int(numpy_generator(*self.seed, "replacement", at).choice(free)))
            at += 1
        return np.array(chosen, np.int64)

    def _by_domain(self, iteration: int) -> NDArray[np.int64]:
        draw = numpy_generator(*self.seed, "domains", iteration)
        assert self.groups is not None  # noqa: S101 - narrows the type; the caller has checked
        weight = 1.0 / np.bincount(self.groups)[self.groups]
        return draw.choice(self.classes, self.identities, replace=False, p=weight / weight.sum())

    def _round(self, lap: int) -> NDArray[np.int64]:
        if lap not in self._rounds:
            self._rounds = {
                lap: numpy_generator(*self.seed, "round", lap).permutation(self.classes),
                **dict(list(self._rounds.items())[:2]),
            }
        return self._rounds[lap]

    def _crops_of(self, identity: int, draw: np.random.Generator) -> NDArray[np.int64]:
        pool = draw.permutation(self.crops[identity])
        taken: list[int] = []
        while len(taken) < self.instances:
            # Each pass takes one crop per camera, so a camera comes up again only after every other has had its turn.
            left = list(pool)
            while left and len(taken) < self.instances:
                seen: set[int] = set()
                rest = []
                for crop in left:
                    camera = int(self.cameras[crop])
                    if camera in seen or len(taken) == self.instances:
                        rest.append(crop)
                    else:
                        seen.add(camera)
                        taken.append(int(crop))
                left = rest
        return np.array(taken, np.int64)
