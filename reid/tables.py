"""Tables that can be read at any width: framed where they fit, without frames and with shortened paths where they do
not, and line by line where even that is too wide. Nothing is ever left out for want of room.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from domains.text import shown

SHORTEST = 10
"""Characters that a shortened path keeps at least."""


@dataclass(frozen=True)
class Columns:
    """What a table knows about its columns.

    Attributes:
        names: their headings.
        left: those aligned to the left besides the first; the others are aligned to the right.
        paths: those that may be shortened from the left, as paths differ at their ends.
    """

    names: Sequence[str]
    left: Collection[str] = ()
    paths: Collection[str] = ()


def show_table(console: Console, title: str, columns: Columns, rows: Sequence[Sequence[str]]) -> None:
    """Print a table; every cell is one line, and shown as it is but for characters that must not be."""
    names = [shown(name) for name in columns.names]
    cells = [[shown(cell) for cell in row] for row in rows]
    console.print(Text(shown(title), style="table.title"), soft_wrap=True)
    widths = [max(map(cell_len, column)) for column in zip(names, *cells, strict=True)]
    if sum(widths) + 3 * len(widths) + 1 <= console.width:
        _grid(console, columns, (names, cells), gap=0)
        return
    for gap in (2, 1):
        fitting = _fitting(console, columns, cells, widths, gap)
        if fitting is not None:
            _grid(console, columns, (names, fitting), gap=gap)
            return
    _records(console, names, cells)


def _fitting(
    console: Console, columns: Columns, cells: list[list[str]], widths: list[int], gap: int
) -> list[list[str]] | None:
    """Return the cells with paths shortened as far as needed; None if even that does not fit the console."""
    over = sum(widths) + gap * (len(widths) - 1) - console.width
    cut = dict.fromkeys(range(len(widths)), 0)
    paths = [number for number, name in enumerate(columns.names) if name in columns.paths]
    for number in sorted(paths, key=lambda column: -widths[column]):
        least = max(SHORTEST, cell_len(shown(columns.names[number])))
        cut[number] = min(max(0, over), max(0, widths[number] - least))
        over -= cut[number]
    if over > 0:
        return None
    mark = _mark(console)
    return [
        [shortened(cell, widths[at] - cut[at], mark) if cut[at] else cell for at, cell in enumerate(row)]
        for row in cells
    ]


def shortened(text: str, width: int, mark: str = "…") -> str:
    """Return the end of ``text`` that fits ``width`` columns, after a mark; all of it if it fits."""
    if cell_len(text) <= width:
        return text
    start = 0
    while start < len(text) and cell_len(text[start:]) > width - len(mark):
        start += 1
    return mark + text[start:]


def _mark(console: Console) -> str:
    try:
        "…".encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return "..."
    return "…"


def _grid(console: Console, columns: Columns, texts: tuple[list[str], list[list[str]]], *, gap: int) -> None:
    """Print a grid that is known to fit, framed or with a gap between columns."""
    names, cells = texts
    grid = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False) if gap else Table(box=box.HEAVY_HEAD)
    for number, name in enumerate(names):
        left = number == 0 or columns.names[number] in columns.left
        grid.add_column(Text(name), justify="left" if left else "right", no_wrap=True, overflow="ignore")
    for row in cells:
        grid.add_row(*map(Text, row))  # as it is: a camera may be called "yard [north]"
    console.print(grid)


def _records(console: Console, names: list[str], cells: list[list[str]]) -> None:
    """Print each row as lines of heading and value, which only the terminal wraps."""
    width = max(map(cell_len, names), default=0)
    for row in cells:
        for name, cell in zip(names, row, strict=True):
            if cell:
                console.print(Text(f"  {name}{' ' * (width - cell_len(name))}  {cell}".rstrip()), soft_wrap=True)
        console.print()
