"""Text from outside, made fit to be shown: labels, sources, cameras, file names and error messages may hold characters
that move the cursor, reverse the reading order or can't be seen.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Callable
from typing import Any

_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Control and format characters (C0, DEL, C1, bidirectional, zero-width, tags), half pairs, line and paragraph ends."""

_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
"""Others that are drawn as nothing: the rest of Unicode's Default_Ignorable_Code_Point, and the empty Braille cell."""


def shown(text: str, *, lines: bool = False) -> str:
    r"""Return ``text`` with every character that must not reach a terminal, log or page written as an escape.

    These are control characters (C0, DEL, C1, and so ANSI sequences), bidirectional overrides and isolates, zero-width
    and other invisible characters, line and paragraph separators, and half of a surrogate pair, as file names that are
    not UTF-8 hold them.

    Args:
        text: any text.
        lines: keep ``\n``; for text whose lines are one's own.

    Example:
        >>> print(shown("gate\x1b[2J\u202egpj.exe"))
        gate\x1b[2J\u202egpj.exe
    """
    if text.isprintable() and not _IGNORABLE.search(text):
        return text
    return "".join(
        letter.encode("unicode_escape").decode("ascii")
        if is_unseen(letter) and not (lines and letter == "\n")
        else letter
        for letter in text
    )


def is_unseen(letter: str) -> bool:
    """Whether one character is invisible, or changes how others are shown."""
    return unicodedata.category(letter) in _UNSEEN or bool(_IGNORABLE.match(letter))


def json_text(
    value: Any,
    *,
    indent: int | None = None,
    default: Callable[[Any], Any] | None = None,
    allow_nan: bool = False,
    compact: bool = False,
) -> str:
    r"""Return JSON that reads back as the same value and holds no character that :func:`shown` would escape.

    Args:
        value: plain values.
        indent: as for :func:`json.dumps`; the line ends that it makes stay.
        default: likewise.
        allow_nan: likewise.
        compact: without a space after commas and colons.

    Raises:
        ValueError: a number that JSON does not know, unless ``allow_nan`` is set.
    """
    text = json.dumps(
        value,
        ensure_ascii=False,
        indent=indent,
        default=default,
        allow_nan=allow_nan,
        separators=(",", ":") if compact else None,
    )
    if text.isprintable() and not _IGNORABLE.search(text):
        return text
    return "".join(json.dumps(letter)[1:-1] if is_unseen(letter) and letter != "\n" else letter for letter in text)


def logger(name: str) -> logging.Logger:
    """Return the logger of that name; what it is told is written as :func:`shown` writes it, whoever handles it."""
    log = logging.getLogger(name)
    log.addFilter(_shown_record)
    return log


def _shown_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = shown(record.getMessage(), lines=True), None
    return True
