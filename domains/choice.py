"""One check for every setting whose value is one of a few words."""

from __future__ import annotations

from typing import Any, get_args

from domains.errors import UsageError


def check_choice(name: str, value: object, kind: Any, error: type[Exception] = UsageError) -> None:
    """Check that a setting is one of the words its type allows.

    Args:
        name: name of the setting.
        value: value to check.
        kind: the ``Literal`` type that lists the allowed words.
        error: exception raised for any other value.
    """
    words = get_args(kind)
    if value not in words:
        *first, last = (f'"{word}"' for word in words)
        raise error(f"{name} must be {', '.join(first)} or {last}, got {value!r}")
