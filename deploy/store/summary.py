"""What a gallery holds, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy.store.store import Store


def summary(store: Store) -> Mapping[str, Any]:
    """Return counts by camera, the number of labelled entries, and the first and last time as given; damaged ones as
    far as they can be read.
    """
    cameras = store.ask("SELECT camera, count(*) FROM entry GROUP BY camera ORDER BY camera")
    first, last = (store.ask(f"SELECT {end}(utc), time FROM entry")[0][1] for end in ("min", "max"))  # noqa: S608 - a constant
    return {
        "cameras": {_readable(name): count for name, count in cameras},
        "labelled": store.ask("SELECT count(label) FROM entry")[0][0],
        "first": None if first is None else _readable(first),
        "last": None if last is None else _readable(last),
    }


def spaces(store: Store) -> list[dict[str, Any]]:
    """List the feature spaces that a gallery has been in, with the number of entries embedded in each."""
    embedded = dict(store.ask("SELECT origin, count(*) FROM entry GROUP BY origin"))
    present = store.facts.space
    rows = store.ask("SELECT number, feature_space, bundle FROM space WHERE ready = 1 ORDER BY number")
    return [
        {"feature_space": name, "bundle": bundle, "embedded": embedded.get(number, 0), "present": number == present}
        for number, name, bundle in rows
    ]


def _readable(value: object) -> str:
    """A text that may be damaged: of another type, or invalid as UTF-8."""
    return str(value).encode("utf-8", "replace").decode()
