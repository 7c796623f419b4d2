"""Start weights from a file, saved by timm, by wrappers around it or by re-ID trainers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from domains.errors import BackboneError
from domains.text import shown
from reid.network.checkpoint_file import read_checkpoint

TRANSPARENT = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
"""What ``torch.compile`` and its like put into keys, wherever the module that they wrap stands."""

HEADS = ("bottleneck.", "heads.", "classifier.", "head.", "fc.")
"""Neck and classifier in checkpoints of re-ID trainers (bag of tricks, FastReID), which a new domain replaces."""

MAX_DEPTH, MAX_TABLES = 8, 10_000
MAX_POSITIONS = 2**28


def load_weights_file(model: nn.Module, path: Path, *, classifier: str | tuple[str, ...] | None) -> None:
    """Load start weights strictly, except for the classifier; position embeddings are resampled.

    Whatever wrappers put around the weights is removed: dictionaries within dictionaries, beside an optimiser and a
    log, and prefixes of keys, such as ``module.`` (DataParallel), ``_orig_mod.`` (``torch.compile``) or ``model.``. Of
    several sets of weights that fit equally well, a moving average comes last, and else the first in the file is taken.

    Raises:
        BackboneError: the file is unreadable or holds no tensors, or a key is missing, unexpected or of another shape.
    """
    loaded = _chosen(read_checkpoint(path), set(model.state_dict()), path)
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier or ()))
    loaded = {key: value for key, value in loaded.items() if not key.startswith(heads or ("\0",))}
    expected = {key: value for key, value in model.state_dict().items() if not key.startswith(heads or ("\0",))}
    if "pos_embed" in loaded and "pos_embed" in expected and loaded["pos_embed"].shape != expected["pos_embed"].shape:
        loaded["pos_embed"] = _resampled(loaded["pos_embed"], expected["pos_embed"], model, path)
    counters = {key for key in expected if key.endswith("num_batches_tracked")}
    missing = sorted(set(expected) - set(loaded) - counters)
    extra = sorted(set(loaded) - set(expected))
    shapes = sorted(key for key in set(loaded) & set(expected) if loaded[key].shape != expected[key].shape)
    for what, keys in (("lacks", missing), ("has the unexpected", extra), ("has another shape for", shapes)):
        if keys:
            found = "" if set(loaded) & set(expected) else f" (its keys: {listed(loaded)})"
            raise BackboneError(
                f"{path.name} does not fit {type(model).__name__}: it {what} {listed(keys)}{found}; choose the "
                "matching model.backbone"
            )
    try:
        model.load_state_dict(
            {key: value.float() if value.is_floating_point() else value for key, value in loaded.items()}, strict=False
        )
    except (RuntimeError, NotImplementedError) as error:  # sparse or quantised tensors
        kinds = sorted({f"{value.layout}, {value.dtype}".replace("torch.", "") for value in loaded.values()})
        raise BackboneError(
            f"{path.name} holds tensors that can't be start weights ({'; '.join(kinds):.120}); save them dense, in "
            "float32 or half precision"
        ) from error


def listed(keys: Mapping[str, object] | list[str]) -> str:
    """Name a few keys, harmlessly, and say how many more there are."""
    names = [shown(key[:60]) for key in list(keys)[:3]]
    return ", ".join(names) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _resampled(loaded: Tensor, expected: Tensor, model: nn.Module, path: Path) -> Tensor:
    """Resample position embeddings to the model's grid; raises BackboneError."""
    grid = list(model.patch_embed.grid_size)  # type: ignore[union-attr, arg-type]
    before = expected.shape[1] - grid[0] * grid[1]  # 0 in DeiT III, whose class token has no position
    try:
        if loaded.ndim != 3 or loaded.numel() > MAX_POSITIONS:
            raise RuntimeError("not position embeddings")
        fitted: Tensor = resample_abs_pos_embed(loaded.float(), grid, num_prefix_tokens=before)
        return fitted
    except RuntimeError as error:
        raise BackboneError(
            f"{path.name}: position embeddings {tuple(loaded.shape)} are not those of a square grid, so they can't be "
            f"resampled to {grid}; set crop.height and crop.width to the size that they were trained for"
        ) from error


def _chosen(checkpoint: Mapping[object, object], known: set[str], path: Path) -> dict[str, Tensor]:
    """Return the weights that match the most of a model's names, without the prefix that they share.

    What lies beside them, in other dictionaries or under other prefixes, is something else's; below the prefix, only a
    neck and a classifier are left out.

    Raises:
        BackboneError: there are no tensors under names.
    """
    best: tuple[tuple[int, bool], dict[str, Tensor], str] | None = None
    for place, table in _tables(checkpoint):
        plain = {_without_wrappers(key): value for key, value in table.items()}
        if len(plain) < len(table):
            plain = table
        for prefix, count in _prefixes(plain, known).items():
            averaged = any(word in f"{place}{prefix}".lower() for word in ("ema.", "ema_", "_ema", "averaged"))
            rank = (count, not averaged)
            if best is None or rank > best[0]:
                best = (rank, plain, prefix)
    if best is None:
        raise BackboneError(
            f"{path} holds no weights: no tensors stand under names in it{_found(checkpoint)}; save a network's "
            "state_dict there"
        )
    _, table, prefix = best
    weights = {key.removeprefix(prefix): value for key, value in table.items() if key.startswith(prefix)}
    return {key: value for key, value in weights.items() if key in known or not key.startswith(HEADS)}


def _found(checkpoint: Mapping[object, object]) -> str:
    keys = [str(key) for key in checkpoint]
    return f" (its keys: {listed(keys)})" if keys else ""


def _tables(checkpoint: Mapping[object, object]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every dictionary that holds tensors, with its place, outer ones first; what else it holds is left out."""
    level: list[tuple[str, Mapping[object, object]]] = [("", checkpoint)]
    seen = 0
    for _ in range(MAX_DEPTH):
        inner: list[tuple[str, Mapping[object, object]]] = []
        for place, mapping in level:
            seen += 1
            if seen > MAX_TABLES:
                return
            tensors = {
                key: value for key, value in mapping.items() if isinstance(key, str) and isinstance(value, Tensor)
            }
            if tensors:
                yield place, tensors
            for key, value in mapping.items():
                parts = enumerate(value) if isinstance(value, list | tuple) else [("", value)]
                inner += [(f"{place}{key}.", part) for _, part in parts if isinstance(part, Mapping)]
        level = inner


def _without_wrappers(key: str) -> str:
    for word in TRANSPARENT:
        if key.startswith(word) or f".{word}" in key:
            key = key.removeprefix(word).replace(f".{word}", ".")
    return key


def _prefixes(table: Mapping[str, Tensor], known: set[str]) -> dict[str, int]:
    """Return the prefixes under which a model's names stand, and how many of them; the empty one is always among
    them.
    """
    counts = Counter({"": 0})
    for key in table:
        start = 0
        while True:
            if key[start:] in known:
                counts[key[:start]] += 1
            start = key.find(".", start) + 1
            if not start:
                break
    return counts
