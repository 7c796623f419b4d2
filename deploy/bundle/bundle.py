"""What the edge receives: one ONNX graph, its manifest, and golden embeddings that prove it works where it runs.

The graph takes ``crops`` uint8 ``[N, H, W, 3]`` RGB (N dynamic) and returns ``embeddings`` float32 ``[N, D]`` of unit
length.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.bundle.manifest import (
    GOLDEN_COSINE,
    MANIFEST,
    MAX_DIM,
    REVISABLE,
    SCHEMA,
    check_folder,
    is_temporary,
    parse_manifest,
)
from deploy.bundle.signature import (
    MAX_SIGNATURES,
    SIGNATURE,
    check,
    read_signatures,
    sign,
    trusted_keys,
    write_signatures,
)
from domains.arrays import Float32s
from domains.artefact import (
    check_hashes,
    content_id,
    encode_json,
    fsync_folder,
    read_bytes,
    sealing,
    write_atomic,
    write_manifest,
)
from domains.crops import CropSpec
from domains.errors import ArtefactError, UsageError
from domains.graph_file import MAX_GRAPH, check_graph
from domains.npz import read_npz
from prototypes.metric import Metric, SiteStatistics, sites_from_bytes
from prototypes.transport import Transport

__all__ = ["MAX_DIM", "Bundle", "Golden", "Trusted", "revise_bundle", "write_bundle"]

MAX_MODEL = MAX_GRAPH
MAX_GOLDEN = 256 * 2**20
MAX_GOLDEN_ROWS = 64
MAX_TRANSPORT = 256 * 2**20
MAX_METRIC = 256 * 2**20
MAX_STATISTICS = 256 * 2**20
REREADS = 5
Trusted = str | PathLike[str] | Iterable[str | PathLike[str]] | None
UNIT = 1e-3
"""Largest deviation of a golden embedding's length from 1."""


class Golden(NamedTuple):
    """Crops uint8 ``[n, H, W, 3]`` and the unit embeddings float32 ``[n, D]`` that the exported model gave for them."""

    crops: NDArray[np.uint8]
    embeddings: Float32s


@dataclass(frozen=True, eq=False)
class Bundle:
    """A checked bundle folder.

    Attributes:
        folder: where the bundle is stored.
        manifest: everything in ``bundle.json``.
        crop: size and resize rule of the graph's input.
        signers: ids of the keys that signed it.
    """

    folder: Path
    manifest: Mapping[str, Any]
    crop: CropSpec
    signers: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: str | PathLike[str], *, verify: bool = True, trusted: Trusted = None) -> Bundle:
        """Open a bundle.

        Args:
            path: its folder.
            verify: also check the sha256 of every file, and the golden embeddings.
            trusted: files of public keys, one of which must have signed the bundle; by default those listed in
                LIFELONG_REID_TRUSTED_KEYS. If none are listed, unsigned bundles are loaded too, but an existing
                signature must still be valid.

        Raises:
            ArtefactError: not a bundle, not signed by a trusted key, files missing, unknown or changed, or an invalid
                manifest.
            UsageError: ``trusted`` names no keys.
            DeviceError: there is a signature to check, and the package for it is not installed.
        """
        return cls._open(Path(path), verify, trusted_keys(trusted))

    @classmethod
    def _open(cls, folder: Path, verify: bool, trusted: frozenset[bytes] | None) -> Bundle:
        if not (folder / MANIFEST).is_file():
            raise ArtefactError(f"{folder} is not a bundle: it has no {MANIFEST}; create one with reid export")
        data, signers = _signed(folder, trusted)
        manifest, crop = parse_manifest(data, folder / MANIFEST)
        check_folder(folder, set(manifest["files"]))
        bundle = cls(folder, manifest, crop, signers)
        if verify:
            check_hashes(folder, MANIFEST, manifest["files"])
            bundle.golden()
            bundle.model()
            bundle.metric()
            bundle.sites()
        return bundle

    @property
    def feature_space(self) -> str:
        """Name of the space that its embeddings live in."""
        return str(self.manifest["feature_space"])

    @property
    def network(self) -> str:
        """Name of the network's own space, before the metric: bundles that share it differ in their metric alone."""
        return str((self.manifest.get("metric") or {}).get("network", self.feature_space))

    @property
    def metric_name(self) -> str:
        """Name of the metric that its embeddings are in; empty for none."""
        return str((self.manifest.get("metric") or {}).get("name", ""))

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.manifest["dim"])

    @property
    def id(self) -> str:
        """Hash of all its content."""
        return str(self.manifest["id"])

    @property
    def thresholds(self) -> Mapping[str, Mapping[str, Any]]:
        """By calibrated domain: the requested ``fpr``, the ``score`` (cosine) that gives it, and other measurements;
        empty if none is calibrated.
        """
        thresholds: Mapping[str, Mapping[str, Any]] = self.manifest.get("thresholds", {})
        return thresholds

    def model(self) -> bytes:
        """Return the ONNX graph, read once and checked, so that the bytes that run are the bytes that were sealed, and
        there are no others; raises ArtefactError.
        """
        data = self._read("model.onnx", MAX_MODEL)
        check_graph(data, str(self.folder / "model.onnx"))
        return data

    def golden_cosine(self, engine: str) -> float:
        """Return the lowest cosine to the golden embeddings allowed on an engine: the manifest's for all engines or for
        this one, else the default.
        """
        least = self.manifest.get("golden_cosine", GOLDEN_COSINE)
        return float(least.get(engine, GOLDEN_COSINE) if isinstance(least, dict) else least)

    def golden(self) -> Golden:
        """Return the golden crops and embeddings; raises ArtefactError if changed or not as the manifest says."""
        where = self.folder / "golden.npz"
        try:
            stored = read_npz(self._read("golden.npz", MAX_GOLDEN), limit=MAX_GOLDEN, names=("crops", "embeddings"))
            crops = _golden_rows(stored["crops"], (self.crop.height, self.crop.width, 3), "|u1")
            embeddings = _golden_rows(stored["embeddings"], (self.dim,), "<f4").astype(np.float32)
        except ValueError as error:
            raise ArtefactError(f"{where} can't be read: {error}; export the bundle again") from error
        lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1)
        if len(crops) != len(embeddings) or not (np.abs(lengths - 1) < UNIT).all():
            raise ArtefactError(
                f"{where} must hold one unit-length embedding for each of {len(crops)} crops; export the bundle again"
            )
        return Golden(crops, embeddings)

    def metric(self) -> Metric | None:
        """Return the metric that its embeddings are in, if they are in one; raises ArtefactError if it was changed or
        is not as the manifest says.
        """
        if "metric.npz" not in self.manifest["files"]:
            return None
        where = self.folder / "metric.npz"
        try:
            return Metric.from_bytes(self._read("metric.npz", MAX_METRIC), self.dim)
        except ValueError as error:
            raise ArtefactError(f"{where} can't be read: {error}; export the bundle again") from error

    def sites(self) -> Mapping[str, SiteStatistics]:
        """Return the statistics of the sites that its pooled metric is made of, by name; empty if it was exported
        without them, or with another metric. Raises ArtefactError if they were changed or are not as the manifest says.
        """
        if "sites.npz" not in self.manifest["files"]:
            return {}
        where = self.folder / "sites.npz"
        data = self._read("sites.npz", MAX_STATISTICS)
        try:
            return sites_from_bytes(data, self.manifest["metric"]["sites"], self.dim, limit=MAX_STATISTICS)
        except ValueError as error:
            raise ArtefactError(f"{where} can't be read: {error}; export the bundle again") from error

    def transport(self) -> Transport | None:
        """Return the map from an older network's space into that of this bundle's network, if it has one; raises
        ArtefactError if it was changed or is not as the manifest says.
        """
        if "transport.npz" not in self.manifest["files"]:
            return None
        where = self.folder / "transport.npz"
        transport = Transport.from_bytes(self._read("transport.npz", MAX_TRANSPORT), where, MAX_TRANSPORT)
        if transport.target != self.network or transport.matrix.shape[1] != self.dim:
            raise ArtefactError(
                f"{where} leads to feature space {transport.target:.12}…, not to that of the bundle's network; export "
                "the bundle again"
            )
        return transport

    def _read(self, name: str, limit: int) -> bytes:
        file = self.folder / name
        data = read_bytes(file, limit)
        if hashlib.sha256(data).hexdigest() != self.manifest["files"][name]:
            raise ArtefactError(
                f"{file} was changed after it was sealed: its sha256 is not the one in {MANIFEST}; copy the bundle "
                "again"
            )
        return data


def write_bundle(
    folder: Path,
    *,
    model_onnx: bytes,
    golden: Golden,
    card: str,
    body: Mapping[str, Any],
    parent: str | None,
    parts: Mapping[str, bytes] | None = None,
    key: str | PathLike[str] | None = None,
) -> Bundle:
    """Write and seal a bundle folder: it appears complete, checked as a reader would check it, or not at all.

    Args:
        folder: the folder to create; must not exist.
        model_onnx: the graph.
        golden: 2 to 64 crops and the embeddings that the exported model gave for them.
        card: model card, Markdown.
        body: the manifest's own keys (see ``bundle.json`` in the artefact documentation).
        parent: id of the sealed step that it was exported from.
        parts: further files by name: the ``transport.npz`` that leads here, the ``metric.npz`` that the graph ends
            with, whose name and network are in ``body``, and the ``sites.npz`` of its sites, whose names are there too.
        key: file with the private key to sign it with.

    Raises:
        ArtefactError: the folder exists, or the parts contradict each other.
        UsageError: the key can't be used.
    """
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, crops=np.ascontiguousarray(golden.crops), embeddings=np.ascontiguousarray(golden.embeddings)
    )
    files = {"model.onnx": model_onnx, "golden.npz": buffer.getvalue(), "CARD.md": card.encode(), **(parts or {})}
    with sealing(folder) as temporary:
        for name, data in files.items():
            (temporary / name).write_bytes(data)
        write_manifest(temporary, MANIFEST, kind="bundle", schema=SCHEMA, files=files, parent=parent, body=body)
        if key is not None:
            (temporary / SIGNATURE).write_bytes(write_signatures([sign((temporary / MANIFEST).read_bytes(), key)]))
        Bundle._open(temporary, verify=True, trusted=None)
    return Bundle._open(folder, verify=False, trusted=None)


def _signed(folder: Path, trusted: frozenset[bytes] | None) -> tuple[bytes, tuple[str, ...]]:
    """Return the manifest's bytes and the keys that signed them, once no revision is in progress."""
    for _ in range(REREADS):
        data = read_bytes(folder / MANIFEST)
        signatures = read_signatures(folder / SIGNATURE)
        try:
            return data, check(data, signatures, trusted, folder)
        except ArtefactError:
            if read_bytes(folder / MANIFEST) == data and read_signatures(folder / SIGNATURE) == signatures:
                raise
    raise ArtefactError(f"{folder} keeps being rewritten; stop whatever does it, and load the bundle again")


def revise_bundle(
    folder: str | PathLike[str],
    changes: Mapping[str, Any],
    *,
    key: str | PathLike[str] | None = None,
    unsign: bool = False,
    trusted: Trusted = None,
) -> Bundle:
    """Change ``bundle.json`` atomically: a reader sees the old manifest or the new one. The id changes, the other files
    do not.

    Args:
        folder: the bundle's.
        changes: new values by key. ``thresholds`` are merged by domain, and None removes a domain's; ``licences`` are
            merged by name.
        key: file with the private key to sign the new manifest with; with a key and no changes, a bundle is signed as
            it is.
        unsign: remove the signature from a signed bundle if there is no key.
        trusted: as in :meth:`Bundle.load`.

    Raises:
        UsageError: a manifest key that follows from the files' content, a signed bundle without a key to sign it again,
            or a signing key that can't be used.
        ArtefactError: a damaged bundle, or values that a manifest can't hold; nothing is changed.
    """
    if fixed := sorted(set(changes) - REVISABLE):
        raise UsageError(
            f"{fixed[0]!r:.80} of a bundle follows from its files and can't be revised; only "
            f"{' and '.join(sorted(REVISABLE))} can"
        )
    folder, anchors = Path(folder), trusted_keys(trusted)
    with _revising(folder):
        bundle = Bundle._open(folder, verify=True, trusted=anchors)
        if bundle.signers and key is None and not unsign:
            raise UsageError(
                f"{folder} is signed by key {bundle.signers[0]}; name a key to sign the change with, or remove the "
                "signature"
            )
        data = _revised(folder, bundle.manifest, changes)
        new = [] if key is None else [sign(data, key)]
        check(data, new or None, anchors, folder)
        old = read_signatures(folder / SIGNATURE) or []
        # A kill at any point leaves a bundle that loads: with both signatures, or unsigned if that was asked for or it
        # was never signed.
        if old and new:
            write_atomic(
                folder / SIGNATURE, write_signatures([*new, *old[: MAX_SIGNATURES - 1]]), like=folder / MANIFEST
            )
        elif old:
            (folder / SIGNATURE).unlink()
            fsync_folder(folder)
        write_atomic(folder / MANIFEST, data)
        if new:
            write_atomic(folder / SIGNATURE, write_signatures(new), like=folder / MANIFEST)
        return Bundle._open(folder, verify=False, trusted=anchors)


def _revised(folder: Path, old: Mapping[str, Any], changes: Mapping[str, Any]) -> bytes:
    """Return the bytes of the revised manifest, checked as a reader would check them."""
    revised = dict(old) | {name: {**old.get(name, {}), **_mapping(name, value)} for name, value in changes.items()}
    revised["thresholds"] = {
        domain: entry for domain, entry in revised.get("thresholds", {}).items() if entry is not None
    }
    revised["schema"] = SCHEMA
    revised.pop("id")
    try:
        data = encode_json({"id": content_id(revised), **revised})
    except (TypeError, ValueError) as error:
        raise UsageError(f"a manifest can't hold these values: {error}") from error
    parse_manifest(data, folder / MANIFEST)
    return data


@contextmanager
def _revising(folder: Path) -> Iterator[None]:
    """Lock a bundle folder against other revisions, and remove the leftovers of a killed one."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ArtefactError(f"can't open {folder}: {error.strerror or error}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for leftover in [item for item in folder.iterdir() if is_temporary(item.name)]:
            leftover.unlink()
        yield
    finally:
        os.close(handle)


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{key} must be a mapping, got {value!r:.80}")
    return value


def _golden_rows(array: NDArray[Any], row: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Check an array ``[n, *row]`` of golden crops or embeddings; raises ValueError."""
    if (
        array.dtype != np.dtype(dtype)
        or array.shape[1:] != row
        or not array.flags.c_contiguous
        or not 2 <= len(array) <= MAX_GOLDEN_ROWS
    ):
        raise ValueError(f"an array is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {('2…64', *row)}")
    return array
