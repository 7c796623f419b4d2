"""What a run begins with where nobody says: the shipped recipe that fits this machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from reid.config import Config, build_config, flatten, read_settings

CPU = "cpu"
"""Name of the recipe, and of the device that it is for."""

NETWORK = ("model.backbone", "model.stages", "model.last_stride")
"""Whoever names one of these has chosen a network, and gets the defaults that all networks have."""

TOGETHER = (("crop.height", "crop.width"), ("train.iterations", "train.epochs", "train.first_epochs"))
"""Settings that are one choice: naming one of them keeps the recipe from setting the others."""


def fitting_recipe(layers: Iterable[Mapping[str, Any]], overrides: Iterable[str] = ()) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings of the recipe that fits this machine, without what the user has named.

    On a GPU, and where a network is named, that is none: an empty name and no settings.

    Args:
        layers: the user's settings, of a file or of options.
        overrides: ``key=value``, likewise.

    Raises:
        ConfigError: an unknown setting, or a value of the wrong kind.
    """
    layers, overrides = list(layers), list(overrides)
    named = {key for layer in layers for key in flatten(layer)}
    named |= {text.partition("=")[0].strip() for text in overrides}
    if build_config(*layers, overrides=overrides).device != CPU or named.intersection(NETWORK):
        return "", {}
    for group in TOGETHER:
        if named.intersection(group):
            named.update(group)
    return CPU, {key: value for key, value in flatten(read_settings(CPU)).items() if key not in named}


def about(config: Config) -> str:
    """Say in one line what the recipe has chosen."""
    train, crop = config.train, config.crop
    batches = f"{train.epochs} epochs" if train.epochs else f"{train.iterations} batches a domain"
    return (
        f"no network is named, so this run takes the recipe {CPU}: {config.model.backbone}, crops of "
        f"{crop.height}×{crop.width}, {batches}; name others with --config or --set"
    )


def is_recipe(config: Config) -> bool:
    """Whether the network and its crops are the recipe's."""
    found, wanted = flatten(config.model_dump()), flatten(read_settings(CPU))
    return all(found[key] == wanted[key] for key in ("model.backbone", *TOGETHER[0]))
