"""What ``reid doctor`` looks at: the parts that jobs need, and clashes that pip does not notice."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from importlib.metadata import packages_distributions, version
from typing import Any

from domains.artefact import DISTRIBUTION, ROOMS, code_version

NEEDED = {
    "numpy": "the base install", "cv2": "the base install", "pydantic": "the base install",
    "onnxruntime": "the cpu or gpu extra: query, serve, export",
    "faiss": "the cpu or gpu extra: galleries", "fastapi": "the serve extra: serve",
    "torch": "the train extra: learning", "timm": "the train extra: learning",
    "safetensors": "the train extra: learning", "onnx": "the train extra: export",
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what it is, what was found, and what to do if that is not right."""

    what: str
    found: str
    ok: bool
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def examine() -> list[Finding]:
    """Look at everything; a missing extra is no fault, a clash is."""
    findings = [Finding("lifelong-reid", code_version(), True)]
    owners = packages_distributions()
    for room in ROOMS:
        others = sorted({owner for owner in owners.get(room, []) if owner.lower().replace("_", "-") != DISTRIBUTION})
        if others:
            remedy = f"{', '.join(others)} also installs a package called {room}: use an environment of one's own, reinstall lifelong-reid there"
            findings.append(Finding(f"package {room}", "clash", False, remedy))
    for module, use in NEEDED.items():
        there = importlib.util.find_spec(module) is not None
        base = use.startswith("the base")
        findings.append(Finding(module, _version(module, owners) if there else f"not installed ({use})", there or not base, "" if there else use))
        rivals = sorted(set(owners.get(module) or []))
        if len(rivals) > 1:
            remedy = f"they overwrite each other's files: pip uninstall {' '.join(rivals)}, then install the one you need"
            findings.append(Finding(f"package {module}", " and ".join(rivals), False, remedy))
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        findings.append(Finding("engines", ", ".join(onnxruntime.get_available_providers()), True))
    if importlib.util.find_spec("torch") is not None:
        import torch

        findings.append(Finding("CUDA in torch", f"{torch.cuda.device_count()} devices", True))
    return findings


def _version(module: str, owners: Any) -> str:
    names = owners.get(module) or []
    return version(names[0]) if names else "version unknown"
