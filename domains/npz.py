"""NumPy's files from elsewhere, read within limits: headers are checked before memory is taken, objects are refused.

``np.load`` believes a header: it takes memory for a shape that no bytes follow, and raises whatever its parts raise.
Here an array is as large as its bytes, and everything that is wrong is a ValueError of one line.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Collection
from typing import IO, Any, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

KINDS = "biufU"
"""Truth values, whole numbers, floating-point numbers and text."""

MAX_HEADER = 2**14
MAX_ARRAYS = 2**17
CHUNK = 2**22
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_npz(data: bytes | IO[bytes], *, limit: int, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read the arrays of an ``npz`` archive.

    Args:
        data: its bytes, or a file that can seek.
        limit: the most bytes that it may unpack to.
        names: the arrays that it must hold, and no others; None takes any.

    Raises:
        ValueError: not an archive, larger than the limit, other arrays, or an array that is not as its header says.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data) if isinstance(data, bytes) else data) as archive:
            entries = archive.infolist()
            held = [entry.filename.removesuffix(".npy") for entry in entries]
            size = sum(entry.file_size for entry in entries)
            if size > limit:
                raise ValueError(f"it unpacks to {size // 2**20} MiB, at most {limit // 2**20} are read")
            if len(held) > MAX_ARRAYS or len(set(held)) < len(held):
                raise ValueError(f"it holds {len(held)} arrays, or two of one name")
            if names is not None and set(held) != set(names):
                raise ValueError(f"it holds {', '.join(sorted(held))!r:.80}, not {', '.join(sorted(names))}")
            if any(entry.compress_type not in _PACKED for entry in entries):
                raise ValueError("it is packed in a way that NumPy does not use")
            return {name: _member(archive, entry, name) for name, entry in zip(held, entries, strict=True)}
    except ValueError:
        raise
    except MemoryError as error:
        raise ValueError("there is too little memory for it") from error
    except Exception as error:  # zipfile raises errors of its own, of zlib, of struct and of Python
        raise ValueError(f"it is damaged: {' '.join(str(error).split()) or type(error).__name__:.120}") from error


def read_npy(data: bytes) -> NDArray[Any]:
    """Read one array from the bytes of an ``npy`` file; raises ValueError as :func:`read_npz` does."""
    return _array(io.BytesIO(data), len(data), "it")


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> NDArray[Any]:
    with archive.open(entry) as stream:
        return _array(stream, entry.file_size, f"the array {name!r:.60}")


def _array(stream: IO[bytes], size: int, what: str) -> NDArray[Any]:
    """Read an array that takes this many bytes with its header."""
    counted = _Counted(stream)
    try:
        version = npy.read_magic(cast(Any, counted))
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version}")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, kind = read(cast(Any, counted), max_header_size=MAX_HEADER)
    except Exception as error:  # a header is parsed as Python, and raises whatever that does
        raise ValueError(f"{what} has no header of NumPy's that can be read") from error
    if kind.kind not in KINDS or kind.fields or kind.subdtype or not kind.itemsize:
        raise ValueError(f"{what} holds {str(kind)[:40]}, not numbers or text")
    if len(shape) > 32 or not all(isinstance(side, int) and not isinstance(side, bool) and side >= 0 for side in shape):
        raise ValueError(f"{what} has the shape {str(shape)[:60]}")
    if math.prod(shape) * kind.itemsize != size - counted.count:
        raise ValueError(f"{what} has fewer or more bytes than its header says: {kind} {str(shape)[:60]}")
    data = bytearray(size - counted.count)  # an array that can be written to, as np.load's are
    if _fill(stream, memoryview(data)) != len(data) or stream.read(1):
        raise ValueError(f"{what} has fewer or more bytes than its archive says")
    return np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")


def _fill(stream: IO[bytes], into: memoryview) -> int:
    """Read until the memory is full or the stream ends; returns how much was read."""
    done = 0
    while done < len(into):
        part = stream.read(min(len(into) - done, CHUNK))
        if not part:
            break
        into[done : done + len(part)] = part
        done += len(part)
    return done


class _Counted:
    """A stream that counts what is read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.count = stream, 0

    def read(self, size: int) -> bytes:
        """Read at most this many bytes."""
        data = self._stream.read(size)
        self.count += len(data)
        return data
