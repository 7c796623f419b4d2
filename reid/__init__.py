"""The learner: a re-ID model that learns camera domains one after another.

Importing this package does not load torch; its names are imported on first use. They are the stable interface; modules
below may move.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["Batch", "Config", "Method", "Run", "Step", "Term", "__version__"]

_HOMES = {
    "Batch": "reid.terms",
    "Config": "reid.config",
    "Method": "reid.config",
    "Run": "reid.run",
    "Step": "reid.terms",
    "Term": "reid.terms",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'reid' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lifelong-reid")
    except PackageNotFoundError:  # a checkout on the path, not installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
