"""A sealed step: its folder, what is in it, and how it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domains.artefact import fsync_folder, make_private, sha256_file, write_atomic, write_manifest
from domains.crops import CropSpec
from domains.errors import ArtefactError
from prototypes.memory import Memory
from prototypes.transport import Transport
from reid.network.checkpoint import State, read_tensors, save_weights
from reid.network.model import ReidModel
from reid.step.ending import Ended
from reid.step.learner import LOG

CARD, WEIGHTS, MEMORY, TRANSPORT, KEPT = (
    "card.json",
    "model.safetensors",
    "memory.safetensors",
    "transport.npz",
    "kept-{}.safetensors",
)
IN_PROGRESS = ".inprogress"
SCHEMAS = range(1, 2)


@dataclass(frozen=True)
class Sealed:
    """One sealed step: its folder and its card."""

    folder: Path
    card: Mapping[str, Any]

    @property
    def index(self) -> int:
        """Index t of the step, 0 for the untrained start."""
        return int(self.card["index"])

    @property
    def learned(self) -> tuple[str, ...]:
        """Names of the domains that this step learned."""
        return tuple(entry["name"] for entry in self.card["domains"])

    @property
    def feature_space(self) -> str:
        """Name of the embedding space of the step's model."""
        return str(self.card["feature_space"])

    def file(self, name: str) -> Path:
        """Return the path of one of the step's files; raises ArtefactError if it was changed or is not on the card."""
        path = self.folder / name
        if name not in self.card["files"]:
            raise ArtefactError(f"{self.folder} has no {name}")
        if sha256_file(path) != self.card["files"][name]:
            raise ArtefactError(f"{path} was changed after it was sealed; restore it from a backup")
        return path

    def memory(self) -> Memory:
        """Read the memory of the step's domain; raises ArtefactError."""
        return Memory.read(self.file(MEMORY))

    def transport(self) -> Transport | None:
        """Read the map from the previous step's feature space, if the method fitted one; raises ArtefactError."""
        if TRANSPORT not in self.card["files"]:
            return None
        transport, dim = Transport.read(self.file(TRANSPORT)), self.card["dim"]
        if transport.matrix.shape != (dim, dim):
            raise ArtefactError(
                f"{self.folder / TRANSPORT} is a map of shape {transport.matrix.shape}, and the spaces have {dim} "
                "dimensions; restore it from a backup"
            )
        return transport

    def kept(self) -> dict[str, State]:
        """Read the further weights that the step keeps for the next, by name."""
        head, tail = KEPT.split("{}")
        names = [name.removeprefix(head).removesuffix(tail) for name in self.card["files"] if name.startswith(head)]
        return {name: read_tensors(self.file(KEPT.format(name)))[0] for name in names}


def seal(
    folder: Path,
    index: int,
    model: ReidModel,
    crop: CropSpec,
    card: Mapping[str, Any],
    memory: Mapping[str, Any],
    *,
    parent: str | None,
    ended: Ended | None = None,
) -> Sealed:
    """Write a step's files, then its card, which makes it sealed.

    Args:
        folder: the step's folder.
        index: t.
        model: M_t.
        crop: the run's crop rule.
        card: what to record about the step.
        memory: the memory of its domain, arrays by name.
        parent: id of the previous step.
        ended: further results of the step.
    """
    make_private(folder)
    space = model.feature_space(crop)
    save_weights(folder / WEIGHTS, model.state_dict())
    Memory("+".join(entry["name"] for entry in card["domains"]), space, memory).write(folder / MEMORY)
    files = [WEIGHTS, MEMORY]
    if ended and ended.transport:
        ended.transport.write(folder / TRANSPORT)
        files.append(TRANSPORT)
    for name, state in (ended.kept if ended else {}).items():
        save_weights(folder / KEPT.format(name), state)
        files.append(KEPT.format(name))
    if (folder / IN_PROGRESS / LOG).is_file():
        write_atomic(folder / LOG, (folder / IN_PROGRESS / LOG).read_bytes())
        files.append(LOG)
    body = {
        "index": index,
        "name": folder.name,
        "feature_space": space,
        "dim": model.dim,
        "crop": crop.to_dict(),
        **card,
    }
    fsync_folder(folder.parent)
    return Sealed(folder, write_manifest(folder, CARD, kind="step", schema=1, files=files, parent=parent, body=body))
