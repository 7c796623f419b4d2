"""Sockets that say nothing, or too little, never stop the service: whatever they wait for, and whatever runs out."""

import asyncio
import contextlib
import errno
import json
import logging
import os
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time

import httpx
import pytest

from deploy.service import connections
from deploy.service.connections import MAX_CONNECTIONS, RESERVED, Acceptor, most_connections
from domains.errors import DeviceError

HEAD = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
LARGE_ANSWER = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def loose():
    """A TLS context that asks nothing of the other side."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def client_hello():
    """The first message of a TLS handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        loose().wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


def connect(port):
    one = socket.create_connection(("127.0.0.1", port), 60)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return one


def is_closed(one, seconds):
    """Whether the other side ends a connection in time; what it sends before is read."""
    one.settimeout(seconds)
    try:
        while one.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


# ------------------------------------------------------------------------------------------------------------ how many


@pytest.mark.parametrize(
    ("soft", "expected"),
    [
        (resource.RLIM_INFINITY, MAX_CONNECTIONS),
        (2**20, MAX_CONNECTIONS),
        (10 + RESERVED + MAX_CONNECTIONS, MAX_CONNECTIONS),
        (1024, 1024 - 10 - RESERVED),
        (256, 256 - 10 - RESERVED),
        (10 + RESERVED + 16, 16),
    ],
)
def test_the_cap_follows_the_limit_of_open_files(monkeypatch, soft, expected):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, resource.RLIM_INFINITY))
    monkeypatch.setattr(connections, "_is_open", lambda descriptor: descriptor < 10)
    assert most_connections() == expected


@pytest.mark.parametrize("soft", [10 + RESERVED + 15, 64, 3])
def test_a_limit_that_leaves_too_few_is_said_at_the_start(monkeypatch, soft):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    monkeypatch.setattr(connections, "_is_open", lambda descriptor: descriptor < 10)
    with pytest.raises(
        DeviceError, match=rf"at most {soft} files .*allow at least {10 if soft > 10 else soft}?"
    ) as told:
        most_connections()
    assert "\n" not in str(told.value)
    assert "ulimit -n" in str(told.value)


# ------------------------------------------------------------------------------------------------------ silent sockets

SILENT = {
    "nothing": [],
    "half a request line": [b"GET /liv"],
    "half a head": [HEAD],
    "an answer and then nothing": [HEAD + b"\r\n"],
    "an answer and then half a head": [HEAD + b"\r\n", HEAD],
    "blank lines": [b"\r\n"],
}


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("sent", SILENT.values(), ids=SILENT)
def test_newcomers_are_answered_however_many_sockets_idle(listen, monkeypatch, certificate, sent, tls):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 8)
    address = listen(tls=certificate if tls else (None, None))
    port = int(address.rsplit(":", 1)[1])
    with contextlib.ExitStack() as held:
        for _ in range(30):
            one = held.enter_context(connect(port))
            if tls:
                one = held.enter_context(loose().wrap_socket(one))
            for part in sent:
                with contextlib.suppress(OSError):
                    one.sendall(part)
        for _ in range(3):
            assert httpx.get(f"{address}/livez", verify=False, timeout=60).status_code == 200


HANDSHAKES = {"nothing": b"", "a byte": b"\x16", "half a hello": client_hello()[:50], "a hello": client_hello()}


@pytest.mark.parametrize("sent", HANDSHAKES.values(), ids=HANDSHAKES)
def test_newcomers_are_answered_however_many_handshakes_idle(listen, monkeypatch, certificate, sent):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 8)
    address = listen(tls=certificate)
    with contextlib.ExitStack() as held:
        for _ in range(30):
            one = held.enter_context(connect(int(address.rsplit(":", 1)[1])))
            with contextlib.suppress(OSError):
                one.sendall(sent)
        assert httpx.get(f"{address}/livez", verify=False, timeout=60).status_code == 200


@pytest.mark.parametrize("sent", HANDSHAKES.values(), ids=HANDSHAKES)
def test_a_silent_handshake_ends_like_every_other_head(listen, monkeypatch, certificate, sent):
    address = listen(tls=certificate)
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    with connect(int(address.rsplit(":", 1)[1])) as one:
        one.sendall(sent)
        assert is_closed(one, 50)  # asyncio's own limit is 60 s


def test_bytes_that_trickle_do_not_prolong_a_handshake(listen, monkeypatch, certificate):
    address = listen(tls=certificate)
    monkeypatch.setattr(connections, "HEADER_SECONDS", 1.0)
    with connect(int(address.rsplit(":", 1)[1])) as one:
        hello, closed = client_hello(), False
        for number in range(200):
            try:
                one.sendall(hello[number : number + 1])
                one.settimeout(0.1)
                closed = one.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                closed = True
            if closed:
                break
        assert closed


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True])
def test_answers_that_nobody_reads_are_given_up(listen, monkeypatch, certificate, tls):
    monkeypatch.setattr(connections, "READ_SECONDS", 1.0)
    monkeypatch.setattr(connections, "HEADER_SECONDS", 1e6)
    acceptors, start = [], Acceptor.start
    monkeypatch.setattr(Acceptor, "start", lambda self: acceptors.append(self) or start(self))
    address = listen(tls=certificate if tls else (None, None), timeout=1.0, rate=0)
    one = connect(int(address.rsplit(":", 1)[1]))
    one = loose().wrap_socket(one) if tls else one
    with one:
        one.settimeout(0.5)
        with contextlib.suppress(OSError):
            for _ in range(3000):
                one.sendall(LARGE_ANSWER)
        deadline = time.monotonic() + 60
        while any(acceptor._open for acceptor in acceptors):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("leave", [True, False])
def test_of_many_that_come_at_once_none_is_counted_for_ever(listen, monkeypatch, certificate, tls, leave):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(connections, "HEADER_SECONDS", 2.0)
    acceptors, start = [], Acceptor.start
    monkeypatch.setattr(Acceptor, "start", lambda self: acceptors.append(self) or start(self))
    address = listen(tls=certificate if tls else (None, None))
    (acceptor,) = acceptors
    blocked = threading.Event()
    acceptor._loop.call_soon_threadsafe(blocked.wait, 60)  # all wait in the listener's queue before one is accepted
    with contextlib.ExitStack() as held:
        for _ in range(40):
            held.enter_context(connect(int(address.rsplit(":", 1)[1])))
        if leave:
            held.close()
        blocked.set()
        deadline = time.monotonic() + 60
        while acceptor._opening or acceptor._open or acceptor._waiting or acceptor._tasks:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert httpx.get(f"{address}/livez", verify=False, timeout=60).status_code == 200


# ------------------------------------------------------------------------------------------------------- running out


class Exhausted:
    """A listening socket whose ``accept`` fails."""

    def __init__(self, listener, code):
        self.listener, self.code, self.calls = listener, code, 0

    def accept(self):
        self.calls += 1
        if self.code:
            raise OSError(self.code, os.strerror(self.code))
        return self.listener.accept()

    def __getattr__(self, name):
        return getattr(self.listener, name)


@pytest.mark.parametrize(
    "code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM, errno.EIO], ids=errno.errorcode.get
)
def test_running_out_does_not_spin_and_ends(monkeypatch, caplog, code):
    monkeypatch.setattr(connections, "PAUSE_SECONDS", 0.2)

    async def scenario():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            failing = Exhausted(listener, code)
            acceptor = Acceptor(failing, lambda: pytest.fail("nothing can be accepted"), None, 8)
            acceptor.start()
            with socket.create_connection(listener.getsockname()):
                started = time.monotonic()
                await asyncio.sleep(1.0)
                turns = (time.monotonic() - started) / 0.2 + 2
                acceptor.stop()
                return failing.calls, turns

    calls, turns = asyncio.run(scenario())
    assert 1 <= calls <= turns
    assert len(caplog.records) == calls
    assert caplog.records[0].fields["reason"] == os.strerror(code)


@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.EPROTO, errno.ENETUNREACH], ids=errno.errorcode.get)
def test_a_client_that_left_stops_nobody(listen, monkeypatch, code):
    address = listen()
    accept, left = socket.socket.accept, [code] * 5

    def fail(self):
        if left:
            raise OSError(left.pop(), "gone")
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", fail)
    assert httpx.get(f"{address}/livez", timeout=60).status_code == 200
    assert not left


def test_accepting_goes_on_once_there_are_descriptors_again(listen, monkeypatch, caplog):
    caplog.set_level(logging.ERROR, "deploy")
    address = listen()
    accept, failing = socket.socket.accept, [True]

    def fail(self):
        if failing:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(self)

    monkeypatch.setattr(connections, "PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(socket.socket, "accept", fail)
    with connect(int(address.rsplit(":", 1)[1])) as one:
        one.sendall(HEAD + b"Connection: close\r\n\r\n")
        time.sleep(0.5)
        failing.clear()
        assert one.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True])
def test_a_real_service_with_few_descriptors_and_more_sockets(filled, certificate, image, tmp_path, tls):
    log, soft = tmp_path / "log", 200
    words = ["--tls-cert", certificate[0], "--tls-key", certificate[1]] if tls else []
    with log.open("w") as stream:
        one = subprocess.Popen(
            [sys.executable, "-m", "reid.cli", "serve", str(filled), "--port", "0", *map(str, words)],
            stderr=stream,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft)),  # noqa: PLW1509 - no threads
        )

    def lines():
        return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]

    try:
        deadline = time.monotonic() + 100
        while not any(line["event"] == "ready" for line in lines()):
            assert one.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        address = next(line["address"] for line in lines() if line["event"] == "listening")
        with contextlib.ExitStack() as held:
            for _ in range(soft + 50):
                held.enter_context(connect(int(address.rsplit(":", 1)[1])))
            query = {"files": [("images", ("a.png", image))], "data": {"reason": "test"}}
            for _ in range(3):
                assert httpx.post(f"{address}/v1/query", verify=False, timeout=60, **query).status_code == 200
            erased = httpx.post(f"{address}/v1/forget", files={"camera": (None, "c1")}, verify=False, timeout=60)
            assert (erased.status_code, erased.json()["forgotten"]) == (200, 3)
            assert len(os.listdir(f"/proc/{one.pid}/fd")) <= soft - RESERVED + 40
        told = [line for line in lines() if "as many connections" in line["event"]]
        assert 1 <= len(told) < 60
        assert not [line for line in lines() if line["level"] == "error"]
        one.terminate()
        assert one.wait(60) == 0
        assert sum(line.get("suppressed", 0) + 1 for line in lines() if "as many" in line["event"]) > 50
    finally:
        if one.poll() is None:
            one.kill()
            one.wait()


@pytest.mark.slow
def test_too_few_descriptors_are_one_line(filled):
    done = subprocess.run(
        [sys.executable, "-m", "reid.cli", "serve", str(filled), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    )
    assert done.returncode == 1
    assert "at most 64 files may be open" in done.stderr
    assert done.stderr.count("\n") == 1
