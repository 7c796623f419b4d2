"""Check every byte of a gallery's database that matters, and repair what can be repaired."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from deploy.store.audit import check_audit, write_audit
from deploy.store.row import checksum, is_stamped, present_vector
from deploy.store.store import Store
from domains.errors import GalleryError

LENGTH = 0.01
"""Largest deviation of a stored vector's length from 1."""

NAMED = 20
"""At most this many faults are listed; more are only mentioned."""


def check_store(store: Store) -> None:
    """Raise GalleryError listing what is damaged in the database, if anything. Call it in a transaction."""
    first = list(islice(faults(store), NAMED + 1))
    if first:
        listed = "; ".join(f"{fault} is damaged" for fault in first[:NAMED])
        more = "; and more" if len(first) > NAMED else ""
        raise GalleryError(f"{store.file}: {listed}{more}; restore a backup, or try reid gallery verify --repair")


def faults(store: Store) -> Iterator[str]:
    """Describe what is damaged in the database, one fault at a time. Call it in a transaction."""
    structure = [str(row[0]) for row in store.ask("PRAGMA integrity_check(20)")]
    if structure != ["ok"]:
        yield f"the structure ({structure[-1].splitlines()[-1]:.150})"
    if not store.sealed():
        yield "the gallery's metadata (facts, spaces, rules, backups)"
    unsound = store.unsound()
    yield from (fault.what for fault in unsound)
    if any(fault.hides_entries for fault in unsound):
        return
    yield from _entry_faults(store)
    yield from _blob_faults(store, "carried", "vector", ("space", "id"))
    yield from _blob_faults(store, "crop", "jpeg", ("id",))
    for hour in store.broken_marks():
        yield f"the mark of what was there in hour {hour}"
    try:
        check_audit(store)
    except GalleryError as error:
        yield f"the audit ({str(error).split(';')[0]})"


def _entry_faults(store: Store) -> Iterator[str]:
    facts, count, last = store.facts, 0, 0
    while rows := store.rows(last):
        last = rows[-1][2]
        count += len(rows)
        vectors, numbers = [], []
        for row in rows:
            blob = present_vector(row, facts.space, facts.dim)
            if blob is None or not is_stamped(row):
                yield f"entry {row[2]} of {store.file.name}"
            else:
                vectors.append(blob)
                numbers.append(row[2])
        matrix = np.frombuffer(b"".join(vectors), np.float16).reshape(-1, facts.dim).astype(np.float32)
        lengths = np.linalg.norm(matrix, axis=1)
        for position in np.flatnonzero(~(np.abs(lengths - 1) < LENGTH)):
            yield f"entry {numbers[position]} of {store.file.name}, whose vector is not of unit length,"
    if count != store.count():
        yield f"the list of entries ({count} instead of {store.count()})"


def _blob_faults(store: Store, table: str, data: str, keys: Sequence[str]) -> Iterator[str]:
    what = "stored crop" if table == "crop" else "carried vector"
    where = " AND ".join(f"{key} = ?" for key in keys)
    for *key, expected in store.ask(f"SELECT {', '.join(keys)}, checksum FROM {table} ORDER BY {', '.join(keys)}"):  # noqa: S608 - constants
        if not all(isinstance(value, int) for value in key):
            yield f"the {what} of entry {key[-1]!a:.40}"
            continue
        blob = store.ask(f"SELECT {data} FROM {table} WHERE {where}", key)  # noqa: S608 - constants
        if len(blob) != 1 or not isinstance(blob[0][0], bytes) or checksum(blob[0][0], key) != expected:
            yield f"the {what} of entry {key[-1]}"


def repair(store: Store) -> list[str]:
    """Repair what can be repaired without a backup: the database's own indices and structure, the marks of time, rules
    and records that can't be ours, which are dropped, and the seal. Returns the faults found, one per line.

    Entries are never changed: damaged ones are listed, and stay as they are until they are forgotten or a backup is
    restored. Facts, spaces and tables that can't be ours are not sealed, and nothing is changed.
    """
    with store.reading():
        before, unsound = list(faults(store)), store.unsound()
    if not before:
        return []
    if any(fault.outcome is None for fault in unsound):
        return [f"still damaged: {fault}; restore a backup" for fault in before]
    outcomes = {fault.what: f"{fault.what.rstrip(',')} ({fault.outcome})" for fault in unsound}
    store.rebuild()
    with store.holding():
        store.mend()
        store.drop_broken_marks()
        write_audit(store, "repair", faults=len(before))
        store.reseal()
    with store.reading():
        left = list(faults(store))
    repaired = [f"repaired: {outcomes.get(fault, fault)}" for fault in before if fault not in left]
    return repaired + [
        f"still damaged: {fault}; restore a backup, or discard it with reid gallery forget" for fault in left
    ]
