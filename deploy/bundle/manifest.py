"""What ``bundle.json`` may contain, and how it is checked before anything else in a bundle is trusted."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from deploy.bundle.signature import SIGNATURE
from domains.artefact import check_manifest, parse_json
from domains.crops import CropSpec
from domains.errors import ArtefactError, DataError

MANIFEST = "bundle.json"
SCHEMA = 3
"""1: no thresholds, fp32 only. 2: optional ``thresholds``, ``golden_cosine``, ``opset``, ``quantisation``. 3: optional
``metric``, whose numbers are in ``metric.npz``; its optional ``sites`` name those whose statistics are in
``sites.npz``.
"""

SCHEMAS = range(1, SCHEMA + 1)
POOLED = "pooled"
"""Name of the metric of all sites together."""

REQUIRED = frozenset({"model.onnx", "golden.npz", "CARD.md"})
OPTIONAL = frozenset({"transport.npz", "metric.npz", "sites.npz"})
REVISABLE = frozenset({"thresholds", "licences"})
"""Keys that describe a bundle independently of its files' content."""

MAX_DIM = 2**14
MAX_THRESHOLDS = 1024
MAX_LIST = 1024
MAX_SITES = 1024
MAX_SITE_NAME = 255
GOLDEN_COSINE = 0.999
"""Lowest cosine allowed to the golden embeddings, unless the manifest's ``golden_cosine`` says otherwise."""

_TEMPORARY = re.compile(r"\.bundle\.(json|sig)\.[0-9a-f]{8}\.tmp")
_BODY: dict[str, type | tuple[type, ...]] = {
    "feature_space": str,
    "dim": int,
    "crop": dict,
    "backbone": str,
    "precision": str,
    "step": int,
    "domains": list,
    "method": str,
    "parity": dict,
    "licences": dict,
}


def parse_manifest(data: bytes, path: Path) -> tuple[dict[str, Any], CropSpec]:
    """Parse and check the manifest in ``data``, read from ``path``; returns it and its crop rule.

    Raises:
        ArtefactError: damaged, written by a newer version, or invalid; the message names the key.
    """
    manifest = check_manifest(parse_json(data, path), path, kind="bundle", schemas=SCHEMAS)
    listed = set(manifest["files"])
    if wrong := sorted(listed - REQUIRED - OPTIONAL):
        raise ArtefactError(f"{path} lists {wrong[0]!r:.80}, which is not part of a bundle; export it again")
    if lost := sorted(REQUIRED - listed):
        raise ArtefactError(f"{path} does not list {lost[0]}; export it again")
    return manifest, _check_body(path, manifest)


def check_folder(folder: Path, listed: set[str]) -> None:
    """Compare the folder's files with the manifest's, so that nothing else can be loaded by mistake. Raises
    ArtefactError.
    """
    try:
        plain = {item.name: item.is_file() and not item.is_symlink() for item in folder.iterdir()}
    except OSError as error:
        raise ArtefactError(f"can't read {folder}: {error.strerror or error}") from error
    if extra := sorted(name for name in set(plain) - listed - {MANIFEST, SIGNATURE} if not is_temporary(name)):
        raise ArtefactError(
            f"{folder} holds {extra[0]!r:.80}, which its manifest does not list; remove it, or copy the bundle again"
        )
    for name in (MANIFEST, *sorted(listed)):
        if name not in plain:
            raise ArtefactError(f"{folder / name} is missing; copy the bundle again")
        if not plain[name]:
            raise ArtefactError(f"{folder / name} is not a plain file; copy the bundle again")


def is_temporary(name: str) -> bool:
    """Whether a file is the leftover of a killed revision: never read, removed by the next one."""
    return _TEMPORARY.fullmatch(name) is not None


def _check_body(path: Path, manifest: Mapping[str, Any]) -> CropSpec:
    """Check the manifest's own keys; returns the crop rule."""
    for key, kind in _BODY.items():
        value = manifest.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ArtefactError(
                f"{path}: {key} is {'missing' if key not in manifest else f'{value!r:.80}'}; export the bundle again"
            )
    _check_hash(path, "feature_space", manifest["feature_space"])
    _check_metric(path, manifest)
    if not 1 <= manifest["dim"] <= MAX_DIM:
        raise ArtefactError(f"{path}: dim must be from 1 to {MAX_DIM}, got {manifest['dim']}")
    if not all(isinstance(name, str) for name in manifest["domains"]):
        raise ArtefactError(f"{path}: domains must be a list of names")
    if not all(_is_number(cosine) for cosine in manifest["parity"].values()):
        raise ArtefactError(f"{path}: parity must give a cosine for each batch size")
    licences = manifest["licences"]
    if set(licences) != {"weights", "data"} or not all(
        isinstance(text, str) and text.strip() and text.isprintable() for text in licences.values()
    ):
        raise ArtefactError(f"{path}: licences must give those of weights and data, each as one line of text")
    least = manifest.get("golden_cosine", GOLDEN_COSINE)
    if not all(
        _is_number(value) and 0.9 <= value <= 1 for value in (least.values() if isinstance(least, dict) else [least])
    ):
        raise ArtefactError(
            f"{path}: golden_cosine must be a cosine from 0.9 to 1, or one per engine, got {least!r:.80}; export "
            "the bundle again"
        )
    check_thresholds(path, manifest.get("thresholds", {}))
    try:
        return CropSpec.from_dict(manifest["crop"])
    except (DataError, TypeError) as error:
        raise ArtefactError(f"{path}: {error}") from error


def _check_hash(path: Path, key: str, value: object) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= 128 or set(value) - set("0123456789abcdef"):
        raise ArtefactError(f"{path}: {key} must be a hash in hexadecimal, got {value!r:.80}")


def _check_metric(path: Path, manifest: Mapping[str, Any]) -> None:
    """Check the metric's name and network, if there is one: it and its file come together."""
    metric = manifest.get("metric")
    if (metric is not None) != ("metric.npz" in manifest["files"]):
        raise ArtefactError(f"{path}: metric and metric.npz come together, or not at all; export the bundle again")
    sites = metric.get("sites") if isinstance(metric, dict) else None
    if (sites is not None) != ("sites.npz" in manifest["files"]):
        raise ArtefactError(f"{path}: metric.sites and sites.npz come together, or not at all; export the bundle again")
    if metric is None:
        return
    name = metric.get("name") if isinstance(metric, dict) else None
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ArtefactError(f"{path}: metric must have a name and a network, got {metric!r:.80}; export it again")
    _check_hash(path, "metric.network", metric.get("network"))
    if sites is None:
        return
    if name != POOLED:
        raise ArtefactError(f"{path}: a bundle with sites.npz must have the metric {POOLED!r}, not {name!r:.80}")
    if not isinstance(sites, list) or not 1 <= len(sites) <= MAX_SITES or not all(map(_is_site_name, sites)):
        raise ArtefactError(f"{path}: metric.sites must be 1 to {MAX_SITES} names, got {sites!r:.80}; export it again")
    if len(set(sites)) < len(sites):
        raise ArtefactError(f"{path}: metric.sites names a site twice; export the bundle again")


def _is_site_name(name: object) -> bool:
    return isinstance(name, str) and bool(name.strip()) and len(name) <= MAX_SITE_NAME


def check_thresholds(path: Path, thresholds: Any) -> None:
    """Check thresholds by domain: each has ``fpr`` in 0..1 and ``score`` (a cosine), and optionally other numbers,
    texts and lists of them.

    Raises:
        ArtefactError: a threshold is invalid; the message names it.
    """
    if not isinstance(thresholds, dict) or len(thresholds) > MAX_THRESHOLDS:
        raise ArtefactError(f"{path}: thresholds must map domain names to thresholds, got {thresholds!r:.80}")
    for domain, entry in thresholds.items():
        where = f"{path}: thresholds of {domain!r:.80}"
        if not domain.strip() or not isinstance(entry, dict):
            raise ArtefactError(f"{where} must be a mapping with fpr and score, got {entry!r:.80}")
        for key, low, high in (("fpr", 0, 1), ("score", -1, 1)):
            value = entry.get(key)
            if not _is_number(value) or not low <= value <= high:
                raise ArtefactError(
                    f"{where}: {key} must be a number from {low} to {high}, got {value!r:.80}; run reid calibrate again"
                )
        for key, value in entry.items():
            plain = value if isinstance(value, list) else [value]
            if len(plain) > MAX_LIST or not all(
                item is None or _is_number(item) or isinstance(item, (str, bool)) for item in plain
            ):
                raise ArtefactError(
                    f"{where}: {key!r:.80} must be a number, a text or a list of these, got {value!r:.80}"
                )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
