"""JSON lines on stderr. They say what was done and how long it took; never whom a request was about: no label, source,
image or query string.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from domains.text import json_text

EVERY_SECONDS = 1.0
"""How often the same warning or error is written at most."""
MOST_KINDS = 256
"""Kinds of warnings and errors told apart within that time; beyond them a logger has one per level."""

log = logging.getLogger("deploy.service")
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")


class JsonFormatter(logging.Formatter):
    """One JSON object per line, without a character that a terminal would obey.

    Of an exception it writes the type and the places in the code, not the message, which may quote what was sent.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Render a record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if suppressed := getattr(record, "suppressed", 0):
            line["suppressed"] = suppressed
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = type(record.exc_info[1]).__name__
            line["at"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(record.exc_info[2])
            ]
        return json_text(line, default=str, allow_nan=True)


class CalmHandler(logging.StreamHandler[TextIO]):
    """Writes each warning or error at most once a second, so that whoever can cause one can't fill the disk with it.

    Of those that repeat within a second, the last is written, with how many more were ``suppressed``.
    """

    def __init__(self) -> None:
        """Write to stderr."""
        super().__init__()
        self._recent: dict[str, _Repeats] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record unless one like it was written within the last second."""
        self._tell()
        if record.levelno >= logging.WARNING:
            now = time.monotonic()
            key = _likeness(record) if len(self._recent) < MOST_KINDS else f"{record.name} {record.levelno}"
            if repeats := self._recent.get(key):
                repeats.count, repeats.last = repeats.count + 1, record
                return
            self._recent[key] = _Repeats(now)
        super().emit(record)

    def tell(self) -> None:
        """Write what was held back for over a second."""
        self.acquire()
        try:
            self._tell()
        finally:
            self.release()

    def close(self) -> None:
        """Write what was held back, and close."""
        self._tell(at_once=True)
        super().close()

    def _tell(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        for key, repeats in list(self._recent.items()):
            if now - repeats.since < EVERY_SECONDS and not at_once:
                continue
            if repeats.last is None:
                del self._recent[key]
                continue
            repeats.last.__dict__["suppressed"] = repeats.count - 1
            super().emit(repeats.last)
            self._recent[key] = _Repeats(now)


@dataclass
class _Repeats:
    """When a line was last written, and what like it has come since."""

    since: float
    count: int = 0
    last: logging.LogRecord | None = None


def _likeness(record: logging.LogRecord) -> str:
    """What two records that say the same share: all but numbers, addresses and the lines after the first."""
    text = _NUMBER.sub("#", str(record.msg).partition("\n")[0][:200])
    error = record.exc_info[1] if record.exc_info else None
    place = traceback.extract_tb(record.exc_info[2])[-1:] if record.exc_info else []
    where = [f"{frame.filename}:{frame.lineno}" for frame in place]
    return f"{record.name} {record.levelno} {text} {type(error).__name__} {where}"


def write_log(level: int, event: str, /, *, exception: BaseException | None = None, **fields: Any) -> None:
    """Write an event with its fields."""
    log.log(level, event, extra={"fields": fields}, exc_info=exception)


def log_as_json(level: int = logging.INFO) -> None:
    """Send all logs of this process to stderr as JSON lines."""
    handler = CalmHandler()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for name in ("deploy", "uvicorn"):
        logging.getLogger(name).setLevel(level)
    # The first logs whole addresses, where the gate writes its own line; the second complains about every broken form,
    # which the client is told anyway.
    for name in ("uvicorn.access", "python_multipart"):
        logging.getLogger(name).disabled = True


def tell_suppressed() -> None:
    """Write what was held back; for a process that may have nothing else to log."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, CalmHandler):
            handler.tell()
