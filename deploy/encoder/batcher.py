"""Many callers, one engine: crops that arrive together are embedded together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from deploy.embeddings import Embeddings
from domains.crops import Crop, CropSpec
from domains.errors import BusyError, UsageError
from domains.forking import Opened


class Embeds(Protocol):
    """What a batcher needs from an :class:`deploy.Encoder`."""

    @property
    def crop(self) -> CropSpec:
        """Size and resize rule of its crops."""

    def __call__(self, crops: NDArray[np.uint8], /) -> Embeddings:
        """Unit vectors ``[N, D]`` of crops ``[N, H, W, 3]``."""


class Load(NamedTuple):
    """Crops waiting now, and batches and crops sent to the engine since the start (their ratio shows how well merging
    works).
    """

    waiting: int
    batches: int
    crops: int


@dataclass(eq=False)
class _Waiting:
    crop: Crop
    answer: Future[Embeddings] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher(Opened):
    """Merges concurrent requests for single embeddings into batches, in order of arrival.

    A batch is sent when it is full, or when its first crop has waited ``wait_ms``; while the engine is busy that time
    passes anyway, so only a lone caller pays for the wait. The queue is bounded: beyond ``limit`` a caller is refused
    at once instead of waiting for an answer that would come too late. Safe to call from any number of threads; a forked
    process begins with an empty queue of its own.
    """

    def __init__(self, encoder: Embeds, *, batch: int = 32, wait_ms: float = 2.0, limit: int = 256) -> None:
        """Start the thread that feeds the engine.

        Args:
            encoder: what embeds a batch.
            batch: maximum number of crops per inference; ideally the encoder's own batch.
            wait_ms: longest time that a crop waits for others, in milliseconds.
            limit: maximum number of crops waiting for the engine; they are stored resized, so memory is bounded by
                ``limit × height × width × 3`` bytes.

        Raises:
            UsageError: a batch below 1, a negative wait, or a limit below one batch.
        """
        if batch < 1 or not 0 <= wait_ms < 60_000 or limit < batch:
            raise UsageError(
                f"a batcher needs batch ≥ 1, 0 ≤ wait_ms < 60000 and limit ≥ batch, got {batch}, {wait_ms} and {limit}"
            )
        self.encoder = encoder
        self.batch, self.limit = batch, limit
        self._wait = wait_ms / 1000
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._batches = self._crops = 0
        self._worker: threading.Thread | None = None
        self._start()
        self._belongs_here()

    def _start(self) -> None:
        self._worker = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._worker.start()

    def _after_fork(self) -> None:
        self._queue, self._changed, self._worker = deque(), threading.Condition(), None

    def embed(self, crop: Crop, timeout: float | None = None) -> Embeddings:
        """Embed one uint8 RGB crop of any size; blocks until its batch is done.

        Args:
            crop: uint8 RGB ``[H, W, 3]``.
            timeout: maximum seconds to wait; by default unlimited.

        Returns:
            Its unit-length float32 vector ``[D]``, which knows its feature space.

        Raises:
            DataError: it is not a crop.
            BusyError: too many crops are already waiting, there was no answer within ``timeout``, or the batcher is
                closed.
            ReidError: any error of the encoder on this crop.
        """
        answer = self.submit(crop)
        try:
            return answer.result(timeout)
        except TimeoutError as error:
            answer.cancel()
            raise BusyError(f"the encoder gave no answer in {timeout:g} s; try again later") from error

    def submit(self, crop: Crop) -> Future[Embeddings]:
        """Queue one crop and return at once; the engine's errors come through the future. A future cancelled in time
        costs no inference.
        """
        return self.submit_all([crop])[0]

    def submit_all(self, crops: Sequence[Crop]) -> list[Future[Embeddings]]:
        """Queue all crops of one request, or none of them; errors as in :meth:`embed`, and UsageError for more crops
        than the queue can hold.
        """
        if len(crops) > self.limit:
            raise UsageError(f"{len(crops)} crops in one request, at most {self.limit} are accepted; split the request")
        # In the caller's thread, so that an invalid crop fails alone and resizing does not hold up the engine.
        items = [_Waiting(self.encoder.crop.resized(crop)) for crop in crops]
        with self._changed:
            if self._closed:
                raise BusyError("the encoder is shutting down; try again when it is back")
            if len(self._queue) + len(items) > self.limit:
                raise BusyError(
                    f"{len(self._queue)} crops are already waiting for the encoder, at most {self.limit} may; try "
                    "again in a moment"
                )
            self._queue.extend(items)
            if self._worker is None:  # in a forked process, which has none of the threads
                self._start()
            self._changed.notify()
        return [item.answer for item in items]

    def load(self) -> Load:
        """How busy it is, for metrics."""
        with self._changed:
            return Load(len(self._queue), self._batches, self._crops)

    def close(self) -> None:
        """Accept no more crops, answer all that are waiting, and stop; may be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._worker is not None:
            self._worker.join()

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, whatever happened."""
        self.close()

    def _work(self) -> None:
        while items := self._next():
            # Skip callers that gave up; from here on none can.
            wanted = [item for item in items if item.answer.set_running_or_notify_cancel()]
            if wanted:
                self._answer(wanted)

    def _next(self) -> list[_Waiting]:
        """Wait for the next batch; empty once closed and drained."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            while 0 < len(self._queue) < self.batch and not self._closed:
                left = self._queue[0].since + self._wait - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return [self._queue.popleft() for _ in range(min(self.batch, len(self._queue)))]

    def _answer(self, items: list[_Waiting]) -> None:
        """Embed a batch; if that fails, embed each crop alone, so that one bad crop does not take the others down."""
        with self._changed:
            self._batches += 1
            self._crops += len(items)
        try:
            vectors = self.encoder(np.stack([item.crop for item in items]))
        except Exception as error:  # any error goes to the callers; this thread must survive it
            if len(items) == 1:
                items[0].answer.set_exception(error)
            else:
                for item in items:
                    self._answer([item])
            return
        for item, vector in zip(items, vectors, strict=True):
            item.answer.set_result(vector)
