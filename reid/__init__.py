"""The learner: a re-ID model that learns camera domains one after another.

Importing this package loads no torch; :class:`Run` and :class:`Config` are fetched when first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reid.config import Config
    from reid.run import Run

__all__ = ["Config", "Run"]


def __getattr__(name: str) -> Any:
    if name == "Config":
        from reid.config import Config

        return Config
    if name == "Run":
        from reid.run import Run

        return Run
    raise AttributeError(f"module 'reid' has no attribute {name!r}")
