"""Crops in memory: each image is decoded once, kept as uint8 and accessed by position."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from domains.crops import CropSpec
from domains.domain import Domain, Split
from domains.errors import DataError

THREADS = 4
CHUNK = 256
NOT_THERE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of file systems that can't preallocate space."""


@dataclass(frozen=True)
class LeftOut:
    """An image that could not be decoded: its path and why."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class CropStore:
    """The decodable crops of a split, in the split's order.

    Attributes:
        crops: uint8 ``[N, H, W, 3]`` RGB, in memory, or memory-mapped from an unnamed scratch file that disappears with
            the process.
        split: the rows that ``crops`` holds.
        left_out: the images that could not be read; a broken image never stops a training run.
    """

    crops: NDArray[np.uint8]
    split: Split
    left_out: tuple[LeftOut, ...]

    def __len__(self) -> int:
        """Return the number of crops."""
        return len(self.crops)

    @classmethod
    def decode(
        cls,
        domain: Domain,
        split: Split,
        spec: CropSpec,
        *,
        limit_mb: int = 4096,
        progress: Callable[[int], None] | None = None,
        scratch: Path | None = None,
    ) -> CropStore:
        """Decode a split with a few threads (OpenCV releases the GIL).

        Args:
            domain: the domain that the split belongs to.
            split: the rows to decode.
            spec: size and resize rule.
            limit_mb: above this size in MiB, crops go to a memory-mapped scratch file.
            progress: called with the number of images just decoded.
            scratch: folder of that file, such as the run's; by default the system's temporary one.

        Raises:
            DataError: the split has images but none could be decoded, or the disk has no room for the scratch
                file.
        """
        crops = _allocate((len(split), spec.height, spec.width, 3), limit_mb, scratch)
        files = domain.files(split)
        reasons: dict[int, str] = {}

        def decode_row(row: int) -> None:
            try:
                crops[row] = spec.read(files[row])
            except DataError as error:
                reasons[row] = str(error)

        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(files), CHUNK):
                chunk = range(start, min(start + CHUNK, len(files)))
                list(pool.map(decode_row, chunk))
                if progress:
                    progress(len(chunk))
        if files and len(reasons) == len(files):
            raise DataError(
                f"domain {domain.name}: none of its {len(files)} images can be read; the first: {reasons[0]}"
            )
        left_out = tuple(LeftOut(split.paths[row], reasons[row]) for row in sorted(reasons))
        if reasons:
            readable = np.setdiff1d(np.arange(len(files)), list(reasons))
            for target, source in enumerate(readable):  # in place: a memory-mapped store never needs twice its size
                crops[target] = crops[source]
            crops, split = crops[: len(readable)], split.take(readable)
        return cls(crops, split, left_out)


def _allocate(shape: Sequence[int], limit_mb: int, folder: Path | None) -> NDArray[np.uint8]:
    size = int(np.prod(shape, dtype=np.int64))
    if size <= limit_mb * 2**20 or size == 0:
        return np.empty(shape, np.uint8)
    where = Path(tempfile.gettempdir()) if folder is None else folder
    advice = "set TMPDIR to a folder with more" if folder is None else "use a run on a larger disk"
    try:
        with tempfile.TemporaryFile(prefix="reid-crops-", dir=where) as scratch:
            _reserve(scratch.fileno(), size)
            return np.memmap(scratch, np.uint8, "r+", shape=tuple(shape))
    except OSError as error:
        raise DataError(
            f"can't reserve {-(-size // 2**20)} MiB for decoded crops in {where}: {error.strerror or error}; "
            f"free some space there, {advice}, or raise storage.crop_memory_mb to keep them in memory"
        ) from error


def _reserve(descriptor: int, size: int) -> None:
    """Set a file's size and reserve its disk space: a mapped file on a full disk kills the process (SIGBUS)."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in NOT_THERE:
                raise
    os.truncate(descriptor, size)


class StoreCache:
    """Decoded test splits, cached between evaluations while they fit; the least recently used are evicted first."""

    def __init__(self, spec: CropSpec, limit_mb: int, scratch: Path | None = None) -> None:
        self.spec = spec
        self.limit_mb = limit_mb
        self.scratch = scratch
        self._stores: dict[tuple[Path, str, int], CropStore] = {}

    def get(self, domain: Domain, split: Split) -> CropStore:
        """Return the decoded split, from memory if it is cached."""
        key = (domain.root, domain.fingerprint, hash(split.paths))
        store = self._stores.pop(key, None) or CropStore.decode(
            domain, split, self.spec, limit_mb=self.limit_mb, scratch=self.scratch
        )
        self._stores[key] = store
        while (
            sum(cached.crops.nbytes for cached in self._stores.values()) > self.limit_mb * 2**20
            and len(self._stores) > 1
        ):
            self._stores.pop(next(iter(self._stores)))
        return store
