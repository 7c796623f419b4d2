"""Start weights from a file: of timm, of wrappers around it, and of re-ID trainers."""

from __future__ import annotations

from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from domains.errors import BackboneError, first_line

PREFIXES = ("module.", "state_dict.", "model.", "backbone.", "base.", "encoder.")
HEADS = ("bottleneck.", "heads.", "classifier.", "head.", "fc.")
"""Of checkpoints of re-ID trainers (bag of tricks, FastReID): neck and classifier, which a new domain begins anew."""


def load_weights_file(model: nn.Module, path: Path, *, classifier: str | tuple[str, ...] | None) -> None:
    """Load start weights strictly, but for the classifier; wrappers' key prefixes are stripped and position embeddings
    resampled.

    Raises:
        BackboneError: unreadable, not tensors, or a key that is missing, left over or of another shape.
    """
    given = _without_prefix(_read_tensors(path), set(model.state_dict()))
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier or ()))
    given = {key: value for key, value in given.items() if not key.startswith(heads or ("\0",))}
    wanted = {key: value for key, value in model.state_dict().items() if not key.startswith(heads or ("\0",))}
    if "pos_embed" in given and "pos_embed" in wanted and given["pos_embed"].shape != wanted["pos_embed"].shape:
        grid = list(model.patch_embed.grid_size)  # type: ignore[union-attr, arg-type]
        before = wanted["pos_embed"].shape[1] - grid[0] * grid[1]  # none in DeiT III, whose class token has no place
        try:
            given["pos_embed"] = resample_abs_pos_embed(given["pos_embed"].float(), grid, num_prefix_tokens=before)
        except RuntimeError as error:
            shape = tuple(given["pos_embed"].shape)
            raise BackboneError(
                f"{path.name}: position embeddings {shape} are of no square grid, so they can't be resampled to "
                f"{grid}; set crop.height and "
                "crop.width to what they were trained with"
            ) from error
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}
    missing = sorted(set(wanted) - set(given) - counters)
    extra = sorted(set(given) - set(wanted))
    shapes = sorted(key for key in set(given) & set(wanted) if given[key].shape != wanted[key].shape)
    for what, keys in (("lacks", missing), ("has the unknown", extra), ("has another shape for", shapes)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            found = f"it {what} {', '.join(keys[:3])}{more}"
            raise BackboneError(
                f"{path.name} does not fit {type(model).__name__}: {found}; choose the matching model.backbone"
            )
    model.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in given.items()}, strict=False
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BackboneError(f"no weights file {path}; model.weights takes none, timm or a path to .safetensors or .pth")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many kinds; all mean the same to the user
        raise BackboneError(f"can't read weights {path}: {first_line(error):.200}") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise BackboneError(f"{path} holds no plain dictionary of tensors")
    return loaded


def _without_prefix(tensors: dict[str, Tensor], known: set[str]) -> dict[str, Tensor]:
    """Strip wrappers' prefixes, one after the other, as far as most keys come to the model's names; then what only a
    re-ID checkpoint's head has.
    """
    best = stripped = tensors
    while prefix := next((prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in stripped)), None):
        stripped = {key.removeprefix(prefix): value for key, value in stripped.items()}
        if len(known & set(stripped)) > len(known & set(best)):
            best = stripped
    return {key: value for key, value in best.items() if key in known or not key.startswith(HEADS)}
