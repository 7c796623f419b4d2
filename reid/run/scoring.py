"""Filling a run's score matrix, every model on every scored domain, and scoring galleries without reindexing them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np

import domains
from domains.arrays import Crops, Embed, Float32s
from domains.domain import Domain
from domains.errors import DataError, ReidError, UsageError
from domains.scoring import Scores
from prototypes.metric import Metric
from prototypes.transport import Transport, compose
from reid.progress import Progress
from reid.run.checks import check_names
from reid.run.metrics import in_metric
from reid.run.routing import routing_term
from reid.run.sealed import Sealed
from reid.run.steps import Steps
from reid.scores.evaluate import Retrieval, can_be_scored, evaluate
from reid.scores.matrix import Cell
from reid.scores.union import score_union


def known_domains(run: Steps) -> dict[str, Domain]:
    """Learned and otherwise scored domains whose folders can still be opened."""
    entries = _cards(run) | {name: {"name": name, **entry} for name, entry in run.scores.scored.items()}
    opened: dict[str, Domain] = {}
    for name, entry in entries.items():
        try:
            opened[name] = domains.open(Path(entry["path"]), name=name, same_camera=entry["same_camera"])
        except (ReidError, OSError):  # a path that is none here, or too long to be one
            continue  # reported where its score is requested
    return opened


def check_name(run: Steps, domain: Domain) -> None:
    """Raise UsageError if the run knows other data under this domain's name: learned, or scored before."""
    known = [entry for entry in (_cards(run).get(domain.name), run.scores.scored.get(domain.name)) if entry]
    path, prints = str(domain.root.resolve()), {entry.get("fingerprint") or entry.get("data") for entry in known}
    if (
        not known
        or path in {entry["path"] for entry in known}
        or prints & {None, domain.fingerprint, domain.test_fingerprint}
    ):
        return
    raise UsageError(
        f"{run.folder} knows {domain.name} as different data, from {known[0]['path']}; {path} needs another name: "
        "rename its folder"
    )


def fill(run: Steps, wanted: Sequence[Domain], *, rows: Iterable[int] | None, progress: Progress) -> list[str]:
    """Score every (row, domain) that the matrix lacks, and save it after each domain.

    A domain whose test crops or camera rule have changed since it was scored is scored again in every row.

    Args:
        run: its matrix is updated and written.
        wanted: further domains to score, besides those that the run knows.
        rows: which rows; all if None.
        progress: where to show progress.

    Returns:
        A line for each domain that can't be scored, is scored again, or has images that can't be read.

    Raises:
        UsageError: the run knows other data under the name of a wanted domain.
    """
    for domain in wanted:
        check_name(run, domain)
    steps, scores = run.steps, run.scores
    scores.learned = [step.learned for step in steps]
    everyone = known_domains(run) | {domain.name: domain for domain in wanted}
    reasons = {name: can_be_scored(domain) for name, domain in everyone.items()}
    gone = [name for name in [*run.learned, *scores.scored] if name not in everyone]
    notes = [
        f"{name} is not scored: {why}"
        for name, why in (reasons | dict.fromkeys(gone, "its folder is gone")).items()
        if why
    ]
    requested = set(range(len(steps)) if rows is None else (row % len(steps) for row in rows))
    for name, domain in everyone.items():
        if reasons[name]:
            continue
        known = scores.scored.get(name, {})
        now = {"path": str(domain.root.resolve()), "same_camera": domain.same_camera, "data": domain.test_fingerprint}
        stale = any(key in known and known[key] != now[key] for key in ("same_camera", "data"))
        missing = [row for row in range(len(steps)) if stale or (row in requested and (row, name) not in scores.cells)]
        asked = len(missing)
        for row in () if stale else tuple(missing):
            if (before := (row - 1, name)) in scores.cells and _is_as_before(run, steps[row - 1 : row + 1], name):
                scores.cells[row, name] = scores.cells[before]
                missing.remove(row)
        try:
            cells, left_out = _cells(run, domain, missing, progress)
        except DataError as error:
            notes.append(f"{name} is not scored: {error}")
            continue
        if stale:
            notes.append(f"{name} is scored again in every row: its test crops or its camera rule have changed")
        notes += [f"{name}: {line}" for line in left_out]
        scores.cells |= cells
        scores.scored[name] = now
        if asked:
            scores.write(run.folder)
    scores.write(run.folder)
    return notes


def without_reindexing(run: Steps, wanted: Iterable[Domain]) -> dict[str, dict[str, float | None]]:
    """Score each learned domain with the last model's queries on a gallery embedded by the step that learned it.

    Args:
        run: a run with at least one learned step.
        wanted: domains to use instead of those listed on the run's cards.

    Returns:
        By domain, percent mAP of the gallery ``reindexed`` by the last model, ``carried`` through the sealed transports
        (None where a step has none), and left ``as_it_was``. A site's metric, which can be undone, is taken off a
        carried gallery first and put back as the last step has it.
    """
    steps, sites, known = run.steps, run.statistics(), known_domains(run) | {domain.name: domain for domain in wanted}
    serve_queries = run.served(-1)
    scored: dict[str, dict[str, float | None]] = {}
    for step in steps[1:]:
        for name in step.learned:
            if name not in known or can_be_scored(known[name]):
                continue
            domain, path = known[name], carrying(run, step)
            old, new = run.served(step.index), serve_queries(domain)
            carried = None
            if path is not None:
                plain = run.served(step.index, measured=False)(domain)
                gallery = in_metric(_carried(plain, path), Metric.own(sites[name]) if name in sites else None)
                carried = evaluate(domain, new, run.stores, gallery_embed=gallery).mAP
            scored[name] = {
                "reindexed": evaluate(domain, new, run.stores).mAP,
                "carried": carried,
                "as_it_was": evaluate(domain, new, run.stores, gallery_embed=old(domain)).mAP,
            }
    return scored


def in_one_gallery(
    run: Steps, sites: Iterable[Domain], *, step: int = -1, carried: bool = True, progress: Progress | None = None
) -> dict[str, dict[str, Scores]]:
    """Score the queries of each site in one gallery of all sites, embedded by a step's own network.

    Args:
        run: the run.
        sites: all of them, learned or not.
        step: the step, by default the last.
        carried: see :meth:`reid.run.steps.Steps.statistics`.
        progress: where to show progress.

    Returns:
        Scores by site, for each kind of metric: ``cosine``; and where the step knows statistics, ``pooled``; ``own``,
        each query's own site's; and ``mixed``. A site without statistics asks in the pooled one.

    Raises:
        DataError: a site can't be scored.
        UsageError: two sites have the same name.
    """
    wanted = list(sites)
    check_names(wanted)
    embed, known, found = run.embedder(step), run.statistics(step, carried=carried), dict[str, Retrieval]()
    with (progress or Progress()).task("one gallery", len(wanted)) as tick:
        for site in wanted:
            found[site.name] = Retrieval.of(site, embed, run.stores)
            tick.advance(1)
    pool = list(known.values())
    pooled = Metric.pooled(pool) if pool else None
    kinds: dict[str, Callable[[str], Metric | None]] = {"cosine": lambda name: None}
    if pooled is not None:
        kinds |= {
            "pooled": lambda name: pooled,
            "own": lambda name: Metric.own(known[name]) if name in known else pooled,
            "mixed": lambda name: Metric.mixed(known[name], pool) if name in known else pooled,
        }
    return {kind: score_union(found, metric) for kind, metric in kinds.items()}


def carrying(run: Steps, step: Sealed) -> list[Transport] | None:
    """Return the transports from a step's feature space to the last's; None if a step that moved it has none."""
    transports = [later.transport() for later in run.moved(step.index, len(run.steps) - 1)]
    return None if None in transports else [transport for transport in transports if transport]


def _carried(embed: Embed, path: Sequence[Transport]) -> Embed:
    """Embed crops and carry the embeddings through transports."""
    return lambda crops: compose(path, embed(crops))


def _cards(run: Steps) -> dict[str, Any]:
    """Return the cards' entries for all learned domains, by name."""
    return {entry["name"]: entry for step in run.steps for entry in step.card["domains"]}


def _cells(
    run: Steps, domain: Domain, rows: Sequence[int], progress: Progress
) -> tuple[dict[tuple[int, str], Cell], tuple[str, ...]]:
    """Score one domain in these rows, decoding its crops once; also return a line for each image that can't be read.

    Raises:
        DataError: see the message.
    """
    cells: dict[tuple[int, str], Cell] = {}
    left_out: tuple[str, ...] = ()
    last: tuple[str, Embed] | None = None
    if rows:
        with progress.task(f"scoring {domain.name}", len(rows)) as tick:
            for row in rows:
                space = run.sealed(row).feature_space
                if last is None or last[0] != space:  # steps that only measure share a network
                    last = space, _once(run.embedder(row))
                retrieval = Retrieval.of(domain, run.served(row, own=last[1])(domain), run.stores)
                cells[row, domain.name], left_out = Cell.of(retrieval.scores()), retrieval.left_out
                tick.advance(1)
    return cells, left_out


def _is_as_before(run: Steps, steps: Sequence[Sealed], name: str) -> bool:
    """Whether a step serves a site just as the step before it did: one that measured other sites alone."""
    before, after = steps
    if before.feature_space != after.feature_space or routing_term(run.taught(after.index).card) is not None:
        return False
    then, now = (run.statistics(step.index).get(name) for step in steps)
    if then is None or now is None:
        return then is now
    return np.array_equal(then.mean, now.mean) and np.array_equal(then.factors, now.factors)


def _once(embed: Embed) -> Embed:
    """Return an embedder that remembers the vectors of each array, which must not change meanwhile."""
    known: list[tuple[ref[Crops], Float32s]] = []

    def remembering(crops: Crops) -> Float32s:
        for seen, vectors in known:
            if seen() is crops:
                return vectors
        known.append((ref(crops), embed(crops)))
        return known[-1][1]

    return remembering
