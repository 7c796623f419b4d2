"""What a record of an audit log says, as the text that is sealed and as values to show."""

from __future__ import annotations

import json
from typing import Any

UNREADABLE = "unreadable"
"""Stands for what was tampered with so that it can't be shown; the check of the chain says where."""


def record_text(action: str, **what: str | int | None) -> str:
    """The text of a record."""
    return json.dumps({"action": action, **what}, sort_keys=True, ensure_ascii=False)


def read_record(number: int, time: object, text: object, seal: object) -> dict[str, Any]:
    """The values of a record's row; those that were tampered with are :data:`UNREADABLE`."""
    return {"number": number, "time": _legible(time), **_parsed(text), "hash": _legible(seal)}


def _parsed(text: object) -> dict[str, Any]:
    try:
        content = json.loads(text, parse_constant=_refuse) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        content = None
    return content if isinstance(content, dict) else {"action": UNREADABLE}


def _refuse(constant: str) -> None:
    """Refuse NaN and infinities, which no answer may hold."""
    raise ValueError(f"{constant} is no JSON")


def _legible(part: object) -> str:
    return part if isinstance(part, str) else UNREADABLE
