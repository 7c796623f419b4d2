"""Where measured figures are kept: one small JSON per benchmark, with the code that was measured."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from domains.artefact import code_version, write_json

RESULTS = Path(__file__).parent / "results"


def record(name: str, body: dict[str, Any]) -> None:
    """Write ``results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    write_json(RESULTS / f"{name}.json", {"code": code_version(), "machine": machine, **body})


def recorded(name: str) -> dict[str, Any]:
    """Read what :func:`record` wrote; empty if there is nothing yet."""
    file = RESULTS / f"{name}.json"
    return dict(json.loads(file.read_text("utf-8"))) if file.is_file() else {}
