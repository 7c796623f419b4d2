"""What ``reid doctor`` checks: the packages that jobs need, and clashes that pip does not notice."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import packages_distributions, version
from typing import Any

from domains.artefact import DISTRIBUTION, ROOMS, code_version

NEEDED = {
    "numpy": "the base install",
    "cv2": "the base install",
    "pydantic": "the base install",
    "onnxruntime": "the cpu or gpu extra: query, serve, export",
    "faiss": "the cpu or gpu extra: galleries",
    "fastapi": "the serve extra: serve",
    "torch": "the train extra: learning",
    "timm": "the train extra: learning",
    "safetensors": "the train extra: learning",
    "onnx": "the train extra: export",
}


@dataclass(frozen=True)
class Finding:
    """One check: what it is about, what was found, and what to do if that is wrong."""

    what: str
    found: str
    ok: bool
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def examine() -> list[Finding]:
    """Check everything; a missing extra is not a fault, a clash is."""
    findings = [Finding("lifelong-reid", code_version(), True)]
    owners = packages_distributions()
    for room in ROOMS:
        others = sorted({owner for owner in owners.get(room, []) if owner.lower().replace("_", "-") != DISTRIBUTION})
        if others:
            remedy = (
                f"{', '.join(others)} also installs a package called {room}: use a separate environment and "
                "reinstall lifelong-reid there"
            )
            findings.append(Finding(f"package {room}", "clash", False, remedy))
    for module, use in NEEDED.items():
        installed = importlib.util.find_spec(module) is not None
        base = use.startswith("the base")
        findings.append(
            Finding(
                module,
                _version(module, owners) if installed else f"not installed ({use})",
                installed or not base,
                "" if installed else use,
            )
        )
        rivals = sorted(set(owners.get(module) or []))
        if len(rivals) > 1:
            remedy = (
                f"they overwrite each other's files: pip uninstall {' '.join(rivals)}, then install the one you need"
            )
            findings.append(Finding(f"package {module}", " and ".join(rivals), False, remedy))
    questions = {
        "engines": ("onnxruntime", lambda module: ", ".join(module.get_available_providers())),
        "CUDA in torch": ("torch", lambda module: f"{module.cuda.device_count()} devices"),
    }
    return [
        *findings,
        *(
            _ask(what, module, say)
            for what, (module, say) in questions.items()
            if importlib.util.find_spec(module) is not None
        ),
    ]


def _ask(what: str, module: str, say: Callable[[Any], str]) -> Finding:
    """Ask an installed package about itself; one that can't even be loaded is a finding, not the end."""
    try:
        return Finding(what, say(importlib.import_module(module)), True)
    except (ImportError, OSError) as error:
        return Finding(
            what,
            f"{module} can't be loaded: {error}",
            False,
            f"reinstall {module}, and the libraries that it names",
        )


def _version(module: str, owners: Any) -> str:
    names = owners.get(module) or []
    return version(names[0]) if names else "version unknown"
