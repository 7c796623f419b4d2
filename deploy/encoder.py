"""Crops to embeddings with ONNX Runtime, on the engine that was asked for or not at all."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle, Trusted
from deploy.embeddings import Embeddings
from domains.crops import Crop, CropSpec
from domains.errors import ArtefactError, DataError, DeviceError, UsageError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
GOLDEN_COSINE = 0.999
COLLAPSED = 0.9999
"""Mean cosine between different golden crops above which a graph says the same of everyone (the exporter's limit)."""

DECODERS = 4
"""Threads that decode and resize while the engine computes."""


class Skipped(NamedTuple):
    """Position of an image that could not be used, and why."""

    position: int
    reason: str


class Encoder:
    """An exported model, checked against its golden embeddings before it answers.

    Safe to call from several threads: ONNX Runtime sessions are.
    """

    def __init__(self, bundle: Bundle, session: Any, provider: str, batch: int) -> None:
        """Use :meth:`load`."""
        self.bundle = bundle
        self.provider = provider
        self._session = session
        self._batch = batch

    @classmethod
    def load(
        cls, bundle: str | PathLike[str], provider: str = "cpu", *, batch: int = 32, threads: int | None = None, trusted: Trusted = None
    ) -> Encoder:
        """Load a bundle, start its engine and compare its answers with the golden embeddings.

        Args:
            bundle: a bundle folder.
            provider: ``cpu``, ``cuda``, ``tensorrt`` or ``openvino``.
            batch: crops per inference; more are cut into micro-batches of this size.
            threads: threads of the engine; by default all cores.
            trusted: files of public keys, of which one must have signed the bundle; see :meth:`deploy.bundle.Bundle.load`.

        Raises:
            UsageError: unknown provider, or a batch or thread count below 1.
            DeviceError: the engine is not installed, or would not run on the provider that was asked for.
            ArtefactError: a damaged bundle, a graph that breaks the contract, or answers that differ from the golden embeddings.
        """
        if provider not in PROVIDERS:
            raise UsageError(f"unknown provider {provider!r}; choose one of {', '.join(PROVIDERS)}")
        for name, value in (("batch", batch), ("threads", 1 if threads is None else threads)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"{name} must be a whole number from 1, got {value!r}")
        loaded = Bundle.load(bundle, trusted=trusted)
        encoder = cls(loaded, _start(loaded, provider, threads), provider, batch)
        _check_graph(loaded, encoder._session)
        encoder._warm_up()
        return encoder

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.bundle.dim

    @property
    def feature_space(self) -> str:
        """Name of the space that its embeddings live in."""
        return self.bundle.feature_space

    @property
    def crop(self) -> CropSpec:
        """Size and resize rule that crops are brought to."""
        return self.bundle.crop

    def __call__(self, crops: Sequence[Crop] | NDArray[np.uint8]) -> Embeddings:
        """Embed crops.

        Args:
            crops: uint8 RGB ``[H, W, 3]`` of any size each, or one array ``[N, H, W, 3]``. None at all gives ``[0, D]``.

        Returns:
            Unit-length float32 ``[N, D]`` in this encoder's feature space.

        Raises:
            DataError: something that is no such crop; says which.
            ArtefactError: the model gave something that is no unit vector.
        """
        if isinstance(crops, np.ndarray) and (crops.ndim != 4 or crops.dtype != np.uint8):
            raise DataError(f"crops must be a list of uint8 RGB arrays [H, W, 3] or one array [N, H, W, 3], got one of {crops.dtype} {crops.shape}")
        out = np.empty((len(crops), self.dim), np.float32)
        for start in range(0, len(crops), self._batch):
            out[start : start + self._batch] = self._infer(self._resized(crops[start : start + self._batch], start))
        return Embeddings(out, self.feature_space)

    def files(self, paths: Sequence[str | PathLike[str]]) -> tuple[Embeddings, list[Skipped]]:
        """Embed image files; decoding and resizing run in a few threads while the engine computes.

        Returns:
            Embeddings ``[N, D]`` of the readable files in their order, and the others with their positions in ``paths`` and the reasons.
        """
        skipped: list[Skipped] = []
        rows: list[NDArray[np.float32]] = []
        waiting: list[Crop] = []
        for index, crop in enumerate(self._decoded(paths)):
            if isinstance(crop, DataError):
                skipped.append(Skipped(index, str(crop)))
                continue
            waiting.append(crop)
            if len(waiting) == self._batch:
                rows.append(self._infer(np.stack(waiting)))
                waiting = []
        if waiting:
            rows.append(self._infer(np.stack(waiting)))
        return Embeddings(np.concatenate([np.empty((0, self.dim), np.float32), *rows]), self.feature_space), skipped

    def _decoded(self, paths: Sequence[str | PathLike[str]]) -> Iterator[Crop | DataError]:
        """Resized crops in order, or what was wrong; at most three batches are decoded ahead, so that memory stays bounded."""

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
                    if len(ahead) > 3 * self._batch:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _resized(self, crops: Sequence[Crop] | NDArray[np.uint8], start: int) -> Crop:
        if isinstance(crops, np.ndarray) and crops.shape[1:] == (self.crop.height, self.crop.width, 3):
            return np.ascontiguousarray(crops)
        out = np.empty((len(crops), self.crop.height, self.crop.width, 3), np.uint8)
        for row, crop in enumerate(crops):
            try:
                out[row] = self.crop.resized(crop)
            except DataError as error:
                raise DataError(f"crop {start + row}: {error}") from error
        return out

    def _infer(self, crops: Crop) -> NDArray[np.float32]:
        """One inference, uint8 ``[n, H, W, 3]`` to float32 ``[n, D]``, checked: whatever an engine does wrong must not reach a gallery."""
        out: NDArray[np.float32] = self._session.run(["embeddings"], {"crops": crops})[0]
        if out.shape != (len(crops), self.dim) or out.dtype != np.float32:
            raise ArtefactError(f"the model returned {out.dtype} {out.shape}, expected float32 {(len(crops), self.dim)}; export it again")
        wrong = np.flatnonzero(~(np.abs(np.einsum("nd,nd->n", out, out) - 1) < 0.01))
        if wrong.size:
            raise ArtefactError(
                f"the model gave no unit-length embedding for crop {wrong[0]} of {len(crops)}; export it again or use another provider"
            )
        return out

    def _warm_up(self) -> None:
        """Refuse to serve unless the golden crops give the golden embeddings, in a batch and alone; raises ArtefactError."""
        golden = self.bundle.golden()
        got = np.concatenate([np.asarray(self(golden.crops)), np.asarray(self(golden.crops[:1]))])
        wanted = np.concatenate([golden.embeddings, golden.embeddings[:1]])
        cosine = np.einsum("nd,nd->n", got, wanted) / np.linalg.norm(got, axis=1)
        worst = int(np.argmin(cosine))
        if cosine[worst] < GOLDEN_COSINE:
            alone = " alone" if worst == len(golden.crops) else ""
            raise ArtefactError(
                f"{self.bundle.folder} does not give its golden embeddings on {self.provider}: cosine {cosine[worst]:.5f} for crop "
                f"{worst % len(golden.crops)}{alone}, at least {GOLDEN_COSINE} is needed; update the engine or export again"
            )
        count = len(golden.crops)
        likeness = got[:count] @ got[:count].T
        others = (likeness.sum() - np.trace(likeness)) / (count * (count - 1))
        if others > COLLAPSED:
            raise ArtefactError(
                f"{self.bundle.folder} gives different crops nearly the same embedding (mean cosine {others:.5f}); train or export again"
            )


def _start(bundle: Bundle, provider: str, threads: int | None) -> Any:
    """Start an ONNX Runtime session that really runs on ``provider``; ONNX Runtime itself would fall back to the CPU with a warning."""
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError("ONNX Runtime is not installed: pip install 'lifelong-reid[cpu]', or [gpu] for CUDA and TensorRT") from error
    wanted = PROVIDERS[provider]
    available = onnxruntime.get_available_providers()
    if wanted not in available:
        known = ", ".join(name for name, engine in PROVIDERS.items() if engine in available) or "none"
        raise DeviceError(f"provider {provider} is not in this ONNX Runtime, which has: {known}; install a build that has it, or ask for another")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    model = bundle.model()
    engines = [wanted] if provider != "tensorrt" else [wanted, PROVIDERS["cuda"]]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=engines, enable_fallback=0)
    except Exception as error:  # ONNX Runtime has an exception class of its own for each status, with no common base but Exception
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        kind = ArtefactError if provider == "cpu" else DeviceError
        raise kind(f"ONNX Runtime can't load {Path(bundle.folder) / 'model.onnx'} on {provider}: {reason:.300}") from error
    running = session.get_providers()
    if not running or running[0] != wanted:
        found = running[0] if running else "nothing"
        raise DeviceError(f"asked for {provider}, but ONNX Runtime would run on {found}; check the driver and its libraries, or ask for cpu")
    return session


def _check_graph(bundle: Bundle, session: Any) -> None:
    """Hold the graph to the contract in the module's text; raises ArtefactError."""
    where = bundle.folder / "model.onnx"
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [(node.name, node.type) for node in inputs] != [("crops", "tensor(uint8)")]:
        raise ArtefactError(f"{where} must take one input, uint8 crops; it takes {', '.join(f'{n.type} {n.name}' for n in inputs):.200}")
    if [(node.name, node.type) for node in outputs] != [("embeddings", "tensor(float)")]:
        raise ArtefactError(f"{where} must return one output, float embeddings; it returns {', '.join(f'{n.type} {n.name}' for n in outputs):.200}")
    for node, row in ((inputs[0], [bundle.crop.height, bundle.crop.width, 3]), (outputs[0], [bundle.dim])):
        shape = list(node.shape)
        fits = len(shape) == len(row) + 1 and all(not isinstance(side, int) or side == size for side, size in zip(shape[1:], row, strict=True))
        if not fits or isinstance(shape[0], int):
            raise ArtefactError(f"{where}: {node.name} has shape {shape}, expected {['N', *row]} with N dynamic; export it again")
