"""How long people take from one camera to another, as an operator knows it: a prior that appearance does not give.

A file of windows, CSV or YAML:

.. code-block:: text

    from,to,min,max          - {from: gate, to: yard, min: 20, max: 600}
    gate,yard,20,600         - {from: yard, to: gate, min: 20}
    yard,gate,20,

CSV is read as :mod:`domains.formats.records` says. ``min`` and ``max`` are seconds; an empty or missing ``min`` is 0,
an empty or missing ``max`` no limit. A window
applies in its direction only. Several windows of one pair are alternatives. What is unknown never counts against a
match: a pair of cameras without a window, or an entry without a time, is neither possible nor impossible.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from deploy.match import Match
from deploy.store.entry import instant
from domains import plainyaml
from domains.errors import DataError
from domains.formats.records import Columns, read_records
from domains.text import shown

COLUMNS = ("from", "to", "min", "max")
MAX_BYTES = 2**18
SECOND = 10**6


@dataclass(frozen=True)
class Sighting:
    """Where and when the query was taken.

    Attributes:
        camera: the camera's name.
        time: ISO 8601 with zone.
    """

    camera: str
    time: str

    def __post_init__(self) -> None:
        """Check the time; raises GalleryError."""
        instant(self.time)


@dataclass(frozen=True)
class Transitions:
    """Windows in seconds, ``(least, most)``, by pair of cameras in the order in which a person passes them."""

    windows: Mapping[tuple[str, str], tuple[tuple[float, float], ...]]

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Transitions:
        """Read a file, YAML if its suffix says so and CSV otherwise; raises DataError that says where the fault is."""
        file = Path(path)
        try:
            size = file.stat().st_size
        except OSError as error:
            raise DataError(f"can't read {file}: {error.strerror or error}") from error
        if size > MAX_BYTES:
            raise DataError(
                f"{file} is larger than {MAX_BYTES // 2**10} KiB; it should hold one line per pair of cameras"
            )
        windows: dict[tuple[str, str], tuple[tuple[float, float], ...]] = {}
        for location, row in (_yaml_rows if file.suffix.lower() in (".yaml", ".yml") else _csv_rows)(file):
            pair, window = _window(row, location)
            windows[pair] = (*windows.get(pair, ()), window)
        if not windows:
            raise DataError(f"{file} lists no windows; give at least one line of {','.join(COLUMNS)}")
        return cls(windows)

    def possible(self, seen: Sighting, match: Match) -> bool | None:
        """Whether one person can have been in both places; None where that is unknown.

        The match may be before or after the sighting. At the very same moment, windows of both directions apply.
        """
        if match.time is None:
            return None
        gap = (instant(match.time) - instant(seen.time)) / SECOND
        pairs = {(seen.camera, match.camera)} if gap > 0 else {(match.camera, seen.camera)}
        if gap == 0:
            pairs.add((seen.camera, match.camera))
        windows = [window for pair in pairs for window in self.windows.get(pair, ())]
        return any(least <= abs(gap) <= most for least, most in windows) if windows else None


def _csv_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    unread: list[str] = []
    rows = list(read_records(file, Columns(("from", "to"), ("min", "max")), unread))
    if unread:  # a limit under another name would count as none
        raise DataError(f"{unread[0]}; rename or remove them")
    yield from rows


def _yaml_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        rows = plainyaml.load(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"can't read {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except ValueError as error:
        raise DataError(f"{file} is not valid YAML: {shown(str(error)):.200}") from error
    if not isinstance(rows, list):
        raise DataError(f"{file} must be a list of windows with {', '.join(COLUMNS)}, got {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        location = f"{file}, window {number}"
        if not isinstance(row, dict) or not {"from", "to"} <= set(row) <= set(COLUMNS):
            raise DataError(f"{location} must have from and to, and may have min and max, got {row!r:.150}")
        yield location, row


def _window(row: Mapping[str, Any], location: str) -> tuple[tuple[str, str], tuple[float, float]]:
    cameras = []
    for name in ("from", "to"):
        if isinstance(row[name], (bool, float)) or not str(row[name] or "").strip():
            raise DataError(f"{location}: {name} must be a camera's name, got {row[name]!r:.80}; put it in quotes")
        cameras.append(str(row[name]))
    seconds = []
    for name, default in (("min", 0.0), ("max", math.inf)):
        value = row.get(name)
        try:
            number = default if value is None or value == "" else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(value, bool) or not number >= 0 or (math.isinf(number) and value not in (None, "")):
            raise DataError(f"{location}: {name} must be a number of seconds, 0 or more, got {value!r:.80}")
        seconds.append(number)
    if seconds[0] > seconds[1]:
        raise DataError(f"{location}: min {seconds[0]:g} is greater than max {seconds[1]:g}")
    return (cameras[0], cameras[1]), (seconds[0], seconds[1])
