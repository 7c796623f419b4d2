"""A service over a tiny gallery, in this process, and tokens of every scope."""

import datetime
import threading
import time

import numpy as np
import pytest
from asking import encoded
from tiny import DIM, SPACE, embed, graph

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")
pytest.importorskip("faiss", reason="FAISS is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

import httpx
from fastapi.testclient import TestClient

from deploy import Encoder, Gallery
from deploy.service import server
from deploy.service.app import create_app
from deploy.service.server import Listening
from deploy.service.settings import Settings
from deploy.service.tokens import SCOPES, Tokens
from domains.crops import read_crop
from prototypes.transport import fit_transport


@pytest.fixture
def image(golden_crops):
    """A PNG of the first person in the gallery."""
    return encoded(golden_crops[0])


@pytest.fixture
def images(golden_crops):
    return [encoded(crop) for crop in golden_crops]


@pytest.fixture
def filled(tmp_path, bundle, people):
    """The folder of a gallery with six entries from two cameras, labelled, at known times."""
    encoder = Encoder.load(bundle.folder, threads=1)
    with Gallery.create(tmp_path / "gallery", encoder.dim, encoder.feature_space, bundle.folder) as gallery:
        files = sorted(people.rglob("*.png"), key=lambda file: int(file.stem))
        gallery.add(
            encoder([read_crop(file) for file in files]),
            camera=[file.parent.name for file in files],
            source=[str(file) for file in files],
            time=[f"2026-11-0{number + 1}T08:00:00+00:00" for number in range(len(files))],
            label=[f"person {number}" for number in range(len(files))],
        )
    return tmp_path / "gallery"


@pytest.fixture
def tokens(tmp_path):
    """A file with a token of each scope, one with all and one with none; returns them by name."""
    file = Tokens(tmp_path / "tokens.json")
    made = {scope: file.make([scope], scope) for scope in SCOPES}
    return {**made, "all": file.make(SCOPES, "all"), "none": file.make([], "none"), "file": file}


@pytest.fixture
def serve(filled, bundle):
    """Start the service with some settings; returns a client that is ready. All end with the test."""
    open_clients = []

    def start(*, token=None, encoder=None, wait=True, read_only=False, **settings):
        gallery = Gallery.open(filled, read_only=read_only)
        app = create_app(gallery, encoder or Encoder.load(bundle.folder, threads=1), Settings(**settings))
        headers = {"authorization": f"Bearer {token}"} if token else {}
        client = TestClient(app, base_url="http://127.0.0.1:8080", headers=headers, raise_server_exceptions=False)
        client.__enter__()
        open_clients.append(client)
        for _ in range(200 if wait else 0):
            if client.get("/readyz").status_code == 200:
                break
        return client

    yield start
    for client in reversed(open_clients):
        client.__exit__(None, None, None)


@pytest.fixture
def listen(filled, bundle):
    """Start the service on a port of this machine, in a thread; returns its address."""
    running = []

    def start(*, tls=(None, None), **settings):
        listening = Listening("127.0.0.1", 0, *tls)
        listener = server._listen(listening)
        app = create_app(Gallery.open(filled), Encoder.load(bundle.folder, threads=1), Settings(**settings))
        made = server._Server(server._config(app, listening))
        thread = threading.Thread(target=lambda: made.run(sockets=[listener]))
        thread.start()
        running.append((made, thread))
        address = f"http{'s' if tls[0] else ''}://127.0.0.1:{listener.getsockname()[1]}"
        for _ in range(600):
            if made.started and httpx.get(f"{address}/readyz", verify=False).status_code == 200:
                return address
            time.sleep(0.02)
        raise AssertionError("it did not get ready")

    yield start
    for made, thread in running:
        made.should_exit = True
        thread.join(30)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Files of a certificate for localhost and of its key, PEM."""
    pytest.importorskip("cryptography", reason="cryptography is not installed, so no certificate can be made")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    alternative = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    made = x509.CertificateBuilder(
        name, name, key.public_key(), 1, now - datetime.timedelta(days=1), now + datetime.timedelta(days=1)
    ).add_extension(alternative, False)
    folder = tmp_path_factory.mktemp("tls")
    cert, private = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert, private


@pytest.fixture
def bundles(tmp_path, make_bundle, projection, golden_crops):
    """A folder with a good bundle of a new model, one without a transport, and a damaged one."""
    turned = projection @ np.linalg.qr(np.random.default_rng(5).normal(size=(DIM, DIM)))[0]
    crops = np.random.default_rng(6).integers(0, 256, (400, *golden_crops.shape[1:]), np.uint8)
    transport = fit_transport(embed(crops, projection), embed(crops, turned), source=SPACE, target="cd" * 32).to_bytes()
    folder = tmp_path / "bundles"
    folder.mkdir()
    parts = {"model": graph(turned), "embeddings": embed(golden_crops, turned), "changes": {"feature_space": "cd" * 32}}
    make_bundle("bundles/new", transport=transport, **parts)
    make_bundle("bundles/alone", **parts)
    make_bundle("bundles/damaged", transport=transport, **parts)
    (folder / "damaged" / "model.onnx").write_bytes(b"x")
    (folder / "link").symlink_to(folder / "new")
    return folder
