"""What the edge gets: one ONNX graph, its manifest, and golden embeddings that prove that it still works where it runs.

The graph takes ``crops`` uint8 ``[N, H, W, 3]`` RGB (N dynamic) and returns ``embeddings`` float32 ``[N, D]`` of unit length.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from domains.artefact import read_manifest, sealing, write_manifest
from domains.crops import CropSpec
from domains.errors import ArtefactError, DataError
from prototypes.transport import Transport

MANIFEST = "bundle.json"
SCHEMA = 1
REQUIRED = frozenset({"model.onnx", "golden.npz", "CARD.md"})
OPTIONAL = frozenset({"transport.npz"})
MAX_MODEL = 2**31 - 1
MAX_GOLDEN = 256 * 2**20
MAX_GOLDEN_ROWS = 64
MAX_TRANSPORT = 256 * 2**20
MAX_DIM = 2**14
UNIT = 1e-3
"""How far from 1 the length of a golden embedding may be."""

_BODY: dict[str, type | tuple[type, ...]] = {
    "feature_space": str, "dim": int, "crop": dict, "backbone": str, "precision": str, "step": int, "domains": list, "method": str, "parity": dict,
    "licences": dict,
}  # fmt: skip


class Golden(NamedTuple):
    """Crops uint8 ``[n, H, W, 3]`` and the unit embeddings float32 ``[n, D]`` that the exported model gave for them."""

    crops: NDArray[np.uint8]
    embeddings: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A checked bundle folder.

    Attributes:
        folder: where it lies.
        manifest: everything in ``bundle.json``.
        crop: size and resize rule of the graph's input.
    """

    folder: Path
    manifest: Mapping[str, Any]
    crop: CropSpec

    @classmethod
    def load(cls, path: str | PathLike[str], *, verify: bool = True) -> Bundle:
        """Open a bundle.

        Args:
            path: its folder.
            verify: also compare every file with its sha256, and look into the golden embeddings.

        Raises:
            ArtefactError: no bundle, or one with missing, unknown or changed files, or an impossible manifest.
        """
        folder = Path(path)
        if not (folder / MANIFEST).is_file():
            raise ArtefactError(f"{folder} is no bundle: it has no {MANIFEST}; make one with reid export")
        manifest = read_manifest(folder, MANIFEST, kind="bundle", schemas=range(1, SCHEMA + 1), check_files=False)
        _check_files(folder, set(manifest["files"]))
        bundle = cls(folder, manifest, _check_body(folder / MANIFEST, manifest))
        if verify:
            read_manifest(folder, MANIFEST, kind="bundle", schemas=range(1, SCHEMA + 1))
            bundle.golden()
        return bundle

    @property
    def feature_space(self) -> str:
        """Name of the space that its embeddings live in."""
        return str(self.manifest["feature_space"])

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.manifest["dim"])

    @property
    def id(self) -> str:
        """Hash of all its content."""
        return str(self.manifest["id"])

    def model(self) -> bytes:
        """The ONNX graph, read once and checked, so that the bytes that are run are the bytes that were sealed; raises ArtefactError."""
        return self._read("model.onnx", MAX_MODEL)

    def golden(self) -> Golden:
        """The golden crops and embeddings; raises ArtefactError if they were changed or do not fit the manifest."""
        where = self.folder / "golden.npz"
        try:
            with zipfile.ZipFile(io.BytesIO(self._read("golden.npz", MAX_GOLDEN))) as archive:
                if sorted(archive.namelist()) != ["crops.npy", "embeddings.npy"]:
                    raise ArtefactError(f"{where} must hold crops and embeddings, found {sorted(archive.namelist())!r:.80}")
                with archive.open("crops.npy") as stream:
                    crops = _read_npy(stream, (self.crop.height, self.crop.width, 3), "|u1")
                with archive.open("embeddings.npy") as stream:
                    embeddings = _read_npy(stream, (self.dim,), "<f4").astype(np.float32)
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            raise ArtefactError(f"{where} can't be read: {error}; export the bundle again") from error
        lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1)
        if len(crops) != len(embeddings) or not (np.abs(lengths - 1) < UNIT).all():
            raise ArtefactError(f"{where} must hold one unit-length embedding for each of {len(crops)} crops; export the bundle again")
        return Golden(crops, embeddings)

    def transport(self) -> Transport | None:
        """The map into this bundle's feature space from an older one, where it has one; raises ArtefactError if it was changed or does not fit."""
        if "transport.npz" not in self.manifest["files"]:
            return None
        where, data = self.folder / "transport.npz", self._read("transport.npz", MAX_TRANSPORT)
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                size = sum(item.file_size for item in archive.infolist())
        except zipfile.BadZipFile as error:
            raise ArtefactError(f"{where} can't be read: {error}; export the bundle again") from error
        if size > MAX_TRANSPORT:
            raise ArtefactError(f"{where} unpacks to {size // 2**20} MiB, so it is no file of ours")
        found = Transport.from_bytes(data, where)
        if found.target != self.feature_space or found.matrix.shape[1] != self.dim:
            raise ArtefactError(f"{where} leads to feature space {found.target:.12}…, not to the bundle's; export the bundle again")
        return found

    def _read(self, name: str, limit: int) -> bytes:
        file = self.folder / name
        try:
            with file.open("rb") as stream:
                data = stream.read(limit + 1)
        except OSError as error:
            raise ArtefactError(f"can't read {file}: {error.strerror or error}") from error
        if len(data) > limit:
            raise ArtefactError(f"{file} is larger than {limit // 2**20} MiB, so it is no file of ours")
        if hashlib.sha256(data).hexdigest() != self.manifest["files"][name]:
            raise ArtefactError(f"{file} was changed after it was sealed: its sha256 is not the one in {MANIFEST}; copy the bundle again")
        return data


def write_bundle(
    folder: Path,
    *,
    model_onnx: bytes,
    golden_crops: NDArray[np.uint8],
    golden_embeddings: NDArray[np.float32],
    card: str,
    body: Mapping[str, Any],
    parent: str | None,
    transport: bytes | None = None,
) -> Bundle:
    """Seal a bundle folder: it appears whole, checked as a reader would check it, or not at all.

    Args:
        folder: where it goes; must not exist.
        model_onnx: the graph.
        golden_crops: uint8 ``[n, H, W, 3]``, 2 to 64 of them.
        golden_embeddings: float32 ``[n, D]``, unit length, from the model that was exported.
        card: model card, Markdown.
        body: the manifest's own keys (see ``bundle.json`` in the documentation of artefacts).
        parent: id of the sealed step that it was exported from.
        transport: the ``transport.npz`` of that step, where there is one.

    Raises:
        ArtefactError: the folder exists, or the parts do not fit each other.
    """
    golden = io.BytesIO()
    np.savez_compressed(golden, crops=np.ascontiguousarray(golden_crops), embeddings=np.ascontiguousarray(golden_embeddings))
    files = {"model.onnx": model_onnx, "golden.npz": golden.getvalue(), "CARD.md": card.encode()}
    if transport is not None:
        files["transport.npz"] = transport
    with sealing(folder) as temporary:
        for name, data in files.items():
            (temporary / name).write_bytes(data)
        write_manifest(temporary, MANIFEST, kind="bundle", schema=SCHEMA, files=files, parent=parent, body=body)
        Bundle.load(temporary)
    return Bundle.load(folder, verify=False)


def _check_files(folder: Path, listed: set[str]) -> None:
    """Compare the manifest's files and the folder's with what a bundle consists of; nothing else may lie there to be loaded by mistake."""
    if wrong := sorted(listed - REQUIRED - OPTIONAL):
        raise ArtefactError(f"{folder / MANIFEST} lists {wrong[0]!r:.80}, which is no part of a bundle; export it again")
    if lost := sorted(REQUIRED - listed):
        raise ArtefactError(f"{folder / MANIFEST} does not list {lost[0]}; export it again")
    try:
        found = {item.name: item.is_file() and not item.is_symlink() for item in folder.iterdir()}
    except OSError as error:
        raise ArtefactError(f"can't read {folder}: {error.strerror or error}") from error
    if extra := sorted(set(found) - listed - {MANIFEST}):
        raise ArtefactError(f"{folder} holds {extra[0]!r:.80}, which its manifest does not list; remove it, or copy the bundle again")
    for name in sorted(listed):
        if name not in found:
            raise ArtefactError(f"{folder / name} is missing; copy the bundle again")
        if not found[name]:
            raise ArtefactError(f"{folder / name} is not a plain file; copy the bundle again")


def _check_body(path: Path, manifest: Mapping[str, Any]) -> CropSpec:
    """Check the manifest's own keys; returns the crop rule."""
    for key, kind in _BODY.items():
        value = manifest.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ArtefactError(f"{path}: {key} is {'missing' if key not in manifest else f'{value!r:.80}'}; export the bundle again")
    space = manifest["feature_space"]
    if not space or len(space) > 128 or set(space) - set("0123456789abcdef"):
        raise ArtefactError(f"{path}: feature_space must be a hash in hexadecimal, got {space!r:.80}")
    if not 1 <= manifest["dim"] <= MAX_DIM:
        raise ArtefactError(f"{path}: dim must be from 1 to {MAX_DIM}, got {manifest['dim']}")
    if not all(isinstance(name, str) for name in manifest["domains"]):
        raise ArtefactError(f"{path}: domains must be a list of names")
    if not all(isinstance(cosine, (int, float)) for cosine in manifest["parity"].values()):
        raise ArtefactError(f"{path}: parity must give a cosine for each batch size")
    if set(manifest["licences"]) != {"weights", "data"}:
        raise ArtefactError(f"{path}: licences must name those of weights and data")
    try:
        return CropSpec.from_dict(manifest["crop"])
    except (DataError, TypeError) as error:
        raise ArtefactError(f"{path}: {error}") from error


def _read_npy(stream: IO[bytes], row: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Read an array ``[n, *row]`` whose header is believed only once it says what is expected: nothing large is allocated for a forged one."""
    if npy.read_magic(cast(Any, stream)) != (1, 0):
        raise ValueError("an array is not in NumPy's format 1.0")
    shape, fortran, found = npy.read_array_header_1_0(cast(Any, stream), max_header_size=1024)
    if fortran or found != np.dtype(dtype) or len(shape) != len(row) + 1 or tuple(shape[1:]) != row or not 2 <= shape[0] <= MAX_GOLDEN_ROWS:
        raise ValueError(f"an array is {found} {shape}, expected {np.dtype(dtype)} {('2…64', *row)}")
    size = int(np.prod(shape)) * found.itemsize
    data = stream.read(size + 1)
    if len(data) != size:
        raise ValueError("an array has fewer or more bytes than its header says")
    return np.frombuffer(data, found).reshape(shape)
