"""JSON lines on stderr. They say what was done and how long it took; never whom a request was about: no label, source, image or query string."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Any

log = logging.getLogger("deploy.service")


class JsonFormatter(logging.Formatter):
    """One JSON object a line. Of an exception it writes the type and the places in the code, not the message, which may quote what was sent."""

    def format(self, record: logging.LogRecord) -> str:
        """Render a record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = type(record.exc_info[1]).__name__
            line["at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(record.exc_info[2])]
        return json.dumps(line, ensure_ascii=False, default=str)


def write_log(level: int, event: str, /, *, exception: BaseException | None = None, **fields: Any) -> None:
    """Write an event with its fields."""
    log.log(level, event, extra={"fields": fields}, exc_info=exception)


def log_as_json(level: int = logging.INFO) -> None:
    """Send this package's and uvicorn's logs to stderr as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    for name in ("deploy", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [] if name == "uvicorn.error" else [handler]
        logger.propagate = name == "uvicorn.error"
        logger.setLevel(level)
    access = logging.getLogger("uvicorn.access")  # it writes whole addresses; the gate writes one line per request instead
    access.handlers, access.propagate = [], False
