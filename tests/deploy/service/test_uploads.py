"""Images that mean harm: nothing is decoded before its header fits, and nothing crashes the service."""

import asyncio
import struct
import sys
import tempfile
import zlib

import cv2
import image_files as files
import numpy as np
import pytest
from asking import ask, code
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.formparsers import MultiPartParser

from deploy.service.refusal import RefusedError
from deploy.service.settings import Settings
from deploy.service.uploads import check_image
from domains.crops import decode_crop


def png(width, height, data=b""):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def encoded(suffix, height=40, width=20):
    return cv2.imencode(suffix, np.full((height, width, 3), 90, np.uint8))[1].tobytes()


BOMBS = {
    "a png that unpacks to gigabytes": png(60_000, 60_000, zlib.compress(bytes(10**6), 9)),
    "a png of impossible size": png(2**31 - 1, 2**31 - 1),
    "a jpeg header": b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff" + bytes(20),
    "a webp header": b"RIFF\xff\xff\xff\xffWEBPVP8X" + bytes(8) + b"\xff\xff\xff\xff\xff\xff",
    "a bmp header": b"BM" + bytes(12) + struct.pack("<Iii", 40, 2**31 - 1, -(2**31)) + bytes(40),
}
NO_IMAGES = {
    "text": b"hello",
    "html": b"<html><script>alert(1)</script>",
    "gif": b"GIF89a" + bytes(40),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "ppm": b"P6 2 2 255\n" + bytes(12),
    "tiff": b"II*\0" + bytes(40),
    "zip": b"PK\x03\x04" + bytes(40),
    "elf": b"\x7fELF" + bytes(40),
    "pickle": b"\x80\x04\x95" + bytes(40),
    "exr": b"\x76\x2f\x31\x01" + bytes(40),
    "avif": b"\0\0\0\x20ftypavif" + bytes(40),
    "a comment before a png": b"<!-- -->" + encoded(".png"),
}
DAMAGED = {
    "nothing": b"",
    "a cut png": encoded(".png")[:60],
    "a cut jpeg": encoded(".jpg")[:100],
    "a png's start": b"\x89PNG\r\n\x1a\n",
    "a jpeg's start": b"\xff\xd8\xff",
    "a webp's start": b"RIFF....WEBP",
    "a bmp's start": b"BM",
    "no pixels": png(0, 5),
}
COSTLY = files.costly() | files.costly_for_their_size()
UNSUPPORTED = files.unsupported()


@pytest.mark.parametrize(
    ("data", "status", "name"),
    [
        *((data, 413, "too_many_pixels") for data in BOMBS.values()),
        *((data, 415, "unsupported_image") for data in (NO_IMAGES | UNSUPPORTED).values()),
        *((data, 413, "too_large") for data in COSTLY.values()),
    ],
    ids=[*BOMBS, *NO_IMAGES, *UNSUPPORTED, *COSTLY],
)
def test_refused_before_anything_is_decoded(data, status, name, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(RefusedError) as caught:
        check_image(data, Settings(), "images 1")
    assert (caught.value.status, caught.value.code) == (status, name)


def test_bombs_and_damage_over_the_wire(serve, image):
    client = serve(rate=0)
    for group, name in (
        (BOMBS, "too_many_pixels"),
        (NO_IMAGES | UNSUPPORTED, "unsupported_image"),
        (DAMAGED, "damaged_image"),
        (COSTLY, "too_large"),
    ):
        for what, data in group.items():
            assert code(ask(client, data)) == name, what
    assert ask(client, image).status_code == 200


def test_a_stop_waits_for_the_image_being_decoded_and_for_no_other(serve, image, monkeypatch):
    backend = serve().app.state.backend
    decoded = []

    def decode(data):
        decoded.append(data)
        backend.closing.set()
        return decode_crop(data)

    monkeypatch.setattr("deploy.service.backend.decode_crop", decode)
    with pytest.raises(RefusedError, match="stopping"):
        asyncio.run(backend._decode([image] * 16, lambda crop: crop))
    assert len(decoded) == 1


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """An empty folder for temporary files, and every time that something is opened in it: a nameless file leaves no
    other trace.
    """
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    opened, watching = [], True

    def watch(event, arguments):
        if (
            watching
            and event in ("open", "os.mkdir")
            and isinstance(arguments[0], str)
            and arguments[0].startswith(str(folder))
        ):
            opened.append(arguments[0])

    sys.addaudithook(watch)  # for ever
    yield folder, opened
    watching = False


def test_no_upload_touches_the_disk_however_large(serve, temporary, monkeypatch):
    folder, opened = temporary
    large = cv2.imencode(".png", np.random.default_rng(1).integers(0, 256, (900, 600, 3), np.uint8))[1].tobytes()
    assert len(large) > MultiPartParser.spool_max_size
    client = serve()
    opened.clear()  # the engine was profiled at its start
    assert ask(client, large).status_code == 200
    assert (
        client.post(
            "/v1/entries", files=[("images", ("a", large)), ("images", ("b", large))], data={"camera": "c"}
        ).status_code
        == 201
    )
    assert client.post("/v1/forget", files=[("like", ("a", large)), ("dry_run", (None, "true"))]).status_code == 200
    assert ask(client, large[:-100_000]).status_code == 422
    assert (list(folder.iterdir()), opened) == ([], [])
    monkeypatch.setattr("deploy.service.uploads._InMemory.spool_max_size", MultiPartParser.spool_max_size)
    ask(client, large)
    assert opened, "the watch sees a file that is spooled"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_the_kinds_that_are_taken(serve, suffix):
    assert ask(serve(), encoded(suffix)).status_code == 200


def test_the_kind_is_the_content_and_not_the_name(serve, image):
    client = serve()
    for name, kind in (
        ("a.exe", "text/html"),
        ("../../etc/passwd", "application/octet-stream"),
        ("x" * 500, "image/gif"),
    ):
        assert (
            client.post("/v1/query", files=[("images", (name, image, kind))], data={"reason": "x"}).status_code == 200
        )


def test_a_picture_that_is_also_something_else_is_only_a_picture(serve):
    """A polyglot is decoded to pixels and dropped; nothing of it is ever stored or sent back."""
    client = serve()
    answer = ask(client, encoded(".png") + b"<script>alert(1)</script>")
    assert answer.status_code == 200
    assert "script" not in answer.text


def test_the_limit_of_pixels_itself():
    exact = encoded(".png", 20, 30)
    check_image(exact, Settings(max_pixels=600), "a")
    with pytest.raises(RefusedError, match="30×20 pixels"):
        check_image(exact, Settings(max_pixels=599), "a")


@given(
    data=st.binary(max_size=400),
    start=st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"BM", b"RIFF\0\0\0\0WEBP", b"RIFF\0\0\0\0WEBPVP8L"]
    ),
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_fit_or_are_refused(data, start):
    message = ""
    try:
        check_image(start + data, Settings(), "images 1")
    except RefusedError as refused:
        message = str(refused)
    assert "\n" not in message


@given(seed=st.integers(0, 2**32 - 1), suffix=st.sampled_from([".png", ".jpg", ".webp", ".bmp"]))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes_never_make_a_mistake_of_ours(serve_once, seed, suffix):
    chooser = np.random.default_rng(seed)
    data = np.frombuffer(encoded(suffix), np.uint8).copy()
    data[chooser.integers(len(data), size=6)] = chooser.integers(0, 256, 6)
    assert ask(serve_once, data.tobytes()).status_code in (200, 413, 415, 422)


@given(body=st.binary(max_size=300))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_form_is_read_or_refused(serve_once, body):
    for framed in (
        body,
        b"--x\r\n" + body + b"\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n' + body + b"\r\n--x--",
    ):
        answer = serve_once.post(
            "/v1/query", content=framed, headers={"content-type": "multipart/form-data; boundary=x"}
        )
        assert answer.status_code in (413, 415, 422), answer.text


@pytest.fixture
def serve_once(serve):
    return serve(rate=0)
