"""Carry a gallery into another feature space, without any images and while it answers: to a later model's, through
transports, or between metrics of one network, which loses nothing.

Carried vectors are written beside the present ones, in many small transactions that no search sees. One transaction
then makes their space the present one, so that a kill at any moment leaves the gallery either in the old space or in
the new one. An entry's own vector stays until old copies are dropped: every upgrade starts from it, and going back is
possible. Entries added since are carried back: metrics are undone, a transport by its pseudo-inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle import Bundle
from deploy.store import Store
from deploy.store.audit import write_audit
from deploy.store.row import COLUMNS, PRESENT, checksum, entry_checksum, is_whole, make_stamp
from deploy.store.store import CHUNK, Facts
from domains.arrays import Float32s
from domains.errors import GalleryError, first_line
from prototypes.passage import Passage
from prototypes.transport import Transport

Tick = Callable[[int], None]
Derivation = tuple[str, bytes | None, int | None]
"""A space's name, the map that leads to it, and the number of the space that the map starts from."""

_UNCARRIED = """
SELECT e.id, e.vector, e.checksum, e.camera, e.source, e.time, e.utc, e.label, e.space, e.stamp FROM entry e
WHERE e.space != ?1 AND e.id > ?2 AND NOT EXISTS (SELECT 1 FROM carried c WHERE c.space = ?1 AND c.id = e.id)
ORDER BY e.id LIMIT ?3
"""
"""Entries that do not have a vector in a space yet."""

_OLD = f"SELECT {COLUMNS} FROM {PRESENT} WHERE e.space != ? AND e.id > ? ORDER BY e.id LIMIT ?"  # noqa: S608 - constants
"""Entries whose own vector lies in another space."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What an upgrade would do.

    Attributes:
        facts: facts of the new space, without its number.
        passage: the map; several transports in a row combine into one matrix, since normalising in between changes no
            direction.
        cosine: for each transport, mean cosine between carried and true embeddings of held-out crops, and without it.
        metric: name of the new metric; empty for none.
    """

    facts: Facts
    passage: Passage
    cosine: tuple[tuple[float, float], ...]
    metric: str = ""

    def lines(self) -> list[str]:
        """Describe what to expect, in sentences."""
        into = f"the metric {self.metric!r}" if self.metric else "the plain cosine"
        if not self.cosine:
            return [
                f"to {into} of the same network, feature space {self.facts.feature_space:.12}…",
                "nothing is lost: the vectors are those of embedding again, up to rounding",
            ]
        carried, plain = (float(np.prod([pair[which] for pair in self.cosine])) for which in (0, 1))
        transports = f"{len(self.cosine)} transport{'s' if len(self.cosine) != 1 else ''}"
        return [
            f"to feature space {self.facts.feature_space:.12}… by {transports}"
            + (f", into {into}" if self.passage.out or self.passage.into else ""),
            f"carried embeddings of held-out crops reach a cosine of {carried:.3f} with the new model's own "
            f"({plain:.3f} without carrying)",
        ]


def plan_upgrade(store: Store, bundles: Sequence[Bundle]) -> Plan:
    """Find the way from a gallery's space to the last bundle's; the order of the other bundles does not matter.

    Raises:
        GalleryError: no transports lead there; the message says where they end.
    """
    target, facts = bundles[-1], store.facts
    if target.feature_space == facts.feature_space:
        raise GalleryError(
            f"{store.file.parent} is already in the feature space of {target.folder}; there is nothing to upgrade"
        )
    known = {transport.source: transport for bundle in bundles if (transport := bundle.transport())}
    chain: list[Transport] = []
    start = _present(store, bundles)
    at = start.network
    while at != target.network:
        if at not in known or len(chain) > len(known):
            raise GalleryError(
                f"no transport leads on from feature space {at:.12}… to that of {target.folder}; add the bundles of "
                "the models in between (--via), or export with reid export --since"
            )
        chain.append(known[at])
        at = chain[-1].target
    matrix: Float32s | None = None
    for transport in chain:
        matrix = transport.matrix if matrix is None else matrix @ transport.matrix
    mapped = (facts.dim, facts.dim) if matrix is None else matrix.shape
    if mapped != (facts.dim, target.dim):
        raise GalleryError(
            f"the transports map {mapped[0]} dimensions to {mapped[1]}, but the gallery has {facts.dim} and the bundle "
            f"{target.dim}"
        )
    return Plan(
        Facts(target.dim, target.feature_space, str(Path(target.folder).absolute())),
        Passage(target.network, start.into, matrix, target.metric()),
        tuple(transport.cosine for transport in chain),
        target.metric_name,
    )


def _present(store: Store, bundles: Sequence[Bundle]) -> Passage:
    """Return the network and the metric of the present vectors: as the gallery keeps them, or else as a bundle of their
    space says; without either, the vectors are the network's own.
    """
    facts = store.facts
    data = store.ask("SELECT map, source FROM space WHERE number = ?", (facts.space,))
    if data and data[0][0] is not None:
        kept = _passage(store, facts.space)
        if kept.network:
            return Passage(kept.network, into=kept.into)
    for bundle in bundles:
        if bundle.feature_space == facts.feature_space:
            return Passage(bundle.network, into=bundle.metric())
    return Passage(facts.feature_space)


def carry(store: Store, plan: Plan, *, tick: Tick | None = None) -> int:
    """Prepare the new space and make it the present one; continues an interrupted preparation with the same map.

    Returns:
        Number of entries carried.
    """
    present = store.facts
    data = plan.passage.to_bytes()
    with store.holding():
        wanted = (plan.facts.feature_space, data, present.space)
        known = store.ask("SELECT number, ready, feature_space, map, source FROM space")
        for number in [row[0] for row in known if not row[1] and row[2:] != wanted]:  # preparations of something else
            store.change("DELETE FROM carried WHERE space = ?", [(number,)])
            store.change("DELETE FROM space WHERE number = ?", [(number,)])
        same = [row[0] for row in known if row[2:] == wanted]
        number = same[0] if same else 1 + store.ask("SELECT max(number) FROM space")[0][0]
        if same:
            store.change("UPDATE space SET bundle = ? WHERE number = ?", [(plan.facts.bundle, number)])
        else:
            row = (number, plan.facts.feature_space, plan.facts.dim, plan.facts.bundle, present.space, data)
            store.change(
                "INSERT INTO space(number, feature_space, dim, bundle, ready, source, map) VALUES (?, ?, ?, ?, 0, ?, "
                "?)",
                [row],
            )
    return _switch(store, number, wanted, "upgrade", tick)


def plan_back(store: Store) -> str:
    """Say what :func:`go_back` would do, without doing it; raises what that raises."""
    store.check_writable()
    number, left, last = _space_before(store), 0, 0
    with store.reading():
        while rows := store.ask(_UNCARRIED, (number, last, CHUNK)):
            _check_whole(store, rows)
            left, last = left + len(rows), rows[-1][0]
        space, bundle = store.ask("SELECT feature_space, bundle FROM space WHERE number = ?", (number,))[0]
    return f"back to feature space {space:.12}… of {bundle or 'no recorded bundle'}; {left} entries have to be carried"


def plan_drop(store: Store) -> str:
    """Say what :func:`drop_old` would do, without doing it; raises what that raises."""
    store.check_writable()
    facts, count, last = store.facts, 0, 0
    with store.reading():
        while rows := store.ask(_OLD, (facts.space, last, CHUNK)):
            _check_both(rows, facts)
            count, last = count + len(rows), rows[-1][2]
    return f"the carried vectors of {count} entries take the place of their own; there is no way back after that"


def go_back(store: Store, *, tick: Tick | None = None) -> int:
    """Make the space before the last upgrade the present one; returns how many entries had to be carried back.

    Raises:
        GalleryError: there was no upgrade, or the old copy was dropped.
    """
    number = _space_before(store)
    return _switch(store, number, _derivation(store, number), "go back", tick)


def _space_before(store: Store) -> int:
    """Return the number of the space before the last upgrade; raises GalleryError if there is none."""
    row = store.ask("SELECT source FROM space WHERE number = ?", (store.facts.space,))
    if not row or row[0][0] is None:
        raise GalleryError(
            f"{store.file.parent} was not upgraded, or its old copy was dropped; there is nothing to go back to"
        )
    return int(row[0][0])


def drop_old(store: Store, *, tick: Tick | None = None) -> int:
    """Keep only the present space; returns how many entries' own vectors were replaced. An entry's provenance, the
    space it was embedded in, stays.
    """
    facts, dropped = store.facts, 0
    while True:
        with store.holding():
            if store.facts.space != facts.space:
                raise GalleryError(
                    f"{store.file.parent} was upgraded meanwhile, so nothing more was dropped; try again"
                )
            rows = store.ask(_OLD, (facts.space, 0, CHUNK))
            _check_both(rows, facts)  # a new checksum would hide the damage
            updates = []
            for row in rows:
                stamp = make_stamp(row[2], facts.space, row[10], row[11])
                updates.append(
                    (row[12], entry_checksum(row[12], row[2:8], facts.space, stamp), facts.space, stamp, row[2])
                )
            store.change("UPDATE entry SET vector = ?, checksum = ?, space = ?, stamp = ? WHERE id = ?", updates)
            store.change("DELETE FROM carried WHERE space = ? AND id = ?", [(facts.space, row[2]) for row in rows])
            store.leave_unwiped()
        dropped += len(rows)
        if tick:
            tick(len(rows))
        if not rows:
            break
    with store.holding():
        store.change("DELETE FROM carried")
        store.change("DELETE FROM space WHERE ready = 0")
        kept = _passage(store, facts.space)
        store.change("UPDATE space SET source = NULL, map = NULL")
        if kept.network:
            store.change(
                "UPDATE space SET map = ? WHERE number = ?",
                [(Passage(kept.network, into=kept.into).to_bytes(), facts.space)],
            )
        store.changed(moved=True)
        store.leave_unwiped()
        write_audit(store, "drop old", entries=dropped, feature_space=facts.feature_space)
    return dropped


def _check_both(rows: Sequence[Sequence[Any]], facts: Facts) -> None:
    """Check the own and the carried vectors of entries; raises GalleryError."""
    for row in rows:
        if not is_whole(row, facts.space, facts.dim):
            raise GalleryError(
                f"entry {row[2]} is damaged (its own vector or the carried one), so neither can be dropped; "
                f"go back, restore a backup, or discard it with reid gallery forget … {row[2]}"
            )


def _switch(store: Store, number: int, wanted: Derivation | None, action: str, tick: Tick | None) -> int:
    """Carry the entries that a space lacks, in small steps, and the last ones in the transaction that makes it the
    present one.

    Raises:
        GalleryError: the space is no longer the ``wanted`` one, since the gallery was upgraded by someone else
            meanwhile.
    """
    carried, last = 0, 0
    while True:
        with store.holding():
            _check_derivation(store, number, wanted)
            count, last = _carry_some(store, number, last, CHUNK)
        carried += count
        if tick:
            tick(count)
        if count < CHUNK:
            break
    with store.holding():
        _check_derivation(store, number, wanted)
        while True:  # entries added meanwhile
            count, _ = _carry_some(store, number, 0, CHUNK)
            carried += count
            if not count:
                break
        store.change(
            "UPDATE gallery SET space = ?1, (dim, feature_space, bundle) = (SELECT dim, feature_space, bundle FROM "
            "space WHERE number = ?1)",
            [(number,)],
        )
        store.change("UPDATE space SET ready = 1 WHERE number = ?", [(number,)])
        store.changed(moved=True)
        write_audit(store, action, entries=carried, feature_space=store.facts.feature_space)
    return carried


def _derivation(store: Store, number: int) -> Derivation | None:
    """How a space is derived: its name, the map and the space that the map starts from; None if there is no such
    space.
    """
    rows = store.ask("SELECT feature_space, map, source FROM space WHERE number = ?", (number,))
    return rows[0] if rows else None


def _check_derivation(store: Store, number: int, wanted: Derivation | None) -> None:
    if wanted is None or _derivation(store, number) != wanted:
        raise GalleryError(
            f"{store.file.parent} was upgraded by someone else meanwhile, and not by this call; check its feature "
            "space, and try again"
        )


def _carry_some(store: Store, number: int, after: int, limit: int) -> tuple[int, int]:
    """Carry up to ``limit`` entries with an id above ``after``; returns their number and the last id."""
    rows = store.ask(_UNCARRIED, (number, after, limit))
    if not rows:
        return 0, after
    carried = []
    _check_whole(store, rows)
    for space in sorted({row[8] for row in rows}):
        part = [row for row in rows if row[8] == space]
        halves = np.frombuffer(b"".join(row[1] for row in part), np.float16).reshape(len(part), -1)
        vectors = halves.astype(np.float32)
        for passage in _passages(store, space, number):
            vectors = passage(vectors)
        carried += [
            (number, row[0], data := vector.tobytes(), checksum(data, (number, row[0])))
            for row, vector in zip(part, vectors.astype(np.float16), strict=True)
        ]
    store.change("INSERT OR REPLACE INTO carried VALUES (?, ?, ?, ?)", carried)
    return len(rows), rows[-1][0]


def _check_whole(store: Store, rows: Sequence[Sequence[Any]]) -> None:
    """Check the own vectors of entries to be carried; raises GalleryError."""
    for row in rows:
        if entry_checksum(row[1], (row[0], *row[3:8]), row[8], row[9]) != row[2]:
            raise GalleryError(
                f"entry {row[0]} of {store.file} is damaged, so it can't be carried; restore a backup, or forget it"
            )


def _passages(store: Store, start: int, end: int) -> list[Passage]:
    """Return the way from one space to another, along the upgrades that link them, against their direction first."""
    sources = dict(store.ask("SELECT number, source FROM space"))

    def lineage(number: int) -> list[int]:
        numbers = [number]
        while (source := sources[numbers[-1]]) is not None:
            if source not in sources or source in numbers:
                raise GalleryError(f"the spaces of {store.file.parent} lead nowhere; restore a backup")
            numbers.append(source)
        return numbers

    back, forth = lineage(start), lineage(end)
    shared = next((number for number in back if number in forth), None)
    if shared is None:
        raise GalleryError(f"{store.file.parent} has no link between its spaces {start} and {end}; restore a backup")
    way = [_passage(store, number).back() for number in back[: back.index(shared)]]
    way += [_passage(store, number) for number in reversed(forth[: forth.index(shared)])]
    if not way:
        raise GalleryError(f"space {start} of {store.file.parent} is carried to itself; this is a bug in lifelong-reid")
    return way


def _passage(store: Store, number: int) -> Passage:
    """Read the way that leads to a space; of one that no upgrade made, it holds the metric of its vectors alone.

    Raises:
        GalleryError: it is damaged.
    """
    data, dim, before = store.ask(
        "SELECT s.map, s.dim, (SELECT o.dim FROM space o WHERE o.number = s.source) FROM space s WHERE s.number = ?",
        (number,),
    )[0]
    if data is None and before is None:
        return Passage()
    try:
        if not isinstance(data, bytes):  # a damaged database returns whatever it holds
            raise ValueError(f"it is {type(data).__name__}")
        return Passage.from_bytes(data, (dim if before is None else before, dim))
    except ValueError as error:
        raise GalleryError(
            f"a map stored in the gallery is damaged ({first_line(error):.80}); restore a backup"
        ) from error
