"""What goes wrong with a request, as a client sees it: a status, a code for programs and a message for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from domains.errors import ReidError
from domains.text import shown

CODES = {
    "invalid": 422,
    "unauthorized": 401,
    "forbidden": 403,
    "foreign_host": 421,
    "not_found": 404,
    "method_not_allowed": 405,
    "slow_client": 408,
    "conflict": 409,
    "too_large": 413,
    "too_many_pixels": 413,
    "unsupported_image": 415,
    "unsupported_body": 415,
    "damaged_image": 422,
    "rate_limited": 429,
    "internal": 500,
    "busy": 503,
    "not_ready": 503,
    "timeout": 503,
    "gallery": 503,
    "audit": 503,
}
"""Every code that a client can receive, with its HTTP status."""

UNAVAILABLE = 503


class RefusedError(ReidError):
    """A request that is refused.

    Attributes:
        code: one of :data:`CODES`.
        wait: seconds after which to try again, or ``None``.
        allow: methods that the path accepts, where another was used.
    """

    def __init__(self, code: str, message: str, *, wait: int | None = None, allow: Sequence[str] = ()) -> None:
        """Say what was wrong, what was found and what to do; what it quotes is written as :func:`shown` writes it."""
        super().__init__(shown(message))
        self.code = code
        self.wait = wait if wait is not None or self.status != UNAVAILABLE else 1
        self.allow = tuple(allow)

    @property
    def status(self) -> int:
        """HTTP status."""
        return CODES[self.code]

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that go with it."""
        headers = {} if self.wait is None else {"retry-after": str(self.wait)}
        headers |= {"allow": ", ".join(self.allow)} if self.allow else {}
        return headers | ({"www-authenticate": "Bearer"} if self.code == "unauthorized" else {})

    def body(self) -> dict[str, Any]:
        """Plain values for JSON, in the shape that every error has."""
        return {"error": {"code": self.code, "message": str(self)}}
