"""Every JSON that the service sends: compact, and without a character that a terminal would obey."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from domains.text import json_text


def encoded(content: Any) -> bytes:
    """Encode plain values; raises ValueError for a number that JSON does not know."""
    return json_text(content, compact=True).encode()


class JsonAnswer(JSONResponse):
    """An answer in JSON; labels, cameras and sources read back as they are, but no raw byte of them does harm."""

    def render(self, content: Any) -> bytes:
        """Encode the content."""
        return encoded(content)
