"""Crops held in memory: each image is decoded once, kept as uint8, and handed out by position."""

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
"""How a file system says that it can't reserve room."""


@dataclass(frozen=True)
class LeftOut:
    """An image that could not be decoded: its path and why."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class CropStore:
    """The decodable crops of a split, in its order.

    Attributes:
        crops: uint8 ``[N, H, W, 3]`` RGB, in memory or memory-mapped from a scratch file that has no name and vanishes
            with the process.
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
    ) -> CropStore:
        """Decode a split with a few threads (OpenCV releases the interpreter).

        Args:
            domain: whose files they are.
            split: the rows to decode.
            spec: size and resize rule.
            limit_mb: above this many MiB the crops lie in a memory-mapped scratch file.
            progress: told how many more are done.

        Raises:
            DataError: not one image could be decoded, though there are some; or the disk has no room for the scratch
                file.
        """
        crops = _allocate((len(split), spec.height, spec.width, 3), limit_mb)
        files = domain.files(split)
        reasons: dict[int, str] = {}

        def one(at: int) -> None:
            try:
                crops[at] = spec.read(files[at])
            except DataError as error:
                reasons[at] = str(error)

        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(files), CHUNK):
                chunk = range(start, min(start + CHUNK, len(files)))
                list(pool.map(one, chunk))
                if progress:
                    progress(len(chunk))
        if files and len(reasons) == len(files):
            raise DataError(
                f"domain {domain.name}: none of its {len(files)} images can be read; the first: {reasons[0]}"
            )
        left_out = tuple(LeftOut(split.paths[at], reasons[at]) for at in sorted(reasons))
        if reasons:
            kept = np.setdiff1d(np.arange(len(files)), list(reasons))
            for to, at in enumerate(kept):  # in place, so that a memory-mapped store never needs twice its size
                crops[to] = crops[at]
            crops, split = crops[: len(kept)], split.take(kept)
        return cls(crops, split, left_out)


def _allocate(shape: Sequence[int], limit_mb: int) -> NDArray[np.uint8]:
    size = int(np.prod(shape, dtype=np.int64))
    if size <= limit_mb * 2**20 or size == 0:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile(prefix="reid-crops-") as scratch:
        _reserve(scratch.fileno(), size)
        return np.memmap(scratch, np.uint8, "r+", shape=tuple(shape))


def _reserve(descriptor: int, size: int) -> None:
    """Give a file its size and its room on the disk: a mapped file without it kills the process (SIGBUS) where the disk
    gets full.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError as error:
                if error.errno not in NOT_THERE:
                    raise
        os.truncate(descriptor, size)
    except OSError as error:
        raise DataError(
            f"can't reserve {-(-size // 2**20)} MiB for decoded crops in {tempfile.gettempdir()}: {error.strerror}; "
            "free some room there, "
            "set TMPDIR to a folder with more, or raise storage.crop_memory_mb to hold them in memory"
        ) from error


class StoreCache:
    """Decoded test splits, kept between evaluations of one process while they fit; least recently used go first."""

    def __init__(self, spec: CropSpec, limit_mb: int) -> None:
        self.spec = spec
        self.limit_mb = limit_mb
        self._stores: dict[tuple[Path, str, int], CropStore] = {}

    def get(self, domain: Domain, split: Split) -> CropStore:
        """Return the decoded split, from memory if it is there."""
        name = (domain.root, domain.fingerprint, hash(split.paths))
        store = self._stores.pop(name, None) or CropStore.decode(domain, split, self.spec, limit_mb=self.limit_mb)
        self._stores[name] = store
        while (
            sum(held.crops.nbytes for held in self._stores.values()) > self.limit_mb * 2**20 and len(self._stores) > 1
        ):
            self._stores.pop(next(iter(self._stores)))
        return store
