"""Fusions: how the model just trained and the one before it become one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from domains.errors import ConfigError
from reid.config import Entry, nearest

State = dict[str, Tensor]


def average(new: Mapping[str, Tensor], old: Mapping[str, Tensor], *, weight: float = 0.5) -> State:
    """θ = w·θ_new + (1-w)·θ_old for every floating-point entry; fixed 0.5 in DKP (CVPR 2024).

    Of the classifier only the rows that both have are averaged. Counters (BatchNorm's number of
    batches) are the new model's: an average of counts means nothing.
    """
    if not 0 <= weight <= 1:
        raise ConfigError(f"fusion average: weight must lie in 0..1, got {weight!r}")
    fused: State = {}
    for name, value in new.items():
        before = old[name]
        if not value.is_floating_point():
            fused[name] = value.clone()
        elif value.shape == before.shape:
            fused[name] = torch.lerp(before, value, weight)
        else:
            fused[name] = value.clone()
            fused[name][: len(before)] = torch.lerp(before, value[: len(before)], weight)
    return fused


FUSIONS: Mapping[str, Callable[..., State]] = {"average": average}


def fuse(entries: tuple[Entry, ...], new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> State:
    """Apply a method's fusions in their order; raises ConfigError on an unknown one or a wrong parameter."""
    state = dict(new)
    for entry in entries:
        ((name, parameters),) = entry.items()
        state = _named(name)(state, old, **parameters)
    return state


def check_fusions(entries: tuple[Entry, ...]) -> None:
    """Raise ConfigError before any training if a fusion is unknown or its parameters are wrong."""
    probe: dict[str, Any] = {"probe": torch.zeros(1)}
    for entry in entries:
        ((name, parameters),) = entry.items()
        try:
            _named(name)(probe, probe, **parameters)
        except TypeError as error:
            raise ConfigError(f"fusion {name}: {error}") from error


def _named(name: str) -> Callable[..., State]:
    if name not in FUSIONS:
        raise ConfigError(f"unknown fusion {name!r}{nearest(name, FUSIONS)}")
    return FUSIONS[name]
