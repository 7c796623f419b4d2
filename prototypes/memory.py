"""The memory of one learned domain: named arrays, hashed by the step that seals them, measurable, and without a pixel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from domains.artefact import write_atomic
from domains.errors import ArtefactError


@dataclass(frozen=True, eq=False)
class Memory:
    """All that a step keeps of its domain beside the model.

    Attributes:
        domain: the domain's name.
        feature_space: the space that the arrays live in.
        arrays: what the method's terms kept, by name; empty for a method that keeps nothing.
    """

    domain: str
    feature_space: str
    arrays: Mapping[str, NDArray[np.generic]]

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def write(self, path: Path) -> None:
        """Write as safetensors, atomically."""
        from safetensors.numpy import save

        about = {"domain": self.domain, "feature_space": self.feature_space}
        header = {"memory": json.dumps(about)}  # one entry: the library writes several in any order, and equal memories should be equal bytes
        write_atomic(path, save({name: np.asarray(array, order="C") for name, array in self.arrays.items()}, metadata=header))

    @classmethod
    def read(cls, path: Path) -> Memory:
        """Read what :meth:`write` wrote; raises ArtefactError."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as stored:
                header = stored.metadata() or {}
                header = json.loads(header["memory"]) if "memory" in header else header  # the first version wrote the two entries side by side
                arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtefactError(f"can't read memory {path}: {error}") from error
        if not {"domain", "feature_space"} <= set(header):
            raise ArtefactError(f"{path} is no memory of a domain: its header names neither domain nor feature space")
        return cls(header["domain"], header["feature_space"], arrays)
