"""Whether an audit log is what it was: its chain without a gap, its start where an erasure left it, and every seal that
was kept elsewhere still in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deploy.service.audit_tables import moment
from deploy.store.audit import link
from deploy.store.clock import DAY, HOUR, as_text
from domains.errors import GalleryError, UsageError

ERASURE = "erase audit"
"""The action of a record that says which records were erased by age."""
PART = 4096
LONGEST_LINE = 2**20


class Head(NamedTuple):
    """The newest record's number and seal. Stored elsewhere, it shows later if records were removed or replaced."""

    number: int
    hash: str


class KeptHead(NamedTuple):
    """A head that was stored elsewhere.

    Attributes:
        number: the record's number.
        hash: its seal.
        time: when it was the newest (ISO 8601), if that is known.
    """

    number: int
    hash: str
    time: str | None = None


class _Erasure(NamedTuple):
    number: int
    time: str
    what: dict[str, Any]


def check_chain(ask: Callable[..., list[Any]], name: str, heads: Sequence[KeptHead] = ()) -> int:
    """Count the records of an audit log; raises GalleryError at the first sign that it is not what it was.

    Args:
        ask: runs a query on the log.
        name: what to call it.
        heads: heads kept elsewhere.
    """
    ((start, seal),) = ask("SELECT number, hash FROM base")
    if ask("SELECT 1 FROM audit WHERE number <= ? LIMIT 1", (start,)):
        number = ask("SELECT min(number) FROM audit")[0][0]
        raise GalleryError(
            f"record {number} of {name} was inserted: the log starts after record {start}; compare with a copy"
        )
    _check_objects(ask, name)
    position, before, count, erasure = start, seal, 0, None
    kept: dict[int, list[KeptHead]] = {}
    for head in heads:
        kept.setdefault(head.number, []).append(head)
    while rows := ask(
        "SELECT number, time, what, hash FROM audit WHERE number > ? ORDER BY number LIMIT ?", (position, PART)
    ):
        for number, time, text, own in rows:
            position += 1
            if number != position or own != link(before, time, text):
                raise GalleryError(f"record {position} of {name} was changed or is missing; compare with a copy")
            for head in kept.get(number, ()):
                if head.hash != own:
                    raise _replaced(head, name)
            if ERASURE in text:
                erasure = _as_erasure(number, time, text) or erasure
            before = own
        count += len(rows)
    _check_start(ask, name, (start, seal), erasure)
    _check_heads(name, heads, Head(start, seal), position, erasure)
    return count


def read_heads(file: Path) -> list[KeptHead]:
    """Read the heads that a service wrote to its log, one JSON object a line; other lines are passed over.

    Raises:
        UsageError: the file can't be read, or holds no head.
    """
    heads = []
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            while line := stream.readline(LONGEST_LINE):
                if (head := _as_head(line)) is not None:
                    heads.append(head)
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror or error}") from error
    if not heads:
        raise UsageError(f'{file} holds no sealed head; name a log of reid serve with lines of the event "audit"')
    return heads


def _as_head(line: str) -> KeptHead | None:
    try:
        content = json.loads(line[line.index("{") :])
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    keys = ("audit_number", "audit_head") if content.get("event") == "stopped" else ("number", "head")
    number, seal, time = (content.get(key) for key in (*keys, "time"))
    if content.get("event") not in ("audit", "stopped") or not isinstance(number, int) or not isinstance(seal, str):
        return None
    return KeptHead(number, seal, time if isinstance(time, str) else None)


def _check_objects(ask: Callable[..., list[Any]], name: str) -> None:
    """Refuse triggers and views: they could change what is written or read."""
    if found := ask("SELECT type, name FROM sqlite_master WHERE type NOT IN ('table', 'index') LIMIT 1"):
        raise GalleryError(f"{name} holds a {found[0][0]} that this program did not make; compare with a copy")


def _check_start(ask: Callable[..., list[Any]], name: str, base: tuple[int, str], erasure: _Erasure | None) -> None:
    """Refuse a log that starts later than where its last recorded erasure ended."""
    if base[0] == 0 and erasure is None:
        return
    unnamed = ask("SELECT unnamed FROM ageing")[0][0]
    named = (erasure.what.get("through"), erasure.what.get("seal")) if erasure else None
    if erasure is None or (named != base and not (named == (None, None) and erasure.number <= unnamed)):
        told = "none is recorded" if erasure is None else f"the last one recorded, {erasure.number}, ended elsewhere"
        raise GalleryError(
            f"record {base[0]} of {name} and those before it are missing, though not by an erasure: {told}; compare "
            "with a copy"
        )


def _check_heads(name: str, heads: Sequence[KeptHead], base: Head, newest: int, erasure: _Erasure | None) -> None:
    for head in heads:
        if head.number > newest:
            raise GalleryError(
                f"record {head.number} of {name}{_sealed(head)} is missing: the newest is {newest}; compare with a copy"
            )
        if head.number == base.number and head.hash != base.hash:
            raise _replaced(head, name)
    if erasure is None:
        return
    days, erased = erasure.what.get("days"), moment(erasure.time)
    seen = [moment(head.time) for head in heads if head.number < base.number]
    latest = max((time for time in seen if time is not None), default=None)
    if latest is not None and isinstance(days, int) and erased is not None and latest > erased - days * DAY + HOUR:
        raise GalleryError(
            f"record {base.number} of {name} was erased on {as_text(erased)} as over {days} days old, but was not yet "
            f"written on {as_text(latest)}, by a seal kept elsewhere; compare with a copy"
        )


def _replaced(head: KeptHead, name: str) -> GalleryError:
    return GalleryError(f"record {head.number} of {name} is not the one{_sealed(head)}; compare with a copy")


def _sealed(head: KeptHead) -> str:
    return f" sealed as {head.hash:.12}…" + (f" at {head.time:.40}" if head.time else "")


def _as_erasure(number: int, time: str, text: str) -> _Erasure | None:
    try:
        what = json.loads(text)
    except ValueError:
        return None
    return _Erasure(number, time, what) if isinstance(what, dict) and what.get("action") == ERASURE else None
