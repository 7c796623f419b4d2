"""``reid serve`` and ``reid token`` as an operator runs them: where it listens, TLS, slow clients, and how it ends."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import httpx
import pytest
from asking import multipart

from deploy import Gallery
from deploy.service.audit_log import AuditLog
from deploy.service.server import Listening, find_tokens, open_to_serve, run_service
from deploy.service.settings import Settings
from deploy.service.tokens import Tokens, default_file
from domains.errors import DeviceError, GalleryError, UsageError


def reid(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "reid.cli", *map(str, words)], capture_output=True, text=True, timeout=120, **options
    )


class Service:
    """A ``reid serve`` of its own process."""

    def __init__(self, folder, gallery, *words):
        self.log = folder / "serve.log"
        with self.log.open("w") as stream:
            command = [sys.executable, "-m", "reid.cli", "serve", str(gallery), "--port", "0", *map(str, words)]
            self.process = subprocess.Popen(command, stderr=stream, stdout=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not any(line["event"] == "ready" for line in self.lines()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        self.address = next(line["address"] for line in self.lines() if line["event"] == "listening")
        self.port = int(self.address.rsplit(":", 1)[1])

    def lines(self):
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def service(tmp_path, filled):
    made = []

    def start(*words):
        made.append(Service(tmp_path, filled, *words))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def query(image):
    return {"files": [("images", ("a.png", image))], "data": {"reason": "test"}}


@pytest.mark.slow
def test_a_life_from_start_to_stop(service, image, filled, tmp_path):
    token = reid(
        "token", "make", "--scope", "query", "--name", "desk", "--tokens", tmp_path / "tokens.json"
    ).stdout.strip()
    one = service("--tokens", tmp_path / "tokens.json")
    assert httpx.post(f"{one.address}/v1/query", **query(image)).status_code == 401
    headers = {"authorization": f"Bearer {token}"}
    answer = httpx.post(f"{one.address}/v1/query", headers=headers, **query(image))
    assert answer.status_code == 200
    assert "server" not in answer.headers
    assert reid("token", "revoke", "desk", "--tokens", tmp_path / "tokens.json").returncode == 0
    assert httpx.post(f"{one.address}/v1/query", headers=headers, **query(image)).status_code == 401
    assert one.stop() == 0
    stopped = next(line for line in one.lines() if line["event"] == "stopped")
    journal = AuditLog(filled.with_name("gallery.audit.db"))
    assert (journal.check(), journal.head().hash) == (1, stopped["audit_head"])
    journal.close()
    assert token not in one.log.read_text()
    shown = json.loads(reid("gallery", "audit", filled, "--service", "--json").stdout)
    assert [(record["action"], record["token"], record["reason"]) for record in shown] == [("query", "desk", "test")]
    assert "no audit log" in reid("gallery", "audit", filled, "--audit", tmp_path / "none.db").stderr
    with Gallery.open(filled) as gallery:
        assert len(gallery) == 6
        assert gallery.info()["index"] == "ready"  # it was kept


@pytest.mark.slow
def test_a_missing_gallery_is_made_for_a_bundle_that_can_be_used(tmp_path, bundle, image):
    folder = tmp_path / "new"
    lone = reid("serve", folder, "--port", "0")
    assert (lone.returncode, "name the bundle to create it for" in lone.stderr) == (2, True)
    assert reid("serve", folder, "--port", "0", "--bundle", tmp_path).returncode == 1
    assert not folder.exists()
    one = Service(tmp_path, folder, "--bundle", bundle.folder)
    try:
        assert httpx.post(f"{one.address}/v1/query", **query(image)).json()["results"][0]["matches"] == []
        sent = {"files": [("images", ("a.png", image))], "data": {"camera": "yard"}}
        assert httpx.post(f"{one.address}/v1/entries", **sent).status_code == 201
        assert (
            httpx.post(f"{one.address}/v1/query", **query(image)).json()["results"][0]["matches"][0]["camera"] == "yard"
        )
    finally:
        assert one.stop() == 0


@pytest.fixture
def opened(monkeypatch, caplog):
    """Open a gallery as ``reid serve`` does; returns the bundle that it is served with and what the log warned of."""

    def start(path, named=None):
        caplog.clear()
        gallery, encoder = open_to_serve(path, named, "cpu")
        gallery.close()
        return encoder.bundle.folder, [
            record.fields for record in caplog.records if record.levelname == "WARNING" and hasattr(record, "fields")
        ]

    return start


def test_an_existing_gallery_is_served_with_its_own_bundle(opened, filled, bundle, bundles, tmp_path):
    assert opened(filled) == (bundle.folder, [])
    assert opened(filled, bundle.folder) == (bundle.folder, [])
    with Gallery.open(filled) as gallery:
        gallery.upgrade(bundles / "new")
    own, (warning,) = opened(filled, bundle.folder)  # as a unit or an image names it for ever
    assert (own, warning["used"], warning["named"]) == (bundles / "new", bundles / "new", bundle.folder)
    assert "different model" in warning["reason"]
    own, (warning,) = opened(filled, tmp_path / "gone")
    assert own == bundles / "new"
    assert "is not a bundle" in warning["reason"]


def test_another_copy_of_its_bundle_helps_where_its_own_is_gone(opened, filled, bundle, make_bundle, tmp_path):
    shutil.move(bundle.folder, tmp_path / "moved")
    assert opened(filled, tmp_path / "moved") == (tmp_path / "moved", [])
    for named in (None, make_bundle("other", changes={"feature_space": "ef" * 32}).folder):
        with pytest.raises(GalleryError, match="put that bundle back") as caught:
            opened(filled, named)
        assert str(bundle.folder) in str(caught.value)
        assert "\n" not in str(caught.value)
    make_bundle("bundle", changes={"feature_space": "ef" * 32})  # a new model's, copied over it
    with pytest.raises(GalleryError, match=r"is from a different model.*put that bundle back, .* reid gallery upgrade"):
        opened(filled, bundle.folder)
    with Gallery.open(filled) as gallery:  # it was closed, and nothing was changed
        assert len(gallery) == 6


@pytest.mark.slow
def test_what_was_begun_is_finished_before_it_ends(service, image, filled):
    one = service()
    body = httpx.Request("POST", one.address, **query(image))
    content, kind = body.read(), body.headers["content-type"]
    with socket.create_connection(("127.0.0.1", one.port), 30) as client:
        client.sendall(
            f"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: "
            f"{len(content)}\r\n\r\n".encode()
            + content[:100]
        )
        time.sleep(0.5)
        threading.Timer(0.7, lambda: client.sendall(content[100:])).start()
        one.process.send_signal(signal.SIGTERM)
        answer = b""
        while part := client.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert one.process.wait(60) == 0
    with Gallery.open(filled) as gallery:
        assert len(gallery) == 6


@pytest.mark.slow
def test_https_with_a_certificate_of_ones_own(service, image, certificate):
    cert, private = certificate
    one = service("--tls-cert", cert, "--tls-key", private)
    assert one.address.startswith("https://")
    trusting = ssl.create_default_context(cafile=cert)
    with httpx.Client(verify=trusting) as client:
        assert client.post(f"https://localhost:{one.port}/v1/query", **query(image)).status_code == 200
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://localhost:{one.port}/livez")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", one.port)) as plain, pytest.raises((ssl.SSLError, OSError)):
        old.wrap_socket(plain)
    assert one.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "box.local"])
def test_it_does_not_listen_elsewhere_without_tokens(host, filled, monkeypatch, tmp_path):
    monkeypatch.setenv("REID_TOKENS", str(tmp_path / "none.json"))
    with pytest.raises(UsageError, match=r"refusing to listen.*reid token make") as caught:
        find_tokens(Listening(host), None)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="refusing to listen"):
        run_service(filled, Listening(host), Settings())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_this_machine_alone_needs_none(host, monkeypatch, tmp_path):
    monkeypatch.setenv("REID_TOKENS", str(tmp_path / "tokens.json"))
    assert find_tokens(Listening(host), None) is None
    Tokens(default_file()).make([])
    assert find_tokens(Listening(host), None) == tmp_path / "tokens.json"  # made, so asked for


def test_tokens_that_were_named_must_be_there(tmp_path):
    with pytest.raises(UsageError, match="no valid token"):
        find_tokens(Listening(), tmp_path / "none.json")


@pytest.mark.slow
def test_the_command_says_why_in_one_line(filled, tmp_path):
    environment = {**os.environ, "REID_TOKENS": str(tmp_path / "none.json")}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, status, text in (
            (["--host", "0.0.0.0"], 2, "refusing to listen on 0.0.0.0"),
            (["--port", port], 1, "can't listen on 127.0.0.1"),
        ):
            done = reid("serve", filled, *words, env=environment)
            assert done.returncode == status, done.stderr
            assert text in done.stderr
            assert done.stderr.count("\n") == 1
            assert done.stdout == ""


def test_half_a_tls_pair_and_no_certificate(filled, tmp_path):
    with pytest.raises(UsageError, match="both --tls-cert and --tls-key"):
        run_service(filled, Listening(cert=tmp_path / "c"), Settings())
    (tmp_path / "c").write_text("no certificate")
    with pytest.raises(DeviceError, match="can't use certificate"):
        run_service(filled, Listening(cert=tmp_path / "c", key=tmp_path / "c"), Settings())


@pytest.mark.slow
def test_slow_heads_and_broken_requests(listen, monkeypatch):
    monkeypatch.setattr("deploy.service.connections.HEADER_SECONDS", 0.5)
    port = int(listen().rsplit(":", 1)[1])

    def until_closed(*parts, pause=0.0):
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            answer = b""
            for part in parts:
                client.sendall(part)
                time.sleep(pause)
            while part := client.recv(65536):
                answer += part
        return answer

    start = time.monotonic()
    assert until_closed(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n") == b""
    assert until_closed(b"") == b""
    assert until_closed(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /li", pause=0.2).startswith(
        b"HTTP/1.1 200"
    )
    assert time.monotonic() - start < 15
    assert until_closed(b"\0\0\0\0\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert until_closed(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: " + b"a" * 70_000 + b"\r\n\r\n")[
        :12
    ] in (
        b"HTTP/1.1 400",
        b"HTTP/1.1 413",
    )
    assert (
        until_closed(
            b"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: "
            b"5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )[:12]
        != b"HTTP/1.1 200"
    )
    assert httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200


def test_too_many_connections_are_dropped_and_the_others_answered(listen, monkeypatch):
    monkeypatch.setattr("deploy.service.connections.MAX_CONNECTIONS", 5)
    port = int(listen().rsplit(":", 1)[1])
    held = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(12)]
    time.sleep(0.3)
    answered = 0
    for one in held:
        try:
            one.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answered += one.recv(100).startswith(b"HTTP/1.1 200")
        except OSError:
            continue
        finally:
            one.close()
    assert 1 <= answered <= 5


def test_a_body_over_the_limit_is_answered_while_it_is_sent(listen):
    address = listen(max_body_bytes=100_000, max_image_bytes=90_000)
    answer = httpx.post(
        f"{address}/v1/query", content=b"x" * 300_000, headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code == 413

    def stream():
        yield b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        for _ in range(400):
            yield b"x" * 1000

    answer = httpx.post(
        f"{address}/v1/query", content=stream(), headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code == 413


@pytest.mark.slow
def test_tokens_on_the_command_line(tmp_path):
    file = tmp_path / "tokens.json"
    made = reid(
        "token",
        "make",
        "--scope",
        "query",
        "--scope",
        "erase",
        "--days",
        7,
        "--name",
        "desk",
        "--tokens",
        file,
        "--json",
    )
    token = json.loads(made.stdout)["token"]
    listed = json.loads(reid("token", "list", "--tokens", file, "--json").stdout)
    assert [(row["name"], row["scopes"]) for row in listed] == [("desk", ["query", "erase"])]
    assert "hash" not in listed[0]
    assert token.split("_", 2)[2] not in json.dumps(listed)
    plain = reid("token", "make", "--tokens", file)
    assert plain.stdout.startswith("reid_")
    assert plain.stdout.count("\n") == 1
    assert "can't be shown again" in plain.stderr
    assert reid("token", "revoke", "desk", "--tokens", file).returncode == 0
    assert reid("token", "revoke", "desk", "--tokens", file).returncode == 1 + 1
    assert reid("token", "make", "--scope", "root", "--tokens", file).returncode == 2
    assert len(json.loads(reid("token", "list", "--tokens", file, "--json").stdout)) == 1


@pytest.mark.slow
def test_without_the_extra_one_line_says_what_to_install(filled):
    code = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fastapi", "uvicorn"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
sys.argv = ["reid", "serve", {str(filled)!r}]
import deploy, deploy.service, deploy.service.tokens
from reid.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "pip install 'lifelong-reid[cpu,serve]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_forms_without_a_file_over_a_real_connection(listen):
    answer = httpx.post(f"{listen()}/v1/forget", files=multipart(camera="c1", dry_run="true"))
    assert answer.json()["entries"] == 3
