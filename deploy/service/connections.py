"""The connections of a service: how many there may be, how long they may be silent, and who makes room for a newcomer.

asyncio's own server accepts whatever comes: when descriptors run out it logs thousands of lines a second, and a TLS
handshake may take a minute. Here sockets are accepted one by one, as many as leave descriptors for the gallery, the
audit log, the index and uploads; when there are more, the connection that has waited longest for its client is ended.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
import ssl
from collections.abc import Callable
from functools import partial

from uvicorn.protocols.http.h11_impl import H11Protocol

from deploy.service.logs import tell_suppressed, write_log
from domains.errors import DeviceError

MAX_CONNECTIONS = 1024
FEWEST = 16
"""A service with room for fewer connections does not start."""
RESERVED = 96
"""Descriptors kept for everything else: a gallery and its audit log hold about a dozen, an erasure or an upgrade as
many again, CUDA some fifty.
"""

HEADER_SECONDS = 10.0
"""How long a client may take for a TLS handshake, and again to send a request's head."""
READ_SECONDS = 30.0
"""How long a client may leave unread what it was sent, whether its connection is being closed or not."""
PAUSE_SECONDS = 1.0
"""How long nothing is accepted after the system had no descriptor, or no memory, for another connection."""
TOGETHER = 64
"""Most connections accepted in one turn of the event loop."""

_LEFT = (
    errno.ECONNABORTED,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
)
"""Errors of ``accept`` that concern one client, which is gone; the next may be accepted at once."""


def most_connections() -> int:
    """How many connections there may be: 1,024, or what the soft limit of open files leaves.

    Raises:
        DeviceError: the limit leaves too few.
    """
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    taken = sum(map(_is_open, range(min(soft, 4096))))
    room = soft - taken - RESERVED
    if room < min(FEWEST, MAX_CONNECTIONS):
        raise DeviceError(
            f"at most {soft} files may be open at once, and {taken + RESERVED} of them are needed without any "
            f"connection; allow at least {taken + RESERVED + FEWEST} (ulimit -n, or LimitNOFILE= of the unit)"
        )
    return min(MAX_CONNECTIONS, room)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError as error:
        return error.errno != errno.EBADF
    return True


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that does not wait for ever for a request's head, and tells its acceptor when it waits."""

    acceptor: Acceptor
    unread = False
    """Whether the client leaves so much of an answer unread that no more can be sent."""
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it, and wait for a head."""
        super().connection_made(transport)
        self.acceptor.opened(self)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Read; the time for a head runs from its first byte, or from the connection's start."""
        super().data_received(data)
        if self._is_answering():
            self._stop_waiting()
        elif self._waiting is None:
            self._await_head()
        self._tell_acceptor()

    def on_response_complete(self) -> None:
        """Wait for the next head, behind the connections that waited before."""
        super().on_response_complete()
        self.acceptor.works(self)
        self._tell_acceptor()

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self.unread = True
        self._tell_acceptor()

    def resume_writing(self) -> None:
        """Go on answering."""
        super().resume_writing()
        self.unread = False
        self._tell_acceptor()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no longer."""
        self._stop_waiting()
        super().connection_lost(exc)
        self.acceptor.lost(self)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _tell_acceptor(self) -> None:
        """Say whether it is now the client's turn, to send a head or to read an answer."""
        if self._is_answering() and not self.unread:
            self.acceptor.works(self)
        else:
            self.acceptor.waits(self)

    def _await_head(self) -> None:
        self._waiting = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        if not self._is_answering():
            self.transport.close()


class Acceptor:
    """Accepts the connections of one listening socket."""

    def __init__(
        self, listener: socket.socket, make: Callable[[], PatientProtocol], tls: ssl.SSLContext | None, most: int
    ) -> None:
        """Prepare; :meth:`start` accepts.

        Args:
            listener: the listening socket.
            make: makes the protocol of a connection.
            tls: certificates for HTTPS; None for HTTP.
            most: how many connections there may be.
        """
        self._listener, self._make, self._tls, self._most = listener, make, tls, most
        self._opening: dict[PatientProtocol, socket.socket] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[PatientProtocol] = set()
        self._waiting: dict[PatientProtocol, None] = {}
        """Those that wait for their client, in the order in which they began to."""
        self._stuck: dict[PatientProtocol, float] = {}
        self._paused: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Accept from now on."""
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)
        self._tidy()

    def stop(self) -> None:
        """Accept nothing more; connections that are open stay open."""
        self._loop.remove_reader(self._listener)
        if self._paused:
            self._paused.cancel()
        for client in self._opening.values():
            _hang_up(client)

    def opened(self, protocol: PatientProtocol) -> None:
        """Count a connection as open: a TLS handshake, if it needed one, is done."""
        self._opening.pop(protocol, None)
        self._open.add(protocol)

    def lost(self, protocol: PatientProtocol) -> None:
        """Forget a connection that was closed."""
        self._open.discard(protocol)
        self._waiting.pop(protocol, None)

    def waits(self, protocol: PatientProtocol) -> None:
        """Note that a connection waits for its client, since now if it did not before."""
        if protocol in self._open:
            self._waiting.setdefault(protocol)

    def works(self, protocol: PatientProtocol) -> None:
        """Note that a connection does not wait for its client."""
        self._waiting.pop(protocol, None)

    def _accept(self) -> None:
        for _ in range(TOGETHER):
            full = len(self._opening) + len(self._open) >= self._most
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _LEFT:
                    continue
                self._pause(error)
                return
            if full and not self._make_room():
                client.close()
                continue
            protocol = self._make()
            protocol.acceptor = self
            self._waiting[protocol] = None
            self._opening[protocol] = client
            task = self._loop.create_task(self._take(client, protocol))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            if full:  # the descriptor of the connection that made room is closed in the loop's next turns
                return

    async def _take(self, client: socket.socket, protocol: PatientProtocol) -> None:
        connect = partial(self._loop.connect_accepted_socket, lambda: protocol, client)
        if self._tls is not None:
            connect = partial(
                connect, ssl=self._tls, ssl_handshake_timeout=HEADER_SECONDS, ssl_shutdown_timeout=READ_SECONDS
            )
        try:
            await connect()
        except OSError as error:  # the client left, or did not speak TLS, or not in time
            write_log(logging.DEBUG, "a connection was not made", reason=type(error).__name__)
        finally:
            if self._opening.pop(protocol, None):
                self._waiting.pop(protocol, None)

    def _make_room(self) -> bool:
        """End the connection that has waited longest for its client; returns False if none waits."""
        write_log(
            logging.WARNING,
            "there are as many connections as there may be; the one that has waited longest for its client is ended",
            connections=self._most,
        )
        protocol = next(iter(self._waiting), None)
        if protocol is None:
            return False
        del self._waiting[protocol]
        if client := self._opening.get(protocol):
            _hang_up(client)
        else:
            protocol.transport.abort()
        return True

    def _pause(self, error: OSError) -> None:
        """Stop accepting for a moment: a socket that can't be accepted would wake the loop again at once."""
        write_log(
            logging.ERROR,
            "no connection can be accepted for now",
            reason=error.strerror or str(error),
            connections=len(self._opening) + len(self._open),
        )
        self._loop.remove_reader(self._listener)
        self._paused = self._loop.call_later(PAUSE_SECONDS, lambda: self._loop.add_reader(self._listener, self._accept))

    def _tidy(self) -> None:
        """Once a second: end connections whose client does not read what it was sent."""
        now = self._loop.time()
        stuck = [protocol for protocol in self._open if protocol.unread or protocol.transport.is_closing()]
        self._stuck = {protocol: self._stuck.get(protocol, now) for protocol in stuck}
        for protocol, since in self._stuck.items():
            if now - since >= READ_SECONDS:
                protocol.transport.abort()
        tell_suppressed()
        self._loop.call_later(1.0, self._tidy)


def _hang_up(client: socket.socket) -> None:
    """End a connection that is being opened: at whatever point it is, the next thing that is read is its end. asyncio
    can't be told to close it: it ignores that before a handshake has begun.
    """
    try:
        client.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        if error.errno != errno.ENOTCONN:  # otherwise the client has left, which is read as well
            raise
