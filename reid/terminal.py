"""A console that shows text as it is, but for characters that must not reach a terminal."""

from __future__ import annotations

import os
import re
from typing import Any

from rich.console import Console
from rich.text import Text

from domains.text import shown

SIZES = ("COLUMNS", "LINES", "TERMINAL_WIDTH")
"""Variables by which rich, typer and Python's own library are told how large a terminal is."""

SMALLEST, LARGEST = 10, 1000
"""Columns or lines: with fewer, a text can't be shown; more are more than there are."""


def check_size() -> None:
    """Take out of the environment what is no size of a terminal, so that the real one or the usual one counts, and
    reduce one that would only take memory.
    """
    for name in SIZES:
        value = os.environ.get(name)
        if value is None:
            continue
        digits = value.lstrip("0") if re.fullmatch("[0-9]+", value) else ""
        size = int(digits[:6] or "0")  # enough to tell
        if size < SMALLEST:
            del os.environ[name]
        elif size > LARGEST:
            os.environ[name] = str(LARGEST)


class Terminal(Console):
    """Rich's console without markup, highlighting and emoji codes.

    Whatever is printed on it is one line of plain text that only the terminal wraps, or a renderable made of such text
    (:mod:`reid.tables`).
    """

    def __init__(self, *, stderr: bool = False) -> None:
        check_size()  # which rich reads here and whenever it prints
        super().__init__(stderr=stderr, highlight=False, emoji=False, markup=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print plain text, or what Rich can render; see :meth:`rich.console.Console.print`."""
        plain = [Text(shown(item)) if isinstance(item, str) else item for item in objects]
        if any(isinstance(item, str) for item in objects):
            options = {"soft_wrap": True, **options}
        super().print(*plain, **options)
