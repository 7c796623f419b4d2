"""What every request passes before any of it is read: host, token, scope, rate, a place in the queue, and room for its
body.

It is plain ASGI around the application, because a web framework reads a body before it asks who sent it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from deploy.service.access import ANY, METHODS, OPEN, OTHER, Route, find_route
from deploy.service.json_answer import encoded
from deploy.service.logs import write_log
from deploy.service.metrics import Metrics
from deploy.service.rate import RateLimit
from deploy.service.refusal import RefusedError
from deploy.service.settings import Settings
from deploy.service.tokens import SCOPES, Tokens
from domains.errors import ReidError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
SMALL_BODY = 64 * 2**10
"""Most bytes that a route without images reads."""

LARGEST_HEAD = 32 * 2**10
"""Most bytes of method, path, query string and headers."""

_LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1")
_DRAINED = 2**20
_DRAIN_SECONDS = 1.0


@dataclass(frozen=True)
class Caller:
    """Who sent a request: the token's name and id (``local`` and empty where no token is required), and the request's
    own id.
    """

    name: str
    token: str
    scopes: tuple[str, ...]
    request: str


class Gate:
    """The outermost layer of the application."""

    def __init__(self, app: Application, settings: Settings, metrics: Metrics) -> None:
        """Wrap ``app``."""
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._tokens = Tokens(settings.tokens) if settings.tokens else None
        self.rate = RateLimit(settings.rate)
        self._working = 0
        self._buffered = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _Exchange(self, scope, receive, send).run()

    def admit(self, scope: MutableMapping[str, Any], headers: dict[str, str], route: Route, request: str) -> Caller:
        """Identify the caller; raises RefusedError if they may not do this, or not now."""
        if self._tokens is None:
            self._check_host(headers)
            caller = Caller("local", "", SCOPES, request)
        elif route.access == OPEN:
            return Caller("", "", (), request)
        else:
            caller = self._check_token(headers, request)
        if route.access not in (OPEN, ANY) and route.access not in caller.scopes:
            raise RefusedError(
                "forbidden",
                f"this needs a token with the scope {route.access}; this one has {', '.join(caller.scopes) or 'none'}",
            )
        if route.access != OPEN and (wait := self.rate.take(caller.token or "local")):
            raise RefusedError(
                "rate_limited",
                f"more than {self._settings.rate:g} requests per second; wait and try again",
                wait=int(wait) + 1,
            )
        return caller

    def enter(self) -> None:
        """Take a place in the queue; raises RefusedError if it is full."""
        if self._working >= self._settings.queue:
            raise RefusedError("busy", f"{self._working} requests are already being answered; try again in a moment")
        self._working += 1
        self._metrics.queue.set(self._working)

    def leave(self) -> None:
        """Give the place back."""
        self._working -= 1
        self._metrics.queue.set(self._working)

    def hold(self, count: int) -> None:
        """Make room for bytes of a body; raises RefusedError if all bodies together would be too large. Negative: give
        room back.
        """
        if count > 0 and self._buffered + count > self._settings.max_buffered_bytes:
            raise RefusedError("busy", "too many large requests are already being read; try again in a moment")
        self._buffered += count
        self._metrics.buffered.set(self._buffered)

    def _check_token(self, headers: dict[str, str], request: str) -> Caller:
        scheme, _, text = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise RefusedError(
                "unauthorized", "send a token made by reid token make, in the header Authorization: Bearer …"
            )
        try:
            token = self._tokens.find(text.strip()) if self._tokens else None
        except ReidError as error:
            write_log(logging.ERROR, "the file of tokens can't be used", reason=str(error))
            raise RefusedError("not_ready", "the service can't read its tokens; its log says why") from error
        if token is None:
            raise RefusedError(
                "unauthorized", "this token is unknown, revoked or expired; make another with reid token make"
            )
        return Caller(token.name, token.id, token.scopes, request)

    def _check_host(self, headers: dict[str, str]) -> None:
        """Refuse foreign web pages: without tokens anyone who reaches the port is let in, but a page in a local browser
        must not be (DNS rebinding, forged forms).
        """
        host = headers.get("host", "")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name.lower() not in (*_LOCAL, *(known.lower() for known in self._settings.hosts)):
            raise RefusedError(
                "foreign_host",
                f"this service answers to localhost only, not to {name!r:.80}; allow others with --allow-host",
            )
        origin = headers.get("origin")
        if (origin is not None and origin.partition("://")[2] != host) or headers.get("sec-fetch-site", "none") not in (
            "none",
            "same-origin",
        ):
            raise RefusedError("foreign_host", "a page of another site may not use this service")


class _Exchange:
    """One request and its answer."""

    def __init__(self, gate: Gate, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        self._gate, self._receive, self._send = gate, receive, send
        self._scope = {**scope}  # the server goes by its own
        self._bodyless = scope["method"] == "HEAD"
        self._settings, self._metrics = gate._settings, gate._metrics
        self._headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        self._id = secrets.token_hex(8)
        self._status = 0
        self._read = self._reserved = 0
        self._limit = SMALL_BODY
        self._finished = False
        self._deadline = 0.0

    async def run(self) -> None:
        start = time.monotonic()
        method, path, route = self._scope["method"], self._scope["path"], OTHER
        caller, code, entered = None, None, False
        spelled = self._scope.get("raw_path") or path.encode("utf-8", "surrogatepass")
        try:
            self._check_head(len(method) + len(spelled))
            route, path = find_route(method, path, spelled)
            # What the router sees is what was decided on.
            self._scope.update(method="GET" if method == "HEAD" else method, path=path, raw_path=path.encode())
            caller = self._gate.admit(self._scope, self._headers, route, self._id)
            if route.work:
                self._gate.enter()
                entered = True
                self._limit = self._settings.max_body_bytes if method == "POST" else SMALL_BODY
            self._expect_body()
            self._deadline = start + self._settings.body_timeout
            self._scope["caller"] = caller
            async with asyncio.timeout(self._settings.timeout):
                await self._gate._app(self._scope, self._bounded, self._watched)
            code = self._scope.get("refused")
        except RefusedError as refused:
            code = await self._refuse(refused)
        except TimeoutError:
            code = await self._refuse(
                RefusedError("timeout", f"this took longer than {self._settings.timeout:g} s; try again")
            )
        except Exception as error:  # the application has answered with 500 where it still could
            write_log(logging.ERROR, "a request failed", exception=error, request=self._id, route=route.name)
            code = await self._refuse(
                RefusedError(
                    "internal", f"this is a bug in lifelong-reid; the service's log has it as request {self._id}"
                )
            )
        finally:
            if entered:
                self._gate.leave()
            self._gate.hold(-self._reserved)
            self._note(route, method, caller, code, time.monotonic() - start)

    def _check_head(self, first: int) -> None:
        """Refuse a head that is too large, whatever is asked for; ``first``: bytes of its method and path."""
        head = first + len(self._scope["query_string"])
        head += sum(len(key) + len(value) for key, value in self._scope["headers"])
        if head > LARGEST_HEAD:
            raise RefusedError("too_large", f"the request's head has {head} bytes, at most {LARGEST_HEAD} are accepted")

    def _expect_body(self) -> None:
        """Make room for the body that the request announces."""
        announced = self._headers.get("content-length", "0")
        length = int(announced) if announced.isascii() and announced.isdigit() and len(announced) < 16 else 0
        if length > self._limit:
            raise RefusedError("too_large", f"the request has {length} bytes, at most {self._limit} are accepted")
        self._gate.hold(length)
        self._reserved = length

    async def _bounded(self) -> Message:
        """Receive from the client, but no more than the limit and no later than the deadline."""
        if self._finished:  # only a disconnect can follow, and the application may wait for it
            return await self._receive()
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise RefusedError(
                "slow_client", f"the request did not arrive within {self._settings.body_timeout:g} s"
            ) from None
        if message["type"] == "http.disconnect":
            raise RefusedError("slow_client", "the client disconnected before its request had arrived")
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            self._finished = not message.get("more_body", False)
            if self._read > self._limit:
                raise RefusedError("too_large", f"the request has more than the {self._limit} bytes that are accepted")
            if self._read > self._reserved:
                self._gate.hold(self._read - self._reserved)
                self._reserved = self._read
        return message

    async def _watched(self, message: Message) -> None:
        """Send to the client, with the headers that every answer gets."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            have = {key.lower() for key, _ in message["headers"]}
            extra = {**SECURITY, "x-request-id": self._id}
            if self._unread():
                await self._drain()
                extra |= {"connection": "close"} if self._unread() else {}
            message["headers"] = [
                *message["headers"],
                *((key.encode(), value.encode()) for key, value in extra.items() if key.encode() not in have),
            ]
        elif self._bodyless and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await self._send(message)

    async def _refuse(self, refused: RefusedError) -> str:
        """Send an error, unless an answer has already started and can only be ended."""
        if not self._status:
            body = encoded(refused.body())
            headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
            start = {
                "type": "http.response.start",
                "status": refused.status,
                "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
            }
            await self._watched(start)
            await self._watched({"type": "http.response.body", "body": body})
        return refused.code

    def _unread(self) -> bool:
        """Whether the client may still be sending."""
        return not self._finished and (
            self._headers.get("content-length", "0") != "0" or "transfer-encoding" in self._headers
        )

    async def _drain(self) -> None:
        """Keep reading for a moment, so that a client that listens only after sending everything gets the answer."""
        read = 0
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while read < _DRAINED and not self._finished:
                    message = await self._receive()
                    read += len(message.get("body", b""))
                    self._finished = message["type"] != "http.request" or not message.get("more_body", False)
        except TimeoutError:
            return

    def _note(self, route: Route, method: str, caller: Caller | None, code: str | None, seconds: float) -> None:
        self._metrics.requests.labels(route.name, str(self._status)).inc()
        if code:
            self._metrics.rejections.labels(code).inc()
        self._metrics.seconds.labels(route.name).observe(seconds)
        level = logging.DEBUG if route.name in ("livez", "readyz", "metrics") and self._status < 400 else logging.INFO
        fields: dict[str, Any] = {
            "request": self._id,
            "method": method if method in METHODS else OTHER.name,
            "route": route.name,
            "status": self._status,
            "ms": round(1000 * seconds, 1),
        }
        fields |= {"bytes": self._read} if self._read else {}
        fields |= {"token": caller.name} if caller and caller.name else {}
        fields |= {"code": code} if code else {}
        write_log(level, "request", **fields)
