"""Start weights from a file, saved by timm, by wrappers around it or by re-ID trainers."""

from __future__ import annotations

from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from domains.errors import BackboneError, first_line

PREFIXES = ("module.", "state_dict.", "model.", "backbone.", "base.", "encoder.")
HEADS = ("bottleneck.", "heads.", "classifier.", "head.", "fc.")
"""Neck and classifier in checkpoints of re-ID trainers (bag of tricks, FastReID), which a new domain replaces."""


def load_weights_file(model: nn.Module, path: Path, *, classifier: str | tuple[str, ...] | None) -> None:
    """Load start weights strictly, except for the classifier; wrappers' key prefixes are stripped, position embeddings
    resampled.

    Raises:
        BackboneError: the file is unreadable or holds no tensors, or a key is missing, unexpected or of another shape.
    """
    loaded = _without_prefix(_read_tensors(path), set(model.state_dict()))
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier or ()))
    loaded = {key: value for key, value in loaded.items() if not key.startswith(heads or ("\0",))}
    expected = {key: value for key, value in model.state_dict().items() if not key.startswith(heads or ("\0",))}
    if "pos_embed" in loaded and "pos_embed" in expected and loaded["pos_embed"].shape != expected["pos_embed"].shape:
        grid = list(model.patch_embed.grid_size)  # type: ignore[union-attr, arg-type]
        before = expected["pos_embed"].shape[1] - grid[0] * grid[1]  # 0 in DeiT III, whose class token has no position
        try:
            loaded["pos_embed"] = resample_abs_pos_embed(loaded["pos_embed"].float(), grid, num_prefix_tokens=before)
        except RuntimeError as error:
            shape = tuple(loaded["pos_embed"].shape)
            raise BackboneError(
                f"{path.name}: position embeddings {shape} are not those of a square grid, so they can't be "
                f"resampled to {grid}; set crop.height and crop.width to the size that they were trained for"
            ) from error
    counters = {key for key in expected if key.endswith("num_batches_tracked")}
    missing = sorted(set(expected) - set(loaded) - counters)
    extra = sorted(set(loaded) - set(expected))
    shapes = sorted(key for key in set(loaded) & set(expected) if loaded[key].shape != expected[key].shape)
    for what, keys in (("lacks", missing), ("has the unexpected", extra), ("has another shape for", shapes)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            mismatch = f"it {what} {', '.join(keys[:3])}{more}"
            raise BackboneError(
                f"{path.name} does not fit {type(model).__name__}: {mismatch}; choose the matching model.backbone"
            )
    model.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in loaded.items()}, strict=False
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BackboneError(f"no weights file {path}; model.weights takes none, timm or a path to .safetensors or .pth")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many errors; all mean the same to the user
        raise BackboneError(f"can't read weights {path}: {first_line(error):.200}") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise BackboneError(f"{path} is not a plain dictionary of tensors; save a state_dict")
    return loaded


def _without_prefix(tensors: dict[str, Tensor], known: set[str]) -> dict[str, Tensor]:
    """Strip wrappers' prefixes one by one, as far as the most keys match the model's names; then drop what only a re-ID
    checkpoint's head has.
    """
    best = stripped = tensors
    while prefix := next((prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in stripped)), None):
        stripped = {key.removeprefix(prefix): value for key, value in stripped.items()}
        if len(known & set(stripped)) > len(known & set(best)):
            best = stripped
    return {key: value for key, value in best.items() if key in known or not key.startswith(HEADS)}
