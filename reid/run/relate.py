"""How a new domain relates to a run's learned domains, before any training on it: which of them help, which are near,
and whether the model serves it as it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.arrays import Float32s, Float64s
from domains.domain import JUNK, Domain, SameCamera, Split
from domains.errors import ConfigError, DataError, UsageError
from domains.scoring import Labels, score_domain
from domains.text import shown
from domains.transferability import HScore, h_score, propose_order, relations, transfer_table
from prototypes.metric import Metric, SiteStatistics, pairs_of_crops
from reid.progress import Progress
from reid.randomness import numpy_generator
from reid.run.steps import Steps
from reid.scores.evaluate import evaluate

CROPS = 2000
"""At most this many crops of the new domain are examined; from a larger one, people are drawn by the run's seed, see
:func:`drawn_rows`.
"""
MOST = 40
"""At most this many of them are of one person, unless there are too few people to fill ``CROPS`` that way."""
STUDY = Path(__file__).parent / "pair_study.json"


@dataclass(frozen=True)
class Help:
    """One learned domain and how much it helps.

    Attributes:
        domain: its name.
        score: H-score, over K - 1, of the new crops under the model that had just learned it.
        share: its share of the sum over all learned domains.
    """

    domain: str
    score: float
    share: float


@dataclass(frozen=True)
class Prediction:
    """Percent mAP expected without training, from the line fitted in the pair study.

    Attributes:
        mAP: the expected value.
        error: root mean square error of the study, with the predicted pair left out of the fit.
        pairs: number of domain pairs that the line was fitted on.
    """

    mAP: float  # noqa: N815 - the field's name
    error: float
    pairs: int


@dataclass(frozen=True)
class Relation:
    """What :func:`relate` found.

    Attributes:
        domain: the new domain.
        crops: how many of its crops were examined.
        helps: learned domains, the most helpful first.
        score: H-score, over K - 1, under the run's last model.
        found: percent mAP of the last model among the new domain's own train crops, each person's first crop as query.
        predicted: percent mAP expected on its test splits.
        metric: the same with the domain's own metric, which ``--method metric`` measures in seconds; None where there
            are too few people to tell.
        learned: mean percent mAP of the run's domains right after each was learned, if they are scored.
        serves: whether the last model, at the lower end of the error, is expected to reach on it what the run reaches
            on domains that it has learned.
    """

    domain: str
    crops: int
    helps: tuple[Help, ...]
    score: float
    found: float
    predicted: Prediction
    metric: float | None
    learned: float | None
    serves: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Summarise it for the user, line by line."""
        low, high = (max(0.0, min(100.0, self.predicted.mAP + sign * self.predicted.error)) for sign in (-1, 1))
        nearest = ", ".join(near.domain for near in self.helps[:2])
        lines = [
            f"nearest: {nearest}" if self.helps else "nothing has been learned yet, so nothing can help",
            f"without training: about {self.predicted.mAP:.0f} % mAP ({low:.0f} to {high:.0f}, a study of "
            f"{self.predicted.pairs} domain pairs)",
        ]
        if self.metric is not None:
            lines.append(f"with its own metric (--method metric, seconds): about {self.metric:.0f} % mAP")
        if self.serves is None:
            lines.append("can't tell whether that is enough: no learned domain has been scored")
        elif self.serves:
            lines.append(f"no training needed: learned domains reach {self.learned:.0f} % on average")
        else:
            lines.append(f"training is worthwhile: learned domains reach {self.learned:.0f} % on average")
        return lines


def relate(run: Steps, domain: Domain, *, progress: Progress | None = None) -> Relation:
    """Relate a labelled domain to those of a run; only its train crops are read, and nothing is trained or written.

    Raises:
        UsageError: the run has already learned it.
        DataError: it has fewer than two people with two crops.
    """
    if domain.name in run.learned:
        raise UsageError(f"{domain.name} is already learned in {run.folder}; there is nothing left to predict")
    progress = progress or Progress()
    pids = domain.train.pids
    people, counts = np.unique(pids[pids != JUNK], return_counts=True)
    if (counts >= 2).sum() < 2:
        raise DataError(
            f"{domain.name} has {int((counts >= 2).sum())} train identities with two or more crops; relating needs at "
            f"least two{domain.remarks}"
        )
    rows = np.flatnonzero(np.isin(pids, people[counts >= 2]))
    rows = drawn_rows(domain.train, rows, numpy_generator(run.config.seed, "relate"))
    part = _of_rows(domain, rows)
    store = run.stores.get(part, part.train)
    helps, steps = [], [step for step in run.steps if step.learned]
    with progress.task(f"examining {domain.name}", len(steps)) as tick:
        for step in steps:
            score = h_score(run.embedder(step.index)(store.crops), store.split.pids)
            helps.append(("+".join(step.learned), score))
            tick.advance(1)
    last = helps[-1][1] if helps else h_score(run.embedder(-1)(store.crops), store.split.pids)
    rule = domain.with_held_out(
        {domain.identities[pid] for pid in people[counts >= 2]}
    ).same_camera  # that of the whole domain, whichever people are drawn
    own = part.with_held_out({domain.identities[pid] for pid in np.unique(part.train.pids)}).scored_as(rule)
    embed = run.embedder(-1)
    found = evaluate(own, embed, run.stores).mAP
    predicted = predict(last, found)
    gain = metric_gain(embed(store.crops), store.split, rule, seed=run.config.seed)
    learned = run.scores.summary()["plasticity"]["mAP"] if steps else None
    return Relation(
        domain.name,
        len(rows),
        _shares(helps),
        last.share,
        found,
        predicted,
        None if gain is None else float(np.clip(predicted.mAP + gain, 0, 100)),
        learned,
        None if learned is None else predicted.mAP - predicted.error >= learned,
    )


def metric_gain(embeddings: Float32s, split: Split, same_camera: SameCamera, *, seed: int = 0) -> float | None:
    """Percent mAP that a site's own metric adds: measured on half of its people, tried on the other half, both ways.

    Args:
        embeddings: of a split's crops, ``[N, D]``.
        split: their people and cameras.
        same_camera: the site's rule.
        seed: divides the people.

    Returns:
        The mean of both halves; None with fewer than four people who have two crops.
    """
    people, counts = np.unique(split.pids[split.pids != JUNK], return_counts=True)
    several = np.random.default_rng(seed).permutation(people[counts > 1])
    if len(several) < 4:
        return None
    gains = []
    for half in (several[::2], several[1::2]):
        tried = np.isin(split.pids, half)
        measured = np.flatnonzero(~tried & (split.pids != JUNK))
        pairs = pairs_of_crops(split.pids[measured], split.camids[measured], seed=seed)
        vectors, labels = embeddings[measured], split.pids[measured]
        try:
            site = SiteStatistics.of(vectors, vectors[pairs[:, 0]] - vectors[pairs[:, 1]], len(np.unique(labels)))
        except ValueError:
            return None
        query = np.sort(np.unique(np.where(tried, split.pids, JUNK), return_index=True)[1][1:])
        gallery = np.setdiff1d(np.flatnonzero(tried), query)
        who = [Labels(split.pids[rows], split.camids[rows]) for rows in (query, gallery)]
        plain, moved = (
            score_domain(found[query], found[gallery], *who, same_camera=same_camera).mAP
            for found in (embeddings, Metric.own(site)(embeddings))
        )
        gains.append(moved - plain)
    return float(np.mean(gains))


def drawn_rows(split: Split, rows: NDArray[np.intp], generator: np.random.Generator) -> NDArray[np.intp]:
    """Choose the rows to examine, ascending: all of them up to ``CROPS``, else those of people drawn until it is full.

    People are drawn rather than crops: crops drawn one by one leave people with a single one, who can't be matched.
    Of anyone with more than ``MOST`` crops (a higher limit where there are few people), only that many are drawn, at
    least one from every camera while there is room.
    """
    if len(rows) <= CROPS:
        return rows
    people = np.unique(split.pids[rows])
    most, left, chosen = max(MOST, CROPS // len(people)), CROPS, []
    rows = generator.permutation(rows)
    for person in generator.permutation(people):
        own = rows[split.pids[rows] == person]
        if len(own) > most:
            first = np.unique(split.camids[own], return_index=True)[1]
            own = np.concatenate([own[first], np.delete(own, first)])[:most]
        if len(own) > left:
            break
        chosen.append(own)
        left -= len(own)
    return np.sort(np.concatenate(chosen))


def _of_rows(domain: Domain, rows: NDArray[np.intp]) -> Domain:
    """Return the domain with these train crops and nothing else."""
    return Domain(
        domain.name, domain.root, domain.format, domain.identities, domain.cameras, train=domain.train.take(rows)
    )


def _shares(helps: Sequence[tuple[str, HScore]]) -> tuple[Help, ...]:
    if not helps:
        return ()
    shares = relations([max(score.value, 1e-9) for _, score in helps])
    ranked = [Help(name, score.share, float(share)) for (name, score), share in zip(helps, shares, strict=True)]
    return tuple(sorted(ranked, key=lambda item: -item.share))


def predict(score: HScore, found: float) -> Prediction:
    """Predict percent mAP from the H-score and the mAP among train crops.

    Raises:
        ConfigError: the study's file is missing or damaged.
    """
    try:
        study = json.loads(STUDY.read_text("utf-8"))
        weights, spread, pairs = (
            [float(value) for value in study["weights"]],
            float(study["error"]),
            int(study["pairs"]),
        )
        value = float(np.dot(weights, regressors(score.share, found)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"can't read {STUDY}: {error}; reinstall lifelong-reid") from error
    return Prediction(float(np.clip(value, 0, 100)), spread, pairs)


def regressors(share: float, found: float) -> list[float]:
    """Regressors of the line in the pair study: 1, the H-score's share in percent, mAP among train crops in percent."""
    return [1.0, 100 * share, found]


def order_domains(
    run: Steps, learned: Sequence[Domain], *, progress: Progress | None = None
) -> tuple[list[Domain], Float64s]:
    """Propose an order for learning several new domains, by the run's last model; return it and the table behind it.

    A linear discriminant of its own people in the model's embedding stands in for each domain: nothing is trained.
    """
    embed, tables = run.embedder(-1), []
    with (progress or Progress()).task("comparing domains", len(learned)) as tick:
        for domain in learned:
            rows = np.flatnonzero(domain.train.pids != JUNK)
            part = _of_rows(domain, drawn_rows(domain.train, rows, numpy_generator(run.config.seed, "order")))
            store = run.stores.get(part, part.train)
            tables.append((embed(store.crops), store.split.pids))
            tick.advance(1)
    table = transfer_table(tables)
    return [learned[number] for number in propose_order(table)], table


def picture(relation: Relation) -> str:
    """Draw an SVG: the new domain in the middle and learned ones around it, the most helpful nearest."""
    width, height, near_by, far_off = 640, 420, 80, 150
    shares = [helpful.share for helpful in relation.helps]
    most, span = max(shares, default=0.0), max(shares, default=0.0) - min(shares, default=0.0)
    parts, count = [], len(shares)
    for number, near in enumerate(relation.helps):
        angle = 2 * np.pi * (number + 0.5) / count - np.pi / 2
        distance = near_by + (far_off - near_by) * ((most - near.share) / span if span > 0 else 0.5)
        x, y = width / 2 + 1.5 * distance * np.cos(angle), height / 2 + distance * np.sin(angle)
        anchor = "middle" if abs(np.cos(angle)) < 0.3 else "start" if np.cos(angle) > 0 else "end"
        text_x, text_y = x + 18 * np.cos(angle), y + 5 + 22 * np.sin(angle)
        parts.append(
            f'<line x1="{width / 2}" y1="{height / 2}" x2="{x:.1f}" y2="{y:.1f}" stroke="#bbb" '
            f'stroke-width="{1 + 5 * near.share:.1f}"/>'
        )
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="#0072a6"/>')
        label = f"{escape(shown(near.domain))} {100 * near.share:.1f} %"
        parts.append(f'<text x="{text_x:.1f}" y="{text_y:.1f}" text-anchor="{anchor}">{label}</text>')
    low, high = (max(0.0, min(100.0, relation.predicted.mAP + sign * relation.predicted.error)) for sign in (-1, 1))
    parts.append(f'<circle cx="{width / 2}" cy="{height / 2}" r="11" fill="#cc4c12"/>')
    parts.append(
        f'<text x="{width / 2}" y="{height / 2 + 30}" text-anchor="middle" '
        f'font-weight="bold">{escape(shown(relation.domain))}</text>'
    )
    parts.append(
        f'<text x="12" y="{height - 14}">shares of the sum of H-scores; without training about {low:.0f} to '
        f"{high:.0f} % mAP</text>"
    )
    style = '<style>text{font:13px sans-serif;fill:#333}</style><rect width="100%" height="100%" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{style}{"".join(parts)}</svg>\n'
