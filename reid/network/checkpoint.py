"""Weights and resume state as safetensors: nested dictionaries and lists of tensors and plain values, without
pickle.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domains.artefact import open_plain, write_atomic
from domains.errors import ArtefactError, first_line
from domains.text import shown

State = dict[str, Tensor]
"""A network's weights by name, as ``state_dict`` gives them."""

STRUCTURE, CHECKSUM = "structure", "crc32"


def save_state(path: Path, state: Any) -> None:
    """Write a tree of dict, list, tensor, str, number, bool and None into one file, atomically."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_pack(state, tensors), allow_nan=False)
    write_atomic(path, save(tensors, metadata={STRUCTURE: structure, CHECKSUM: _checksum(structure, tensors)}))


def load_state(path: Path) -> Any:
    """Read what :func:`save_state` wrote (tuples come back as lists); raises ArtefactError.

    No manifest covers the state of a step in progress, so the file carries its own checksum: without it, training would
    continue from a flipped bit unnoticed.
    """
    tensors, metadata = read_tensors(path)
    try:
        checksum = _checksum(metadata[STRUCTURE], tensors)
        if metadata.get(CHECKSUM, checksum) != checksum:
            raise ValueError("its content does not match its checksum")
        return _unpack(json.loads(metadata[STRUCTURE]), tensors)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, RuntimeError, MemoryError) as error:
        reason = shown(f"{type(error).__name__}: {first_line(error)}")
        raise ArtefactError(f"{path} is not a saved state: {reason:.200}") from error


def save_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a state dictionary as plain safetensors, readable by anyone."""
    from safetensors.torch import save

    write_atomic(path, save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of a safetensors file; raises ArtefactError."""
    from safetensors import safe_open

    open_plain(path).close()
    try:
        with safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118 - not a mapping
    except MemoryError as error:
        raise ArtefactError(f"can't read {path}: there is too little memory for it") from error
    except Exception as error:  # the library raises its own errors, torch's and Python's
        raise ArtefactError(f"can't read {path}: {shown(first_line(error)):.200}") from error


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimiser's state as a tree for :func:`save_state`."""
    return optimiser.state_dict()


def restore_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimiser's state and give each moment the memory layout of its parameter, which fused kernels and
    bit-for-bit resumption need.
    """
    optimiser.load_state_dict(state)
    for parameter, moments in optimiser.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_pack(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"can't save a {type(value).__name__} without pickle")


def _checksum(structure: str, tensors: dict[str, Tensor]) -> str:
    crc = zlib.crc32(structure.encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def _unpack(node: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in value}
    if kind == "list":
        return [_unpack(item, tensors) for item in value]
    return value
