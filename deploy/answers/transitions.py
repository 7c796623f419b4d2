"""How long people take from one camera to another, as an operator knows it: a prior that looks do not give.

A file of windows, CSV or YAML:

.. code-block:: text

    from,to,min,max          - {from: gate, to: yard, min: 20, max: 600}
    gate,yard,20,600         - {from: yard, to: gate, min: 20}
    yard,gate,20,

``min`` and ``max`` are seconds; an empty or missing ``min`` is 0, an empty or missing ``max`` no limit. A window holds
in its direction alone. Several windows of one pair mean any of them. What is not known never speaks against a match: a
pair of cameras without a window, or an entry without a time, is neither possible nor impossible.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from deploy.match import Match
from deploy.store.entry import instant
from domains.errors import DataError

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
    """Windows in seconds, ``(least, most)``, by pair of cameras in the order in which somebody passes them."""

    windows: Mapping[tuple[str, str], tuple[tuple[float, float], ...]]

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Transitions:
        """Read a file, YAML by its suffix and else CSV; raises DataError with the place of what is wrong."""
        file = Path(path)
        try:
            with file.open("rb") as stream:
                data = stream.read(MAX_BYTES + 1)
            text = data.decode("utf-8-sig")
        except OSError as error:
            raise DataError(f"can't read {file}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
        if len(data) > MAX_BYTES:
            raise DataError(
                f"{file} is larger than {MAX_BYTES // 2**10} KiB; it should hold a line for each pair of cameras"
            )
        found: dict[tuple[str, str], tuple[tuple[float, float], ...]] = {}
        for place, row in (_yaml_rows if file.suffix.lower() in (".yaml", ".yml") else _csv_rows)(text, file):
            pair, window = _window(row, place)
            found[pair] = (*found.get(pair, ()), window)
        if not found:
            raise DataError(f"{file} lists no window; give at least one line of {','.join(COLUMNS)}")
        return cls(found)

    def possible(self, seen: Sighting, match: Match) -> bool | None:
        """Whether one person can have been at both places; None where that is not known.

        The match may be before or after the sighting. At the very same moment, windows of both directions are looked
        at.
        """
        if match.time is None:
            return None
        gap = (instant(match.time) - instant(seen.time)) / SECOND
        pairs = {(seen.camera, match.camera)} if gap > 0 else {(match.camera, seen.camera)}
        if gap == 0:
            pairs.add((seen.camera, match.camera))
        windows = [window for pair in pairs for window in self.windows.get(pair, ())]
        return any(least <= abs(gap) <= most for least, most in windows) if windows else None


def _csv_rows(text: str, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if sorted(names) != sorted(COLUMNS):
            raise DataError(
                f"{file} must have the columns {','.join(COLUMNS)}; its first line has {','.join(names)!r:.150}"
            )
        for values in reader:
            place = f"{file}, line {reader.line_num}"
            if values and len(values) != len(names):
                raise DataError(f"{place}: {len(values)} values for {len(names)} columns")
            if values:
                yield place, {name: value.strip() for name, value in zip(names, values, strict=True)}
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}") from error


def _yaml_rows(text: str, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        rows = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{file} is not valid YAML: {str(error).splitlines()[0]:.150}") from error
    if not isinstance(rows, list):
        raise DataError(f"{file} must be a list of windows with {', '.join(COLUMNS)}, got {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        place = f"{file}, window {number}"
        if not isinstance(row, dict) or not {"from", "to"} <= set(row) <= set(COLUMNS):
            raise DataError(f"{place} must have from and to, and may have min and max, got {row!r:.150}")
        yield place, row


def _window(row: Mapping[str, Any], place: str) -> tuple[tuple[str, str], tuple[float, float]]:
    cameras = []
    for name in ("from", "to"):
        if isinstance(row[name], (bool, float)) or not str(row[name] or "").strip():
            raise DataError(f"{place}: {name} must be a camera's name, got {row[name]!r:.80}; put it in quotes")
        cameras.append(str(row[name]))
    seconds = []
    for name, default in (("min", 0.0), ("max", math.inf)):
        value = row.get(name)
        try:
            number = default if value is None or value == "" else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(value, bool) or not number >= 0 or (math.isinf(number) and value not in (None, "")):
            raise DataError(f"{place}: {name} must be seconds from 0, got {value!r:.80}")
        seconds.append(number)
    if seconds[0] > seconds[1]:
        raise DataError(f"{place}: min {seconds[0]:g} is greater than max {seconds[1]:g}")
    return (cameras[0], cameras[1]), (seconds[0], seconds[1])
