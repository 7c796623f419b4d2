"""Every format is decoded alike by every version of OpenCV that is allowed, EXIF orientation included: the trainer and
the edge would embed different pictures otherwise.
"""

import base64
import hashlib
import struct

import image_files as files
import numpy as np
import pytest

from domains.crops import CropSpec, decode_crop
from domains.images import read_still, upright
from domains.images.exif import orientation

SHOWN = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: np.fliplr(np.rot90(image, -1)),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.fliplr(np.rot90(image, 1)),
    8: lambda image: np.rot90(image, 1),
}
"""What EXIF 2.32 says of each tag, in NumPy; ``rot90`` turns anticlockwise."""

WITH_EXIF = [".jpg", ".png", ".webp"]
PINNED = {
    "jpeg": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxO"
        "UlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09P"
        "T09PT09PT0//wAARCAATAAsDASIAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAAAgMA/8QAIhAAAgEEAQUBAQAAAAAAAAAAAgMB"
        "AAQRIRMSIkFhgRQx/8QAFQEBAQAAAAAAAAAAAAAAAAAAAgT/xAAjEQABAwIFBQAAAAAAAAAAAAABAAIREiEDBAUxYXGBkdHw/9oA"
        "DAMBAAIRAxEAPwBMulAZuTdciJKBmBKY7Y/mM/c0DShxyxV4sALcCSszH2pqFNwKWJDbBk4iIwWfHrNRZe23IWJcPqMapNw6hLZH"
        "afNuqL2MoAAKo9pjYouBnpb+vj6hjHbrWqN/bJm9bMrjc+NeK1apsiTUBx6R1GzzH26//9k=",
        "6dee2a631cbbe461",
    ),
    "jpeg, progressive": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxO"
        "UlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09P"
        "T09PT09PT0//wgARCAATAAsDASIAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAAAgAB/8QAFQEBAQAAAAAAAAAAAAAAAAAAAQP/"
        "2gAMAwEAAhADEAAAAdJCLKkf/8QAGRAAAwEBAQAAAAAAAAAAAAAAAAECERIi/9oACAEBAAEFAnSMTFlDudb8XK7/AP/EABgRAAID"
        "AAAAAAAAAAAAAAAAAAABBBEx/9oACAEDAQE/AWlRI0//xAAZEQACAwEAAAAAAAAAAAAAAAAAMQECAxH/2gAIAQIBAT8BivUYM//E"
        "ABsQAAIDAAMAAAAAAAAAAAAAAAABAhFBEiGR/9oACAEBAAY/ArUrRamvBNaaKW8qH0f/xAAcEAEAAgMAAwAAAAAAAAAAAAABABEh"
        "MUEQUWH/2gAIAQEAAT8hEue1h5F9APGARdL+yw1jBsbR68Uf/9oADAMBAAIAAwAAABBz7//EABkRAQACAwAAAAAAAAAAAAAAAAEA"
        "ESEx8P/aAAgBAwEBPxCvAZi67c//xAAcEQACAQUBAAAAAAAAAAAAAAABEQAhYXGBkdH/2gAIAQIBAT8QQbDT7TMIoLeT/8QAGxAB"
        "AAMBAQEBAAAAAAAAAAAAAQARIUFhgTH/2gAIAQEAAT8Qs8IQhj8q/txrqYsp9mwFCBVueXMY+BWR5OMVxmRzo15nJ//Z",
        "6dee2a631cbbe461",
    ),
    "webp, lossy": (
        "UklGRtwAAABXRUJQVlA4INAAAACQBQCdASoLABMAPrVInkmnJCKhMAgA4BaJbACdMoRgC3DnAggFgAdKiBQN3uzE01BFrhQVgADO"
        "L5NiMEDifN+eJwt8318txVgIr13TknKsFeSHvpaHRL0fQl0h/f6fmuSykj6VhR2JwJIofRO4Oc/UqTg3fnFwoMLxztI/mB2xX8eK"
        "qM8fcPSeCoJ5J+GOatHYbm/8dTHeQpflJIg0xaRossfQ1+Gc4We9yWcTMX/dmlonSrZhexff/Jlrmpl/R29unTPz7V/BlP9Dfoi2"
        "AAAA",
        "1ec11f7e52ed966e",
    ),
}
"""Small files as they were written once, and how the SHA-256 of their pixels begins: the same with 4.12 and 5.0."""


@pytest.mark.parametrize("what", PINNED)
def test_pixels_of_a_file_are_the_same_with_every_version(what):
    data, expected = PINNED[what]
    image = decode_crop(base64.b64decode(data))
    assert image.shape == (19, 11, 3)
    assert hashlib.sha256(image.tobytes()).hexdigest().startswith(expected)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm"])
def test_pixels_without_loss(suffix):
    np.testing.assert_array_equal(decode_crop(files.encoded(suffix)), files.PICTURE)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("tag", SHOWN)
@pytest.mark.parametrize("suffix", WITH_EXIF)
def test_every_orientation_of_every_format(suffix, tag, order, tmp_path):
    stored = decode_crop(files.encoded(suffix))
    data = files.with_exif(suffix, files.tiff(tag, order))
    found = decode_crop(data)
    assert found.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(found, SHOWN[tag](stored))
    assert read_still(data, 10**6).shown_size == found.shape[:2]
    file = tmp_path / f"a{suffix}"
    file.write_bytes(data)
    np.testing.assert_array_equal(CropSpec(*found.shape[:2]).read(file), found)


def entry(tag, kind, count, value):
    return struct.pack("<HHII", tag, kind, count, value)


SIX = files.tiff(6)
ODD = {
    "no such orientation": (files.tiff(0), 1),
    "no such orientation either": (files.tiff(9), 1),
    "a large one": (files.tiff(0x106), 1),
    "a long number": (files.tiff(6, kind=4), 6),
    "a long number, the other way round": (files.tiff(6, ">", kind=4), 1),
    "bytes": (files.tiff(6, kind=1), 6),
    "two of them": (files.tiff(6, count=2), 6),
    "none of them": (files.tiff(6, count=0), 6),
    "a kind that does not exist": (files.tiff(6, kind=0), 6),
    "other entries before it": (files.tiff(6, before=[entry(0x100, 3, 1, 9)]), 6),
    "a text that lies outside": (files.tiff(6, before=[entry(0x10F, 2, 50, 99_999)]), 6),
    "a fraction that lies outside": (files.tiff(6, before=[entry(0x11A, 5, 1, 99_999)]), 6),
    "named twice": (files.tiff(3, before=[entry(0x112, 3, 1, 6)]), 6),
    "named twice, first wrongly": (files.tiff(3, before=[entry(0x112, 3, 1, 77)]), 1),
    "no entries": (SIX[:8] + bytes(2), 1),
    "more entries than there are": (SIX[:8] + b"\xff\xff" + SIX[10:], 6),
    "more entries than there are, and not it": (SIX[:8] + b"\xff\xff" + bytes(40), 1),
    "a directory elsewhere": (SIX[:4] + struct.pack("<I", 16) + bytes(8) + SIX[8:], 6),
    "a directory outside": (SIX[:4] + struct.pack("<I", 9999) + SIX[8:], 1),
    "a directory in the header": (SIX[:4] + struct.pack("<I", 0) + SIX[8:], 1),
    "cut after it": (SIX[:-4], 6),
    "cut in it": (SIX[:19], 1),
    "cut before it": (SIX[:12], 1),
    "cut in the header": (SIX[:7], 1),
    "another magic number": (b"II+\0" + SIX[4:], 1),
    "another byte order": (b"XX*\0" + SIX[4:], 1),
    "nothing": (b"", 1),
    "its prefix twice": (b"Exif\0\0" * 2 + SIX, 1),
}


@pytest.mark.parametrize("suffix", WITH_EXIF)
@pytest.mark.parametrize("what", ODD)
def test_odd_exif_data_mean_the_same_in_every_format(what, suffix):
    exif, expected = ODD[what]
    found = decode_crop(files.with_exif(suffix, exif))
    np.testing.assert_array_equal(found, SHOWN[expected](decode_crop(files.encoded(suffix))))


def test_where_exif_data_may_lie():
    stored = {suffix: decode_crop(files.encoded(suffix)) for suffix in WITH_EXIF}
    jpeg, png, webp = (files.encoded(suffix) for suffix in WITH_EXIF)
    six, three = (b"Exif\0\0" + files.tiff(tag) for tag in (6, 3))
    about = files.segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")
    bits = (webp[12:16], webp[20:])
    exif = (b"EXIF", files.tiff(6))
    for suffix, data, tag in (
        (".jpg", jpeg[:2] + about + files.segment(0xE1, six) + jpeg[2:], 6),
        (".jpg", jpeg[:2] + files.segment(0xE1, six) + files.segment(0xE1, three) + jpeg[2:], 6),
        (".jpg", jpeg[:2] + files.segment(0xE1, six[6:]) + jpeg[2:], 1),
        (".jpg", jpeg[:2] + files.segment(0xE1, b"EXIF" + six[4:]) + jpeg[2:], 1),
        (".jpg", jpeg[:2] + files.segment(0xE2, six) + jpeg[2:], 1),
        (".jpg", jpeg + files.segment(0xE1, six), 1),
        (".png", png[:-12] + files.chunk(b"eXIf", files.tiff(6)) + png[-12:], 6),
        (".png", png + files.chunk(b"eXIf", files.tiff(6)), 1),
        (".png", png[:33] + files.chunk(b"eXIf", six) + png[33:], 6),
        (".webp", files.riff(files.canvas(48, 24, 8), bits, (b"EXIF", six)), 6),
        (".webp", files.riff(files.canvas(48, 24, 8), exif, bits), 6),
        (".webp", files.riff(files.canvas(48, 24), bits, exif), 6),
        (".webp", files.riff(files.canvas(48, 24, 8), bits, (b"EXIF", three), exif), 3),
    ):
        np.testing.assert_array_equal(decode_crop(data), SHOWN[tag](stored[suffix]))


def test_reading_and_turning_by_themselves():
    image = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    for tag, shown in SHOWN.items():
        np.testing.assert_array_equal(upright(image, tag), shown(image))
        assert orientation(files.tiff(tag)) == orientation(b"Exif\0\0" + files.tiff(tag, ">")) == tag
