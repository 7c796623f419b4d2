"""Whether an audit log is what it was: its chain without a gap, its start where an erasure left it, and every seal that
was kept elsewhere still in it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deploy.service.audit_tables import MOST_DAYS, Ask, check_objects, check_rows, moment, read_ageing, read_base
from deploy.store import clock
from deploy.store.audit import link
from deploy.store.clock import DAY, HOUR, as_text
from domains.artefact import open_plain
from domains.errors import ArtefactError, GalleryError, UsageError

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

    @property
    def end(self) -> tuple[Any, Any]:
        """Number and seal of the last record that it erased; nothing if it names none, as those of schema 1."""
        return self.what.get("through"), self.what.get("seal")


def check_chain(ask: Ask, name: str, heads: Sequence[KeptHead] = ()) -> int:
    """Count the records of an audit log; raises GalleryError at the first sign that it is not what it was.

    Args:
        ask: runs a query on the log.
        name: what to call it.
        heads: heads kept elsewhere.
    """
    check_objects(ask, name)
    check_rows(ask, name)
    start, seal = read_base(ask, name)
    if ask("SELECT 1 FROM audit WHERE number <= ? LIMIT 1", (start,)):
        number = ask("SELECT min(number) FROM audit")[0][0]
        raise GalleryError(
            f"record {number} of {name} was inserted: the log starts after record {start}; compare with a copy"
        )
    position, before, count, erasure = start, seal, 0, None
    kept: dict[int, list[KeptHead]] = {}
    for head in heads:
        kept.setdefault(head.number, []).append(head)
    while rows := ask(
        "SELECT number, time, what, hash FROM audit WHERE number > ? ORDER BY number LIMIT ?", (position, PART)
    ):
        for number, time, text, own in rows:
            position += 1
            texts = all(isinstance(part, str) for part in (time, text, own))
            if number != position or not texts or own != link(before, time, text):
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
        UsageError: the file can't be read or is no plain one, or holds no head.
    """
    heads = []
    try:
        with io.TextIOWrapper(open_plain(file), encoding="utf-8", errors="replace") as stream:
            while line := stream.readline(LONGEST_LINE):
                if (head := _as_head(line)) is not None:
                    heads.append(head)
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror or error}") from error
    except ArtefactError as error:
        raise UsageError(f"can't read the heads: {error}") from error
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
    if content.get("event") not in ("audit", "stopped") or type(number) is not int or not isinstance(seal, str):
        return None
    return KeptHead(number, seal, time if isinstance(time, str) else None)


def _check_start(ask: Ask, name: str, base: tuple[int, str], erasure: _Erasure | None) -> None:
    """Refuse a log that starts later than where its last recorded erasure ended."""
    if base[0] == 0 and erasure is None:
        return
    unnamed = read_ageing(ask, name).unnamed
    if erasure is None or (erasure.end != base and not (erasure.end == (None, None) and erasure.number <= unnamed)):
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
    if erasure is None or all(head.number >= base.number for head in heads):
        return
    if doubt := _doubt_about(erasure, heads, base.number):
        raise GalleryError(
            f"record {erasure.number} of {name} says that all up to {base.number} were erased by age, but {doubt}; "
            "compare with a copy"
        )


def _doubt_about(erasure: _Erasure, heads: Sequence[KeptHead], base: int) -> str | None:
    """Why an erasure can't have been one of ours, by seals kept elsewhere of what it erased; None if it may be."""
    days, erased = erasure.what.get("days"), moment(erasure.time)
    if type(days) is not int or not 1 <= days <= MOST_DAYS:
        return "it does not say how many days they were kept"
    if erased is None:
        return "its time can't be read"
    if erased > clock.now() + HOUR:
        return f"its time, {as_text(erased)}, has not come yet"
    if erasure.end == (None, None) and all(head.number < erasure.number for head in heads):
        return "it names no last one, as old erasures do, though it is newer than every seal kept elsewhere"
    return _out_of_time(erasure.number, erased, days, heads, base)


def _out_of_time(number: int, erased: int, days: int, heads: Sequence[KeptHead], base: int) -> str | None:
    """Why an erasure can't have been made when it says, by the times of seals kept elsewhere; None if it may have been.
    A clock that read less than :data:`deploy.store.clock.EARLIEST` dates no seal.

    Args:
        number: the erasure's record.
        erased: its time, microseconds since 1970.
        days: how long it says that records were kept.
        heads: the seals.
        base: the last record that it erased.
    """
    dated = [(head.number, time) for head in heads if (time := moment(head.time)) and time >= clock.EARLIEST]
    covered = min((time for known, time in dated if known >= number), default=erased)
    unwritten = max((time for known, time in dated if known < number), default=erased)
    latest = max((time for known, time in dated if known < base), default=None)
    if erased > covered + HOUR:
        return f"its time, {as_text(erased)}, is after that of a seal over it, {as_text(covered)}"
    if erased < unwritten - clock.leap(None):
        return f"its time, {as_text(erased)}, is before that of a seal without it, {as_text(unwritten)}"
    if latest is not None and latest > erased - days * DAY + HOUR:
        return (
            f"record {base} was not yet written on {as_text(latest)}, by a seal kept elsewhere, and so not over {days} "
            f"days old on {as_text(erased)}"
        )
    return None


def _replaced(head: KeptHead, name: str) -> GalleryError:
    return GalleryError(f"record {head.number} of {name} is not the one{_sealed(head)}; compare with a copy")


def _sealed(head: KeptHead) -> str:
    return f" sealed as {head.hash:.12}…" + (f" at {head.time:.40}" if head.time else "")


def _as_erasure(number: int, time: str, text: str) -> _Erasure | None:
    try:
        what = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _Erasure(number, time, what) if isinstance(what, dict) and what.get("action") == ERASURE else None
