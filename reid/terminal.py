"""A console that shows text as it is, but for characters that must not reach a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from domains.text import shown


class Terminal(Console):
    """Rich's console without markup, highlighting and emoji codes.

    Whatever is printed on it is one line of plain text that only the terminal wraps, or a renderable made of such text
    (:mod:`reid.tables`).
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, emoji=False, markup=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print plain text, or what Rich can render; see :meth:`rich.console.Console.print`."""
        plain = [Text(shown(item)) if isinstance(item, str) else item for item in objects]
        if any(isinstance(item, str) for item in objects):
            options = {"soft_wrap": True, **options}
        super().print(*plain, **options)
