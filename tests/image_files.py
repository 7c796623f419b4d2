"""Image files made by hand, of every format that is taken: with EXIF data, and built to keep a decoder busy."""

import struct
import zlib

import cv2
import numpy as np

PICTURE = cv2.resize(np.random.default_rng(0).integers(0, 256, (16, 8, 3), np.uint8), (24, 48))
PNG = b"\x89PNG\r\n\x1a\n"
QUALITIES = {".jpg": [], ".png": [], ".bmp": [], ".ppm": [], ".webp": [cv2.IMWRITE_WEBP_QUALITY, 80]}


def encoded(suffix, picture=PICTURE, *options):
    """RGB in, file out."""
    return cv2.imencode(suffix, picture[..., ::-1], list(options) or QUALITIES[suffix])[1].tobytes()


def tiff(value, order="<", *, kind=3, count=1, before=()):
    """EXIF data whose first directory names an orientation; ``before``: twelve-byte entries that precede it."""
    entries = [
        *before,
        struct.pack(order + "HHI", 0x112, kind, count)
        + struct.pack(order + "I" if kind == 4 else order + "Hxx", value),
    ]
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(order + "IH", 8, len(entries)) + b"".join(entries) + bytes(4)


def segment(marker, body=b""):
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def chunk(kind, body=b""):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def riff(*chunks):
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def canvas(height, width, flags=0):
    return b"VP8X", bytes((flags, 0, 0, 0)) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def with_exif(suffix, exif, picture=PICTURE):
    """A file of a format that can hold EXIF data."""
    data = encoded(suffix, picture)
    if suffix == ".jpg":
        return data[:2] + segment(0xE1, b"Exif\0\0" + exif) + data[2:]
    if suffix == ".png":
        return data[:33] + chunk(b"eXIf", exif) + data[33:]
    return riff(
        canvas(*picture.shape[:2], flags=8),
        (data[12:16], data[20 : 20 + struct.unpack("<I", data[16:20])[0]]),
        (b"EXIF", exif),
    )


def png(height, width, *chunks, depth=8, colour=2, interlaced=0):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return PNG + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND")


def rows(height, width):
    """Compressed rows of a black RGB picture."""
    return chunk(b"IDAT", zlib.compress(bytes((1 + 3 * width) * height), 9))


def huffman(kind, *symbols):
    """A table of one or two symbols: ``0`` and ``10``."""
    return segment(0xC4, bytes((kind, 1, len(symbols) - 1)) + bytes(14) + bytes(symbols))


def scan(components=(1,), first=1, last=63, approximation=0x10, data=b""):
    names = b"".join(bytes((name, 0)) for name in components)
    return segment(0xDA, bytes((len(components),)) + names + bytes((first, last, approximation))) + data


def jpeg(height, width, *scans, components=1, kind=0xC2, before=b""):
    parts = b"".join(bytes((name, 0x11, 0)) for name in range(1, components + 1))
    frame = segment(kind, struct.pack(">BHHB", 8, height, width, components) + parts)
    tables = segment(0xDB, b"\0" + b"\1" * 64) + huffman(0x00, 0) + huffman(0x10, 0xE0, 0x01)
    return b"\xff\xd8" + before + tables + frame + b"".join(scans) + b"\xff\xd9"


REFINING = scan(data=b"\x7f\xfe" * 5)
"""A scan that walks over every block of the picture at the price of twenty bytes."""


def _frames(count, height=40, width=20):
    control = struct.pack(">IIIIHHBB", width, height, 0, 0, 1, 10, 0, 0)
    data = zlib.compress(bytes((1 + 3 * width) * height))
    made = [chunk(b"acTL", struct.pack(">II", count, 0)), chunk(b"fcTL", bytes(4) + control), chunk(b"IDAT", data)]
    for number in range(1, 2 * count - 1, 2):
        made += [
            chunk(b"fcTL", struct.pack(">I", number) + control),
            chunk(b"fdAT", struct.pack(">I", number + 1) + data),
        ]
    return made


def _zeros(number):
    """``number`` MiB of zeros, compressed."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(number)) + packer.flush()


def costly():
    """Files that would take a decoder far more work than their pixels or bytes do."""
    still = encoded(".webp")
    zeros = _zeros(64)
    return {
        "jpeg, thousands of scans over four million pixels": jpeg(2000, 2000, *[REFINING] * 1800),
        "jpeg, scans just too many": jpeg(64, 64, *[REFINING] * 65),
        "jpeg, comments before the frame": jpeg(8, 8, REFINING, before=segment(0xFE) * 100_000),
        "jpeg, tables": jpeg(8, 8, *[huffman(0, 0)] * 100_000, REFINING),
        "jpeg, exif segments": jpeg(8, 8, REFINING, before=segment(0xE1, b"Exif\0\0" + tiff(6)) * 5000),
        "png, far more data than pixels": png(8, 8, chunk(b"IDAT", zeros)),
        "png, a surplus in many chunks": png(
            8, 8, *(chunk(b"IDAT", zeros[at : at + 2000]) for at in range(0, 66_000, 2000))
        ),
        "png, interlaced with a surplus": png(8, 8, chunk(b"IDAT", _zeros(1)), interlaced=1),
        "png, texts": png(8, 8, *[chunk(b"tEXt", b"k\0v")] * 20_000, rows(8, 8)),
        "png, empty pieces of data": png(8, 8, *[chunk(b"IDAT")] * 20_000, rows(8, 8)),
        "webp, chunks": riff(canvas(48, 24), *[(b"JUNK", b"")] * 2000, (still[12:16], still[20:])),
    }


def costly_for_their_size():
    """The same, where no more than four million pixels are taken."""
    return {
        "jpeg, few scans over too many pixels": jpeg(2000, 2000, *[REFINING] * 30),
        "jpeg, few scans of many components": jpeg(2000, 2000, *[scan((1, 2, 3), 0, 0, 0x10)] * 9, components=3),
        "jpeg, one component named often": jpeg(2000, 2000, *[scan((1, 1, 1, 1), 0, 0, 0)] * 7),
        "jpeg, sequential scans of one component": jpeg(
            2000, 2000, *[scan(last=63, first=0, approximation=0)] * 30, kind=0xC1
        ),
    }


def unsupported():
    """Animations, and codings that hardly anybody uses."""
    still = encoded(".webp")
    frame = bytes(6) + bytes((23, 0, 0, 47, 0, 0, 10, 0, 0, 0)) + still[12:]
    return {
        "png, animated": png(40, 20, *_frames(30)),
        "png, animated with a first picture aside": png(40, 20, rows(40, 20), chunk(b"acTL", struct.pack(">II", 1, 0))),
        "webp, animated": riff(canvas(48, 24, 2), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * 30),
        "webp, animated without saying so": riff(canvas(48, 24), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * 30),
        "jpeg, arithmetic": jpeg(40, 24, scan(first=0, approximation=0), kind=0xC9),
        "jpeg, arithmetic and progressive": jpeg(40, 24, scan((1,), 0, 0, 0), kind=0xCA),
        "jpeg, lossless": jpeg(40, 24, scan(first=1, last=0, approximation=0), kind=0xC3),
        "jpeg, hierarchical": jpeg(40, 24, scan(first=0, approximation=0), kind=0xC5),
    }


def thrifty():
    """Files that only look costly: what would be work lies in what no decoder is given."""
    text = zlib.compress(bytes(7 * 2**20), 9)
    texts = [chunk(b"zTXt", b"k\0\0" + text), chunk(b"iTXt", b"k\0\1\0\0\0" + text), chunk(b"iCCP", b"k\0\0" + text)]
    long = segment(0xE2, bytes(65_000))
    still = encoded(".webp")
    return {
        "png, inflated texts": png(8, 8, *texts * 50, rows(8, 8), *texts * 50),
        "jpeg, profiles": encoded(".jpg")[:2] + long * 200 + encoded(".jpg")[2:],
        "webp, profiles": riff(
            canvas(48, 24, 0x20), (b"ICCP", bytes(10**6)), (still[12:16], still[20:]), (b"XMP ", bytes(10**6))
        ),
    }
