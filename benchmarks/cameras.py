"""Cameras without labels: how a camera's crops differ from its site's, taken off at query time.

A camera's light, view and height move all of its embeddings alike. Its *offset* is ``n / (n + k) (mean of its n crops -
mean of the site's crops)``: no identity is needed, so the entries of a gallery are enough. A part of it is taken off
each vector before the metric (or the cosine) compares them. A site with one camera keeps its scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from domains.arrays import Float32s
from prototypes.metric import Metric, SiteStatistics
from reid.scores.evaluate import Retrieval
from reid.scores.union import score_union

Rows = NDArray[np.int64]
Table = dict[str, dict[str, float]]
KINDS = ("cosine", "own", "one gallery: cosine", "one gallery: pooled", "one gallery: mixed")
FEWER = ("cosine", "own", "one gallery: mixed")
CHOSEN = {"part": 1.0, "few": 100.0, "least": 10}
"""What held-out train people chose (``choose-cameras``)."""


@dataclass(frozen=True, eq=False)
class Crops:
    """Unit vectors ``[N, D]``, and the camera of each."""

    vectors: Float32s
    cameras: Rows

    def drawn(self, count: int | None, seed: int = 0) -> Rows:
        """Rows of at most so many crops of each camera; of all without a count."""
        order = np.random.default_rng(seed).permutation(len(self.cameras))
        parts = [order[self.cameras[order] == camera][:count] for camera in np.unique(self.cameras)]
        return np.sort(np.concatenate(parts)) if parts else order

    def take(self, rows: Rows) -> Crops:
        """Some of them."""
        return Crops(self.vectors[rows], self.cameras[rows])


@dataclass(frozen=True)
class Offsets:
    """How much of a camera's offset is taken off.

    Attributes:
        part: of the offset.
        few: ``k``, the number of crops with which an offset is half of what it would be of many.
        least: a camera with fewer crops has none.
    """

    part: float = CHOSEN["part"]
    few: float = CHOSEN["few"]
    least: float = CHOSEN["least"]

    def of(self, targets: Crops, crops: Crops, inside: NDArray[np.bool_] | None = None) -> Float32s:
        """Return the offset of each target, ``[N, D]``.

        Args:
            targets: vectors to be moved.
            crops: of the site, unlabelled.
            inside: targets that are among the crops, and are left out of their own offset; by default none.
        """
        cameras, codes = np.unique(np.concatenate([crops.cameras, targets.cameras]), return_inverse=True)
        given, wanted = codes[: len(crops.cameras)], codes[len(crops.cameras) :]
        sums = np.zeros((len(cameras), targets.vectors.shape[1]))
        np.add.at(sums, given, crops.vectors.astype(np.float64))
        itself = np.zeros(len(wanted)) if inside is None else inside.astype(np.float64)
        counts = np.bincount(given, minlength=len(cameras))[wanted] - itself
        everything = max(len(given), 1) - itself
        left_out = itself[:, None] * targets.vectors
        mean = (sums[wanted] - left_out) / np.maximum(counts, 1)[:, None]
        away = mean - (sums.sum(0) - left_out) / np.maximum(everything, 1)[:, None]
        weight = self.part * counts / np.maximum(counts + self.few, 1e-12) * (counts >= max(self.least, 1))
        return np.asarray(weight[:, None] * away, np.float32)

    def taken_off(
        self,
        found: Retrieval,
        train: Crops | None = None,
        *,
        queries: bool = True,
        count: int | None = None,
        seed: int = 0,
    ) -> Retrieval:
        """Move a site's queries and gallery; they are no longer of unit length, and a metric makes them so.

        Args:
            found: the site.
            train: crops whose offsets are used; by default those of the gallery.
            queries: the other queries lend their crops to a gallery's offsets, too, as entries from their cameras
                would; never a query itself.
            count: number of crops that a camera lends at most.
            seed: for the draw.
        """
        asked, held = Crops(found.asked, found.people[0].camids), Crops(found.held, found.people[1].camids)
        if train is not None:
            crops = train.take(train.drawn(count, seed))
            return replace(found, asked=asked.vectors - self.of(asked, crops), held=held.vectors - self.of(held, crops))
        lent = Crops(np.concatenate([held.vectors, asked.vectors]), np.concatenate([held.cameras, asked.cameras]))
        rows = lent.drawn(count, seed)
        if not queries:
            rows = rows[rows < len(held.cameras)]
        crops, inside = lent.take(rows), np.isin(np.arange(len(asked.cameras)) + len(held.cameras), rows)
        return replace(
            found, asked=asked.vectors - self.of(asked, crops, inside), held=held.vectors - self.of(held, crops)
        )


def scored(
    found: Mapping[str, Retrieval], sites: Mapping[str, SiteStatistics], kinds: tuple[str, ...] = KINDS
) -> Table:
    """Percent mAP by metric and site, whatever the vectors' length; a site that was not measured has no own metric."""
    dim = next(iter(found.values())).asked.shape[1]
    plain = Metric(np.zeros(dim, np.float32), np.zeros((0, dim), np.float32))
    pool = list(sites.values())
    pooled = Metric.pooled(pool)
    mine = {name: Metric.own(site) for name, site in sites.items()}
    mixed = {name: Metric.mixed(site, pool) for name, site in sites.items()}
    metrics: dict[str, Callable[[str], Metric]] = {
        "cosine": lambda name: plain,
        "own": lambda name: mine.get(name, plain),
        "pooled": lambda name: pooled,
        "mixed": lambda name: mixed.get(name, pooled),
    }
    rows: Table = {}
    for kind in kinds:
        one_gallery, metric = kind.startswith("one gallery"), metrics[kind.split(": ")[-1]]
        if one_gallery:
            rows[kind] = {name: one.mAP for name, one in score_union(found, metric, list(sites)).items()}
        else:
            rows[kind] = {name: score_union({name: one}, metric)[name].mAP for name, one in found.items()}
    return rows


def gained(found: Mapping[str, Retrieval], sites: Mapping[str, SiteStatistics], train: Mapping[str, Crops]) -> Table:
    """The choice: percent mAP, and what offsets of either source add to it, by part, ``k`` and least number."""
    before = scored(found, sites)
    rows = dict(before)
    grid = [(part, few, 10) for part in (0.5, 1.0) for few in (0, 30, 100)]
    for source in ("other crops", "train crops"):
        for part, few, least in [*grid, (1.0, 30, 1)]:
            moved = _moved(found, train if source == "train crops" else None, Offsets(part, few, least))
            about = f"{source}, part {part}, k {few}" + (", of any number" if least == 1 else "")
            rows |= _added(before, scored(moved, sites, FEWER), about)
    return rows


def worth(
    found: Mapping[str, Retrieval],
    sites: Mapping[str, SiteStatistics],
    train: Mapping[str, Crops],
    apart: Mapping[str, Crops],
) -> Table:
    """Percent mAP, and what the chosen offsets add to it, by where their crops come from and how many they are.

    Args:
        found: sites that ask, and hold.
        sites: statistics of those that were measured.
        train: their train crops.
        apart: the same, but with no person in two cameras.
    """
    offsets = Offsets()
    before = scored(found, sites)
    rows = before | _added(before, scored(_moved(found, None, offsets), sites), "other crops")
    rows |= _added(before, scored(_moved(found, train, offsets), sites), "train crops")
    rows |= _added(
        before, scored(_moved(found, apart, offsets), sites, FEWER), "train crops, other people in each camera"
    )
    alone = _moved(found, None, offsets, queries=False)
    rows |= _added(before, scored(alone, sites, FEWER), "gallery crops alone")
    for count in (10, 30, 100):
        drawn = [scored(_moved(found, None, offsets, count=count, seed=seed), sites, FEWER) for seed in range(3)]
        mean = {
            kind: {name: float(np.mean([one[kind][name] for one in drawn])) for name in drawn[0][kind]}
            for kind in FEWER
        }
        rows |= _added(before, mean, f"{count} other crops of each camera")
    return rows


def other_people(crops: Crops, people: Rows) -> Crops:
    """Crops of which no person is in two cameras: people take turns, each person's are of one camera alone."""
    cameras, camera = np.unique(crops.cameras, return_inverse=True)
    turns = np.unique(people, return_inverse=True)[1] % len(cameras)
    return crops.take(np.flatnonzero(turns == camera))


def _moved(
    found: Mapping[str, Retrieval],
    train: Mapping[str, Crops] | None,
    offsets: Offsets,
    *,
    queries: bool = True,
    count: int | None = None,
    seed: int = 0,
) -> dict[str, Retrieval]:
    """Sites without a train split keep their vectors where offsets are those of train crops."""
    if train is not None:
        return {name: offsets.taken_off(one, train[name]) if name in train else one for name, one in found.items()}
    return {name: offsets.taken_off(one, queries=queries, count=count, seed=seed) for name, one in found.items()}


def _added(before: Table, after: Table, about: str) -> Table:
    return {
        f"{kind} + {about}": {name: value - before[kind][name] for name, value in row.items()}
        for kind, row in after.items()
    }
