"""The one place where crops are decoded and resized, for training, export and edge alike.

A crop is uint8 RGB ``[H, W, 3]``. Channel order and normalisation are *not* done here: they are the model's first
layer, in training and in the exported graph, so that no caller can get them wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from domains.choice import check_choice
from domains.errors import DataError
from domains.images import FORMATS, image_size, read_still, upright

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "SUFFIXES",
    "Crop",
    "CropSpec",
    "Resize",
    "check_crop",
    "decode_crop",
    "image_size",
    "read_crop",
]

Crop = NDArray[np.uint8]
Resize = Literal["area", "linear", "cubic"]

SUFFIXES = frozenset({".bmp", ".dib", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".webp"})
"""What files in those formats are called, in lower case: the one list for every folder that is read."""

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
    """Decode PNG, JPEG, BMP, WebP or PPM bytes to uint8 RGB at their own size, turned upright as their EXIF says.

    The decoder is given only what pixels come from, and only if that takes work in proportion to them
    (:func:`domains.images.read_still`), so that every version of OpenCV does the same and no file can hold it up.

    Raises:
        DataError: as :func:`read_crop`.
    """
    if not data:
        raise DataError("the file is empty")
    if len(data) > MAX_BYTES:
        raise DataError(f"more than {MAX_BYTES // 2**20} MiB; crops are small images")
    still = read_still(data, MAX_PIXELS)
    try:
        image = cv2.imdecode(np.frombuffer(still.data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise DataError("the image data is damaged") from error
    if image is None:
        raise DataError("the image data is damaged")
    if image.shape[:2] != (still.height, still.width):
        raise DataError("the image data is damaged: its header gives another size")
    return upright(cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False), still.orientation)
