"""Crops to embeddings with ONNX Runtime, on the requested provider or not at all."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle
from deploy.bundle.bundle import Trusted
from deploy.embeddings import COLLAPSED, Embeddings, likeness
from deploy.encoder.engine import Engine, Plan, Target, start
from deploy.encoder.engine_cache import cache_root
from domains.arrays import Float32s
from domains.crops import Crop, CropSpec
from domains.errors import ArtefactError, DataError, DeviceError, UsageError
from domains.forking import Opened, abandon

ON_PROCESSOR = ("cpu", "openvino")

DECODERS = 4
"""Threads that decode and resize while the engine computes."""


class Skipped(NamedTuple):
    """Position of an image that could not be used, and why."""

    position: int
    reason: str


class Origin(NamedTuple):
    """What :meth:`Encoder.load` was called with, so that another process can do the same; paths are absolute."""

    bundle: Path
    provider: str
    batch: int
    threads: int | None
    cache: Path | None
    trusted: tuple[Path, ...] | None


class Encoder(Opened):
    """An exported model, checked against its golden embeddings before it answers.

    Safe to call from several threads, as engines are, and from several processes. Sent to another process (spawn, a
    process pool, a data loader's workers), it is loaded there again from its bundle's folder; in a forked process its
    engine starts again at the first call, on a CPU only. Give ``threads=1`` where every core has a process of its own.

    Attributes:
        bundle: the bundle it was loaded from.
        batch: maximum number of crops per inference; may be lowered at any time.

    Example:
        >>> from deploy import Encoder
        >>> from domains.crops import read_crop
        >>> encoder = Encoder.load("bundle", provider="cpu")
        >>> vectors = encoder([read_crop("sites/north/crops/0009_c1_0.jpg")])
        >>> vectors.shape, vectors.feature_space == encoder.feature_space
        ((1, 32), True)
    """

    def __init__(self, bundle: Bundle, origin: Origin) -> None:
        """Use :meth:`load`."""
        self.bundle = bundle
        self.batch = origin.batch
        self._origin = origin
        self._engine: Engine | None = None
        self._starting = threading.RLock()
        self._forked = False

    @classmethod
    def load(
        cls,
        bundle: str | PathLike[str],
        provider: str = "cpu",
        *,
        batch: int | None = None,
        threads: int | None = None,
        cache: Path | None = None,
        trusted: Trusted = None,
    ) -> Encoder:
        """Load a bundle, start its engine and compare its answers with the golden embeddings.

        Args:
            bundle: a bundle folder.
            provider: ``cpu``, ``cuda``, ``tensorrt`` or ``openvino``, optionally with a device as in ``cuda:1`` or
                ``openvino:GPU``.
            batch: crops per inference; more are split into micro-batches of this size. By default
                :func:`default_batch`.
            threads: threads of a CPU engine; by default all cores.
            cache: where TensorRT's engines are kept (:mod:`deploy.encoder.engine_cache`); by default
                :func:`~deploy.encoder.engine_cache.cache_root`.
            trusted: public key files, one of which must have signed the bundle; see
                :meth:`deploy.bundle.Bundle.load`.

        Raises:
            UsageError: unknown provider, or a batch or thread count below 1.
            DeviceError: the engine is not installed, or would not run the graph on the requested provider.
            ArtefactError: a damaged bundle, a graph that breaks the contract, or answers that differ from the golden
                embeddings.
        """
        Target.parse(provider)
        batch = default_batch(provider) if batch is None else batch
        for name, value in (("batch", batch), ("threads", 1 if threads is None else threads)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"{name} must be a whole number from 1, got {value!r}")
        names = None if trusted is None else [trusted] if isinstance(trusted, str | PathLike) else list(trusted)
        keys = None if names is None else tuple(Path(name).absolute() for name in names)
        loaded = Bundle.load(bundle, trusted=names)
        encoder = cls(loaded, Origin(Path(bundle).absolute(), provider, batch, threads, cache, keys))
        encoder._running()
        encoder._belongs_here()
        return encoder

    def __reduce__(self) -> tuple[Any, ...]:
        """Be sent to another process as what :meth:`load` needs to load the same model there."""
        return _loaded_again, (self._origin._replace(batch=self.batch), self.bundle.manifest["files"]["model.onnx"])

    def _after_fork(self) -> None:
        abandon(self._engine)
        self._engine, self._starting, self._forked = None, threading.RLock(), True

    def _running(self) -> Engine:
        """Return the engine; start it and check its answers where this process has not done so yet.

        Raises:
            DeviceError, ArtefactError: as :meth:`load`; or the process was forked, and the provider can't be started in
                such a process.
        """
        if (engine := self._engine) is not None:
            return engine
        with self._starting:
            if self._engine is None:
                self._engine = self._started()
                try:
                    self._warm_up()
                except BaseException:
                    self._engine = None
                    raise
            return self._engine

    def _started(self) -> Engine:
        loaded, origin = self.bundle, self._origin
        target = Target.parse(origin.provider)
        if self._forked and target.name != "cpu":
            raise DeviceError(
                f"an encoder on {origin.provider} can't be used in a process forked from the one that loaded it; start "
                'processes with "spawn" or "forkserver", or load it in each process'
            )
        plan = Plan(
            loaded.crop.height,
            loaded.crop.width,
            loaded.dim,
            origin.batch,
            str(loaded.manifest["precision"]),
            origin.threads,
        )
        folder = (origin.cache or cache_root()) if target.name == "tensorrt" else None
        return start(loaded.model(), origin.provider, plan, name=str(loaded.folder / "model.onnx"), cache=folder)

    @property
    def provider(self) -> str:
        """The provider it runs on, as requested."""
        return self._origin.provider

    @property
    def elsewhere(self) -> dict[str, str]:
        """Small operators that the engine leaves to another provider, with its name; none on a CPU."""
        return dict(self._running().elsewhere)

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.bundle.dim

    @property
    def feature_space(self) -> str:
        """Name of the feature space of its embeddings."""
        return self.bundle.feature_space

    @property
    def crop(self) -> CropSpec:
        """Size that crops are resized to, and the resize rule."""
        return self.bundle.crop

    def __call__(self, crops: Sequence[Crop] | NDArray[np.uint8]) -> Embeddings:
        """Embed crops.

        Args:
            crops: a list of uint8 RGB ``[H, W, 3]``, each of any size, or one array ``[N, H, W, 3]``. An empty one
                gives ``[0, D]``.

        Returns:
            Unit-length float32 ``[N, D]`` in this encoder's feature space.

        Raises:
            DataError: an item is not such a crop; the message says which.
            ArtefactError: the model returned something that is not a unit vector.
        """
        if isinstance(crops, np.ndarray) and (crops.ndim != 4 or crops.dtype != np.uint8):
            raise DataError(
                "crops must be a list of uint8 RGB arrays [H, W, 3] or one array [N, H, W, 3], got an array of "
                f"{crops.dtype} {crops.shape}"
            )
        out = np.empty((len(crops), self.dim), np.float32)
        for first in range(0, len(crops), self.batch):
            out[first : first + self.batch] = self._infer(self._resized(crops[first : first + self.batch], first))
        return Embeddings(out, self.feature_space)

    def files(self, paths: Sequence[str | PathLike[str]]) -> tuple[Embeddings, list[Skipped]]:
        """Embed image files; decoding and resizing run in a few threads while the engine computes.

        Returns:
            Embeddings ``[N, D]`` of the readable files in order, and the others with their positions in ``paths`` and
            the reasons.
        """
        skipped: list[Skipped] = []
        rows: list[Float32s] = []
        waiting: list[Crop] = []
        for index, crop in enumerate(self._decoded(paths)):
            if isinstance(crop, DataError):
                skipped.append(Skipped(index, str(crop)))
                continue
            waiting.append(crop)
            if len(waiting) == self.batch:
                rows.append(self._infer(np.stack(waiting)))
                waiting = []
        if waiting:
            rows.append(self._infer(np.stack(waiting)))
        return Embeddings(np.concatenate([np.empty((0, self.dim), np.float32), *rows]), self.feature_space), skipped

    def _decoded(self, paths: Sequence[str | PathLike[str]]) -> Iterator[Crop | DataError]:
        """Yield resized crops or errors in order, decoding at most three batches ahead to keep memory bounded."""

        def read(path: str | PathLike[str]) -> Crop | DataError:
            try:
                return self.crop.read(path)
            except DataError as error:
                return error
            except ValueError as error:  # a name that no file can have
                return DataError(f"can't read image {str(path)!r:.200}: {error}")

        with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as pool:
            ahead: deque[Future[Crop | DataError]] = deque()
            try:
                for path in paths:
                    ahead.append(pool.submit(read, path))
                    if len(ahead) > 3 * self.batch:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _resized(self, crops: Sequence[Crop] | NDArray[np.uint8], first: int) -> Crop:
        if isinstance(crops, np.ndarray) and crops.shape[1:] == (self.crop.height, self.crop.width, 3):
            return np.ascontiguousarray(crops)
        out = np.empty((len(crops), self.crop.height, self.crop.width, 3), np.uint8)
        for row, crop in enumerate(crops):
            try:
                out[row] = self.crop.resized(crop)
            except DataError as error:
                raise DataError(f"crop {first + row}: {error}") from error
        return out

    def _infer(self, crops: Crop) -> Float32s:
        """Run one inference, uint8 ``[n, H, W, 3]`` to float32 ``[n, D]``, and check it: no engine's fault may reach a
        gallery.
        """
        out = self._running()(crops)
        if out.shape != (len(crops), self.dim) or out.dtype != np.float32:
            raise ArtefactError(
                f"the model returned {out.dtype} {out.shape}, expected float32 {(len(crops), self.dim)}; export it "
                "again"
            )
        wrong = np.flatnonzero(~(np.abs(np.einsum("nd,nd->n", out, out) - 1) < 0.01))
        if wrong.size:
            raise ArtefactError(
                f"the model returned no unit-length embedding for crop {wrong[0]} of {len(crops)}; export it again or "
                "use another provider"
            )
        return out

    def golden_cosines(self, batch: int) -> Float32s:
        """Compare the golden crops' embeddings, ``batch`` of them computed at once, with the golden embeddings:
        ``[batch]`` cosines, 1 means equal.
        """
        golden = self.bundle.golden()
        rows = np.resize(np.arange(len(golden.crops)), batch)
        got = np.asarray(self(golden.crops[rows]))
        cosines: Float32s = np.einsum("nd,nd->n", got, golden.embeddings[rows]) / np.linalg.norm(got, axis=1)
        return cosines

    def _warm_up(self) -> None:
        """Refuse to serve unless the golden crops give the golden embeddings, batched and alone; raises
        ArtefactError.
        """
        golden, needed = self.bundle.golden(), self.bundle.golden_cosine(Target.parse(self.provider).name)
        for batch in (len(golden.crops), 1):
            cosines = self.golden_cosines(batch)
            worst = int(np.argmin(cosines))
            if cosines[worst] < needed:
                raise ArtefactError(
                    f"{self.bundle.folder} does not reproduce its golden embeddings on {self.provider}: cosine "
                    f"{cosines[worst]:.5f} for crop "
                    f"{worst}{' alone' if batch == 1 else ''}, at least {needed} is needed; update the engine or "
                    "export again"
                )
        got = np.asarray(self(golden.crops))
        if (alike := likeness(got)) > COLLAPSED:
            raise ArtefactError(
                f"{self.bundle.folder} gives different crops nearly the same embedding (mean cosine {alike:.5f}); "
                "train or export again"
            )


def _loaded_again(origin: Origin, model: str) -> Encoder:
    """Load in this process what was sent from another; raises ArtefactError if there is another model in its place."""
    encoder = Encoder.load(
        origin.bundle,
        origin.provider,
        batch=origin.batch,
        threads=origin.threads,
        cache=origin.cache,
        trusted=origin.trusted,
    )
    if encoder.bundle.manifest["files"]["model.onnx"] != model:
        raise ArtefactError(
            f"{origin.bundle} holds another model than it did when the encoder was loaded; load it again and send that"
        )
    return encoder


def default_batch(provider: str) -> int:
    """Crops per inference that suit a provider: few on a CPU, whose caches hold the activations of no more, and many on
    a GPU.
    """
    return 8 if Target.parse(provider).name in ON_PROCESSOR else 32
