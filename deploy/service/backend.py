"""The gallery and its encoder, serving many callers at once; nothing here blocks the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from deploy.answers.refine import Refinement, search
from deploy.answers.site_metric import SiteMetric, SiteMetrics
from deploy.answers.thresholds import Thresholds
from deploy.embeddings import Embeddings
from deploy.encoder import Encoder
from deploy.encoder.batcher import Batcher
from deploy.gallery import Gallery
from deploy.gallery.kept_crops import shrunk
from deploy.match import Match
from deploy.service.logs import write_log
from deploy.service.metrics import Metrics
from deploy.service.refusal import RefusedError
from deploy.service.settings import Settings
from domains.crops import Crop, CropSpec, decode_crop
from domains.errors import BusyError, ClockError, DataError, DeviceError, GalleryError, ReidError, UsageError

Result = TypeVar("Result")

BATCH = 16
DECODERS = 2
STORE_THREADS = 4


class MovedError(ReidError):
    """The gallery changed its feature space between embedding and searching."""


@dataclass(eq=False)
class Lane:
    """One encoder and the queue in front of it."""

    encoder: Encoder
    batcher: Batcher
    thresholds: Thresholds | None
    sites: SiteMetrics


class _Measured:
    """An encoder that reports the size of each batch to the metrics."""

    def __init__(self, encoder: Encoder, metrics: Metrics) -> None:
        self._encoder, self._metrics = encoder, metrics

    @property
    def crop(self) -> CropSpec:
        return self._encoder.crop

    def __call__(self, crops: NDArray[np.uint8], /) -> Embeddings:
        self._metrics.batches.observe(len(crops))
        return self._encoder(crops)


class Backend:
    """Answers with whichever encoder fits the gallery's current feature space; as an upgrade ends there are two."""

    def __init__(self, gallery: Gallery, encoder: Encoder, settings: Settings, metrics: Metrics) -> None:
        """Take over both; :meth:`close` closes the gallery. Raises GalleryError if they do not match."""
        if encoder.feature_space != gallery.feature_space:
            raise GalleryError(
                f"the encoder's bundle {encoder.bundle.folder} is from a different model than the gallery "
                f"{gallery.path}; use the gallery's own"
            )
        self.gallery = gallery
        self.settings = settings
        self.warm = False
        self.closing = threading.Event()
        self._metrics = metrics
        self._lanes: dict[str, Lane] = {}
        self._present = encoder.feature_space
        self.last: dict[str, int] = {"entries": len(gallery), "generation": gallery.generation}
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self._store = ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="store")
        self.take(encoder)

    @property
    def encoder(self) -> Encoder:
        """The encoder that answers now, or would if the gallery were in its feature space."""
        return self._lanes.get(self._present, next(iter(self._lanes.values()))).encoder

    @property
    def fits(self) -> bool:
        """Whether there is an encoder for the gallery's current feature space, as far as is known."""
        return self._present in self._lanes

    def take(self, encoder: Encoder) -> None:
        """Add another encoder, ready for when the gallery is in its feature space."""
        limit = max(BATCH, self.settings.queue * self.settings.max_images)
        batcher = Batcher(_Measured(encoder, self._metrics), batch=BATCH, limit=limit)
        self._lanes = {
            **self._lanes,
            encoder.feature_space: Lane(
                encoder, batcher, Thresholds.from_bundle(encoder.bundle), SiteMetrics(encoder.bundle)
            ),
        }

    def follow(self, space: str) -> None:
        """Answer in this space from now on; if it has an encoder, the others finish their work and are retired."""
        self._present = space
        if space in self._lanes:
            old = [lane for name, lane in self._lanes.items() if name != space]
            self._lanes = {space: self._lanes[space]}
            for lane in old:
                threading.Thread(target=lane.batcher.close, name="retire", daemon=True).start()

    def drop(self, space: str) -> None:
        """Drop an encoder that was added for an upgrade that did not happen."""
        if space != self._present and (lane := self._lanes.get(space)):
            self._lanes = {name: other for name, other in self._lanes.items() if name != space}
            lane.batcher.close()

    async def warm_up(self) -> None:
        """Load or build the index, so that the first caller does not wait for it."""
        golden = await self.run(lambda: self.encoder(self.encoder.bundle.golden().crops[:1]))
        await self.run(lambda: self.gallery.search(golden, k=1))
        self.warm = True

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run work on the gallery in a thread; its errors become a RefusedError that hides the server's folders."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._store, work)
        except (RefusedError, MovedError):
            raise
        except ReidError as error:
            raise self._refused(error) from error

    async def facts(self, wait: float = 1.0) -> dict[str, int]:
        """Entries and generation; the last known ones if the gallery is busy for longer than ``wait`` seconds."""

        def ask() -> dict[str, int]:
            if (space := self.gallery.feature_space) != self._present:
                self.follow(space)
            return {"entries": len(self.gallery), "generation": self.gallery.generation}

        try:
            self.last = await asyncio.wait_for(self.run(ask), wait)
        except TimeoutError:
            write_log(logging.WARNING, "the gallery is busy; its last known state was told")
        return self.last

    async def search(
        self, images: Sequence[bytes], *, k: int, site: str | None = None, **filters: Any
    ) -> list[list[Match]]:
        """Matches of each image, judged where the bundle is calibrated.

        Args:
            images: the images as they were sent.
            k: matches per image.
            site: where the images are from, if the matches are to be scored in its mixed metric.
            filters: as :meth:`Gallery.search` takes them.

        Raises:
            RefusedError: the gallery can't answer, or the bundle has no statistics of the site.
        """

        def ask(vectors: Embeddings) -> list[list[Match]]:
            lane = self._lanes.get(str(vectors.feature_space))
            if lane is None and site is not None:
                raise MovedError(self._present)
            wanted = None if lane is None or site is None else Refinement(site=self._site_metric(lane, site))
            results = search(self.gallery, vectors, k, wanted, **filters)
            return [lane.thresholds.judge(matches) for matches in results] if lane and lane.thresholds else results

        lane = self._lanes.get(self._present)
        if site is not None and lane is not None:  # before the images are decoded
            await self.run(lambda: self._site_metric(lane, site))
        return await self.with_vectors(images, ask)

    def metric(self, site: str | None) -> str | None:
        """Name of the metric that answers are scored in; None for the plain cosine."""
        return (self.encoder.bundle.metric_name or None) if site is None else f"mixed:{site}"

    def _site_metric(self, lane: Lane, site: str) -> SiteMetric:
        try:
            return lane.sites.of(site)
        except UsageError as error:
            raise RefusedError("invalid", f"site: {self.hide_folders(str(error))}") from error

    async def add(self, images: Sequence[bytes], **origins: Any) -> list[int | None]:
        """Ids of new entries, None for those already there; ``origins`` as :meth:`Gallery.add` takes them.
        Raises RefusedError.

        A gallery that keeps crops gets a small picture of each image.
        """
        crops = await self._decode(images, shrunk) if await self.run(lambda: self.gallery.keeps_crops) else None

        return await self.with_vectors(images, lambda vectors: self.gallery.add_new(vectors, crops=crops, **origins))

    async def erase(self, ids: Sequence[int], by: str) -> dict[str, Any]:
        """Forget entries; returns how many there were and the backups that still hold them."""
        count = await self.run(lambda: self.gallery.forget(ids, reason=by)) if ids else 0
        return {"forgotten": count, "backups": await self.run(self.gallery.backups)}

    async def with_vectors(self, images: Sequence[bytes], use: Callable[[Embeddings], Result]) -> Result:
        """Embed images and use the vectors in a thread; again if the gallery moved to another space in between. Raises
        RefusedError.
        """

        def guarded(vectors: Embeddings) -> Result:
            try:
                return use(vectors)
            except GalleryError as error:
                self._check_moved(vectors, error)
                raise

        for _ in range(3):
            lane = self._lanes.get(self._present)
            if lane is None:
                raise RefusedError(
                    "not_ready",
                    "the gallery is in another model's feature space; restart the service with the gallery's bundle",
                )
            try:
                vectors = await self._embed(lane, images)
                return await self.run(lambda embedded=vectors: guarded(embedded))  # type: ignore[misc]
            except MovedError as moved:
                self.follow(str(moved))
        raise RefusedError("busy", "the gallery is being upgraded; try again in a moment")

    async def _embed(self, lane: Lane, images: Sequence[bytes]) -> Embeddings:
        crops = await self._decode(images, lane.encoder.crop.resized)
        try:
            answers = lane.batcher.submit_all(crops)
            rows = await asyncio.gather(*(asyncio.wrap_future(answer) for answer in answers))
        except BusyError as error:
            if self._lanes.get(lane.encoder.feature_space) is not lane:  # it was retired while we decoded
                raise MovedError(self._present) from error
            raise RefusedError("busy", str(error)) from error
        except DeviceError as error:
            raise self._refused(error) from error
        return Embeddings(np.stack([np.asarray(row) for row in rows]), lane.encoder.feature_space)

    async def _decode(self, images: Sequence[bytes], change: Callable[[Crop], Crop]) -> list[Crop]:
        """Decode each image into a crop and shrink it; raises RefusedError."""

        def decode() -> list[Crop]:
            crops = []
            for number, data in enumerate(images, 1):
                if self.closing.is_set():
                    raise RefusedError("not_ready", "the service is stopping")
                try:
                    crops.append(change(decode_crop(data)))
                except DataError as error:
                    raise RefusedError("damaged_image", f"image {number}: {error}") from error
            return crops

        return await asyncio.get_running_loop().run_in_executor(self._decoders, decode)

    def _refused(self, error: ReidError) -> RefusedError:
        """What a client is told of one of our errors: the server's folders are hidden; the log has the full text."""
        write_log(logging.ERROR, "the gallery could not do this", reason=str(error))
        return RefusedError("conflict" if isinstance(error, ClockError) else "gallery", self.hide_folders(str(error)))

    def hide_folders(self, text: str) -> str:
        """Write an error's text without the folders of this machine."""
        named = {
            "the gallery": self.gallery.path,
            "the folder of bundles": self.settings.bundles,
            "the bundle": self.encoder.bundle.folder,
        }
        for name, folder in named.items():
            if folder is not None:
                text = text.replace(str(Path(folder).absolute()), name).replace(str(folder), name)
        return text

    def _check_moved(self, vectors: Embeddings, error: GalleryError) -> None:
        if (space := self.gallery.feature_space) != vectors.feature_space:
            raise MovedError(space) from error

    def close(self) -> None:
        """Finish what was started, and close the gallery."""
        self.closing.set()
        for lane in self._lanes.values():
            lane.batcher.close()
        self._decoders.shutdown(cancel_futures=True)
        self._store.shutdown()
        self.gallery.close()
