"""What a run's matrix holds: the domains that are scored, every model on each of them, and galleries that are not
embedded again.
"""

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
        except ReidError:
            continue  # reported by whoever asks for a score and does not get one
    return opened


def check_name(run: Steps, domain: Domain) -> None:
    """Raise UsageError if the run knows other data under this domain's name: learned, or scored before."""
    known = [entry for entry in (_cards(run).get(domain.name), run.scores.scored.get(domain.name)) if entry]
    place, prints = str(domain.root.resolve()), {entry.get("fingerprint") or entry.get("data") for entry in known}
    if (
        not known
        or place in {entry["path"] for entry in known}
        or prints & {None, domain.fingerprint, domain.test_fingerprint}
    ):
        return
    raise UsageError(
        f"{run.folder} knows {domain.name} as other data, from {known[0]['path']}; {place} needs another name: rename "
        "its folder"
    )


def fill(run: Steps, wanted: Sequence[Domain], *, rows: Iterable[int] | None, progress: Progress) -> list[str]:
    """Score every (row, domain) that the matrix lacks, and save it after each domain.

    A domain whose test crops or camera rule are not those that its scores speak of is scored anew, in every row.

    Args:
        run: its matrix is changed and written.
        wanted: further domains to score, beside those that the run knows.
        rows: which rows; all if None.
        progress: where to show it.

    Returns:
        A line for each domain that can't be scored, is scored anew, or has images that can't be read.

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
    asked = set(range(len(steps)) if rows is None else (row % len(steps) for row in rows))
    for name, domain in everyone.items():
        if reasons[name]:
            continue
        before = scores.scored.get(name, {})
        now = {"path": str(domain.root.resolve()), "same_camera": domain.same_camera, "data": domain.test_fingerprint}
        stale = any(key in before and before[key] != now[key] for key in ("same_camera", "data"))
        missing = [row for row in range(len(steps)) if stale or (row in asked and (row, name) not in scores.cells)]
        try:
            cells, left_out = _cells(run, domain, missing, progress)
        except DataError as error:
            notes.append(f"{name} is not scored: {error}")
            continue
        if stale:
            notes.append(
                f"{name} is scored anew in every row: its test crops or its camera rule are others than before"
            )
        notes += [f"{name}: {line}" for line in left_out]
        scores.cells |= cells
        scores.scored[name] = now
        if missing:
            scores.write(run.folder)
    scores.write(run.folder)
    return notes


def without_reindexing(run: Steps, wanted: Iterable[Domain]) -> dict[str, dict[str, float | None]]:
    """Score each learned domain with the last model's queries on a gallery that the step which learned it embedded.

    Args:
        run: of at least one step.
        wanted: domains to use in place of those that the run's cards name.

    Returns:
        By domain, percent mAP of the gallery ``reindexed`` by the last model, ``carried`` through the sealed transports
        (None where a step has none), and left ``as_it_was``.
    """
    steps, known = run.steps, known_domains(run) | {domain.name: domain for domain in wanted}
    ask = run.served(-1)
    scored: dict[str, dict[str, float | None]] = {}
    for step in steps[1:]:
        for name in step.learned:
            if name not in known or can_be_scored(known[name]):
                continue
            transports = [later.transport() for later in steps[step.index + 1 :]]
            domain, whole = known[name], [transport for transport in transports if transport]
            hold, asked = run.served(step.index)(domain), ask(domain)
            carried = evaluate(domain, asked, run.stores, gallery_embed=_carrying(hold, whole))
            scored[name] = {
                "reindexed": evaluate(domain, asked, run.stores).mAP,
                "carried": carried.mAP if len(whole) == len(transports) else None,
                "as_it_was": evaluate(domain, asked, run.stores, gallery_embed=hold).mAP,
            }
    return scored


def _carrying(hold: Embed, path: Sequence[Transport]) -> Embed:
    """Embed, and carry what comes out through transports."""
    return lambda crops: compose(path, hold(crops))


def _cards(run: Steps) -> dict[str, Any]:
    """What the steps' cards say of the domains that they learned, by name."""
    return {entry["name"]: entry for step in run.steps for entry in step.card["domains"]}


def _cells(
    run: Steps, domain: Domain, rows: Sequence[int], progress: Progress
) -> tuple[dict[tuple[int, str], Cell], tuple[str, ...]]:
    """Score one domain in these rows, its crops decoded once; also a line for each image that can't be read. Raises
    DataError.
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
