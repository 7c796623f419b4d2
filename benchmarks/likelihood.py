"""A likelihood ratio as score: how much likelier two vectors are if they show one person than if they show two.

Probabilistic linear discriminant analysis with two covariances (Ioffe, ECCV 2006): a person is drawn from N(m, B), a
crop of theirs from N(person, W). The ratio's logarithm is an inner product plus one number for each vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from domains.arrays import Float32s, Float64s
from domains.domain import SameCamera
from domains.scoring import Labels, score_similarities
from prototypes.metric import Metric, SiteStatistics, pairs_of_crops
from reid.scores.evaluate import Retrieval

FPR = (1e-2, 1e-3)
Score = Callable[[Float32s, Float32s], Float64s]
Train = Mapping[str, tuple[Float32s, Labels]]
Table = dict[str, dict[str, float]]


@dataclass(frozen=True, eq=False)
class Covariances:
    """Of people's crops around them, and of people around their mean, both ``[D, D]``."""

    mean: Float64s
    within: Float64s
    between: Float64s

    @classmethod
    def of(cls, vectors: Float32s, labels: Labels) -> Covariances:
        """Compute them, each person weighing the same; what of the second is negative is cut."""
        pairs = pairs_of_crops(labels.pids, labels.camids)
        lines = (vectors[pairs[:, 0]] - vectors[pairs[:, 1]]).astype(np.float64)
        within = lines.T @ lines / (2 * max(len(lines), 1))
        people, codes = np.unique(labels.pids, return_inverse=True)
        weights = 1 / np.bincount(codes)[codes] / len(people)
        mean = weights @ vectors
        away = (vectors - mean) * np.sqrt(weights)[:, None]
        values, axes = np.linalg.eigh(away.T @ away - within)
        return cls(mean, within, (axes * np.maximum(values, 0)) @ axes.T)


@dataclass(frozen=True)
class Shrinkage:
    """How covariances become those of a model.

    Attributes:
        within: share of a site's own covariance within people, the rest being spread evenly.
        between: the same between people.
        rank: eigenvectors kept between people; what they leave is spread evenly.
        pooled: the covariance between people is the mean of all sites'.
    """

    within: float = 0.25
    between: float = 0.25
    rank: int = 64
    pooled: bool = False

    def model(self, site: Covariances, sites: Sequence[Covariances]) -> LikelihoodRatio:
        """The model of a site."""
        between = np.mean([one.between for one in sites], axis=0) if self.pooled else site.between
        values, axes = np.linalg.eigh(between)
        kept = np.argsort(values)[::-1][: self.rank]
        low = (axes[:, kept] * values[kept]) @ axes[:, kept].T
        return LikelihoodRatio.of(
            site.mean,
            evened(site.within, self.within * site.within),
            evened(site.between, self.between * np.trace(site.between) / np.trace(between) * low),
        )


def evened(whole: Float64s, part: Float64s) -> Float64s:
    """Add what a part leaves of the whole's trace evenly."""
    return part + max(float(np.trace(whole) - np.trace(part)), 1e-9) / len(whole) * np.eye(len(whole))


@dataclass(frozen=True, eq=False)
class LikelihoodRatio:
    """A score of pairs, ``[Q, G]``: after joint diagonalisation crops vary by 1 around a person, and people by
    ``between``.
    """

    mean: Float64s
    matrix: Float64s
    between: Float64s

    @classmethod
    def of(cls, mean: Float64s, within: Float64s, between: Float64s) -> LikelihoodRatio:
        """Diagonalise both covariances; that within people must be positive definite."""
        values, axes = np.linalg.eigh(within)
        whiten = (axes / np.sqrt(values)) @ axes.T
        values, axes = np.linalg.eigh(whiten @ between @ whiten)
        return cls(mean, whiten @ axes, np.maximum(values, 0))

    def __call__(self, asked: Float32s, held: Float32s) -> Float64s:
        """The natural logarithm of the ratio."""
        b = self.between
        q, g = (asked - self.mean) @ self.matrix, (held - self.mean) @ self.matrix
        own = b**2 / (2 * (1 + 2 * b) * (1 + b))
        constant = np.sum(np.log1p(b) - 0.5 * np.log1p(2 * b))
        ratio = (q * (b / (1 + 2 * b))) @ g.T - (q**2 @ own)[:, None] - g**2 @ own + constant
        return np.asarray(ratio, np.float64)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Scores of pairs of one person, and of two."""

    genuine: Float64s
    impostor: Float64s

    @classmethod
    def of(cls, scores: Float64s, asked: Labels, held: Labels, same_camera: SameCamera) -> Pairs:
        """Split a score matrix; with ``drop``, pairs of one camera are no pairs, and labels that are both
        of rows and columns name each pair once.
        """
        same = asked.pids[:, None] == held.pids
        counted = (asked.pids[:, None] >= 0) & (held.pids >= 0)
        if scores.shape[0] == scores.shape[1] and asked is held:
            counted &= np.triu(np.ones(scores.shape, bool), 1)
        if same_camera == "drop":
            counted &= asked.camids[:, None] != held.camids
        return cls(scores[counted & same], scores[counted & ~same])

    @classmethod
    def joined(cls, parts: Sequence[Pairs]) -> Pairs:
        """All of them."""
        return cls(np.concatenate([one.genuine for one in parts]), np.concatenate([one.impostor for one in parts]))

    def threshold(self, rate: float) -> float:
        """The score that at most this share of the pairs of two people exceeds."""
        allowed = int(rate * len(self.impostor) + 1e-9)
        return float(np.sort(self.impostor)[len(self.impostor) - 1 - allowed])

    def above(self, threshold: float) -> tuple[float, float]:
        """Percent of pairs of one person, and of two, above a threshold."""
        return 100 * float((self.genuine > threshold).mean()), 100 * float((self.impostor > threshold).mean())

    def equal_error(self) -> float:
        """The error rate, percent, where both kinds of error are as frequent."""
        order = np.concatenate([self.genuine, self.impostor])
        labels = np.concatenate([np.ones(len(self.genuine)), np.zeros(len(self.impostor))])
        labels = labels[np.argsort(order, kind="stable")]
        missed = np.cumsum(labels) / len(self.genuine)
        accepted = 1 - np.cumsum(1 - labels) / len(self.impostor)
        at = int(np.argmin(np.abs(missed - accepted)))
        return 50 * float(missed[at] + accepted[at])

    def cost(self, scale: float = 1.0, shift: float = 0.0) -> float:
        """Bits lost per decision if ``scale * score + shift`` is read as log-likelihood ratio (Cllr: Brümmer and du
        Preez, Computer Speech and Language 2006); 1 is what a score that says nothing costs.
        """
        genuine, impostor = (scale * values + shift for values in (self.genuine, self.impostor))
        return float((np.logaddexp(0, -genuine).mean() + np.logaddexp(0, impostor).mean()) / (2 * np.log(2)))

    def calibration(self) -> tuple[float, float]:
        """Scale and shift of the least cost: a logistic regression in which both kinds of pairs weigh the same."""
        values = np.concatenate([self.genuine, self.impostor])
        middle, spread = values.mean(), max(float(values.std()), 1e-12)
        design = np.stack([(values - middle) / spread, np.ones(len(values))], axis=1)
        sign = np.r_[np.ones(len(self.genuine)), np.zeros(len(self.impostor))]
        weights = np.r_[
            np.full(len(self.genuine), 0.5 / len(self.genuine)), np.full(len(self.impostor), 0.5 / len(self.impostor))
        ]
        found = np.zeros(2)
        for _ in range(30):
            said = 1 / (1 + np.exp(-design @ found))
            slope = design.T @ (weights * (said - sign)) + 1e-6 * found
            bend = (design * (weights * said * (1 - said))[:, None]).T @ design + 1e-6 * np.eye(2)
            found = found - np.linalg.solve(bend, slope)
        return float(found[0] / spread), float(found[1] - found[0] * middle / spread)


def scorers(train: Train, models: Mapping[str, tuple[str, Shrinkage]]) -> dict[str, dict[str, Score]]:
    """Scores by kind and site: cosine, cosine in the own metric, and likelihood ratios.

    Args:
        train: train crops of each site, and their labels.
        models: ratios by name: of ``network`` vectors, or of those in the own ``metric``.
    """
    metrics = {name: own_metric(*crops) for name, crops in train.items()}
    found: dict[str, dict[str, Score]] = {"cosine": {}, "own": {}}
    for name, metric in metrics.items():
        found["cosine"][name] = lambda asked, held: np.asarray(asked @ held.T, np.float64)
        found["own"][name] = _in(metric, found["cosine"][name])
    spaces = {
        "network": {name: Covariances.of(*crops) for name, crops in train.items()},
        "metric": {name: Covariances.of(metrics[name](vectors), labels) for name, (vectors, labels) in train.items()},
    }
    for kind, (space, shrinkage) in models.items():
        sites = list(spaces[space].values())
        ratios = {name: shrinkage.model(site, sites) for name, site in spaces[space].items()}
        found[kind] = {
            name: ratio if space == "network" else _in(metrics[name], ratio) for name, ratio in ratios.items()
        }
    return found


def own_metric(vectors: Float32s, labels: Labels) -> Metric:
    """The metric of a site."""
    pairs = pairs_of_crops(labels.pids, labels.camids)
    differences = vectors[pairs[:, 0]] - vectors[pairs[:, 1]]
    return Metric.own(SiteStatistics.of(vectors, differences, len(np.unique(labels.pids))))


def _in(metric: Metric, score: Score) -> Score:
    return lambda asked, held: score(metric(asked), metric(held))


GRID = {
    "ratio, metric": ("metric", Shrinkage(between=0.5)),
    "ratio, metric, less between": ("metric", Shrinkage(between=0.25)),
    "ratio, metric, all of within": ("metric", Shrinkage(within=0.0)),
    "ratio": ("network", Shrinkage()),
    "ratio, even between": ("network", Shrinkage(between=0.0)),
    "ratio, more between": ("network", Shrinkage(between=0.5)),
    "ratio, pooled between": ("network", Shrinkage(pooled=True)),
    "ratio, more pooled between": ("network", Shrinkage(between=0.5, pooled=True)),
}
CHOSEN = {"ratio": GRID["ratio"]}
"""What held-out train people chose (``choose-likelihood``)."""


def free(pairs: Mapping[str, Pairs], kind: str) -> Table:
    """Percent of pairs of one person that are found, each site with a threshold of its own pairs, and errors."""
    rows = {
        f"TPR at FPR {rate:g}: {kind}": {
            name: one.above(one.threshold(rate))[0] for name, one in pairs.items() if len(one.impostor) * rate >= 1
        }
        for rate in FPR
    }
    return rows | {
        f"equal error: {kind}": {name: one.equal_error() for name, one in pairs.items()},
        f"least Cllr: {kind}": {name: one.cost(*one.calibration()) for name, one in pairs.items()},
    }


def tried(found: Mapping[str, Retrieval], train: Train) -> Table:
    """The choice, on held-out train people."""
    rows: Table = {}
    for kind, by_site in scorers(train, GRID).items():
        rows |= free({name: pairs_of(one, by_site[name]) for name, one in found.items()}, kind)
    return dict(sorted(rows.items(), key=lambda row: row[0].split(":")[0]))


def pairs_of(found: Retrieval, score: Score) -> Pairs:
    """The pairs of a site's queries with its gallery."""
    return Pairs.of(score(found.asked, found.held), *found.people, found.same_camera)


def ranked(found: Retrieval, score: Score) -> float:
    """Percent mAP."""
    scores = np.asarray(score(found.asked, found.held), np.float32)
    return score_similarities(scores, *found.people, same_camera=found.same_camera).mAP


def held_out_thirds(train: Train, seed: int = 0) -> dict[str, dict[str, Pairs]]:
    """Pairs of train people by kind and site, each third of the people scored by the statistics of the others."""
    found: dict[str, dict[str, list[Pairs]]] = {}
    thirds = {}
    for name, (_, labels) in train.items():
        people, codes = np.unique(labels.pids, return_inverse=True)
        thirds[name] = np.random.default_rng(seed).permutation(len(people))[codes] % 3
    for third in range(3):
        others = {name: _part(crops, thirds[name] != third) for name, crops in train.items()}
        for kind, by_site in scorers(others, CHOSEN).items():
            for name, score in by_site.items():
                vectors, labels = _part(train[name], thirds[name] == third)
                several = len(np.unique(train[name][1].camids)) > 1
                pairs = Pairs.of(score(vectors, vectors), labels, labels, "drop" if several else "keep")
                found.setdefault(kind, {}).setdefault(name, []).append(pairs)
    return {kind: {name: Pairs.joined(parts) for name, parts in by_site.items()} for kind, by_site in found.items()}


def _part(crops: tuple[Float32s, Labels], kept: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> tuple[Float32s, Labels]:
    vectors, labels = crops
    return vectors[kept], Labels(labels.pids[kept], labels.camids[kept])


def worth(found: Mapping[str, Retrieval], train: Train) -> Table:
    """The chosen ratio beside cosines: with thresholds and calibrations of train people, and with free thresholds."""
    known, rows = held_out_thirds(train), Table()
    for kind, by_site in scorers(train, CHOSEN).items():
        pairs = {name: pairs_of(found[name], by_site[name]) for name in train}
        rows |= free(pairs, kind)
        rows[f"mAP: {kind}"] = {name: ranked(found[name], by_site[name]) for name in train}
        fewest = min(len(one.impostor) for one in known[kind].values())
        rng = np.random.default_rng(0)
        alike = Pairs.joined(
            [Pairs(one.genuine[:0], rng.choice(one.impostor, fewest, replace=False)) for one in known[kind].values()]
        )
        for rate in FPR:
            own = {name: one.above(known[kind][name].threshold(rate)) for name, one in pairs.items()}
            one_for_all = {name: one.above(alike.threshold(rate)) for name, one in pairs.items()}
            for about, both in (("own threshold", own), ("one threshold for all", one_for_all)):
                for place, measure in enumerate(("TPR", "FPR")):
                    row = {name: value[place] for name, value in both.items()}
                    rows[f"{measure}, {about} of train people for FPR {rate:g}: {kind}"] = row
        rows[f"Cllr, calibrated on train people: {kind}"] = {
            name: one.cost(*known[kind][name].calibration()) for name, one in pairs.items()
        }
        if kind not in ("cosine", "own"):
            rows[f"Cllr, as it is: {kind}"] = {name: one.cost() for name, one in pairs.items()}
    return dict(sorted(rows.items(), key=lambda row: row[0].split(":")[0]))
