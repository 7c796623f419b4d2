"""The map from one feature space to the next: it renews old prototypes and carries old galleries."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from domains.arrays import Float32s
from domains.artefact import read_bytes, write_atomic
from domains.choice import check_choice
from domains.errors import ArtefactError, ConfigError
from domains.npz import read_npz
from prototypes.prototype import DistributionPrototypes

TransportKind = Literal["ridge", "procrustes", "identity"]
KINDS: tuple[TransportKind, ...] = get_args(TransportKind)
SHRINKAGE = 0.1
FOLDS = 4
MAX_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class Transport:
    """A linear map of unit vectors, ``y = unit(x W)``, kept as one fp16 matrix.

    Attributes:
        source: name of the feature space it carries from.
        target: name of the one it carries to.
        matrix: W ``[D, D']`` float32, exact in fp16.
        kind: how it was fitted.
        cosine: mean cosine between carried and true embeddings of held-out crops, with and without the transport, as
            (with, without).
    """

    source: str
    target: str
    matrix: Float32s
    kind: str = "ridge"
    cosine: tuple[float, float] = field(default=(float("nan"), float("nan")))

    def __call__(self, embeddings: Float32s) -> Float32s:
        """Carry unit vectors ``[N, D]`` and scale them back to unit length."""
        carried = embeddings @ self.matrix
        return np.asarray(carried / np.maximum(np.linalg.norm(carried, axis=1, keepdims=True), 1e-12), np.float32)

    def then(self, later: Transport) -> Transport:
        """Combine this map with a later one; raises ConfigError if their spaces don't meet.

        The result is exact, as normalising in between changes no direction.
        """
        if self.target != later.source or self.matrix.shape[1] != later.matrix.shape[0]:
            raise ConfigError(f"a transport to {self.target:.12} can't be followed by one from {later.source:.12}")
        cosine = (self.cosine[0] * later.cosine[0], self.cosine[1] * later.cosine[1])
        return Transport(
            self.source,
            later.target,
            (self.matrix @ later.matrix).astype(np.float16).astype(np.float32),
            later.kind,
            cosine,
        )

    def prototypes(self, old: DistributionPrototypes) -> DistributionPrototypes:
        """Carry Gaussians: mean μW scaled back to its old length, variance diag(Wᵀ diag(σ²) W) scaled with it.

        Raises:
            ArtefactError: they have another number of dimensions.
        """
        if old.mean.shape[1] != len(self.matrix):
            raise ArtefactError(
                f"prototypes of {old.mean.shape[1]} dimensions can't be carried from a space of {len(self.matrix)}; "
                "restore the memory from a backup"
            )
        mean = old.mean @ self.matrix
        scale = np.linalg.norm(old.mean, axis=1, keepdims=True) / np.maximum(
            np.linalg.norm(mean, axis=1, keepdims=True), 1e-12
        )
        spread = np.sqrt(np.square(old.spread) @ np.square(self.matrix))
        return DistributionPrototypes((mean * scale).astype(np.float32), (spread * scale).astype(np.float32))

    def write(self, path: Path) -> None:
        """Write as npz, atomically."""
        write_atomic(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the transport as npz."""
        text = np.array([self.source, self.target, self.kind])
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, matrix=self.matrix.astype(np.float16), names=text, cosine=np.array(self.cosine, np.float64)
        )
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> Transport:
        """Read what :meth:`write` wrote; raises ArtefactError."""
        try:
            data = read_bytes(path, MAX_BYTES)
        except ArtefactError as error:
            raise ArtefactError(f"can't read a transport: {error}; restore it from a backup") from error
        return cls.from_bytes(data, path)

    @classmethod
    def from_bytes(cls, data: bytes, path: Path, limit: int = MAX_BYTES) -> Transport:
        """Parse the content of a file that unpacks to at most ``limit`` bytes; raises ArtefactError naming ``path``."""
        try:
            stored = read_npz(data, limit=limit, names=("matrix", "names", "cosine"))
            matrix = stored["matrix"].astype(np.float32)
            names = [str(name) for name in stored["names"]]
            carried, plain = (float(value) for value in stored["cosine"])
        except (ValueError, TypeError, MemoryError) as error:
            raise ArtefactError(f"can't read transport {path}: {error}; restore it from a backup") from error
        if matrix.ndim != 2 or not np.isfinite(matrix).all() or len(names) != 3:
            raise ArtefactError(
                f"{path} is not a transport: it holds a matrix of shape {matrix.shape}; restore it from a backup"
            )
        return cls(names[0], names[1], matrix, names[2], (carried, plain))


def compose(transports: Sequence[Transport], embeddings: Float32s) -> Float32s:
    """Carry embeddings through several transports in turn."""
    for transport in transports:
        embeddings = transport(embeddings)
    return embeddings


def fit_transport(
    old: Float32s,
    new: Float32s,
    *,
    kind: TransportKind = "ridge",
    shrinkage: float = SHRINKAGE,
    sources: NDArray[np.int64] | None = None,
    source: str = "",
    target: str = "",
) -> Transport:
    """Fit a transport to the embeddings of the same crops under both models.

    The choice of crops matters more than the fit: these come from the newest domain or are drawn, while the vectors to
    be carried come from others (:mod:`reid.step.probe`). The map that predicts held-out crops best moves others too
    much, so the shrinkage is fixed (``benchmarks/transports.py`` compares), not chosen by cross-validation.

    Args:
        old: unit vectors of the older model, ``[N, D]``.
        new: unit vectors of the newer one, ``[N, D']``.
        kind: ``ridge`` minimises ‖XW - Y‖² + λ‖W - I‖², so that directions these crops say nothing about stay as
            they are. ``procrustes`` is the rotation nearest to XᵀY + λI, which preserves all distances. ``identity``
            changes nothing, for comparison.
        shrinkage: λ towards no change, relative to the mean eigenvalue of XᵀX.
        sources: the original image that each row shows, ``[N]``; by default a different one for each. Agreement is
            measured on held-out originals.
        source: name of the older feature space.
        target: name of the newer one.

    Raises:
        ConfigError: an unknown kind, a shrinkage that is not above 0, or shapes that do not match.
    """
    check_choice("transport", kind, TransportKind, ConfigError)
    if (
        old.ndim != 2
        or new.ndim != 2
        or len(old) != len(new)
        or len(old) < 2
        or (kind != "ridge" and old.shape != new.shape)
    ):
        raise ConfigError(
            f"a transport needs at least two crops, the same in both spaces, got {old.shape} and {new.shape}"
        )
    if isinstance(shrinkage, bool) or not isinstance(shrinkage, int | float) or not 0 < shrinkage < float("inf"):
        raise ConfigError(f"transport {kind}: shrinkage must be a number above 0, got {shrinkage!r}")
    originals = np.arange(len(old)) if sources is None else np.unique(sources, return_inverse=True)[1]
    count = int(originals.max()) + 1
    fold = (np.random.default_rng(0).permutation(count) % min(FOLDS, count))[originals]
    held_out = []
    for part in range(int(fold.max()) + 1):
        matrix = _solve(old[fold != part], new[fold != part], kind, shrinkage)
        held_out.append(_agreement(old[fold == part] @ matrix, new[fold == part]))
    plain = _agreement(old, new) if old.shape == new.shape else float("nan")
    matrix = _solve(old, new, kind, shrinkage).astype(np.float16).astype(np.float32)
    return Transport(source, target, matrix, kind, (float(np.mean(held_out)), plain))


def _solve(old: Float32s, new: Float32s, kind: str, shrinkage: float) -> Float32s:
    start = np.eye(old.shape[1], new.shape[1], dtype=np.float64)
    if kind == "identity":
        return start.astype(np.float32)
    gram, cross = old.T.astype(np.float64) @ old, old.T.astype(np.float64) @ new
    penalty = shrinkage * float(np.trace(gram)) / len(gram)
    if kind == "procrustes":
        left, _, right = np.linalg.svd(cross + penalty * start)
        return np.asarray(left @ right, np.float32)
    return np.asarray(np.linalg.solve(gram + penalty * np.eye(len(gram)), cross + penalty * start), np.float32)


def _agreement(carried: Float32s, true: Float32s) -> float:
    """Mean cosine; ``true`` has unit length."""
    length = np.maximum(np.linalg.norm(carried, axis=1), 1e-12)
    return float((np.einsum("nd,nd->n", carried, true) / length).mean())
