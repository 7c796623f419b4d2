"""Every byte of a gallery's database that counts, checked, and what can be mended, mended."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from deploy.store.audit import check_audit, write_audit
from deploy.store.row import checksum, is_stamped, present_vector
from deploy.store.store import Store
from domains.errors import GalleryError

LENGTH = 0.01
"""How far from 1 the length of a stored vector may be."""

NAMED = 20
"""So many faults are named; the rest is counted."""


def check_store(store: Store) -> None:
    """Raise GalleryError naming what is damaged in the database, if anything is. Call it in a transaction."""
    found = list(islice(faults(store), NAMED + 1))
    if found:
        named = "; ".join(f"{fault} is damaged" for fault in found[:NAMED])
        more = "; and more" if len(found) > NAMED else ""
        raise GalleryError(f"{store.file}: {named}{more}; restore a backup, or try reid gallery verify --repair")


def faults(store: Store) -> Iterator[str]:
    """Say what is damaged in the database, one fault at a time. Call it in a transaction."""
    structure = [str(row[0]) for row in store.ask("PRAGMA integrity_check(20)")]
    if structure != ["ok"]:
        yield f"the structure ({structure[-1].splitlines()[-1]:.150})"
    if not store.sealed():
        yield "what it says of the gallery (facts, spaces, rules, backups)"
    yield from _entry_faults(store)
    for table, data, keys in (("carried", "vector", "space, id"), ("crop", "jpeg", "id")):
        for row in store.ask(f"SELECT {keys}, checksum FROM {table} ORDER BY {keys}"):  # noqa: S608 - constants
            where = " AND ".join(f"{key} = ?" for key in keys.split(", "))
            blob = store.ask(f"SELECT {data} FROM {table} WHERE {where}", row[:-1])  # noqa: S608 - constants
            if len(blob) != 1 or not isinstance(blob[0][0], bytes) or checksum(blob[0][0], row[:-1]) != row[-1]:
                yield f"the {'stored crop' if table == 'crop' else 'carried vector'} of entry {row[-2]}"
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
        for place in np.flatnonzero(~(np.abs(lengths - 1) < LENGTH)):
            yield f"entry {numbers[place]} of {store.file.name}, whose vector is not of unit length,"
    if count != store.count():
        yield f"the list of entries ({count} are there, {store.count()} should be)"


def repair(store: Store) -> list[str]:
    """Mend what can be mended without a backup: the database's own indices and structure, and the seal. Returns what
    was found, a line each.

    Nothing of an entry is changed: damaged ones are named, and stay as they are until they are forgotten or a backup is
    restored.
    """
    with store.reading():
        before = list(faults(store))
    if not before:
        return []
    store.rebuild()
    with store.holding():
        write_audit(store, "repair", faults=len(before))
        store.reseal()
    with store.reading():
        left = list(faults(store))
    mended = [f"mended: {fault}" for fault in before if fault not in left]
    return mended + [
        f"still damaged: {fault}; restore a backup, or give it up with reid gallery forget" for fault in left
    ]
