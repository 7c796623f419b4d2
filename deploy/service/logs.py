"""JSON lines on stderr. They say what was done and how long it took; never whom a request was about: no label, source,
image or query string.
"""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Any

log = logging.getLogger("deploy.service")


class JsonFormatter(logging.Formatter):
    """One JSON object per line. Of an exception it writes the type and the places in the code, not the message, which
    may quote what was sent.
    """

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
            line["at"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(record.exc_info[2])
            ]
        return json.dumps(line, ensure_ascii=False, default=str)


def write_log(level: int, event: str, /, *, exception: BaseException | None = None, **fields: Any) -> None:
    """Write an event with its fields."""
    log.log(level, event, extra={"fields": fields}, exc_info=exception)


def log_as_json(level: int = logging.INFO) -> None:
    """Send all logs of this process to stderr as JSON lines."""
    handler = logging.StreamHandler()
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
