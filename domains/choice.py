"""One check for every setting that is a word of a few."""

from __future__ import annotations

from typing import Any, get_args

from domains.errors import UsageError


def check_choice(name: str, value: object, kind: Any, error: type[Exception] = UsageError) -> None:
    """Hold a setting to the words of its type.

    Args:
        name: what the setting is called.
        value: what was asked for.
        kind: the ``Literal`` that lists the words.
        error: what is raised of a value that is none of them.
    """
    words = get_args(kind)
    if value not in words:
        *first, last = (f'"{word}"' for word in words)
        raise error(f"{name} must be {', '.join(first)} or {last}, got {value!r}")
