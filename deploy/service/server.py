"""From a gallery's folder to a listening server, and an orderly stop: what was started is finished, then the gallery is
closed.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from deploy.bundle import Bundle
from deploy.encoder import Encoder
from deploy.gallery import Gallery, open_or_create
from deploy.service.app import create_app
from deploy.service.connections import Acceptor, PatientProtocol, most_connections
from deploy.service.logs import log_as_json, write_log
from deploy.service.settings import Settings
from deploy.service.tokens import Tokens, default_file
from deploy.store.store import DATABASE
from domains.errors import ArtefactError, DeviceError, GalleryError, UsageError

GRACE_SECONDS = 40


@dataclass(frozen=True)
class Listening:
    """Where a service listens.

    Attributes:
        host: name or address.
        port: the port; 0 for any free one.
        cert: certificate chain, PEM; together with ``key`` it means HTTPS.
        key: its private key, PEM.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    cert: Path | None = None
    key: Path | None = None

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"


def find_tokens(listening: Listening, file: Path | None) -> Path | None:
    """The file of tokens to require; ``None`` where none was named and only this machine can reach the service.

    Raises:
        UsageError: the service would be open to other machines, or nobody could use it.
    """
    chosen = file or (default_file() if default_file().is_file() else None)
    how = f"make one with: reid token make --scope query --tokens {chosen or default_file()}"
    if chosen is None:
        if not listening.local:
            raise UsageError(
                f"refusing to listen on {listening.host} without tokens, as anyone there could query and erase; {how}"
            )
        return None
    if not any(not token.expired() for token in Tokens(chosen).all()):
        raise UsageError(f"{chosen} holds no valid token, so nobody could use the service; {how}")
    return chosen


def run_service(
    path: Path, listening: Listening, settings: Settings, *, bundle: Path | None = None, provider: str = "cpu"
) -> None:
    """Serve a gallery until SIGTERM or SIGINT, with its own bundle; a missing gallery is created for ``bundle``.

    Raises:
        UsageError: other machines could reach it without a token, or half of a TLS pair is missing.
        DeviceError: can't listen on the address, can't use the certificate, or too few files may be open.
        ReidError: gallery or bundle can't be used, or do not match.
    """
    if not listening.local and settings.tokens is None:
        raise UsageError(f"refusing to listen on {listening.host} without tokens; make one with reid token make")
    _check_tls(listening)
    most = most_connections()
    log_as_json()
    listener = _listen(listening)
    try:
        gallery, encoder = open_to_serve(path, bundle, provider)
        try:
            app = create_app(gallery, encoder, settings)
        except BaseException:
            gallery.close()
            raise
        _Server(_config(app, listening), most).run(sockets=[_announced(listener, listening, settings)])
    finally:
        listener.close()


def open_to_serve(path: Path, named: Path | None, provider: str) -> tuple[Gallery, Encoder]:
    """Open a gallery and load a bundle of its model; a missing gallery is created for the ``named`` bundle.

    The named bundle is used if it is from the gallery's model: its own, or the same model in another precision. A unit
    file or a container image names one bundle for ever, while the gallery is upgraded: a bundle from another model does
    not stop the gallery from being served with its own.

    Raises:
        UsageError: there is no gallery and no bundle was named.
        GalleryError: the gallery's own bundle can't be used, and the named one is not from its model.
        ReidError: the gallery, or the bundle to create it for, can't be used.
    """
    if named is not None and not (path / DATABASE).exists():
        encoder = Encoder.load(named, provider=provider)  # first, so that an unusable bundle creates no gallery
        return open_or_create(path, named), encoder
    gallery = open_or_create(path)
    try:
        return gallery, _own_encoder(gallery, named, provider)
    except BaseException:
        gallery.close()
        raise


def _own_encoder(gallery: Gallery, named: Path | None, provider: str) -> Encoder:
    """Load the named bundle if it is from the gallery's model, or else the gallery's own."""
    unfit = ""
    if named is not None:
        try:
            return _load_fitting(gallery, named, provider)
        except (ArtefactError, GalleryError) as error:
            unfit = str(error)
    try:
        encoder = _load_fitting(gallery, gallery.bundle, provider)
    except (ArtefactError, GalleryError) as error:
        also = f"; {unfit}" if unfit and unfit != str(error) else ""
        raise GalleryError(
            f"{gallery.path} can't be served with its own bundle: {error}{also}; put that bundle back, name one from "
            "the same model with --bundle, or carry the gallery to another with reid gallery upgrade"
        ) from error
    if unfit:
        write_log(
            logging.WARNING,
            "the gallery is served with its own bundle, not with --bundle",
            used=gallery.bundle,
            named=named,
            reason=unfit,
        )
    return encoder


def _load_fitting(gallery: Gallery, bundle: Path, provider: str) -> Encoder:
    if Bundle.load(bundle, verify=False).feature_space != gallery.feature_space:
        raise GalleryError(f"{bundle} is from a different model than the gallery")
    return Encoder.load(bundle, provider=provider)


def _config(app: Any, listening: Listening) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=16 * 2**10,
        ssl_certfile=listening.cert,
        ssl_keyfile=listening.key,
    )


def _listen(listening: Listening) -> socket.socket:
    family = socket.AF_INET6 if ":" in listening.host else socket.AF_INET
    try:
        return socket.create_server((listening.host.strip("[]"), listening.port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DeviceError(
            f"can't listen on {listening.host} port {listening.port}: {reason}; choose another --host or --port"
        ) from error


def _announced(listener: socket.socket, listening: Listening, settings: Settings) -> socket.socket:
    scheme = "https" if listening.cert else "http"
    write_log(
        logging.INFO,
        "listening",
        address=f"{scheme}://{listening.host}:{listener.getsockname()[1]}",
        process=os.getpid(),
    )
    if settings.tokens is None:
        write_log(
            logging.WARNING,
            "no token is asked for: whoever uses this machine may query, enrol and erase; see reid token make",
        )
    if not listening.local and not listening.cert:
        write_log(
            logging.WARNING,
            "plain HTTP off localhost: tokens and images can be read on the way; use --tls-cert, or a proxy that "
            "speaks TLS",
        )
    return listener


def _check_tls(listening: Listening) -> None:
    if (listening.cert is None) != (listening.key is None):
        raise UsageError("TLS needs both --tls-cert and --tls-key; one of them is missing")
    if listening.cert and listening.key:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(listening.cert, listening.key)
        except (OSError, ssl.SSLError) as error:
            reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
            raise DeviceError(
                f"can't use certificate {listening.cert} with key {listening.key}: {reason}; both must be PEM and match"
            ) from error


class _Server(uvicorn.Server):
    """uvicorn, but it accepts no more connections than there are descriptors for, and a stop by signal exits with
    success instead of dying from that signal.
    """

    def __init__(self, config: uvicorn.Config, most: int | None = None) -> None:
        super().__init__(config)
        self._most = most
        self._acceptors: list[Acceptor] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])  # everything but accepting

        def make() -> PatientProtocol:
            return PatientProtocol(self.config, self.server_state, self.lifespan.state)

        most = most_connections() if self._most is None else self._most
        for listener in sockets or []:
            self._acceptors.append(Acceptor(listener, make, self.config.ssl, most))
            self._acceptors[-1].start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for acceptor in self._acceptors:
            acceptor.stop()
        await super().shutdown(sockets=sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # no signal arrives here
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
