"""The audit chain of a gallery: what was done to it and when, each record sealed by a hash over all before it. Nothing
about a person is in it.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from deploy.store.store import Store
from domains.errors import GalleryError

START = "0" * 64


def write_audit(store: Store, action: str, **what: str | int | None) -> None:
    """Add a record, inside a ``holding`` block, so that it is there if and only if what it tells of is."""
    last = store.ask("SELECT hash FROM audit ORDER BY number DESC LIMIT 1")
    time = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({"action": action, **what}, sort_keys=True)
    store.change(
        "INSERT INTO audit(time, what, hash) VALUES (?, ?, ?)",
        [(time, text, link(last[0][0] if last else START, time, text))],
    )


def read_audit(store: Store) -> list[dict[str, Any]]:
    """All records, oldest first; raises GalleryError if one was changed, taken out or put in."""
    records, before = [], START
    for place, (number, time, text, found) in enumerate(
        store.ask("SELECT number, time, what, hash FROM audit ORDER BY number"), 1
    ):
        if number != place or found != link(before, time, text):
            raise GalleryError(
                f"record {place} of the audit of {store.file.parent} was changed or is missing; compare with a backup"
            )
        records.append({"time": time, **json.loads(text)})
        before = found
    return records


def check_audit(store: Store) -> int:
    """How many records there are; raises GalleryError if the chain is broken. That the newest are missing only a copy
    of its last hash can tell.
    """
    return len(read_audit(store))


def link(before: str, time: str, text: str) -> str:
    """Hash that links a record to the one whose hash is ``before``."""
    return hashlib.sha256(f"{before}\n{time}\n{text}".encode()).hexdigest()
