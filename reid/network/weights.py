"""Start weights from a file, saved by timm, by wrappers around it or by re-ID trainers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from domains.errors import BackboneError
from domains.text import logger, shown
from reid.network.checkpoint_file import key_text, listed, read_checkpoint

_LOG = logger(__name__)

TRANSPARENT = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
"""What ``torch.compile`` and its like put into keys, wherever the module that they wrap stands."""

HEADS = ("bottleneck.", "heads.", "classifier.", "head.", "fc.")
"""Neck and classifier in checkpoints of re-ID trainers (bag of tricks, FastReID), which a new domain replaces."""

BESIDE = frozenset(
    (
        *("arcface", "cosface", "sphereface", "circle", "margin", "softmax", "softtriple", "proxy", "proxies"),
        *("bnneck", "bottleneck", "neck", "classifier", "classifiers", "fc", "head", "heads", "logit", "logits"),
        *("linear", "projector", "projection", "predictor", "criterion", "criterions", "loss", "losses", "feat"),
        *(
            "center",
            "centers",
            "centre",
            "centres",
            "queue",
            "memory",
            "bank",
            "pixel",
            "gap",
            "gem",
            "pool",
            "pooling",
        ),
    )
)
"""Words in the names of what trainers put behind or beside a backbone: necks, classifiers, losses, pixels' means."""

WITHIN = frozenset(("attn", "block", "blocks", "conv", "embed", "layer", "norm", "stage", "stem", "token"))
"""Words in the names of a backbone's own parts."""

COPIES = ("ema.", "ema_", "_ema", "averaged", "swa", "momentum", "target", "encoder_k", "grad", "exp_avg")
"""Parts of the names of what has a network's names and is not what was trained: averages, gradients, moments."""

COUNTS = ("total_ops", "total_params")
"""What profilers (thop) leave in every module."""

MAX_DEPTH, MAX_TABLES = 8, 10_000
STARTS = "start weights ({}); save them dense, in float32 or half precision"

MAX_KEY = 1000
"""Characters of a weight's name; nothing that is longer is one."""

MAX_POSITIONS = 2**28


def load_weights_file(model: nn.Module, path: Path, *, classifier: str | tuple[str, ...] | None) -> None:
    """Load start weights strictly, except for the classifier; position embeddings are resampled.

    Whatever wrappers put around the weights is removed: dictionaries within dictionaries, beside an optimiser and a
    log, and prefixes of keys, such as ``module.`` (DataParallel), ``_orig_mod.`` (``torch.compile``) or ``model.``. Of
    several sets of weights that fit equally well, averages and gradients come last, and else the first in the file is
    taken. What a trainer put behind the backbone is left out, and named in the log if it is no usual head.

    Raises:
        BackboneError: the file is unreadable or holds no tensors, a key is missing, unexpected or of another shape, or
            its values are no finite floating-point numbers.
    """
    loaded = _chosen(read_checkpoint(path), set(model.state_dict()), path)
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier or ()))
    loaded = {key: value for key, value in loaded.items() if not key.startswith(heads or ("\0",))}
    expected = {key: value for key, value in model.state_dict().items() if not key.startswith(heads or ("\0",))}
    if "pos_embed" in loaded and "pos_embed" in expected and loaded["pos_embed"].shape != expected["pos_embed"].shape:
        loaded["pos_embed"] = _resampled(loaded["pos_embed"], expected["pos_embed"], model, path)
    loaded = _check_names(loaded, expected, model, path)
    try:
        weights = {key: _start_weight(key, value, expected[key], path) for key, value in loaded.items()}
        model.load_state_dict(weights, strict=False)
    except (RuntimeError, NotImplementedError) as error:  # kinds of tensors that can't be copied
        kinds = sorted({f"{value.layout}, {value.dtype}".replace("torch.", "") for value in loaded.values()})
        raise BackboneError(
            f"{path.name} holds tensors that can't be {STARTS.format('; '.join(kinds)[:120])}"
        ) from error


def _check_names(
    loaded: Mapping[str, Tensor], expected: Mapping[str, Tensor], model: nn.Module, path: Path
) -> dict[str, Tensor]:
    """Return the weights that are the model's, if all of them are there; raises BackboneError.

    What is too much is left out with a note if it is plainly something else's. A larger network of the same family has
    all names of a smaller one, so whatever stands within the model's own parts is refused.
    """
    counters = {key for key in expected if key.endswith("num_batches_tracked")}
    missing = sorted(set(expected) - set(loaded) - counters)
    shapes = sorted(key for key in set(loaded) & set(expected) if loaded[key].shape != expected[key].shape)
    parts = {key.partition(".")[0] for key in expected}
    extra = sorted(key for key in set(loaded) - set(expected) if not _is_beside(key, parts))
    for what, keys in (("lacks", missing), ("has the unexpected", extra), ("has another shape for", shapes)):
        if keys:
            found = "" if set(loaded) & set(expected) else f" (its keys: {listed(loaded)})"
            remove = "" if missing or shapes else ", or remove them from the file if they are no part of the backbone"
            raise BackboneError(
                f"{path.name} does not fit {type(model).__name__}: it {what} {listed(keys)}{found}; choose the "
                f"matching model.backbone{remove}"
            )
    if beside := sorted(set(loaded) - set(expected)):
        _LOG.warning("%s: left out what is no part of the backbone: %s", path.name, listed(beside))
    return {key: value for key, value in loaded.items() if key in expected}


def _is_beside(key: str, parts: set[str]) -> bool:
    """Whether a name is plainly none of a backbone's that has these parts."""
    first, _, _ = key.partition(".")
    words = set(re.split(r"[^a-z]+", first.lower()))
    within = first in parts or words & WITHIN
    return key.rpartition(".")[2] in COUNTS or (not within and bool(words & BESIDE))


def _start_weight(key: str, value: Tensor, expected: Tensor, path: Path) -> Tensor:
    """Return a weight as it is loaded, in float32 if it is a floating-point number; raises BackboneError."""
    kind = str(value.dtype).removeprefix("torch.")
    wrong = None
    if value.is_meta:
        wrong = "has no values: it was saved from a network that had none"
    elif value.layout != torch.strided:
        wrong = f"is {str(value.layout).removeprefix('torch.')}"
    elif not expected.is_floating_point():
        return value
    elif not value.is_floating_point():
        wrong = f"is {kind}"
    if wrong:
        raise BackboneError(f"{path.name} holds tensors that can't be {STARTS.format(f'{shown(key[:60])} {wrong}')}")
    number = value.float()
    if not torch.isfinite(number).all() and torch.isfinite(expected).all():
        raise BackboneError(
            f"{path.name} holds values that are not finite numbers, first in {shown(key[:60])}: a training that "
            "diverged, or a cast to a type that is too small; use another checkpoint"
        )
    return number


def _resampled(loaded: Tensor, expected: Tensor, model: nn.Module, path: Path) -> Tensor:
    """Resample position embeddings to the model's grid; raises BackboneError."""
    grid = list(model.patch_embed.grid_size)  # type: ignore[union-attr, arg-type]
    before = expected.shape[1] - grid[0] * grid[1]  # 0 in DeiT III, whose class token has no position
    try:
        if loaded.ndim != 3 or loaded.numel() > MAX_POSITIONS:
            raise RuntimeError("not position embeddings")
        loaded = _start_weight("pos_embed", loaded, expected, path)
        fitted: Tensor = resample_abs_pos_embed(loaded, grid, num_prefix_tokens=before)
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
            copy = any(word in f"{place}{prefix}".lower() for word in COPIES)
            rank = (count, not copy)
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
    return f" (its keys: {listed(checkpoint)})" if checkpoint else ""


def _tables(checkpoint: Mapping[object, object]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every dictionary that holds tensors, with its place, outer ones first; what else it holds is left out.

    A few bytes can refer to the same dictionary or list any number of times, so each is looked into once.
    """
    level: list[tuple[str, Mapping[object, object]]] = [("", checkpoint)]
    seen, count = {id(checkpoint)}, 1
    for _ in range(MAX_DEPTH):
        inner: list[tuple[str, Mapping[object, object]]] = []
        for place, mapping in level:
            tensors = {
                key: value
                for key, value in mapping.items()
                if isinstance(key, str) and isinstance(value, Tensor) and not value.is_nested
            }
            if tensors:
                yield place, tensors
            for key, value in mapping.items():
                if isinstance(value, Tensor) or id(value) in seen:
                    continue
                parts: Iterable[object] = (value,)
                if isinstance(value, list | tuple):
                    seen.add(id(value))
                    parts = value
                for part in parts:
                    if isinstance(part, Mapping) and id(part) not in seen and count < MAX_TABLES:
                        seen.add(id(part))
                        count += 1
                        inner.append((f"{place}{key_text(key)}.", part))
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
        while len(key) <= MAX_KEY:
            if key[start:] in known:
                counts[key[:start]] += 1
            start = key.find(".", start) + 1
            if not start:
                break
    return counts
