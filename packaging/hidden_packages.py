"""Says what hides a package of this project: ``make`` puts this into the environment that it builds.

Python looks beside the script first. A folder without ``__init__.py`` there hides nothing, because a real package is
preferred to it. One with ``__init__.py``, or ``domains.py``, is imported in place of ours; that is Python's rule and
stays so, with a warning that names the file.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

NAMES = ("domains", "prototypes", "deploy", "reid")


class Watch:
    """A finder that finds nothing: it only looks at what Python will take for one of our names."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Warn if the package that Python will import is not the one of this project that is on the path, too."""
        if path is not None or name not in NAMES:
            return None
        home = next((entry for entry in sys.path if all(map(os.path.isfile, _packages(entry)))), None)
        found = PathFinder.find_spec(name, None, target)
        if home is None or found is None or found.origin is None:
            return None
        ours = os.path.join(home, name, "__init__.py")  # noqa: PTH118 - runs at every start of Python: no pathlib
        if os.path.realpath(found.origin) != os.path.realpath(ours):
            import warnings

            warnings.warn(
                f"'import {name}' takes {found.origin}, which hides the package {name} of lifelong-reid in {home}; "
                "rename it, or move the script to another folder",
                stacklevel=2,
            )
        return None


def _packages(entry: str) -> list[str]:
    return [os.path.join(entry, name, "__init__.py") for name in NAMES]  # noqa: PTH118


sys.meta_path.insert(0, Watch)
