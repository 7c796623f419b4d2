"""Filling a run's score matrix, every model on every scored domain, and scoring galleries without reindexing them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import domains
from domains.arrays import Embed
from domains.domain import Domain
from domains.errors import DataError, ReidError, UsageError
from prototypes.transport import Transport, compose
from reid.progress import Progress
from reid.run.steps import Steps
from reid.scores.evaluate import Retrieval, can_be_scored, evaluate
from reid.scores.matrix import Cell


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
        before = scores.scored.get(name, {})
        now = {"path": str(domain.root.resolve()), "same_camera": domain.same_camera, "data": domain.test_fingerprint}
        stale = any(key in before and before[key] != now[key] for key in ("same_camera", "data"))
        missing = [row for row in range(len(steps)) if stale or (row in requested and (row, name) not in scores.cells)]
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
        if missing:
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
        (None where a step has none), and left ``as_it_was``.
    """
    steps, known = run.steps, known_domains(run) | {domain.name: domain for domain in wanted}
    serve_queries = run.served(-1)
    scored: dict[str, dict[str, float | None]] = {}
    for step in steps[1:]:
        for name in step.learned:
            if name not in known or can_be_scored(known[name]):
                continue
            transports = [later.transport() for later in steps[step.index + 1 :]]
            domain, path = known[name], [transport for transport in transports if transport]
            old, new = run.served(step.index)(domain), serve_queries(domain)
            carried = evaluate(domain, new, run.stores, gallery_embed=_carrying(old, path))
            scored[name] = {
                "reindexed": evaluate(domain, new, run.stores).mAP,
                "carried": carried.mAP if len(path) == len(transports) else None,
                "as_it_was": evaluate(domain, new, run.stores, gallery_embed=old).mAP,
            }
    return scored


def _carrying(embed: Embed, path: Sequence[Transport]) -> Embed:
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
    if rows:
        with progress.task(f"scoring {domain.name}", len(rows)) as tick:
            for row in rows:
                retrieval = Retrieval.of(domain, run.served(row)(domain), run.stores)
                cells[row, domain.name], left_out = Cell.of(retrieval.scores()), retrieval.left_out
                tick.advance(1)
    return cells, left_out
