"""What a site's statistics are worth, at starts that know people already: nothing is trained.

    python -m benchmarks.metrics choose --save   # rank, share, mean, few people: on held-out train people
    python -m benchmarks.metrics score --save    # the shipped metric on the test splits, and in one gallery for all
    python -m benchmarks.metrics leak --save     # what the statistics tell of who was in the train crops
    python -m benchmarks.metrics choose-cameras --save       # offsets of cameras, without labels; test: cameras
    python -m benchmarks.metrics choose-likelihood --save    # a likelihood ratio as score; test: likelihood
    python -m benchmarks.metrics document        # the tables into docs/metric.md

Choices are made on small-5-dev: 30 % of each site's train people are held out, and the statistics come from the others.
``score`` takes the statistics from all train people and scores the test splits; it chooses nothing. ``leak`` attacks
them: a person's pairs of crops fit the covariance that they went into (1 - AUC of telling members from people outside
would be 0.5 if they did not). It is tried with the very crops that were measured, and with others of the same people.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import cameras, likelihood
from benchmarks.results_file import record, recorded
from benchmarks.small5 import dev_domain
from benchmarks.small5_tables import write
from domains.arrays import Embed, Float32s, Float64s
from domains.domain import Domain
from domains.scoring import Labels
from prototypes.metric import SHARE, Metric, SiteStatistics, pairs_of_crops
from reid.batches.augment import Augment
from reid.batches.loader import StoreCache
from reid.config import build_config, read_stream
from reid.network.build import build_model
from reid.network.embedding import embedder
from reid.network.model import ReidModel
from reid.randomness import torch_generator
from reid.run.stream import open_stream
from reid.scores.evaluate import Retrieval
from reid.scores.union import score_union

STARTS = {"osnet_x0_25": "osnet_x0_25_msmt17.onnx", "retail-0277": "person-reidentification-retail-0277.onnx"}
INPUT: dict[str, dict[str, Any]] = {
    "osnet_x0_25": {"channels": "rgb", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
    "retail-0277": {"channels": "bgr", "mean": [0, 0, 0], "std": [1, 1, 1]},
}
PAGE = Path(__file__).parent.parent / "docs" / "metric.md"
WHOLE = 4096
"""A rank that cuts nothing."""


class Start:
    """A network as it comes, and crops at its size."""

    def __init__(self, name: str) -> None:
        weights = Path(os.environ["LIFELONG_REID_DATA"]).parent / "weights" / STARTS[name]
        self.config = build_config({"model": {"backbone": f"onnx:{weights}", **INPUT[name]}})
        spec = self.config.crop.spec()
        self.model: ReidModel = build_model(self.config.model, spec)
        self.embed: Embed = embedder(self.model)
        self.stores = StoreCache(spec, 2048)
        self.seen: dict[str, Float32s] = {}

    def train(self, domain: Domain) -> tuple[Float32s, Any]:
        """Embeddings of a domain's train crops, and their split."""
        store = self.stores.get(domain, domain.train)
        key = f"{domain.name} {len(domain.train)}"
        if key not in self.seen:
            self.seen[key] = self.embed(store.crops)
        return self.seen[key], store.split

    def augmented(self, domain: Domain) -> Float32s:
        """Embeddings of the same crops, augmented."""
        store = self.stores.get(domain, domain.train)
        augment = Augment(self.config.augment, self.model.normalise.fill)
        crops = augment(torch.from_numpy(np.ascontiguousarray(store.crops)), torch_generator(0, 1, "metric"))
        return self.embed(crops.numpy())

    def site(
        self,
        domain: Domain,
        *,
        rank: int = 30,
        centre: float | None = None,
        people: int | None = None,
        seed: int = 0,
    ) -> SiteStatistics | None:
        """Statistics of a domain's train crops, or of some of its people alone; with a part of their mean."""
        found, split = self.train(domain)
        rows = np.flatnonzero(split.pids >= 0)
        if people is not None:
            several = np.unique(split.pids)[np.bincount(split.pids)[np.unique(split.pids)] > 1]
            chosen = np.random.default_rng(seed).permutation(several)[:people]
            rows = np.flatnonzero(np.isin(split.pids, chosen))
        pairs = pairs_of_crops(split.pids[rows], split.camids[rows])
        if not len(pairs):
            return None
        differences = found[rows][pairs[:, 0]] - found[rows][pairs[:, 1]]
        site = SiteStatistics.of(found[rows], differences, len(np.unique(split.pids[rows])), rank=rank)
        return site if centre is None else replace(site, mean=centre * found[rows].mean(0))


def scores(found: Mapping[str, Retrieval], metric: Callable[[str], Metric | None]) -> dict[str, float]:
    """Percent mAP of each domain in its own gallery and metric."""
    return {name: score_union({name: one}, metric)[name].mAP for name, one in found.items()}


def choose(start: Start) -> dict[str, dict[str, float]]:
    """Percent mAP on held-out train people, by variant and domain."""
    learned = [dev_domain(domain) for domain in open_stream(read_stream("small5"))[0]]
    found = {domain.name: Retrieval.of(domain, start.embed, start.stores) for domain in learned}
    by_name = {domain.name: domain for domain in learned}
    rows = {"cosine": scores(found, lambda name: None)}

    def own(share: float = SHARE, **how: Any) -> dict[str, float]:
        sites = {name: start.site(domain, **how) for name, domain in by_name.items()}
        metrics = {name: Metric.own(site, share=share) if site else None for name, site in sites.items()}
        return scores(found, lambda name: metrics[name])

    for rank in (1, 4, 8, 16, 30, 64, WHOLE):
        rows[f"rank {'all' if rank == WHOLE else rank}"] = own(rank=rank)
    for share in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6):
        rows[f"share {share}"] = own(share)
    for centre in (0.0, 0.25, 0.5, 0.75, 1.0):
        rows[f"{centre} of the mean"] = own(centre=centre)
    for people in (2, 4, 8, 16, 32):
        for centre in (None, 1.0):
            drawn = [own(people=people, centre=centre, seed=seed) for seed in range(5)]
            about = f"{people} people" + (", all of the mean" if centre else "")
            rows[about] = {name: float(np.mean([one[name] for one in drawn])) for name in found}
    augmented = {}
    for name, domain in by_name.items():
        (plain, split), changed = start.train(domain), start.augmented(domain)
        pairs = pairs_of_crops(split.pids, split.camids)
        differences, people = changed[pairs[:, 0]] - changed[pairs[:, 1]], len(np.unique(split.pids))
        augmented[name] = Metric.own(SiteStatistics.of(plain, differences, people))
    rows["augmented crops"] = scores(found, lambda name: augmented[name])
    sites = {name: start.site(domain) for name, domain in by_name.items()}
    others = {name: Metric.pooled([site for other, site in sites.items() if other != name and site]) for name in found}
    rows["pooled without the own site"] = scores(found, lambda name: others[name])
    known = {name: site for name, site in sites.items() if site}
    for name, row in in_one_gallery(found, known, list(found)).items():
        rows[f"one gallery: {name}"] = row
    return rows


def in_one_gallery(
    found: Mapping[str, Retrieval], sites: Mapping[str, SiteStatistics], asking: list[str]
) -> dict[str, dict[str, float]]:
    """Percent mAP of queries in the gallery of all sites, by metric and site."""
    pool = list(sites.values())
    pooled = Metric.pooled(pool)
    kinds: dict[str, Callable[[str], Metric | None]] = {
        "cosine": lambda name: None,
        "pooled": lambda name: pooled,
        "own": lambda name: Metric.own(sites[name]) if name in sites else pooled,
        "mixed": lambda name: Metric.mixed(sites[name], pool) if name in sites else pooled,
    }
    return {
        kind: {name: one.mAP for name, one in score_union(found, metric, asking).items()}
        for kind, metric in kinds.items()
    }


def score(start: Start) -> dict[str, dict[str, float]]:
    """Percent mAP on the test splits, by metric and domain."""
    learned, unseen = open_stream(read_stream("small5"))
    found = {domain.name: Retrieval.of(domain, start.embed, start.stores) for domain in [*learned, *unseen]}
    sites = {domain.name: site for domain in learned if (site := start.site(domain))}
    pooled = Metric.pooled(list(sites.values()))
    rows = {
        "cosine": scores(found, lambda name: None),
        "own": scores(found, lambda name: Metric.own(sites[name]) if name in sites else None),
        "pooled": scores(found, lambda name: pooled),
    }
    names = [domain.name for domain in learned]
    return rows | {f"one gallery: {kind}": row for kind, row in in_one_gallery(found, sites, names).items()}


def leak(start: Start) -> dict[str, dict[str, float]]:
    """Area under the curve of telling people who were measured from others of their site, by what is known of them."""
    rows: dict[str, dict[str, float]] = {"the same crops": {}, "other crops": {}, "people measured": {}}
    for domain in (dev_domain(domain) for domain in open_stream(read_stream("small5"))[0]):
        found, split = start.train(domain)
        held = Retrieval.of(domain, start.embed, start.stores)
        outside = (
            np.concatenate([held.asked, held.held]),
            np.concatenate([labels.pids for labels in held.people]),
            np.concatenate([labels.camids for labels in held.people]),
        )
        for kind, step in (("the same crops", 1), ("other crops", 2)):
            places = np.zeros(len(split.pids), np.int64)  # of each crop among those of its person
            for person in np.unique(split.pids):
                own = np.flatnonzero(split.pids == person)
                places[own] = np.arange(len(own))
            measured, known = (np.flatnonzero(places % step == part % step) for part in (0, 1))
            pairs = pairs_of_crops(split.pids[measured], split.camids[measured])
            known_pairs = pairs_of_crops(split.pids[known], split.camids[known])
            if len(pairs) < 20 or len(known_pairs) < 20:
                continue
            vectors = found[measured]
            people = len(np.unique(split.pids[measured]))
            site = SiteStatistics.of(vectors, vectors[pairs[:, 0]] - vectors[pairs[:, 1]], people)
            inside = fits(site, found[known], split.pids[known], split.camids[known])
            rows[kind][domain.name] = auc(inside, fits(site, *outside))
            rows["people measured"][domain.name] = people
    return rows


def fits(site: SiteStatistics, vectors: Float32s, people: Any, cameras: Any) -> Float64s:
    """How well each person's differences fit a site's covariance: minus their mean Mahalanobis length."""
    pairs = pairs_of_crops(people, cameras)
    lines = (vectors[pairs[:, 0]] - vectors[pairs[:, 1]]).astype(np.float64)
    lines /= np.maximum(np.linalg.norm(lines, axis=1, keepdims=True), 1e-12)
    inverse = np.linalg.inv(SHARE * site.covariance + (1 - SHARE) / len(site.mean) * np.eye(len(site.mean)))
    lengths = np.einsum("pd,de,pe->p", lines, inverse, lines)
    who = people[pairs[:, 0]]
    return np.array([-lengths[who == person].mean() for person in np.unique(who)])


def auc(inside: Float64s, outside: Float64s) -> float:
    """Probability that one inside fits better than one outside."""
    better = (inside[:, None] > outside).mean() + 0.5 * (inside[:, None] == outside).mean()
    return float(better)


def held_out(start: Start) -> tuple[dict[str, Retrieval], list[Domain]]:
    """Held-out train people of the learned domains, and the domains without them."""
    learned = [dev_domain(domain) for domain in open_stream(read_stream("small5"))[0]]
    return {domain.name: Retrieval.of(domain, start.embed, start.stores) for domain in learned}, learned


def tested(start: Start) -> tuple[dict[str, Retrieval], list[Domain]]:
    """The test splits of all domains, and the learned domains."""
    learned, unseen = open_stream(read_stream("small5"))
    return {one.name: Retrieval.of(one, start.embed, start.stores) for one in [*learned, *unseen]}, learned


def choose_cameras(start: Start) -> dict[str, dict[str, float]]:
    """What offsets of cameras add on held-out train people."""
    found, learned = held_out(start)
    sites = {domain.name: site for domain in learned if (site := start.site(domain))}
    return cameras.gained(found, sites, train_crops(start, learned))


def score_cameras(start: Start) -> dict[str, dict[str, float]]:
    """What the chosen offsets add on the test splits."""
    found, learned = tested(start)
    sites = {domain.name: site for domain in learned if (site := start.site(domain))}
    train = train_crops(start, learned)
    apart = {domain.name: cameras.other_people(train[domain.name], start.train(domain)[1].pids) for domain in learned}
    return cameras.worth(found, sites, train, apart)


def train_crops(start: Start, learned: list[Domain]) -> dict[str, cameras.Crops]:
    """Vectors and cameras of the train crops, by domain."""
    return {one.name: cameras.Crops(vectors, split.camids) for one in learned for vectors, split in [start.train(one)]}


def choose_likelihood(start: Start) -> dict[str, dict[str, float]]:
    """Likelihood ratios on held-out train people."""
    found, learned = held_out(start)
    return likelihood.tried(found, train_labelled(start, learned))


def score_likelihood(start: Start) -> dict[str, dict[str, float]]:
    """The chosen likelihood ratio on the test splits of the domains that were measured."""
    found, learned = tested(start)
    return likelihood.worth(found, train_labelled(start, learned))


def train_labelled(start: Start, learned: list[Domain]) -> dict[str, tuple[Float32s, Labels]]:
    """Vectors and labels of the train crops, by domain."""
    return {one.name: (vectors, Labels.from_split(split)) for one in learned for vectors, split in [start.train(one)]}


def columns(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The sites of the row that has most."""
    return list(max(rows.values(), key=lambda row: len(list(row))))


def table(rows: Mapping[str, Mapping[str, float]], seen: list[str]) -> str:
    """Markdown."""
    names = columns(rows)
    lines = [f"| | mean of five | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for kind, row in rows.items():
        places = 2 if max(row.values()) <= 1 else 1
        cells = " | ".join(f"{row[name]:.{places}f}" if name in row else "" for name in names)
        mean = np.mean([row[name] for name in seen if name in row])
        lines.append(f"| {kind} | {mean:.{places}f} | {cells} |")
    return "\n".join(lines)


TITLES = {
    "score": "On the test splits, and in one gallery of all seven sites (percent mAP; nothing trained)",
    "choose": "What was chosen on held-out train people (percent mAP)",
    "leak": "Telling people who were measured from others of the same site (area under the curve; 0.5 is chance)",
    "cameras": "Test splits: percent mAP, and what offsets of cameras add to it",
    "likelihood": "Test splits: decisions about pairs, percent (Cllr: bits)",
}
"""Of the tables that the page shows; choices about cameras and likelihoods stay in the results' file."""
COMMANDS: dict[str, Callable[[Start], dict[str, dict[str, float]]]] = {
    "choose": choose,
    "score": score,
    "leak": leak,
    "choose-cameras": choose_cameras,
    "cameras": score_cameras,
    "choose-likelihood": choose_likelihood,
    "likelihood": score_likelihood,
}


def document() -> None:
    """Write the stored tables into the page."""
    kept, parts = recorded("metrics"), []
    for what, title in TITLES.items():
        for name in (name for name in STARTS if name in kept.get(what, {})):
            rows = kept[what][name]
            seen = [site for site in columns(rows) if site not in ("sarc3d", "towncentre")]
            parts += [f"**{name}.** {title}:", table(rows, seen)]
    write(PAGE, "\n\n".join(parts))


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*COMMANDS, "document"))
    parser.add_argument("--start", choices=STARTS, action="append", help="by default both")
    parser.add_argument("--save", action="store_true", help="keep the table in benchmarks/results/metrics.json")
    options = parser.parse_args()
    if options.what == "document":
        document()
        return
    seen = [domain.name for domain in open_stream(read_stream("small5"))[0]]
    kept = {key: value for key, value in recorded("metrics").items() if key in COMMANDS}
    for name in options.start or STARTS:
        rows = COMMANDS[options.what](Start(name))
        print(f"{name}, {options.what}\n\n{table(rows, seen)}\n", flush=True)
        rounded = {kind: {site: round(value, 2) for site, value in row.items()} for kind, row in rows.items()}
        kept.setdefault(options.what, {})[name] = rounded
        if options.save:
            record("metrics", kept)


if __name__ == "__main__":
    main()
