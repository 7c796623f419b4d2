"""The audit chain of a gallery: what was done to it and when, each record sealed by a hash over all before it. It says
nothing about any person.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from deploy.store import clock
from deploy.store.store import Store
from domains.errors import GalleryError

START = "0" * 64


def write_audit(store: Store, action: str, **what: str | int | None) -> None:
    """Add a record inside a ``holding`` block, so that it exists if and only if the change it describes does."""
    last = store.ask("SELECT hash FROM audit ORDER BY number DESC LIMIT 1")
    time = clock.as_text(clock.now())
    text = json.dumps({"action": action, **what}, sort_keys=True)
    store.change(
        "INSERT INTO audit(time, what, hash) VALUES (?, ?, ?)",
        [(time, text, link(last[0][0] if last else START, time, text))],
    )


def read_audit(store: Store) -> list[dict[str, Any]]:
    """Return all records, oldest first; raises GalleryError if one was changed, removed or inserted."""
    records, before = [], START
    for position, (number, time, text, stored) in enumerate(
        store.ask("SELECT number, time, what, hash FROM audit ORDER BY number"), 1
    ):
        content = _content(text)
        if number != position or content is None or stored != link(before, time, text):
            raise GalleryError(
                f"record {position} of the audit of {store.file.parent} was changed or is missing; compare it with a "
                "backup"
            )
        records.append({"time": time, **content})
        before = stored
    return records


def check_audit(store: Store) -> int:
    """Return the number of records; raises GalleryError if the chain is broken. Missing newest records show only
    against a separate copy of the last hash.
    """
    return len(read_audit(store))


def link(before: str, time: str, text: str) -> str:
    """Hash that links a record to the one whose hash is ``before``."""
    return hashlib.sha256(f"{before}\n{time}\n{text}".encode("utf-8", "surrogateescape")).hexdigest()


def _content(text: object) -> dict[str, Any] | None:
    """Read what a record says; None if it is not what :func:`write_audit` writes."""
    try:
        content = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
