"""``domain.csv``: one row per crop, for your own cameras; it wins over every other layout.

Columns ``path,pid,camid,split`` and optionally ``time``, in any order, with a header. A path is relative to the folder
and stays inside it; ``split`` is train, query or gallery; ``pid`` and ``camid`` are any labels; ``pid`` -1 marks junk;
times are ISO 8601 with a zone, for every row or for none.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import TextIO

from domains.domain import SPLITS, Domain, from_rows
from domains.errors import DataError
from domains.formats.listing import Fence

NAME = "csv"
DESCRIPTION = "domain.csv with the columns path,pid,camid,split and optionally time"

FILE = "domain.csv"
COLUMNS = ("path", "pid", "camid", "split")
TIME = "time"
JUNK_LABEL = "-1"
MAX_BYTES = 512 * 2**20
MAX_LABEL = 200
MAX_PATH = 1000


def recognise(root: Path) -> bool:
    """Whether ``domain.csv`` is there."""
    return (root / FILE).is_file()


def read(root: Path, name: str) -> Domain:
    """Read the table.

    Raises:
        DataError: the file is too large, not UTF-8, empty or lacks a column; a row is too short, repeated, or has an
            unknown split, a bad label or time, or a path that is absolute, leads out of the folder or to something
            other than a file. The message names the line.
    """
    file = root / FILE
    rows: list[tuple[str, str, str | None, str]] = []
    times: list[str] = []
    fence = Fence(root)
    seen: dict[tuple[str, str], int] = {}
    fence.check(FILE, str(root))
    for line, values in _records(file):
        where = f"{file}, line {line}"
        path = _path(values["path"], where)
        fence.check(path, where)
        if values["split"] not in SPLITS:
            raise DataError(
                f"{where}: unknown split {values['split'][:40]!r}{_nearest(values['split'], SPLITS)}; it must be "
                "train, query or gallery"
            )
        if (before := seen.setdefault((values["split"], path), line)) != line:
            raise DataError(
                f"{where}: {path} is already listed in {values['split']} on line {before}; remove one of the two"
            )
        person, camera = _label(values["pid"], "pid", where), _label(values["camid"], "camid", where)
        rows.append((values["split"], path, None if person == JUNK_LABEL else person, camera))
        if TIME in values:
            times.append(_time(values[TIME], where))
    if not rows:
        raise DataError(f"{file} has no rows below its header; list one crop per line")
    if any(times) and not all(times):
        raise DataError(
            f"{file}: {sum(not time for time in times)} of {len(times)} rows have no time; give one to every row, or "
            "to none"
        )
    return from_rows(name, root, NAME, rows, times=times if any(times) else ())


def _records(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise DataError(f"{file} is larger than {MAX_BYTES // 2**20} MiB; split the domain")
        with closing(file.open(encoding="utf-8-sig", newline="")) as stream:
            yield from _rows(stream, file)
    except OSError as error:
        raise DataError(f"can't read {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text; save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{file} is not a CSV file: {error}") from error


def _rows(stream: TextIO, file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.reader(stream, strict=True)
    header = [column.strip() for column in next(reader, [])]
    if not header:
        raise DataError(f"{file} is empty; its first line must be {','.join(COLUMNS)}")
    for column in COLUMNS:
        if column not in header:
            others = [other for other in header if other not in COLUMNS]
            raise DataError(
                f"{file} has no column {column!r}{_nearest(column, others)}; found {', '.join(map(repr, header[:12]))}"
            )
    if twice := sorted({column for column in header if column in (*COLUMNS, TIME) and header.count(column) > 1}):
        raise DataError(f"{file} has the column {twice[0]!r} twice; remove one")
    positions = {column: header.index(column) for column in (*COLUMNS, TIME) if column in header}
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            raise DataError(
                f"{file}, line {reader.line_num}: {len(row)} values for {len(header)} columns; quote values that "
                "contain a comma"
            )
        yield reader.line_num, {column: row[at].strip() for column, at in positions.items()}


def _path(text: str, where: str) -> str:
    path = PurePosixPath(text)
    if not text or len(text) > MAX_PATH or not text.isprintable():
        raise DataError(f"{where}: {text[:80]!a} is not a path of at most {MAX_PATH} printable characters")
    if path.is_absolute() or ".." in path.parts or "\\" in text or (len(text) > 1 and text[1] == ":"):
        raise DataError(
            f"{where}: {text[:120]!r} must be relative to the domain's folder, with / between its parts and no .."
        )
    if str(path) == ".":
        raise DataError(f"{where}: {text[:120]!r} does not name a file")
    return str(path)


def _label(text: str, column: str, where: str) -> str:
    if not text or len(text) > MAX_LABEL or not text.isprintable():
        raise DataError(f"{where}: {column} must be 1 to {MAX_LABEL} printable characters, got {text[:40]!a}")
    return text


def _time(text: str, where: str) -> str:
    if not text:
        return ""
    try:
        zone = datetime.fromisoformat(text).tzinfo
    except ValueError:
        zone = None
    if zone is None:
        raise DataError(
            f"{where}: the time {text[:40]!r} must be ISO 8601 with a zone, such as 2026-03-01T08:30:00+01:00"
        )
    return text


def _nearest(text: str, among: tuple[str, ...] | list[str]) -> str:
    lowered = {other.lower(): other for other in among}
    close = get_close_matches(text.lower(), list(lowered), 1, 0.4)
    return f" (did you mean {lowered[close[0]]!r}?)" if close else ""
