"""The memory of one learned domain: named arrays, hashed by the step that seals them, measurable, and without a
pixel.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from domains.artefact import write_atomic
from domains.errors import ArtefactError

PER_IDENTITY = "prototypes."
"""Arrays of this kind have a row for each identity, in the order of the step's classifier rows; all others are of the
domain as a whole.
"""


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

    def without(self, rows: Collection[int], identities: int) -> Memory:
        """The memory without some identities; what is of the domain as a whole stays.

        Args:
            rows: the identities' positions.
            identities: how many there are now; if none is left, the arrays that hold a row for each go altogether.

        Raises:
            ArtefactError: an array that should have a row for each identity has another number of them.
        """
        kept = [row for row in range(identities) if row not in rows]
        arrays: dict[str, NDArray[np.generic]] = {}
        for name, array in self.arrays.items():
            if not name.startswith(PER_IDENTITY):
                arrays[name] = array
                continue
            if array.ndim < 1 or len(array) != identities:
                raise ArtefactError(
                    f"{name} of the memory of {self.domain} has shape {array.shape}, not a row for each of "
                    f"{identities} identities"
                )
            if kept:
                arrays[name] = array[kept]
        return replace(self, arrays=arrays)

    def emptied(self) -> Memory:
        """The memory without anything of its domain, not even the name."""
        return replace(self, domain="", arrays={})

    def write(self, path: Path) -> None:
        """Write as safetensors, atomically."""
        from safetensors.numpy import save

        about = {"domain": self.domain, "feature_space": self.feature_space}
        header = {
            "memory": json.dumps(about)
        }  # one entry: the library writes several in any order, and equal memories should be equal bytes
        write_atomic(
            path, save({name: np.asarray(array, order="C") for name, array in self.arrays.items()}, metadata=header)
        )

    @classmethod
    def read(cls, path: Path) -> Memory:
        """Read what :meth:`write` wrote; raises ArtefactError."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as stored:
                header = stored.metadata() or {}
                header = (
                    json.loads(header["memory"]) if "memory" in header else header
                )  # the first version wrote the two entries side by side
                arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtefactError(f"can't read memory {path}: {error}") from error
        if not {"domain", "feature_space"} <= set(header):
            raise ArtefactError(f"{path} is no memory of a domain: its header names neither domain nor feature space")
        return cls(header["domain"], header["feature_space"], arrays)
