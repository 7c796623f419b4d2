"""How a new domain relates to what a run has learned, before any training on it: who helps, who is near, and whether
the model serves as it is.
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

from domains.arrays import Float64s
from domains.domain import JUNK, Domain, Split
from domains.errors import ConfigError, DataError, UsageError
from domains.transferability import HScore, h_score, propose_order, relations, transfer_table
from reid.progress import Progress
from reid.randomness import numpy_generator
from reid.run.steps import Steps
from reid.scores.evaluate import evaluate

CROPS = 2000
"""Crops of the new domain that are looked at, at most; of a larger one people are drawn by the run's seed, see
:func:`drawn_rows`.
"""
MOST = 40
"""Crops of one person among them, at most, unless the people are too few to fill ``CROPS`` so."""
STUDY = Path(__file__).parent / "pair_study.json"


@dataclass(frozen=True)
class Help:
    """One learned domain and how much it helps.

    Attributes:
        domain: its name.
        score: H-score, over K - 1, of the new crops under the model that had just learned it.
        share: its part in the sum over all learned domains.
    """

    domain: str
    score: float
    share: float


@dataclass(frozen=True)
class Prediction:
    """Percent mAP to be expected without training, from a line fitted in the pair study.

    Attributes:
        mAP: expected.
        error: root mean square error of the study when the pair in question is left out.
        pairs: how many pairs of domains the line was fitted on.
    """

    mAP: float  # noqa: N815 - the field's name
    error: float
    pairs: int


@dataclass(frozen=True)
class Relation:
    """What :func:`relate` found.

    Attributes:
        domain: the new domain.
        crops: how many of its crops were looked at.
        helps: learned domains, the most helpful first.
        score: H-score, over K - 1, under the run's last model.
        found: percent mAP of the last model among the new domain's own train crops, each person's first crop as query.
        predicted: percent mAP to be expected on its test splits.
        learned: mean percent mAP that the run's domains had when just learned, if they are scored.
        serves: whether the last model is expected to do on it, by the lower end of the error, what the run does on
            domains that it has learned.
    """

    domain: str
    crops: int
    helps: tuple[Help, ...]
    score: float
    found: float
    predicted: Prediction
    learned: float | None
    serves: bool | None

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What a user should know, in sentences."""
        low, high = (max(0.0, min(100.0, self.predicted.mAP + sign * self.predicted.error)) for sign in (-1, 1))
        nearest = ", ".join(near.domain for near in self.helps[:2])
        said = [
            f"nearest: {nearest}" if self.helps else "nothing is learned yet, so nothing can help",
            f"without training: about {self.predicted.mAP:.0f} % mAP ({low:.0f} to {high:.0f}, a study of "
            f"{self.predicted.pairs} pairs of domains)",
        ]
        if self.serves is None:
            said.append("whether that is enough can't be said: no learned domain has been scored")
        elif self.serves:
            said.append(f"no training needed: domains that were learned reach {self.learned:.0f} % on average")
        else:
            said.append(f"training is worth it: domains that were learned reach {self.learned:.0f} % on average")
        return said


def relate(run: Steps, domain: Domain, *, progress: Progress | None = None) -> Relation:
    """Relate a labelled domain to a run's; only its train crops are read, and nothing is trained or written.

    Raises:
        UsageError: the run has learned it already.
        DataError: it has fewer than two people with two crops.
    """
    if domain.name in run.learned:
        raise UsageError(f"{domain.name} is already learned in {run.folder}; there is nothing left to foretell")
    progress = progress or Progress()
    pids = domain.train.pids
    people, counts = np.unique(pids[pids != JUNK], return_counts=True)
    if (counts >= 2).sum() < 2:
        raise DataError(
            f"{domain.name} has {int((counts >= 2).sum())} train identities with two crops or more; relating needs two"
        )
    rows = np.flatnonzero(np.isin(pids, people[counts >= 2]))
    rows = drawn_rows(domain.train, rows, numpy_generator(run.config.seed, "relate"))
    part = _of_rows(domain, rows)
    store = run.stores.get(part, part.train)
    helps, steps = [], [step for step in run.steps if step.learned]
    with progress.task(f"looking at {domain.name}", len(steps)) as tick:
        for step in steps:
            score = h_score(run.embedder(step.index)(store.crops), store.split.pids)
            helps.append(("+".join(step.learned), score))
            tick.advance(1)
    last = helps[-1][1] if helps else h_score(run.embedder(-1)(store.crops), store.split.pids)
    rule = domain.with_held_out(
        {domain.identities[pid] for pid in people[counts >= 2]}
    ).same_camera  # the domain's own, whoever is drawn
    own = part.with_held_out({domain.identities[pid] for pid in np.unique(part.train.pids)}).scored_as(rule)
    found = evaluate(own, run.embedder(-1), run.stores).mAP
    predicted = predict(last, found)
    learned = run.scores.summary()["plasticity"]["mAP"] if steps else None
    return Relation(
        domain.name,
        len(rows),
        _shares(helps),
        last.share,
        found,
        predicted,
        learned,
        None if learned is None else predicted.mAP - predicted.error >= learned,
    )


def drawn_rows(split: Split, rows: NDArray[np.intp], generator: np.random.Generator) -> NDArray[np.intp]:
    """Those of some rows that are looked at, ascending: all up to ``CROPS``, and otherwise those of people drawn until
    it is full.

    People are drawn and not crops, because crops drawn one by one leave people with a single one, whom nothing can be
    asked about. Of whoever has more than ``MOST`` (more, where the people are few) so many are drawn, of every camera
    at least one while there is room.
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
    """The domain with these train crops and nothing else."""
    return Domain(
        domain.name, domain.root, domain.format, domain.identities, domain.cameras, train=domain.train.take(rows)
    )


def _shares(helps: Sequence[tuple[str, HScore]]) -> tuple[Help, ...]:
    if not helps:
        return ()
    shares = relations([max(score.value, 1e-9) for _, score in helps])
    made = [Help(name, score.share, float(share)) for (name, score), share in zip(helps, shares, strict=True)]
    return tuple(sorted(made, key=lambda made: -made.share))


def predict(score: HScore, found: float) -> Prediction:
    """Expected percent mAP from the H-score and the mAP among train crops; raises ConfigError if the study's file is
    missing or damaged.
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
        raise ConfigError(f"can't read {STUDY}: {error}; install lifelong-reid again") from error
    return Prediction(float(np.clip(value, 0, 100)), spread, pairs)


def regressors(share: float, found: float) -> list[float]:
    """What the pair study's line is fitted on: 1, the H-score's share in percent, mAP among train crops in percent."""
    return [1.0, 100 * share, found]


def order_domains(
    run: Steps, learned: Sequence[Domain], *, progress: Progress | None = None
) -> tuple[list[Domain], Float64s]:
    """Propose the order in which to learn several new domains, by the run's last model; returns it with the table that
    it follows.

    Each domain's stand-in is a linear discriminant of its own people in the model's embedding: nothing is trained.
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
    """SVG: the new domain in the middle, learned ones around it; the most helpful is nearest, the least helpful
    farthest.
    """
    width, height, near_by, far_off = 640, 420, 80, 150
    shares = [helpful.share for helpful in relation.helps]
    most, span = max(shares, default=0.0), max(shares, default=0.0) - min(shares, default=0.0)
    parts, count = [], len(shares)
    for number, found in enumerate(relation.helps):
        angle = 2 * np.pi * (number + 0.5) / count - np.pi / 2
        away = near_by + (far_off - near_by) * ((most - found.share) / span if span > 0 else 0.5)
        x, y = width / 2 + 1.5 * away * np.cos(angle), height / 2 + away * np.sin(angle)
        anchor = "middle" if abs(np.cos(angle)) < 0.3 else "start" if np.cos(angle) > 0 else "end"
        text_x, text_y = x + 18 * np.cos(angle), y + 5 + 22 * np.sin(angle)
        parts.append(
            f'<line x1="{width / 2}" y1="{height / 2}" x2="{x:.1f}" y2="{y:.1f}" stroke="#bbb" '
            f'stroke-width="{1 + 5 * found.share:.1f}"/>'
        )
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="#0072a6"/>')
        label = f"{escape(found.domain)} {100 * found.share:.1f} %"
        parts.append(f'<text x="{text_x:.1f}" y="{text_y:.1f}" text-anchor="{anchor}">{label}</text>')
    low, high = (max(0.0, min(100.0, relation.predicted.mAP + sign * relation.predicted.error)) for sign in (-1, 1))
    parts.append(f'<circle cx="{width / 2}" cy="{height / 2}" r="11" fill="#cc4c12"/>')
    parts.append(
        f'<text x="{width / 2}" y="{height / 2 + 30}" text-anchor="middle" '
        f'font-weight="bold">{escape(relation.domain)}</text>'
    )
    parts.append(
        f'<text x="12" y="{height - 14}">share of each in the sum of H-scores; without training about {low:.0f} to '
        f"{high:.0f} % mAP</text>"
    )
    style = '<style>text{font:13px sans-serif;fill:#333}</style><rect width="100%" height="100%" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{style}{"".join(parts)}</svg>\n'
