"""``domain.csv``: one row per crop, for your own cameras; it wins over every other layout.

Columns ``path,pid,camid,split`` and optionally ``time``, in any order, with a header. A path is relative to the folder
and stays inside it; ``split`` is train, query or gallery; ``pid`` and ``camid`` are any labels; ``pid`` -1 marks junk;
times are ISO 8601 with a zone, for every row or for none.
"""

from __future__ import annotations

from datetime import datetime
from difflib import get_close_matches
from pathlib import Path

from domains.domain import SPLITS, Domain, from_rows
from domains.errors import DataError
from domains.formats.labels import is_junk
from domains.formats.listing import Fence
from domains.formats.records import Columns, path_below, read_records

NAME = "csv"
DESCRIPTION = "domain.csv with the columns path,pid,camid,split and optionally time"

FILE = "domain.csv"
TIME = "time"
COLUMNS = Columns(
    ("path", "pid", "camid", "split"),
    (TIME,),
    {
        "path": ("file", "filename", "file_name", "image", "img", "image_path", "img_path", "crop"),
        "pid": ("person", "person_id", "personid", "identity", "id", "label", "name", "track", "track_id"),
        "camid": ("cam", "cam_id", "camera", "camera_id", "cameraid"),
        "split": ("set", "subset", "fold", "partition", "role"),
        TIME: ("timestamp", "date", "datetime", "when"),
    },
)
MAX_LABEL = 200
_TRAIN_MORE = "no crops are set aside for validation here: call them train, or leave them out"
_ELSEWHERE = {
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), _TRAIN_MORE),
    "test": "a test set is in two parts here: what is asked is query, what is searched is gallery",
    "probe": "here it is called query",
    **dict.fromkeys(("reference", "database", "index"), "here it is called gallery"),
}
"""Splits as others call them, and what they are here."""


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
    notes: list[str] = []
    fence = Fence(root)
    seen: dict[tuple[str, str], str] = {}
    fence.check(FILE, str(root))
    for where, values in read_records(file, COLUMNS, notes):
        path, split = path_below(values["path"], where), values["split"]
        fence.check(path, where)
        if split not in SPLITS:
            raise DataError(
                f"{where}: unknown split {split[:40]!r}{_split_hint(split)}; it must be train, query or gallery"
            )
        if (before := seen.setdefault((split, path), where)) != where:
            line = before.rpartition(" ")[2]
            raise DataError(f"{where}: {path} is already listed in {split} on line {line}; remove one of the two")
        person, camera = _label(values["pid"], "pid", where), _label(values["camid"], "camid", where)
        rows.append((split, path, None if is_junk(person) else person, camera))
        if TIME in values:
            times.append(_time(values[TIME], where))
    if not rows:
        raise DataError(f"{file} has no rows below its header; list one crop per line")
    if any(times) and not all(times):
        raise DataError(
            f"{file}: {sum(not time for time in times)} of {len(times)} rows have no time; give one to every row, or "
            "to none"
        )
    return from_rows(name, root, NAME, rows, times=times if any(times) else (), notes=notes)


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


def _split_hint(text: str) -> str:
    if text.lower() in _ELSEWHERE:
        return f" ({_ELSEWHERE[text.lower()]})"
    close = get_close_matches(text.lower(), SPLITS, 1, 0.7)
    return f" (did you mean {close[0]!r}?)" if close else ""
