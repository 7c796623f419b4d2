"""The memory of one learned domain: named arrays, hashed when their step is sealed, of known size, without a pixel."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from domains.artefact import open_plain, write_atomic
from domains.errors import ArtefactError, first_line
from domains.text import shown

PER_IDENTITY = "prototypes."
"""Prefix of the arrays with one row per identity, in the order of the step's classifier rows; all others describe the
domain as a whole.
"""


@dataclass(frozen=True, eq=False)
class Memory:
    """All that a step keeps of its domain besides the model.

    Attributes:
        domain: the domain's name.
        feature_space: the space that the arrays live in.
        arrays: arrays that the method's terms kept, by name; empty for a method that keeps nothing.
    """

    domain: str
    feature_space: str
    arrays: Mapping[str, NDArray[np.generic]]

    @property
    def bytes(self) -> int:
        """Size of all arrays in bytes."""
        return sum(array.nbytes for array in self.arrays.values())

    def without(self, rows: Collection[int], identities: int) -> Memory:
        """The memory without some identities; arrays that describe the domain as a whole stay.

        Args:
            rows: positions of the identities to leave out.
            identities: number of identities now; if none remains, the arrays with one row per identity go too.

        Raises:
            ArtefactError: an array that should have one row per identity has a different number of rows.
        """
        remaining = [row for row in range(identities) if row not in rows]
        arrays: dict[str, NDArray[np.generic]] = {}
        for name, array in self.arrays.items():
            if not name.startswith(PER_IDENTITY):
                arrays[name] = array
                continue
            if array.ndim < 1 or len(array) != identities:
                raise ArtefactError(
                    f"{name} of the memory of {self.domain} has shape {array.shape}, not one row for each of "
                    f"{identities} identities"
                )
            if remaining:
                arrays[name] = array[remaining]
        return replace(self, arrays=arrays)

    def emptied(self) -> Memory:
        """The memory with nothing left of its domain, not even the name."""
        return replace(self, domain="", arrays={})

    def write(self, path: Path) -> None:
        """Write as safetensors, atomically."""
        from safetensors.numpy import save

        about = {"domain": self.domain, "feature_space": self.feature_space}
        # one entry: the library writes several in any order, and equal memories should have equal bytes
        header = {"memory": json.dumps(about)}
        write_atomic(
            path, save({name: np.asarray(array, order="C") for name, array in self.arrays.items()}, metadata=header)
        )

    @classmethod
    def read(cls, path: Path) -> Memory:
        """Read what :meth:`write` wrote; raises ArtefactError."""
        from safetensors import safe_open

        open_plain(path).close()
        try:
            with safe_open(path, framework="numpy") as stored:
                header = stored.metadata() or {}
                # the first version wrote the two entries side by side
                header = json.loads(header["memory"]) if "memory" in header else header
                arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
        except MemoryError as error:
            raise ArtefactError(f"can't read memory {path}: there is too little memory for it") from error
        except Exception as error:  # NumPy lacks some of the format's kinds of numbers, and raises what it likes
            raise ArtefactError(f"can't read memory {path}: {shown(first_line(error)):.200}") from error
        named = isinstance(header, dict) and all(
            isinstance(header.get(key), str) for key in ("domain", "feature_space")
        )
        if not named:
            raise ArtefactError(
                f"{path} is not the memory of a domain: its header must name a domain and a feature space"
            )
        return cls(header["domain"], header["feature_space"], arrays)
