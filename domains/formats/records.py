"""The one reader of CSV files that list images, for a domain's table and for what goes into a gallery.

UTF-8 with or without a byte order mark; commas, semicolons or tabs, whichever the header uses, also after a line such
as ``sep=;``; any line ends; quotes as spreadsheets write them. Names of columns may be in any order and case. Empty
rows are skipped, and columns that nobody asked for are named in a note. A path stays below the file's folder.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TextIO

from domains.errors import DataError
from domains.formats.listing import some

MAX_BYTES = 512 * 2**20
MAX_LINE = 2**20
MAX_PATH = 1000
DELIMITERS = ",;\t"
_SEPARATOR = re.compile(r"\ufeff?\"?sep=.\"?[,;\t]*", re.IGNORECASE)
"""A first line that tells spreadsheets what separates the values; the header shows that as well."""
NEAR = 0.6
TYPO = 0.75
"""How much an unread column must resemble an optional one that is missing to be taken for it."""


@dataclass(frozen=True)
class Columns:
    """The columns of a file.

    Attributes:
        required: columns that must be there.
        optional: columns that may be there.
        others: for a column, names that other tools give it, in lower case; they are proposed, not accepted.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    others: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        """Text for a message."""
        may = f" and may have {','.join(self.optional)}" if self.optional else ""
        return f"it must have the columns {','.join(self.required)} once each{may}"


def read_records(file: Path, columns: Columns, notes: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ``(where, values)`` for each row: the file and line for a message, and its stripped values by column.

    Args:
        file: the CSV file.
        columns: what it must and may have.
        notes: gets a note if there are columns that are not read.

    Raises:
        DataError: the file can't be read, is too large, not UTF-8, not CSV or empty, lacks a column or has one twice,
            or a row has more or fewer values than the header. The message names the line.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise DataError(f"{file} is larger than {MAX_BYTES // 2**20} MiB; split it")
        with closing(file.open(encoding="utf-8-sig", newline="")) as stream:
            yield from _rows(stream, file, columns, notes)
    except OSError as error:
        raise DataError(f"can't read {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text; save it as UTF-8") from error


def path_below(text: str, where: str) -> str:
    """Return a path relative to the file's folder, ``/``-separated; raises DataError, starting with ``where``."""
    path = PurePosixPath(text)
    if not text or len(text) > MAX_PATH or not text.isprintable():
        raise DataError(f"{where}: {text[:80]!a} is not a path of at most {MAX_PATH} printable characters")
    if path.is_absolute() or ".." in path.parts or "\\" in text or (len(text) > 1 and text[1] == ":"):
        raise DataError(
            f"{where}: the path must be relative to the file's folder, with / between its parts and no .., got "
            f"{text[:120]!r}"
        )
    if str(path) == ".":
        raise DataError(f"{where}: {text[:120]!r} does not name a file")
    return str(path)


def _lines(stream: TextIO, file: Path) -> Iterator[str]:
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise DataError(f"{file}, line {number}: not a CSV file: more than {MAX_LINE} characters in a line")
        yield line


def _rows(stream: TextIO, file: Path, columns: Columns, notes: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    lines = _lines(stream, file)
    skipped, first = 0, ""
    for first in lines:
        if first.strip():
            break
        skipped += 1
    if _SEPARATOR.fullmatch(first.strip("\r\n")):
        skipped, first = skipped + 1, next(lines, "")
    if not first.strip():
        raise DataError(f"{file} is empty; {columns}")
    if "\0" in first:
        raise DataError(f"{file} is not UTF-8 text; save it as UTF-8")
    delimiter = max(DELIMITERS, key=lambda mark: len({*_header(first, mark)} & {*columns.required}))
    header = _header(first, delimiter)
    positions = _positions(header, file, columns, notes)
    reader = csv.reader(chain([first], lines), strict=True, delimiter=delimiter, skipinitialspace=True)
    try:
        next(reader)
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            where = f"{file}, line {skipped + reader.line_num}"
            if len(row) != len(header):
                raise DataError(
                    f"{where}: {len(row)} values for {len(header)} columns; quote values that contain a "
                    f"{'comma' if delimiter == ',' else 'semicolon' if delimiter == ';' else 'tab'}"
                )
            yield where, {column: row[at].strip() for column, at in positions.items()}
    except csv.Error as error:
        raise DataError(f"{file}, line {skipped + reader.line_num}: not a CSV file: {error}") from error


def _header(line: str, delimiter: str) -> list[str]:
    """Names of the columns, in lower case; a line that is no CSV is one name."""
    try:
        cells = next(csv.reader([line], strict=True, delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        cells = [line]
    return [cell.strip().lstrip("\ufeff").casefold() for cell in cells]


def _positions(header: list[str], file: Path, columns: Columns, notes: list[str]) -> dict[str, int]:
    known = (*columns.required, *columns.optional)
    unread = [name for name in dict.fromkeys(header) if name not in known]
    for column in columns.required:
        if column not in header:
            found = ", ".join(f"{name[:40]!r}" for name in header[:12])
            raise DataError(
                f"{file} has no column {column!r}{_proposed(column, unread, columns)}; {columns}; found {found}"
            )
    if twice := sorted({name for name in header if name in known and header.count(name) > 1}):
        raise DataError(f"{file} has the column {twice[0]!r} twice; {columns}; remove one")
    missing = [column for column in columns.optional if column not in header]
    for name in unread:
        if close := get_close_matches(name, missing, 1, TYPO):
            raise DataError(
                f"{file} has the column {name[:40]!r}, which is not read (did you mean {close[0]!r}?); rename or "
                "remove it"
            )
    if unread:
        named = [_unread(name, missing, columns) for name in unread]
        notes.append(f"{file.name}: these columns are not read: {some(named)}")
    return {column: header.index(column) for column in known if column in header}


def _unread(name: str, missing: list[str], columns: Columns) -> str:
    meant = [column for column in missing if name in columns.others.get(column, ())]
    shown = (name if name.isprintable() else ascii(name))[:40] or "one without a name"
    return shown + (f" (did you mean {meant[0]}?)" if meant else "")


def _proposed(column: str, unread: list[str], columns: Columns) -> str:
    usual = [name for name in unread if name in columns.others.get(column, ())]
    close = usual or get_close_matches(column, unread, 1, NEAR)
    return f" (did you mean {close[0][:40]!r}?)" if close else ""
