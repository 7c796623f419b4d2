"""Decoding and resizing: limits before decoding, broken data of every kind, exactness of what is not resized."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.crops import MAX_BYTES, MAX_PIXELS, MAX_SIDE, CropSpec, check_crop, decode_crop, image_size, read_crop
from domains.errors import DataError

rng = np.random.default_rng(0)
PICTURE = cv2.resize(rng.integers(0, 256, (16, 8, 3), np.uint8), (24, 48))


def encoded(suffix, picture=PICTURE):
    return cv2.imencode(suffix, picture[..., ::-1])[1].tobytes()


SUFFIXES = [".png", ".jpg", ".bmp", ".webp", ".ppm"]  # OpenCV writes WebP without loss unless told otherwise


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_decodes_to_rgb(suffix):
    found = decode_crop(encoded(suffix))
    assert found.dtype == np.uint8
    assert found.flags["C_CONTIGUOUS"]
    if suffix == ".jpg":
        assert np.abs(found.astype(int) - PICTURE).mean() < 12 < np.abs(found.astype(int) - PICTURE[..., ::-1]).mean()
    else:
        np.testing.assert_array_equal(found, PICTURE)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(height=st.integers(1, 60), width=st.integers(1, 60))
@settings(max_examples=15, deadline=None)
def test_size_from_the_header_is_the_decoded_size(suffix, height, width):
    data = encoded(suffix, np.zeros((height, width, 3), np.uint8))
    assert image_size(data) == (height, width) == decode_crop(data).shape[:2]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 0.95])
def test_cut_off_images_are_refused(suffix, share):
    data = encoded(suffix)
    with pytest.raises(DataError):
        decode_crop(data[: int(len(data) * share)])


@given(
    data=st.binary(max_size=300),
    start=st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"BM", b"P6", b"P5\n", b"\xff\xd8\xff\xc0", b"RIFF....WEBPVP8X"]
    ),
)
@settings(max_examples=200, deadline=None)
def test_any_bytes_decode_or_raise_data_error(data, start):
    message = ""
    try:
        check_crop(decode_crop(start + data))
    except DataError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_flipped_bytes_decode_or_raise_data_error(suffix, seed):
    chooser = np.random.default_rng(seed)
    data = np.frombuffer(encoded(suffix), np.uint8).copy()
    where = chooser.integers(len(data), size=4)
    data[where] = chooser.integers(0, 256, 4)
    try:
        check_crop(decode_crop(data.tobytes()))
    except DataError:
        return


def png_header(height, width):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize(
    "data",
    [
        png_header(100_000, 100_000),
        b"BM" + bytes(16) + struct.pack("<ii", 50_000, -50_000),
        b"BM" + bytes(12) + struct.pack("<IHH", 12, 60_000, 60_000),
        b"RIFF....WEBPVP8X" + bytes(8) + b"\xff\xff\x00\xff\xff\x00",
        b"RIFF....WEBPVP8 " + bytes(7) + b"\x9d\x01\x2a" + struct.pack("<HH", 0x3FFF, 0x3FFF),
        b"RIFF....WEBPVP8L" + bytes(4) + b"\x2f\xff\xff\xff\x0f",
        b"P6 60000 60000 255\n",
        b"P6\n# a comment\n60000\n60000\n255\n",
        b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x11\x08" + struct.pack(">HH", 60_000, 60_000) + bytes(20),
    ],
    ids=["png", "bmp", "os/2 bmp", "webp extended", "webp lossy", "webp lossless", "ppm", "ppm comment", "jpeg"],
)
def test_bombs_are_refused_by_their_header(data, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match="over the limit"):
        decode_crop(data)


def test_a_header_that_says_one_thing_to_us_and_another_to_the_decoder():
    """A marker without length makes a JPEG decoder read on where a careless reader skips: to a large frame where we
    would see a small one.
    """
    large = encoded(".jpg", np.zeros((3000, 2000, 3), np.uint8))
    scan = large.index(b"\xff\xda")
    small = b"\xff\xc0\x00\x0b\x08\x00\x10\x00\x10\x01\x01\x11\x00"
    comment = b"\xff\xfe" + struct.pack(">H", len(small) + 2) + small
    for marker in (0x01, 0xD0, 0xD7):
        body = large[2:scan]
        forged = (
            b"\xff\xd8\xff" + bytes([marker]) + struct.pack(">H", 2 + len(body) + 4) + body + comment + large[scan:]
        )
        if marker == 0x01:
            assert cv2.imdecode(np.frombuffer(forged, np.uint8), cv2.IMREAD_COLOR).shape == (3000, 2000, 3)
        with pytest.raises(DataError, match="damaged"):
            image_size(forged)
    png = encoded(".png")
    with pytest.raises(DataError, match="damaged"):
        image_size(png[:8] + b"\0\0\0\x0dtEXt" + png[16:])


def test_the_limits_themselves(monkeypatch):
    monkeypatch.setattr("domains.crops.MAX_PIXELS", PICTURE.shape[0] * PICTURE.shape[1])
    decode_crop(encoded(".png"))
    monkeypatch.setattr("domains.crops.MAX_PIXELS", PICTURE.shape[0] * PICTURE.shape[1] - 1)
    with pytest.raises(DataError, match="over the limit"):
        decode_crop(encoded(".png"))
    with pytest.raises(DataError, match="32 MiB"):
        decode_crop(bytes(MAX_BYTES + 1))
    assert MAX_PIXELS * 3 <= 2**28


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"\xff\xd8", b"\xff\xd8\xff", b"P6", b"P6 x y", b"P6 0 5 255\n", b"BM", png_header(0, 5)]
)
def test_what_is_no_image(data):
    with pytest.raises(DataError):
        decode_crop(data)


def test_grey_alpha_and_sixteen_bits_become_rgb():
    grey = PICTURE[..., 0]
    for picture in (grey, np.dstack([PICTURE, grey]), PICTURE.astype(np.uint16) * 257):
        assert decode_crop(cv2.imencode(".png", picture)[1].tobytes()).shape == (*grey.shape, 3)


def test_reading_names_the_file(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(encoded(".png"))
    np.testing.assert_array_equal(read_crop(file), PICTURE)
    np.testing.assert_array_equal(read_crop(str(file)), PICTURE)
    assert CropSpec(32, 16).read(file).shape == (32, 16, 3)
    file.write_bytes(b"nothing")
    for path, message in (
        (file, "can't use image"),
        (tmp_path / "b.png", "No such file"),
        (tmp_path, "can't read image"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read_crop(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("rule", ["area", "linear", "cubic"])
@given(height=st.integers(1, 70), width=st.integers(1, 70), to=st.tuples(st.integers(1, 70), st.integers(1, 70)))
@settings(max_examples=20, deadline=None)
def test_resizing_gives_the_asked_size(rule, height, width, to):
    picture = np.full((height, width, 3), (7, 99, 200), np.uint8)
    found = CropSpec(*to, rule).resized(picture)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.broadcast_to(np.uint8([7, 99, 200]), (*to, 3)))


def test_shrinking_averages_every_pixel():
    picture = rng.integers(0, 256, (32, 16, 3), np.uint8)
    expected = picture.reshape(8, 4, 4, 4, 3).mean(axis=(1, 3))
    assert np.abs(CropSpec(8, 4).resized(picture) - expected).max() <= 0.5 + 1e-9


def test_the_right_size_is_returned_as_it_is():
    assert CropSpec(*PICTURE.shape[:2]).resized(PICTURE) is PICTURE


def test_batch_is_each_crop_by_itself():
    spec = CropSpec(20, 10)
    crops = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((40, 20), (5, 90), (20, 10))]
    found = spec.batch(crops)
    assert found.shape == (3, 20, 10, 3)
    for row, crop in zip(found, crops, strict=True):
        np.testing.assert_array_equal(row, spec.resized(crop))
    assert spec.batch([]).shape == (0, 20, 10, 3)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        [[1]],
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        "x",
    ],
)
def test_what_is_no_crop_is_refused(bad):
    with pytest.raises(DataError, match="uint8 RGB"):
        CropSpec().resized(bad)


@pytest.mark.parametrize("values", [(0, 5), (5, -1), (MAX_SIDE + 1, 5), (5.0, 5), ("5", 5), (True, 5), (5, None)])
def test_bad_sizes(values):
    with pytest.raises(DataError, match="whole number"):
        CropSpec(*values)


def test_spec_round_trip_and_bad_keys():
    spec = CropSpec(128, 64, "cubic")
    assert CropSpec.from_dict(spec.to_dict()) == spec
    assert hash(CropSpec.from_dict(spec.to_dict())) == hash(spec)
    with pytest.raises(DataError, match="resize must be"):
        CropSpec(5, 5, "nearest")
    for bad in ({}, spec.to_dict() | {"x": 1}, {"height": 5, "width": 5}):
        with pytest.raises(DataError, match="keys height, width and resize"):
            CropSpec.from_dict(bad)
