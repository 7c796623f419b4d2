"""What a decoder may be made to do: bounded by pixels and bytes for every format, and counted before it begins."""

import contextlib
import struct
import zlib

import cv2
import image_files as files
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.check import check_domain
from domains.crops import MAX_PIXELS, CropSpec, decode_crop, read_crop
from domains.errors import CostlyImageError, DataError, UnsupportedImageError
from domains.images import image_size, read_still
from domains.images.jpeg import MAX_PASSES, MAX_SCANS

FOUR = 4_000_000
COSTLY, FOR_THEIR_SIZE, UNSUPPORTED = files.costly(), files.costly_for_their_size(), files.unsupported()
THRIFTY = files.thrifty()


@pytest.fixture
def never_decoded(monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))


def native(data):
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if image is None else image[..., ::-1]


@pytest.mark.parametrize("what", COSTLY)
def test_costly_files_are_refused_before_they_are_decoded(what, never_decoded, tmp_path):
    with pytest.raises(CostlyImageError, match="save it again"):
        decode_crop(COSTLY[what])
    file = tmp_path / "a.bin"
    file.write_bytes(COSTLY[what])
    with pytest.raises(DataError, match=r"can't use image .*a\.bin: .*save it again"):
        read_crop(file)


@pytest.mark.parametrize("what", FOR_THEIR_SIZE)
def test_scans_and_pixels_are_limited_together(what):
    with pytest.raises(CostlyImageError, match=f"more than {MAX_PASSES} times {FOUR} pixels"):
        read_still(FOR_THEIR_SIZE[what], FOUR)
    read_still(FOR_THEIR_SIZE[what], MAX_PIXELS)


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_animations_and_rare_codings_are_refused_before_they_are_decoded(what, never_decoded):
    with pytest.raises(UnsupportedImageError, match="save "):
        decode_crop(UNSUPPORTED[what])


def test_a_check_of_a_domain_lists_them(tiny_domain, tmp_path):
    domain = tiny_domain(tmp_path / "site")
    named = dict(zip(sorted(domain.train.paths), COSTLY, strict=False))
    for path, what in named.items():
        (domain.root / path).write_bytes(COSTLY[what])
    report = check_domain(domain, crop=CropSpec(64, 32))
    assert {item.path for item in report.unreadable} == set(named)
    assert all("save it again" in item.reason for item in report.unreadable)


@pytest.mark.parametrize("what", THRIFTY)
def test_a_decoder_is_not_given_what_pixels_do_not_need(what):
    still = read_still(THRIFTY[what], FOUR)
    assert len(still.data) < 20_000 < len(THRIFTY[what])
    assert decode_crop(THRIFTY[what]).shape[:2] == (still.height, still.width)


def test_the_limits_themselves():
    decode_crop(files.jpeg(64, 64, *[files.REFINING] * MAX_SCANS))
    exact = files.jpeg(640, 640, *[files.REFINING] * MAX_PASSES)
    assert read_still(exact, 640 * 640).data == exact
    with pytest.raises(CostlyImageError):
        read_still(files.jpeg(640, 640, *[files.REFINING] * (MAX_PASSES + 1)), 640 * 640)
    read_still(files.jpeg(1, 1, *[files.scan(first=0, last=0, approximation=0)]), 1)  # one block is more than a pixel


def interlaced(picture):
    """A PNG in Adam7's seven passes."""
    starts = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    rows = b""
    for row, down, column, across in starts:
        part = picture[row::down, column::across]
        rows += b"".join(b"\0" + line.tobytes() for line in part) if part.size else b""
    return files.png(*picture.shape[:2], files.chunk(b"IDAT", zlib.compress(rows)), interlaced=1)


LARGE = cv2.resize(files.PICTURE, (101, 157), interpolation=cv2.INTER_CUBIC)
ALPHA = np.dstack([LARGE, LARGE[..., :1]])
SAMPLINGS = (
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)
HONEST = {
    **{suffix: files.encoded(suffix, LARGE) for suffix in files.QUALITIES},
    **{
        f"jpeg, sampling {sampling:x}, progressive {progressive}": files.encoded(
            ".jpg", LARGE, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive
        )
        for sampling in SAMPLINGS
        for progressive in (0, 1)
    },
    "jpeg, restarts": files.encoded(".jpg", LARGE, cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
    "jpeg, progressive with restarts": files.encoded(
        ".jpg", LARGE, cv2.IMWRITE_JPEG_RST_INTERVAL, 2, cv2.IMWRITE_JPEG_PROGRESSIVE, 1
    ),
    "jpeg, grey": cv2.imencode(".jpg", LARGE[..., 0])[1].tobytes(),
    "jpeg, followed by another": files.encoded(".jpg", LARGE) + files.encoded(".jpg"),
    "jpeg, filled": files.encoded(".jpg", LARGE).replace(b"\xff\xda", b"\xff\xff\xff\xda"),
    "png, alpha": cv2.imencode(".png", ALPHA)[1].tobytes(),
    "png, grey": cv2.imencode(".png", LARGE[..., 0])[1].tobytes(),
    "png, two levels": cv2.imencode(".png", LARGE[..., 0], [cv2.IMWRITE_PNG_BILEVEL, 1])[1].tobytes(),
    "png, sixteen bits": cv2.imencode(".png", LARGE.astype(np.uint16) * 201)[1].tobytes(),
    "png, sixteen bits and alpha": cv2.imencode(".png", ALPHA.astype(np.uint16) * 201)[1].tobytes(),
    "png, interlaced": interlaced(LARGE),
    "png, a small surplus": files.png(8, 8, files.chunk(b"IDAT", zlib.compress(bytes(30_000)))),
    "png, colour chunks": files.encoded(".png", LARGE)[:33]
    + files.chunk(b"gAMA", struct.pack(">I", 100_000))
    + files.chunk(b"bKGD", bytes(6))
    + files.chunk(b"sBIT", b"\5\5\5")
    + files.encoded(".png", LARGE)[33:],
    "png, a transparent colour": files.encoded(".png", LARGE)[:33]
    + files.chunk(b"tRNS", bytes(6))
    + files.encoded(".png", LARGE)[33:],
    "webp, lossless": files.encoded(".webp", LARGE, cv2.IMWRITE_WEBP_QUALITY, 101),
    "webp, alpha": cv2.imencode(".webp", ALPHA, [cv2.IMWRITE_WEBP_QUALITY, 80])[1].tobytes(),
    "webp, lossless alpha": cv2.imencode(".webp", ALPHA)[1].tobytes(),
}


@pytest.mark.parametrize("what", HONEST)
def test_what_a_decoder_is_not_given_changes_no_pixel(what):
    still = read_still(HONEST[what], MAX_PIXELS)
    np.testing.assert_array_equal(decode_crop(HONEST[what]), native(HONEST[what]))
    read_still(HONEST[what], still.height * still.width)  # as large as it may be, and still cheap enough


@pytest.mark.parametrize(
    "data",
    [
        files.png(8, 8, files.rows(8, 8))[:-12],
        files.png(8, 8, files.rows(8, 8))[:-4],
        files.png(8, 8, files.chunk(b"IHDR", bytes(13)), files.rows(8, 8)),
        files.png(8, 8, files.chunk(b"ABCD"), files.rows(8, 8)),
        files.png(8, 8, files.rows(8, 8), colour=5),
        files.png(8, 8, struct.pack(">I", 2**31) + b"tEXt", files.rows(8, 8)),
        files.encoded(".jpg")[:-2],
        files.jpeg(8, 8, files.scan((2,))),
        files.jpeg(8, 8, files.scan(())),
        files.jpeg(8, 8, files.segment(0xC2, bytes((8, 0, 8, 0, 8, 1, 1, 0x11, 0)))),
        files.jpeg(8, 8, files.segment(0xF0)),
        files.jpeg(8, 8, b"\xff\xd8"),
        files.jpeg(8, 8, b"\xff\xc4\0\1"),
        files.jpeg(8, 8, components=5),
        files.riff(files.canvas(48, 24)),
        files.riff(files.canvas(48, 24), (b"VP8 ", b"")),
        files.riff(files.canvas(10, 10), (b"VP8 ", files.encoded(".webp")[20:])),
        files.riff((b"VP8X", b"")),
    ],
    ids=lambda data: None,
)
def test_files_that_contradict_themselves_are_damaged(data):
    with pytest.raises(DataError, match="damaged") as caught:
        decode_crop(data)
    assert not isinstance(caught.value, (CostlyImageError, UnsupportedImageError))


def frame(height, width, *, marker=b"\xff", kind=0xC0, length=17):
    """A JPEG's frame header of three components, with what goes before its kind."""
    body = struct.pack(">BHHB", 8, height, width, 3) + bytes((1, 0x11, 0, 2, 0x11, 1, 3, 0x11, 1))
    return marker + struct.pack(">BH", kind, length) + body


def after_start(*parts):
    """An honest JPEG with something between its start and what follows."""
    data = files.encoded(".jpg", LARGE)
    return data[:2] + b"".join(parts) + data[2:]


def second_header(height, width):
    honest = files.encoded(".png", LARGE)
    return honest[:33] + files.chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + honest[33:]


TWO_SIZES = {
    "jpeg, a frame without 0xff": after_start(frame(16, 16, marker=b"")),
    "jpeg, a frame after zeros": after_start(frame(16, 16, marker=b"\0\xff")),
    "jpeg, a frame of no size first": after_start(frame(16, 16, marker=b"\xff\0\xff")),
    "jpeg, a frame before the frame": after_start(frame(16, 16)),
    "jpeg, a rare frame before the frame": after_start(frame(16, 16, kind=0xC3)),
    "jpeg, a frame in a comment": after_start(files.segment(0xFE, frame(16, 16))),
    "jpeg, a frame after a comment and a byte": after_start(files.segment(0xFE), b"\0", frame(16, 16)),
    "jpeg, a frame after a bare marker": after_start(b"\xff\x01", frame(16, 16)),
    "jpeg, a frame after a restart": after_start(b"\xff\xd0", frame(16, 16)),
    "jpeg, a second start": after_start(b"\xff\xd8", frame(16, 16)),
    "jpeg, a frame that is cut short": after_start(frame(16, 16, length=8)),
    "jpeg, a frame that is too long": after_start(frame(16, 16, length=300)),
    "jpeg, lines named after the scan": files.encoded(".jpg", LARGE)[:-2]
    + files.segment(0xDC, b"\0\x10")
    + b"\xff\xd9",
    "png, a second header": second_header(16, 16),
    "png, a second and larger header": second_header(3000, 3000),
    "webp, a canvas of another size": files.riff(files.canvas(10, 10), (b"VP8 ", files.encoded(".webp")[20:])),
    "webp, two bitstreams": files.riff(
        (b"VP8 ", files.encoded(".webp", LARGE)[20:]), (b"VP8 ", files.encoded(".webp")[20:])
    ),
    "ppm, a number in a comment": b"P6 #9 9\n2 1 255\n" + bytes(6),
    "ppm, a number broken by a comment": b"P6 2#\n0 1 255\n" + bytes(6),
    "ppm, more numbers than it has": b"P6 2 1 255 9 9\n" + bytes(6),
    "bmp, upside down": b"BM"
    + struct.pack("<IHHI", 78, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 2, -4, 1, 24, *[0] * 6)
    + bytes(32),
    "bmp, a negative width": b"BM"
    + struct.pack("<IHHI", 78, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, -2, 4, 1, 24, *[0] * 6)
    + bytes(32),
    "bmp, a header of sixteen bytes": b"BM"
    + struct.pack("<IHHI", 78, 0, 0, 54)
    + struct.pack("<IHHHH", 16, 2, 4, 1, 24)
    + bytes(60),
}


@pytest.mark.parametrize("what", TWO_SIZES | HONEST)
def test_what_is_decoded_has_the_size_that_limits_are_checked_on(what, monkeypatch):
    data = (TWO_SIZES | HONEST)[what]
    sizes, decode = [], cv2.imdecode

    def recorded(*words):
        image = decode(*words)
        if image is not None:
            sizes.append(image.shape[:2])
        return image

    monkeypatch.setattr(cv2, "imdecode", recorded)
    with contextlib.suppress(DataError):
        decode_crop(data)
    with contextlib.suppress(DataError):
        sizes.append(image_size(data))
    assert len(set(sizes)) <= 1
    assert sizes or what in TWO_SIZES


DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


@pytest.mark.parametrize("colour", range(8))
def test_a_png_has_a_depth_that_its_colour_type_allows(colour, never_decoded):
    """Otherwise its rows could be counted as larger than any that a decoder reads, and so could what is inflated."""
    for depth in (*range(1, 18), 32, 64, 128, 255):
        data = files.png(40, 24, files.rows(40, 24), depth=depth, colour=colour)
        if depth in DEPTHS.get(colour, ()):
            assert image_size(data) == (40, 24)
            continue
        with pytest.raises(DataError, match="the image header is damaged"):
            decode_crop(data)


@pytest.mark.parametrize("rest", [(1, 0, 0), (0, 1, 0), (0, 64, 0), (0, 0, 2), (0, 0, 255)])
def test_a_png_of_another_compression_filter_or_interlacing(rest, never_decoded):
    header = struct.pack(">IIBBBBB", 24, 40, 8, 2, *rest)
    data = files.PNG + files.chunk(b"IHDR", header) + files.rows(40, 24) + files.chunk(b"IEND")
    with pytest.raises(DataError, match="the image header is damaged"):
        image_size(data)


@pytest.mark.parametrize("largest", [1, 2, 100, 254, 255, 256, 1000, 4095, 65534, 65535])
@pytest.mark.parametrize("kind", ["P5", "P6"])
def test_the_largest_value_of_a_ppm_is_white(largest, kind):
    """OpenCV takes the first eight bits of whatever there is: a picture of twelve bits would be all but black."""
    channels = 3 if kind == "P6" else 1
    values = np.linspace(0, largest, 48 * 24 * channels).astype(np.uint16).reshape(48, 24, channels)
    header = f"{kind}\n# made by hand\n24 48\n{largest}\n".encode()
    samples = values.astype(">u2" if largest > 255 else np.uint8).tobytes()
    crop = decode_crop(header + samples)
    expected = values.astype(float) * 255 / largest
    assert (np.abs(crop - expected) <= (1 if largest == 65535 else 0.5)).all()  # OpenCV itself cuts these off
    assert crop.max() == 255
    if largest not in (255, 65535):
        with pytest.raises(DataError, match="damaged"):
            decode_crop((header + samples)[:-1])
        over = decode_crop(header + samples[:-1] + b"\xff")
        assert over[-1, -1].max() == 255


@pytest.mark.parametrize("largest", ["0", "65536", "999999999", "-1", "x", ""])
def test_a_ppm_without_a_largest_value_is_damaged(largest, never_decoded):
    with pytest.raises(DataError, match="damaged"):
        image_size(f"P6 2 1 {largest}\n".encode() + bytes(12))


def test_a_ppm_whose_number_goes_on_where_we_stop_reading():
    for start in range(4080, 4100):
        padded = b"P6" + b" " * (start - 2 - 6) + b"60000 "
        with pytest.raises(DataError, match=r"damaged|over the limit"):
            decode_crop(padded + b"60000 255\n")
    with pytest.raises(DataError, match="damaged"):
        decode_crop(b"P6 1_0 1_0 255\n" + bytes(300))
    with pytest.raises(DataError, match="damaged"):
        decode_crop(b"P6 1#30000\n1 30000 255\n" + bytes(3))
    assert decode_crop(b"P6 #x\n1 #y\r#z\n1 255\n" + bytes(3)).shape == (1, 1, 3)


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\0", b"\xff\xd0", b"\xff" * 999 + b"\0"])
def test_counting_takes_time_in_proportion_to_the_bytes(filling):
    """Runs of fill bytes would take hours where every start of a marker is tried at every byte."""
    data = filling * (4_000_000 // len(filling))
    for file in (
        files.jpeg(8, 8, files.scan(data=data)),
        b"\xff\xd8" + data,
        files.jpeg(8, 8, before=data),
        files.jpeg(8, 8, data),
    ):
        with contextlib.suppress(DataError):
            read_still(file, FOUR)


@given(seed=st.integers(0, 2**32 - 1), what=st.sampled_from([*COSTLY, *UNSUPPORTED, *THRIFTY, *HONEST]))
@settings(max_examples=60, deadline=None)
def test_damage_of_any_file_is_a_picture_or_one_line(seed, what):
    chooser = np.random.default_rng(seed)
    data = np.frombuffer((COSTLY | UNSUPPORTED | THRIFTY | HONEST)[what], np.uint8).copy()
    where = chooser.integers(min(len(data), 400), size=3)
    data[where] = chooser.integers(0, 256, 3)
    message = ""
    try:
        decode_crop(data.tobytes())
    except DataError as error:
        message = str(error)
    assert "\n" not in message
