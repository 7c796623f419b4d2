"""The one place where crops are decoded and resized, for training, export and edge alike.

A crop is uint8 RGB ``[H, W, 3]``. Channel order and normalisation are *not* done here: they are the model's first
layer, in training and in the exported graph, so that no caller can get them wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from domains.choice import check_choice
from domains.errors import DataError

Crop = NDArray[np.uint8]
Resize = Literal["area", "linear", "cubic"]

MAX_BYTES = 32 * 2**20
MAX_PIXELS = 64 * 10**6
MAX_SIDE = 4096

_INTERPOLATION = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}


@dataclass(frozen=True)
class CropSpec:
    """Size and resize rule of a model's input; it travels with the weights.

    Attributes:
        height: rows of the resized crop, in pixels.
        width: columns of the resized crop, in pixels.
        resize: ``area`` averages where the crop shrinks and is bilinear where it grows (no aliasing); ``linear`` and
            ``cubic`` are OpenCV's.
    """

    height: int = 256
    width: int = 128
    resize: Resize = "area"

    def __post_init__(self) -> None:
        """Check sizes and rule; raises DataError."""
        for side in ("height", "width"):
            value = getattr(self, side)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIDE:
                raise DataError(f"crop {side} must be a whole number from 1 to {MAX_SIDE}, got {value!r}")
        check_choice("crop resize", self.resize, Resize, DataError)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CropSpec:
        """Inverse of :meth:`to_dict`; raises DataError on unknown or missing keys."""
        if set(values) != {"height", "width", "resize"}:
            raise DataError(
                f"a crop rule must have the keys height, width and resize, got {', '.join(sorted(map(str, values)))}"
            )
        return cls(**values)

    def resized(self, crop: Crop) -> Crop:
        """Resize one uint8 RGB crop of any size to ``[height, width, 3]``; raises DataError for anything else."""
        check_crop(crop)
        if crop.shape[:2] == (self.height, self.width):
            return crop
        rule = self.resize
        if rule == "area" and (crop.shape[0] < self.height or crop.shape[1] < self.width):
            rule = "linear"
        return np.asarray(cv2.resize(crop, (self.width, self.height), interpolation=_INTERPOLATION[rule]), np.uint8)

    def batch(self, crops: Sequence[Crop]) -> Crop:
        """Resize crops of any size into one uint8 array ``[N, height, width, 3]``."""
        out = np.empty((len(crops), self.height, self.width, 3), np.uint8)
        for row, crop in zip(out, crops, strict=True):
            row[...] = self.resized(crop)
        return out

    def read(self, path: str | PathLike[str]) -> Crop:
        """Decode and resize one image file; raises DataError."""
        return self.resized(read_crop(path))


def check_crop(crop: Any) -> None:
    """Raise DataError unless ``crop`` is a non-empty uint8 array ``[H, W, 3]``."""
    if (
        not isinstance(crop, np.ndarray)
        or crop.dtype != np.uint8
        or crop.ndim != 3
        or crop.shape[2] != 3
        or 0 in crop.shape
    ):
        actual = f"{crop.dtype} {crop.shape}" if isinstance(crop, np.ndarray) else type(crop).__name__
        raise DataError(f"a crop must be a uint8 RGB array [H, W, 3], got {actual}")


def read_crop(path: str | PathLike[str]) -> Crop:
    """Decode one image file to uint8 RGB at its own size.

    Raises:
        DataError: unreadable, not an image, or larger than the limits (checked before decoding).
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"can't read image {file}: {error.strerror or error}") from error
    try:
        return decode_crop(data)
    except DataError as error:
        raise DataError(f"can't use image {file}: {error}") from error


def decode_crop(data: bytes) -> Crop:
    """Decode PNG, JPEG, BMP, WebP or PPM bytes to uint8 RGB at their own size.

    Raises:
        DataError: as :func:`read_crop`.
    """
    if not data:
        raise DataError("the file is empty")
    if len(data) > MAX_BYTES:
        raise DataError(f"more than {MAX_BYTES // 2**20} MiB; crops are small images")
    height, width = image_size(data)
    if height * width > MAX_PIXELS:
        raise DataError(f"{width}×{height} pixels, over the limit of {MAX_PIXELS // 10**6} million")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise DataError("the image data is damaged") from error
    if image is None:
        raise DataError("the image data is damaged")
    return np.ascontiguousarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)).astype(np.uint8, copy=False)


def image_size(data: bytes) -> tuple[int, int]:
    """Read height and width from an image file's header alone, so that limits can be checked before decoding.

    Raises:
        DataError: not a PNG, JPEG, BMP, WebP or PPM file, or its header is truncated or could be read differently by a
            decoder.
    """
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            if data[8:16] != b"\0\0\0\x0dIHDR":
                raise ValueError("another chunk before the header")
            width, height = struct.unpack(">II", data[16:24])
        elif data[:2] == b"BM":
            if struct.unpack("<I", data[14:18])[0] == 12:  # OS/2's header has 16-bit sides
                width, height = struct.unpack("<HH", data[18:22])
            else:
                width, height = (abs(side) for side in struct.unpack("<ii", data[18:26]))
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            width, height = _webp_size(data)
        elif data[:2] in (b"P5", b"P6"):
            width, height = (int(word) for word in _ppm_words(data))
        elif data[:2] == b"\xff\xd8":
            height, width = _jpeg_size(data)
        else:
            raise DataError("not a PNG, JPEG, BMP, WebP or PPM image")
    except (struct.error, ValueError, IndexError) as error:
        raise DataError("the image header is damaged") from error
    if height < 1 or width < 1:
        raise DataError("the image has no pixels")
    return height, width


def _ppm_words(data: bytes) -> Iterator[bytes]:
    lines = (line.split(b"#")[0] for line in data[2:512].splitlines())
    words = [word for line in lines for word in line.split()]
    return iter((words[0], words[1]))


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    while True:
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        # these have no length: where we would skip, a decoder would read on and find another size
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD9:
            raise ValueError("a marker that does not belong before the frame header")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 3 : at + 7])
            return height, width
        at += struct.unpack(">H", data[at : at + 2])[0]
        if data[at] != 0xFF:
            raise ValueError("no marker where one was expected")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the lossy, lossless or extended format (RFC 9649)."""
    kind = data[12:16]
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = struct.unpack("<I", data[21:25])[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    raise ValueError("no frame header")
